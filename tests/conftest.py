import pytest
import torch

import course.device  # noqa: F401, before anything imports Triton: without a GPU its kernels are interpreted

# The tests' tensors are tiny: more threads would only wait for each other.
torch.set_num_threads(1)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests evenly among the others: each of the processes that share them gets some, and none
    has one left at the end."""
    longest = [item for item in items if item.get_closest_marker("compiles")]
    items[:] = [item for item in items if item not in longest]
    apart = len(items) // max(len(longest), 1) + 1
    for i, item in enumerate(sorted(longest, key=lambda item: item.callspec.id)):
        items.insert(i * apart, item)

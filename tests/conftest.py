import pytest
import torch

import course.device  # noqa: F401, before anything imports Triton: without a GPU its kernels are interpreted

# The tests' tensors are tiny: more threads would only wait for each other.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first, so that none of the processes that share the tests begins one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("compiles") is None)

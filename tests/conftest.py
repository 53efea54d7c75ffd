import os

import pytest
import torch

import course.device  # noqa: F401, before anything imports Triton: without a GPU its kernels are interpreted

# The tests' tensors are tiny: more threads would only wait for each other.
torch.set_num_threads(1)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each of the processes that share the tests begins with some of the longest, and ends with short ones.

    pytest-xdist gives each an equal part of the list, and who is done takes half of what another has left.
    """
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    longest = [item for item in items if item.get_closest_marker("compiles")]
    others = [item for item in items if item not in longest]
    bounds = [len(others) * i // processes for i in range(processes + 1)]
    parts = [longest[i::processes] + others[bounds[i] : bounds[i + 1]] for i in range(processes)]
    items[:] = [item for part in parts for item in part]

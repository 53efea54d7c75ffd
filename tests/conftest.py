import subprocess

import pytest
import torch
from background import Compilations

import course.device  # noqa: F401, before anything imports Triton: without a GPU its kernels are interpreted

# The tests' tensors are tiny: more threads would only wait for each other.
torch.set_num_threads(1)

COMPILATIONS = Compilations()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin what the tests marked `compiles` will read."""
    if not session.config.option.collectonly:
        for item in session.items:
            for mark in item.iter_markers("compiles"):
                COMPILATIONS.begin(*mark.args, item.callspec.params["gpu"])


@pytest.fixture
def compiled(request: pytest.FixtureRequest, gpu: str) -> subprocess.CompletedProcess:
    """The end of the program that the mark `compiles` names, run for this GPU."""
    return COMPILATIONS.begin(*request.node.get_closest_marker("compiles").args, gpu).result()


def pytest_unconfigure() -> None:
    COMPILATIONS.stop()

"""compute-sanitizer, NVIDIA's checker of memory accesses and races, finds nothing in any kernel."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOMES = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
SANITIZER = shutil.which("compute-sanitizer", path=os.pathsep.join(
    [os.environ.get("PATH", ""), *(f"{home}/bin" for home in HOMES if home)]
))  # fmt: skip
pytestmark = pytest.mark.gpu
needs_sanitizer = pytest.mark.skipif(
    SANITIZER is None, reason="compute-sanitizer is not installed: it is in CUDA's toolkit"
)


def launch(*arguments: str, under: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    # Every tensor is an allocation of its own: else what lies behind one belongs to PyTorch as well.
    env = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*under, sys.executable, "tests/launch_every_kernel.py", *arguments],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def sanitize(tool: str, *arguments: str) -> subprocess.CompletedProcess:
    return launch(*arguments, under=(SANITIZER, "--tool", tool, "--error-exitcode", "9"))


def test_every_kernel_is_launched():
    """What the sanitizer watches is all there is. (It also leaves the machine code in the cache.)"""
    run = launch()
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]


@needs_sanitizer
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_every_kernel_is_clean(tool):
    run = sanitize(tool)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]


@needs_sanitizer
@pytest.mark.parametrize(
    ("tool", "kernel", "words"),
    [("memcheck", "bounds", "Invalid __global__ write"), ("racecheck", "race", "hazard")],
)
def test_a_wrong_kernel_is_found(tool, kernel, words):
    run = sanitize(tool, kernel)
    assert run.returncode == 9 and words in run.stdout and kernel in run.stdout, run.stdout[-4000:]

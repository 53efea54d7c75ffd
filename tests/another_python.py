"""A process of its own for tests: kernels are then not interpreted and not emulated, unless it says so."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
CHOICES = ("TRITON_INTERPRET", "COURSE_EMULATE_CUDA")


def run(*arguments: str) -> subprocess.CompletedProcess:
    """`python *arguments` in the repository's root; never raises for what the program does."""
    environment = {name: value for name, value in os.environ.items() if name not in CHOICES}
    environment["PYTHONPATH"] = os.pathsep.join((str(TESTS.parent), str(TESTS)))
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=TESTS.parent, capture_output=True, text=True
    )

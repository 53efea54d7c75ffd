"""Programs that compile every kernel for a GPU take minutes. They begin when the tests are collected, on the
cores that the tests leave free, so that the tests that read what they print need not wait."""

import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

TESTS = Path(__file__).resolve().parent
OTHERWISE = {"TRITON_INTERPRET", "COURSE_EMULATE_CUDA"}  # what would run kernels in place of compiling them


def python(*arguments: str, politely: bool = False) -> subprocess.Popen:
    """A Python of its own, neither interpreting nor emulating kernels; `politely`, behind all other work."""
    environment = {name: value for name, value in os.environ.items() if name not in OTHERWISE}
    environment["PYTHONPATH"] = os.pathsep.join((str(TESTS.parent), str(TESTS)))
    return subprocess.Popen(
        [*(["nice"] if politely else []), sys.executable, *arguments],
        env=environment, cwd=TESTS.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


class Compilations:
    """What `tests/PROGRAM` prints for a GPU, by (program, gpu)."""

    def __init__(self):
        self._pool = ThreadPoolExecutor(max((os.cpu_count() or 1) // 2, 1))
        self._results: dict[tuple[str, str], Future] = {}
        self._running: set[subprocess.Popen] = set()

    def begin(self, program: str, gpu: str) -> Future:
        """Begin it, where that has not been done."""
        key = program, gpu
        if key not in self._results:
            self._results[key] = self._pool.submit(self._run, *key)
        return self._results[key]

    def _run(self, program: str, gpu: str) -> subprocess.CompletedProcess:
        process = python(f"tests/{program}", gpu, politely=True)
        self._running.add(process)
        out, err = process.communicate()
        self._running.discard(process)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def stop(self) -> None:
        """Leave nothing running, for the tests are over or were interrupted."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in list(self._running):
            process.kill()

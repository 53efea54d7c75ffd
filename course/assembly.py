"""What compilers make of a kernel, for any GPU, on any machine that has them: assembly, to read.

`ptx` is Triton's. Where its kernels are interpreted they cannot be compiled in the same process, so a fresh
one does it. `sass` is the machine code that NVIDIA's NVRTC makes of CUDA C++.
"""

import importlib.util
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HEAD = "import triton\nimport triton.language as tl\n\n\n"


def ptx(kernel, *arguments, gpu: str = "H100", **options) -> str:
    """The PTX of a `@triton.jit` function, one that calls no other of yours.

    `arguments` are those of a launch; for a tensor, its dtype is enough. Of a number the compiler uses
    whether it is 1, and whether 16 divides it. `options` are the kernel's constants and `num_warps`. Raises
    `RuntimeError` with the compiler's words if it does not compile, `ValueError` for a `gpu` that is
    none of `kernels.triton.ahead.GPUS`.
    """
    from kernels.triton.ahead import GPUS  # here, so that this module is there where Triton is not

    if gpu not in GPUS:
        raise ValueError(f"Unknown GPU {gpu!r}: choose one of {', '.join(GPUS)}.")
    task = {
        "source": HEAD + inspect.getsource(kernel.fn),
        "name": kernel.fn.__name__,
        "arguments": [_plain(x) for x in arguments],
        "gpu": gpu,
        "options": options,
    }
    child = subprocess.run(
        [sys.executable, "-m", "course.assembly"],
        input=json.dumps(task),
        env=os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )
    if child.returncode:
        raise RuntimeError(f"{task['name']} does not compile for {gpu}:\n{child.stderr.strip()[-2000:]}")
    return child.stdout


def sass(source: str | Path, *, capability: int = 90, **options) -> str:
    """The machine code of CUDA C++ as text, for GPUs of that compute capability, 90 for an H100.

    `source` and `options` are what `kernels.cuda.module.load` takes; it raises the same errors, and
    `RuntimeError` with what to install where there is no compiler, or nothing that can read its code.
    """
    from kernels.cuda.module import cubin

    code = cubin(source, capability=capability, **options)
    reader = shutil.which("cuobjdump")  # of a CUDA toolkit
    if reader is None and (triton := importlib.util.find_spec("triton")):
        reader = shutil.which("cuobjdump", path=str(Path(triton.origin).parent / "backends/nvidia/bin"))
    if reader is None:
        raise RuntimeError("There is no cuobjdump here; Triton's package has one: pip install triton.")
    return dump(code, "-sass", reader)


def dump(code: bytes, option: str, reader: str) -> str:
    """What the cuobjdump at `reader` says of machine code. Raises `RuntimeError` if it cannot read it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(code)
        done = subprocess.run([reader, option, file], capture_output=True, text=True)
    if done.returncode:  # it may be older than the compiler
        raise RuntimeError(f"cuobjdump cannot read this code: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def _plain(x):
    """A tensor or dtype as the name of its dtype, which JSON can hold."""
    dtype = str(getattr(x, "dtype", x))
    return dtype if dtype.startswith("torch.") else x


def _compile(task: dict) -> str:
    import torch

    from kernels.triton import ahead
    from kernels.triton.launch import launch

    with tempfile.TemporaryDirectory() as folder:  # a file, because Triton reads the source of a function
        file = Path(folder) / "kernel.py"
        file.write_text(task["source"], encoding="utf-8")
        spec = importlib.util.spec_from_file_location("kernel", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        with ahead.compiling(ahead.GPUS[task["gpu"]]) as compiled:
            arguments = [
                torch.empty(16, dtype=getattr(torch, x.removeprefix("torch."))) if isinstance(x, str) else x
                for x in task["arguments"]
            ]
            launch(getattr(module, task["name"]), (1,), *arguments, **task["options"])
    return compiled[0].kernel.asm["ptx"]


if __name__ == "__main__":
    print(_compile(json.load(sys.stdin)))

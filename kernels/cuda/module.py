"""`load` a `.cu` file and launch its kernels on tensors: `rows.softmax_forward[grid, block](x, y, R, C)`.

The source is compiled for the GPU that is here (`kernels.cuda.nvrtc`), or as plain C++ for the CPU where
there is none (`kernels.cuda.emulator`). Both take the same files, and both are called in the same way.
"""

import os
from pathlib import Path

import torch
from torch._subclasses import FakeTensor

from kernels.cuda import emulator, gpu
from kernels.cuda.arguments import check_arguments, launch_shape
from kernels.cuda.signature import SCALARS, Signature, signatures

HERE = Path(__file__).parent


def load(
    source: str | Path, *, scalar: torch.dtype = torch.float32, emulate: bool | None = None, **macros
) -> "Module":
    """Compile a source, and give its kernels.

    `source` is the name of a file beside this package's own (`"rows.cu"`), a `Path`, or CUDA C++ itself.
    `scalar` is what the type of that name stands for in it: float32, float16 or bfloat16. Other keywords
    become macros: `BLOCK=256`. `emulate` says whether kernels run on the CPU; left out, they do if PyTorch
    sees no GPU, or if the environment says COURSE_EMULATE_CUDA=1.

    Raises `FileNotFoundError` for a file that is not there, `TypeError` for another scalar, `ValueError` for
    kernels that cannot be launched, and `CompileError` with the source's line for what is not CUDA C++.
    """
    plain, text, name, folder = texts(source, scalar, macros)
    if emulate is None:
        emulate = not torch.cuda.is_available() or os.environ.get("COURSE_EMULATE_CUDA") == "1"
    try:
        found = signatures(plain, SCALARS[scalar])
    except ValueError as wrong:
        raise ValueError(f"{name}, {wrong}") from None
    if emulate:
        library = emulator.compile(text, name, [folder], ())
        return Module(name, {k: EmulatedKernel(signature, library) for k, signature in found.items()})
    code = gpu.Code(text, name, folder)
    code.compile(torch.cuda.current_device())
    return Module(name, {k: gpu.GpuKernel(signature, code) for k, signature in found.items()})


def texts(source: str | Path, scalar: torch.dtype, macros: dict) -> tuple[str, str, str, Path]:
    """-> a source's text, what a compiler gets of it, its name in messages, and its headers' folder.

    Takes what `load` does, and raises the same for a file or a scalar that is none.
    """
    if scalar not in SCALARS:
        raise TypeError(f"load: scalar is one of {', '.join(map(str, SCALARS))}, got {scalar!r}.")
    text, name, folder = _read(source)
    before = [f"typedef {SCALARS[scalar]} scalar;", *(f"#define {k} {_macro(v)}" for k, v in macros.items())]
    return text, "\n".join([*before, f'#line 1 "{name}"', text]), name, folder


def _read(source: str | Path) -> tuple[str, str, Path]:
    """-> the text, its name in messages, and the folder in which its headers are looked for."""
    if isinstance(source, str) and ("__global__" in source or "\n" in source):
        return source, "source.cu", HERE
    path = Path(source) if isinstance(source, Path) or Path(source).is_absolute() else HERE / source
    if not path.is_file():
        near = ", ".join(sorted(p.name for p in HERE.glob("*.cu")))
        raise FileNotFoundError(f"load: there is no file {path}. Beside the package's own are: {near}.")
    return path.read_text(encoding="utf-8"), path.name, path.parent


def _macro(value) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


class Module:
    """The kernels of one source, as attributes."""

    def __init__(self, name: str, kernels: dict):
        self._name, self._kernels = name, kernels
        self.__dict__.update(kernels)

    def __getattr__(self, name: str):
        raise AttributeError(f"{self._name} has no kernel {name}; it has {', '.join(self._kernels)}.")

    def __repr__(self) -> str:
        return f"<{self._name}: {', '.join(self._kernels)}>"


class EmulatedKernel:
    """A kernel on the CPU: `kernel[grid, block](*arguments)`, or `kernel[grid, block, shared_bytes](..)`."""

    def __init__(self, signature: Signature, library):
        self.signature, self._library = signature, library

    def __getitem__(self, shape: tuple):
        grid, block, shared_bytes = launch_shape(self.signature.name, shape)

        def launch(*arguments) -> None:
            check_arguments(self.signature, arguments, "cpu")
            if not any(isinstance(a, FakeTensor) for a in arguments):
                emulator.launch(self._library, self.signature, grid, block, shared_bytes, arguments)

        return launch

"""`load` a `.cu` file and launch its kernels on tensors: `rows.softmax_forward[grid, block](x, y, R, C)`.

The source is compiled for the GPU that is here (`kernels.cuda.nvrtc`), or as plain C++ for the CPU where
there is none (`kernels.cuda.emulator`). Both take the same files, and both are called in the same way.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch._subclasses import FakeTensor

from kernels.cuda import emulator, gpu, nvrtc
from kernels.cuda.arguments import Kernel, check_arguments, launch_shape
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
    read = _read(source, scalar, macros)
    if emulated() if emulate is None else emulate:
        library = emulator.compile(read.text, read.name, [read.folder], ())
        return Module(read.name, {k: EmulatedKernel(s, library) for k, s in read.signatures.items()})
    code = gpu.Code(read.text, read.name, read.folder)
    code.compile(torch.cuda.current_device())
    return Module(read.name, {k: gpu.GpuKernel(s, code) for k, s in read.signatures.items()})


def emulated() -> bool:
    """Whether kernels run on the CPU where nobody says otherwise."""
    return not torch.cuda.is_available() or os.environ.get("COURSE_EMULATE_CUDA") == "1"


def resources(
    source: str | Path, *, scalar: torch.dtype = torch.float32, capability: int | None = None, **macros
) -> dict[str, nvrtc.Resources]:
    """What every kernel of a source takes of a processor: registers, shared memory, spilled bytes.

    For compute capability `capability`, 90 for an H100; left out, for the GPU that is here. Raises as `load`.
    """
    read = _read(source, scalar, macros)
    if capability is None:
        major, minor = torch.cuda.get_device_capability()
        capability = 10 * major + minor
    return nvrtc.resources(read.text, read.name, read.folder, capability)


def cubin(
    source: str | Path, *, scalar: torch.dtype = torch.float32, capability: int = 90, **macros
) -> bytes:
    """The machine code of a source for GPUs of a compute capability, 90 for an H100. Raises as `load`."""
    read = _read(source, scalar, macros)
    return nvrtc.compile(read.text, read.name, read.folder, capability)


class Source(NamedTuple):
    """A source as compilers get it, with its scalar and its macros."""

    text: str
    name: str  # in messages
    folder: Path  # of its headers
    signatures: dict[str, Signature]


def _read(source: str | Path, scalar: torch.dtype, macros: dict) -> Source:
    if scalar not in SCALARS:
        raise TypeError(f"load: scalar is one of {', '.join(map(str, SCALARS))}, got {scalar!r}.")
    if isinstance(source, str) and ("__global__" in source or "\n" in source):
        text, name, folder = source, "source.cu", HERE
    else:
        path = source if isinstance(source, Path) else HERE / source
        if not path.is_file():
            near = ", ".join(str(p.relative_to(HERE)) for p in sorted(HERE.rglob("*.cu")))
            raise FileNotFoundError(f"load: there is no file {path}. The package's own are: {near}.")
        text, name, folder = path.read_text(encoding="utf-8"), path.name, path.parent
    try:
        found = signatures(text, SCALARS[scalar])
    except ValueError as wrong:
        raise ValueError(f"{name}, {wrong}") from None
    before = [f"typedef {SCALARS[scalar]} scalar;", *(f"#define {k} {_macro(v)}" for k, v in macros.items())]
    return Source("\n".join([*before, f'#line 1 "{name}"', text]), name, folder, found)


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


class EmulatedKernel(Kernel):
    """A kernel on the CPU: `kernel[grid, block](*arguments)`, or `kernel[grid, block, shared_bytes](..)`."""

    def __init__(self, signature: Signature, library):
        self.signature, self.library = signature, library

    def __getitem__(self, shape: tuple) -> "EmulatedLaunch":
        return EmulatedLaunch(self, *launch_shape(self.signature.name, shape))


class EmulatedLaunch:
    """A kernel with a grid, a block and its shared memory; call it with the arguments."""

    def __init__(self, kernel: EmulatedKernel, grid: tuple, block: tuple, shared_bytes: int):
        self.kernel, self.shape = kernel, (grid, block, shared_bytes)

    def __call__(self, *arguments) -> None:
        """Raises `TypeError` or `ValueError` for arguments that the kernel cannot take, before the launch."""
        check_arguments(self.kernel.signature, arguments, "cpu")
        if not any(isinstance(a, FakeTensor) for a in arguments):
            emulator.launch(self.kernel.library, self.kernel.signature, *self.shape, arguments)

    def prepare(self, *numbers) -> Callable[..., None]:
        """This launch with its last arguments given: a function of the tensors, which come first."""
        count = len(self.kernel.signature.parameters) - len(numbers)
        check_arguments(self.kernel.signature, (None,) * count + numbers, "cpu")
        return lambda *tensors: self(*tensors, *numbers)

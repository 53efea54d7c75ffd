"""`load` a `.cu` file and launch its kernels on tensors: `rows.softmax_forward[grid, block](x, y, R, C)`.

The source is compiled for the GPU that is here (`kernels.cuda.nvrtc`), or as plain C++ for the CPU where
there is none (`kernels.cuda.emulator`). Both take the same files, and both are called in the same way.
"""

from pathlib import Path

import torch
from torch import Tensor

from kernels.cuda.signature import DTYPES, SCALARS, TENSOR_MAP, Parameter, Signature, signatures

HERE = Path(__file__).parent
INTEGERS = {
    "int": (-(2**31), 2**31 - 1),
    "unsigned": (0, 2**32 - 1),
    "int8_t": (-(2**7), 2**7 - 1),
    "uint8_t": (0, 2**8 - 1),
    "int64_t": (-(2**63), 2**63 - 1),
}


def load(
    source: str | Path, *, scalar: torch.dtype = torch.float32, emulate: bool | None = None, **macros
) -> "Module":
    """Compile a source, and give its kernels.

    `source` is the name of a file beside this package's own (`"rows.cu"`), a `Path`, or CUDA C++ itself.
    `scalar` is what the type of that name stands for in it: float32, float16 or bfloat16. Other keywords
    become macros: `BLOCK=256`. `emulate` says whether kernels run on the CPU; left out, they do if PyTorch
    sees no GPU.

    Raises `FileNotFoundError` for a file that is not there, `TypeError` for another scalar, `ValueError` for
    kernels that cannot be launched, and `CompileError` with the source's line for what is not CUDA C++.
    """
    if scalar not in SCALARS:
        raise TypeError(f"load: scalar is one of {', '.join(map(str, SCALARS))}, got {scalar!r}.")
    text, name, folder = _read(source)
    if emulate is None:
        emulate = not torch.cuda.is_available()
    options = tuple(f"-D{macro}={_macro(value)}" for macro, value in macros.items())
    typed = f'typedef {SCALARS[scalar]} scalar;\n#line 1 "{name}"\n{text}'
    found = signatures(text, SCALARS[scalar])
    if emulate:
        from kernels.cuda import emulator

        library = emulator.compile(typed, name, [folder], options)
        return Module(name, {k: EmulatedKernel(s, library) for k, s in found.items()})
    raise NotImplementedError("the launch path for GPUs is being written")


def _read(source: str | Path) -> tuple[str, str, Path]:
    """-> the text, its name in messages, and the folder in which its headers are looked for."""
    if isinstance(source, str) and "__global__" in source:
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

        from kernels.cuda import emulator

        def launch(*arguments) -> None:
            check_arguments(self.signature, arguments, "cpu")
            emulator.launch(self._library, self.signature, grid, block, shared_bytes, arguments)

        return launch


def launch_shape(kernel: str, shape: tuple) -> tuple[tuple[int, int, int], tuple[int, int, int], int]:
    """What stands in the brackets, `grid, block` or `grid, block, shared_bytes` -> all three, in full.

    Raises `ValueError` for what no GPU can launch.
    """
    if not isinstance(shape, tuple) or len(shape) not in (2, 3):
        raise ValueError(f"{kernel}: expected kernel[grid, block] or kernel[grid, block, shared_bytes].")
    grid, block = _three(kernel, "grid", shape[0]), _three(kernel, "block", shape[1])
    shared_bytes = shape[2] if len(shape) == 3 else 0
    if not isinstance(shared_bytes, int) or shared_bytes < 0:
        raise ValueError(f"{kernel}: shared memory is a number of bytes, got {shared_bytes!r}.")
    threads = block[0] * block[1] * block[2]
    if threads > 1024 or block[2] > 64:
        raise ValueError(
            f"{kernel}: a block of {block} has {threads} threads; at most 1024 are possible, "
            "and at most 64 in z."
        )
    if grid[0] >= 2**31 or grid[1] > 65535 or grid[2] > 65535:
        raise ValueError(f"{kernel}: a grid has at most (2147483647, 65535, 65535) blocks, got {grid}.")
    return grid, block, shared_bytes


def _three(kernel: str, what: str, size: int | tuple[int, ...]) -> tuple[int, int, int]:
    sizes = size if isinstance(size, tuple) else (size,)
    if not 1 <= len(sizes) <= 3 or not all(isinstance(n, int) and n >= 1 for n in sizes):
        raise ValueError(f"{kernel}: {what} is a whole number from 1 up, or up to three, got {size!r}.")
    return (*sizes, 1, 1)[:3]


def check_arguments(signature: Signature, arguments: tuple, device: str) -> None:
    """Raises `TypeError` or `ValueError` with the first argument that the kernel cannot take, in words.

    Pointers take tensors of exactly their dtype on `device`, or None.
    """
    expected = signature.parameters
    if len(arguments) != len(expected):
        raise TypeError(f"{signature}: expected {len(expected)} arguments, got {len(arguments)}.")
    for parameter, argument in zip(expected, arguments):
        wrong = _wrong(parameter, argument, device)
        if wrong:
            kind, what = wrong
            raise kind(f"{signature.name}: {what}.")


def _wrong(parameter: Parameter, argument, device: str) -> tuple[type[Exception], str] | None:
    name, kind = parameter.name, parameter.type
    if parameter.pointer:
        dtype = DTYPES[kind]
        if argument is None:
            return None
        if not isinstance(argument, Tensor):
            return TypeError, f"{name} is a tensor of {dtype} (`{parameter}`), got {_what(argument)}"
        if argument.dtype != dtype:
            return TypeError, f"{name} is a tensor of {dtype} (`{parameter}`), got one of {argument.dtype}"
        if str(argument.device) != device:
            return ValueError, f"{name} is a tensor on {argument.device}, and the kernel runs on {device}"
        return None
    if kind in INTEGERS:
        low, high = INTEGERS[kind]
        if not hasattr(argument, "__index__") or isinstance(argument, Tensor):
            return TypeError, f"{name} is a whole number (`{parameter}`), got {_what(argument)}"
        if not low <= argument <= high:
            return ValueError, f"{name} (`{parameter}`) goes from {low} to {high}, got {argument}"
    elif kind == "bool":
        if not isinstance(argument, bool):
            return TypeError, f"{name} is True or False (`{parameter}`), got {_what(argument)}"
    elif kind == TENSOR_MAP:
        return TypeError, f"{name} is a tensor map (`{parameter}`), got {_what(argument)}"
    elif not hasattr(argument, "__float__") or isinstance(argument, Tensor):
        return TypeError, f"{name} is a number (`{parameter}`), got {_what(argument)}"
    return None


def _what(argument) -> str:
    if isinstance(argument, Tensor):
        return f"a tensor of {argument.dtype}"
    return f"{argument!r} ({type(argument).__name__})"

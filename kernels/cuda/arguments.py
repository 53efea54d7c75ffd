"""What a launch is given, checked before it: in words, because a GPU would only say `invalid argument`."""

import operator

from torch import Tensor

from kernels.cuda.signature import DTYPES, TENSOR_MAP, Parameter, Signature
from kernels.cuda.tensor_map import TensorMap

INTEGERS = {
    "int": (-(2**31), 2**31 - 1),
    "unsigned": (0, 2**32 - 1),
    "int8_t": (-(2**7), 2**7 - 1),
    "uint8_t": (0, 2**8 - 1),
    "int64_t": (-(2**63), 2**63 - 1),
}


class Kernel:
    """What a kernel of a source is before it has a grid and a block."""

    signature: Signature

    def __call__(self, *arguments) -> None:
        name = self.signature.name
        raise TypeError(f"{name}: say how many blocks and threads first: {name}[grid, block](..).")


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
    if not 1 <= len(sizes) <= 3 or not all(hasattr(n, "__index__") and n >= 1 for n in sizes):
        raise ValueError(f"{kernel}: {what} is a whole number from 1 up, or up to three, got {size!r}.")
    return (*map(operator.index, sizes), 1, 1)[:3]


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
        if place(argument) != device:
            return ValueError, _elsewhere(name, place(argument), device)
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
        if not isinstance(argument, TensorMap):
            return TypeError, f"{name} is made by tensor_map (`{parameter}`), got {_what(argument)}"
    elif not hasattr(argument, "__float__") or isinstance(argument, Tensor):
        return TypeError, f"{name} is a number (`{parameter}`), got {_what(argument)}"
    return None


def _what(argument) -> str:
    if isinstance(argument, Tensor):
        return f"a tensor of {argument.dtype}"
    if argument is None:
        return "None"
    shown = f"{argument!r} " if isinstance(argument, int | float | str) else ""
    return f"{shown}({type(argument).__name__})"


def place(x: Tensor) -> str:
    """Where a tensor is: `cpu`, `cuda:0`."""
    return str(x.device)


def _elsewhere(name: str, has: str, runs: str) -> str:
    if has == "cpu":
        remedy = "move it with .to('cuda'), or load the source with emulate=True for the CPU"
    elif runs == "cpu":
        remedy = "move it with .cpu(), or load the source with emulate=False for the GPU"
    else:
        remedy = "put all on one device"
    return f"{name} is a tensor on {has}, and the kernel runs on {runs}; {remedy}"

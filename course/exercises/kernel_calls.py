"""Calling an answer that launches a kernel: PyTorch may make room for results, and compute nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from course import device
from course.exercises.checking import Wrong

# What a launcher needs of PyTorch is memory and views; this is arithmetic that a kernel should do.
_ARITHMETIC = {
    "add", "sub", "mul", "div", "exp", "log", "sum", "mean", "max", "amax", "logsumexp", "softmax",
    "_softmax", "log_softmax", "_log_softmax", "addcmul", "mm", "bmm", "addmm", "baddbmm", "exp2", "rsub",
    "addcdiv", "sigmoid", "silu", "sqrt", "rsqrt", "pow", "clamp", "minimum", "neg", "lerp",
}  # fmt: skip


class _OnlyKernels(TorchDispatchMode):
    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        if name == "_local_scalar_dense":
            raise Wrong("A tensor was turned into a Python number here: for that the CPU waits for the GPU.")
        if name.rstrip("_") in _ARITHMETIC or name in _ARITHMETIC:
            raise Wrong(f"PyTorch computed `{name}` here: all arithmetic should happen in your kernel.")
        return operation(*args, **(kwargs or {}))


@contextmanager
def only_kernels() -> Iterator[None]:
    """Raises `Wrong` if PyTorch computes anything inside, or fetches a number from the GPU."""
    with _OnlyKernels():
        yield
    if device.DEVICE.type == "cuda":
        torch.cuda.synchronize()  # a fault in the kernel shows here, not in a later cell


def call(function, *arguments, shape: tuple, dtype: torch.dtype) -> torch.Tensor:
    """`function(*arguments)`; raises `Wrong` if PyTorch computed in it, or for another shape or dtype."""
    with only_kernels():
        y = function(*arguments)
    if not isinstance(y, torch.Tensor):
        raise Wrong(f"The function should return a tensor, and returns a {type(y).__name__}.")
    if tuple(y.shape) != shape:
        raise Wrong(f"The result has shape {tuple(y.shape)}, expected {shape}.")
    if y.dtype != dtype:
        raise Wrong(f"The result is {y.dtype}, expected {dtype}.")
    return y

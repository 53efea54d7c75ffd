"""What every operation of this engine does before its kernels run: check, load, look at the GPU."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from kernels.cuda.module import Module, emulated, load

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Like(NamedTuple):
    """What of a tensor decides how it is computed with."""

    shape: tuple
    strides: tuple
    dtype: torch.dtype
    device: torch.device


def like(x: Tensor | None) -> tuple | None:
    """The fields of `Like`. Tensors of one kind are computed with in one way, every time: functions that
    decide it take what this gives, and keep their answers (`functools.lru_cache`)."""
    return None if x is None else (x.shape, x.stride(), x.dtype, x.device)


def likes(*fields: tuple | None) -> list[Like | None]:
    """What `like` gave, with names."""
    return [x and Like(*x) for x in fields]


def without_data(x: Tensor) -> bool:
    """Whether x is a shape only, under `torch.compile`'s tracing: an operation then allocates, and launches
    nothing."""
    return isinstance(x, FakeTensor)


def check(operation: str, *tensors) -> None:
    """All tensors (or what `like` says of them) on one device, all floating-point ones of one of `DTYPES`.

    Raises `TypeError` for dtypes, `ValueError` for devices, `RuntimeError` for a tensor on the CPU of a
    machine with a GPU. An input that is None is left out.
    """
    tensors = [x for x in tensors if x is not None]
    device = tensors[0].device
    for x in tensors:
        if x.device != device:
            raise ValueError(f"{operation}: tensors on {device} and on {x.device}; put all on one device.")
    floats = dict.fromkeys(x.dtype for x in tensors if x.dtype.is_floating_point)
    for dtype in floats:
        if dtype not in DTYPES:
            raise TypeError(
                f"{operation}: the cuda engine computes in float32, bfloat16 and float16, not in "
                f"{str(dtype).removeprefix('torch.')}; convert its tensors."
            )
    if len(floats) > 1:
        raise TypeError(
            f"{operation}: tensors of {' and of '.join(map(str, floats))}; convert all to one dtype."
        )
    if device.type not in ("cuda", "cpu"):
        raise ValueError(f"{operation}: the cuda engine has no kernels for tensors on {device}.")
    if device.type == "cpu" and not emulated():
        raise RuntimeError(
            f"{operation}: these tensors are on the CPU, and this machine has a GPU: move them there with "
            '.to("cuda").'
        )


def check_gradient(operation: str, dy: Tensor, y: Tensor) -> None:
    """A gradient has the shape of what it is the gradient of: a kernel would read past its end."""
    if dy.shape != y.shape:
        raise ValueError(
            f"{operation}: a result of shape {tuple(y.shape)} has no gradient {tuple(dy.shape)}."
        )


@functools.cache
def module(file: str, dtype: torch.dtype = torch.float32, **macros: int) -> Module:
    """The kernels of a file, compiled with `scalar` for `dtype`, loaded once."""
    return load(file, scalar=dtype, **macros)


@functools.cache
def processors(device: torch.device) -> int:
    """How many blocks must run to keep the whole GPU busy; the emulator plays a small one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


@functools.cache
def shared_memory(device: torch.device) -> int:
    """How many bytes of shared memory a block may have; the emulator plays a GPU that has 64 KiB."""
    if device.type == "cpu":
        return 64 * 1024
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def empty(x: Tensor) -> Tensor:
    """A contiguous tensor like x, with nothing in it yet."""
    if x.is_contiguous():
        return torch.empty_like(x)  # half the time of the next line
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def integers(operation: str, name: str, ids: Tensor) -> Tensor:
    """Ids or targets as kernels read them: int64, without gaps. Raises `TypeError` for fractions."""
    if ids.dtype is not torch.int64:
        if ids.is_floating_point() or ids.is_complex():
            raise TypeError(f"{operation}: {name} must be integers, not {ids.dtype}.")
        ids = ids.long()
    return ids.contiguous()


def nothing(*_) -> None:
    """The launch for arrays that have no numbers."""


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)

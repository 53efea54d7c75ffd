"""What a Hopper GPU's copy engine, the TMA, is told about an array in order to fetch tiles of it."""

import ctypes
import functools

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from kernels.cuda import driver

_DTYPES = {
    torch.uint8: 0,
    torch.int32: 3,
    torch.int64: 5,
    torch.float16: 6,
    torch.float32: 7,
    torch.float64: 8,
    torch.bfloat16: 9,
}
_SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}


class TensorMap(bytes):
    """The 128 bytes of a CUtensorMap, argument for a `const __grid_constant__ CUtensorMap` parameter."""


def tensor_map(x: Tensor, tile: tuple[int, ...], swizzle: int = 0) -> TensorMap:
    """How to fetch tiles of shape `tile` of x, with zeros for what lies outside of it.

    x has up to 5 dimensions, the last without gaps, the others at multiples of 16 bytes. `swizzle` is the
    number of bytes, 32, 64 or 128, within which 16-byte pieces change places in shared memory, so that a
    column's pieces lie in different banks; 0 leaves them in order. Made once for an address and a shape.

    A kernel may ask for tiles that begin anywhere, also outside, but in the last dimension only at multiples
    of 16 bytes: any other is an illegal instruction, and no check before the launch can know of it.

    Raises `ValueError` for what the copy engine cannot fetch, `TypeError` for a dtype that it does not know.
    """
    size = x.element_size()
    if x.dtype not in _DTYPES:
        raise TypeError(f"tensor_map: the copy engine knows no {x.dtype}.")
    if not 1 <= x.dim() == len(tile) <= 5:
        raise ValueError(f"tensor_map: x {tuple(x.shape)} and its tile {tile} need one number a dimension.")
    if x.stride(-1) != 1 or any(s <= 0 or s * size % 16 for s in x.stride()[:-1]):
        raise ValueError(
            f"tensor_map: of the strides {x.stride()} of {x.dtype} the last must be 1 and the others, "
            "in bytes, multiples of 16; copy x with padding."
        )
    if max(tile) > 256 or min(tile) < 1 or tile[-1] * size % 16 or (swizzle and tile[-1] * size > swizzle):
        raise ValueError(
            "tensor_map: a tile has up to 256 elements a dimension; its rows have a multiple of 16 bytes, "
            f"not more than the swizzle; got {tile} of {x.dtype} with swizzle {swizzle}."
        )
    if isinstance(x, FakeTensor):
        return TensorMap(128)
    if x.data_ptr() % 16:
        raise ValueError("tensor_map: x must begin at a multiple of 16 bytes; copy it.")
    strides = tuple(s * size for s in x.stride()[:-1])
    return _encoded(x.data_ptr(), _DTYPES[x.dtype], tuple(x.shape), strides, tile, _SWIZZLES[swizzle])


@functools.lru_cache(maxsize=1024)
def _encoded(address: int, dtype: int, shape: tuple, strides: tuple, tile: tuple, swizzle: int) -> TensorMap:
    memory = ctypes.create_string_buffer(128 + 64)
    start = -ctypes.addressof(memory) % 64  # where the driver wants it
    rank = len(shape)
    driver.call(
        "cuTensorMapEncodeTiled",
        ctypes.c_void_p(ctypes.addressof(memory) + start),
        dtype,
        rank,
        ctypes.c_void_p(address),
        (ctypes.c_uint64 * rank)(*reversed(shape)),  # the driver counts from the innermost dimension
        (ctypes.c_uint64 * rank)(*reversed(strides)),
        (ctypes.c_uint32 * rank)(*reversed(tile)),
        (ctypes.c_uint32 * rank)(*[1] * rank),
        0,  # not interleaved
        swizzle,
        2,  # fetched into the L2 cache in pieces of 128 bytes
        0,  # zeros outside
    )
    return TensorMap(memory.raw[start : start + 128])

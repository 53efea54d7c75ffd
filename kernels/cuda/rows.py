"""How rows are laid out and shared by threads: what the host decides for the kernels that use `rows.cuh`."""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.cuda.launch import Like, cdiv, module
from kernels.cuda.module import Module

WIDEST = 16 * 1024  # numbers that a block holds without spilling registers


class Shape(NamedTuple):
    """The macros of `rows.cuh`."""

    ROW_THREADS: int
    BLOCK_ROWS: int
    PIECES: int
    VECTOR: int
    HELD: bool
    EXACT: bool

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.ROW_THREADS * self.BLOCK_ROWS

    def blocks(self, n_rows: int) -> int:
        """How many blocks work on all rows at once."""
        return cdiv(n_rows, self.BLOCK_ROWS)

    def kernels(self, file: str, dtype: torch.dtype) -> Module:
        """Those of a file, compiled for such rows."""
        return module(file, dtype, **self._asdict())


def rows(x: Tensor) -> Tensor:
    """x `(..., C)`, or a copy if its rows do not lie at one distance, each without gaps."""
    if x.is_contiguous() or (x.dim() == 2 and x.stride(1) == 1):
        return x
    x = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()


def row_stride(x: Like | None) -> int:
    """How far it is from a row of what `rows` gave to the next; 0 for None."""
    if x is None:
        return 0
    return x.strides[0] if len(x.shape) == 2 else x.shape[-1]


def aligned(*tensors: Tensor | None) -> bool:
    """Whether all begin at multiples of 16 bytes."""
    together = 0
    for x in tensors:
        if x is not None:
            together |= x.data_ptr()
    return together % 16 == 0


def shape(
    x: Like,
    aligned: bool,
    *others: Like | None,
    warp: int = 1024,
    thread_bytes: int = 64,
    threads: int = 1024,
    widest: int | None = None,
) -> Shape:
    """For the rows of x and of others like it: 16 bytes at a time, if all are `aligned` and all rows are.

    A warp holds a row of up to `warp` numbers. Of a wider one each thread of a block holds `thread_bytes`, or
    more if there would be more than `threads`. Of a row with more than `widest` a chunk is held at a time.
    """
    vector = 16 // x.dtype.itemsize
    wide = aligned and all(row_stride(z) % vector == 0 for z in (x, *others))
    numbers = thread_bytes // x.dtype.itemsize
    return _shape(x.shape[-1], vector if wide else 1, warp, numbers, threads, widest)


@functools.cache
def _shape(C: int, vector: int, warp: int, numbers: int, threads: int, widest: int | None) -> Shape:
    if C % vector:
        vector = 1
    block_rows = 4 if warp >= C else 1
    threads = 32 if warp >= C else min(max(1 << (cdiv(C, numbers) - 1).bit_length(), 64), threads)
    held = C if widest is None else min(C, widest)
    pieces = max(cdiv(held, threads * vector), 1)
    chunk = pieces * threads * vector
    return Shape(threads, block_rows, pieces, vector, HELD=chunk >= C, EXACT=chunk == C)

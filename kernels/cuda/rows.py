"""How rows are laid out and shared by threads: what the host decides for the kernels that use `rows.cuh`."""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.cuda.launch import Like, cdiv, module
from kernels.cuda.module import Module

NUMBERS = 16  # of a row that a thread holds, where the row has a block
WIDEST = 16 * 1024  # numbers that a block holds: wider rows go through it in chunks, or spill


class Shape(NamedTuple):
    """The macros of `rows.cuh`."""

    ROW_THREADS: int
    BLOCK_ROWS: int
    PIECES: int
    VECTOR: int

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


def shape(x: Like, aligned: bool, *others: Like | None, widest: int | None = None) -> Shape:
    """For the rows of x and of others like it: a warp for up to 1024 numbers, a block for more; 16 bytes at a
    time if all are `aligned` and stay so from row to row.

    Of rows with more than `widest` numbers a chunk is held at a time.
    """
    vector = 16 // x.dtype.itemsize
    wide = aligned and all(row_stride(z) % vector == 0 for z in (x, *others))
    return _shape(x.shape[-1], vector if wide else 1, widest)


@functools.cache
def _shape(C: int, vector: int, widest: int | None) -> Shape:
    if C % vector:
        vector = 1
    threads, block_rows = 32, 4
    if C > 1024:
        threads, block_rows = min(max(1 << (cdiv(C, NUMBERS) - 1).bit_length(), 64), 1024), 1
    held = C if widest is None else min(C, widest)
    return Shape(threads, block_rows, max(cdiv(held, threads * vector), 1), vector)

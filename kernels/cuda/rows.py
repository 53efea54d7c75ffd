"""How rows are laid out and shared by threads: what the host decides for the kernels that use `rows.cuh`."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.cuda.launch import cdiv, module

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
        return self.ROW_THREADS * self.BLOCK_ROWS

    def blocks(self, n_rows: int) -> int:
        """How many blocks work on all rows at once."""
        return cdiv(n_rows, self.BLOCK_ROWS)


@functools.cache
def shape(C: int, dtype: torch.dtype, aligned: bool, widest: int | None = None) -> Shape:
    """For rows of C numbers: a warp for up to 1024 of them, a block for more; 16 bytes at a time if possible.

    `aligned`: whether every row begins at a multiple of 16 bytes. Of rows with more than `widest` numbers a
    chunk is held at a time.
    """
    vector = 16 // dtype.itemsize
    if not aligned or C % vector:
        vector = 1
    threads, block_rows = 32, 4
    if C > 1024:
        threads, block_rows = min(max(1 << (cdiv(C, NUMBERS) - 1).bit_length(), 64), 1024), 1
    held = C if widest is None else min(C, widest)
    return Shape(threads, block_rows, max(cdiv(held, threads * vector), 1), vector)


def kernels(file: str, dtype: torch.dtype, shape: Shape):
    """The kernels of a file, compiled for such rows."""
    return module(file, dtype, **shape._asdict())


def rows(x: Tensor) -> Tensor:
    """x `(..., C)` as `(rows, C)` whose columns are neighbours: a view, or a copy where there is none."""
    if x.dim() != 2:
        x = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def aligned(*tensors: Tensor | None) -> bool:
    """Whether all begin at multiples of 16 bytes, and so do all their rows."""
    for x in tensors:
        if x is not None and (x.data_ptr() % 16 or (x.dim() == 2 and x.stride(0) * x.element_size() % 16)):
            return False
    return True

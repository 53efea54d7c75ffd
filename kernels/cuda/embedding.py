"""Looking up rows of a table, and adding gradients up into them without a race: one launch each.

The backward pass compares every row of the table with every id. Those are V x N comparisons, of numbers that
lie in the caches; where they are too many, the ids are sorted first.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from kernels.cuda.launch import cdiv, check, integers, like, likes, module, nothing, without_data
from kernels.cuda.rows import aligned, row_stride, rows

WARPS = 8  # of a block
MOST_PIECES = 8  # that a lane holds
MOST_COMPARISONS = 2**26  # above that sorting is faster


def embedding_forward(ids: Tensor, weight: Tensor):
    """Rows of a table. ids `(...)` integers, weight `(V, C)` -> y `(..., C)`.

    weight is float32, bfloat16 or float16. An id outside 0 … V-1 gives a row of nan. Raises `TypeError` for
    other dtypes, `ValueError` for devices that differ.
    """
    flat = integers("embedding", "ids", ids)
    V, C = weight.shape
    y = weight.new_empty((*ids.shape, C))
    if not without_data(weight):
        weight = weight.contiguous()
        _forward_plan(like(flat), like(weight), aligned(weight))(flat, weight, y)
    return y, (ids, V)


def embedding_backward(dy: Tensor, saved: tuple) -> Tensor:
    """-> dweight `(V, C)`: each row collects the gradients of all the places that looked it up."""
    ids, V = saved
    if dy.shape[:-1] != ids.shape:
        raise ValueError(f"embedding: ids {tuple(ids.shape)} have no gradient {tuple(dy.shape)}.")
    dweight = dy.new_empty((V, dy.shape[-1]))
    if not without_data(dy):
        flat, dy = integers("embedding", "ids", ids), rows(dy)
        by_sorting = V * flat.numel() > MOST_COMPARISONS
        _backward_plan(like(flat), like(dy), V, aligned(dy), by_sorting)(flat, dy, dweight)
    return dweight


def _kernels(C: int, dtype: torch.dtype, aligned: bool):
    """-> the kernels for rows of C numbers, and how many of these a block of the backward pass sums."""
    vector = 16 // dtype.itemsize
    vector = vector if aligned and C % vector == 0 else 1
    pieces = max(min(cdiv(C, 32 * vector), MOST_PIECES), 1)
    return module("embedding.cu", dtype, VECTOR=vector, PIECES=pieces), 32 * vector * pieces


@functools.lru_cache(maxsize=1024)
def _forward_plan(ids: tuple, weight: tuple, aligned: bool) -> Callable:
    """-> what launches the kernel on ids, weight and y."""
    ids, weight = likes(ids, weight)
    check("embedding", weight, ids)
    n, (V, C) = ids.shape.numel(), weight.shape
    if n * C == 0:
        return nothing
    kernels, _ = _kernels(C, weight.dtype, aligned)
    return kernels.embedding_forward[cdiv(n, WARPS), 32 * WARPS].prepare(n, V, C)


@functools.lru_cache(maxsize=1024)
def _backward_plan(ids: tuple, dy: tuple, V: int, aligned: bool, by_sorting: bool) -> Callable:
    """-> what launches the kernel on ids, dy and dweight."""
    ids, dy = likes(ids, dy)
    check("embedding", dy, ids)
    n, C = ids.shape.numel(), dy.shape[-1]
    if V * C == 0:
        return nothing
    kernels, columns = _kernels(C, dy.dtype, aligned and row_stride(dy) * dy.dtype.itemsize % 16 == 0)
    grid, numbers = (V, cdiv(C, columns)), (row_stride(dy), n, C)
    if not by_sorting:
        return kernels.embedding_backward[grid, 32 * WARPS].prepare(*numbers)
    launch = kernels.embedding_backward_sorted[grid, 32 * WARPS].prepare(*numbers)
    return lambda ids, dy, dweight: launch(*torch.sort(ids.view(-1), stable=True), dy, dweight)

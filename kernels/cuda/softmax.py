"""Softmax over the last dimension: one launch a direction, each row read once and written once."""

import functools
import math
from collections.abc import Callable

from torch import Tensor

from kernels.cuda.launch import check, check_gradient, empty, like, likes, nothing, without_data
from kernels.cuda.rows import WIDEST, aligned, row_stride, rows, shape


def softmax_forward(x: Tensor):
    """y = exp(x - max x) / Σ exp(x - max x) over the last dimension of x `(..., C)`.

    float32, bfloat16 or float16, summed in float32. Raises `TypeError` for other dtypes.
    """
    y = empty(x)
    if not without_data(x):
        x = rows(x)
        _forward_plan(like(x), aligned(x))(x, y)
    return y, (y,)


def softmax_backward(dy: Tensor, saved: tuple) -> Tensor:
    """-> dx = y (dy - Σ dy y)."""
    (y,) = saved
    check_gradient("softmax", dy, y)
    dx = empty(y)
    if not without_data(y):
        dy, y = rows(dy), rows(y)
        _backward_plan(like(dy), like(y), aligned(dy, y))(dy, y, dx)
    return dx


@functools.lru_cache(maxsize=1024)
def _forward_plan(x: tuple, aligned: bool) -> Callable:
    """-> what launches the kernel on x and y."""
    (x,) = likes(x)
    check("softmax", x)
    # Numbers of two bytes, two a register: twice as many are held.
    (*batch, C), how = x.shape, shape(x, aligned, widest=WIDEST * 4 // x.dtype.itemsize)
    n = math.prod(batch)
    if n * C == 0:
        return nothing
    kernel = how.kernels("softmax.cu", x.dtype).softmax_forward
    return kernel[how.blocks(n), how.threads].prepare(row_stride(x), n, C)


@functools.lru_cache(maxsize=1024)
def _backward_plan(dy: tuple, y: tuple, aligned: bool) -> Callable:
    """-> what launches the kernel on dy, y and dx."""
    dy, y = likes(dy, y)
    check("softmax", dy, y)
    # Of two arrays, half as much of each.
    (*batch, C), how = y.shape, shape(y, aligned, dy, thread_bytes=32, widest=WIDEST)
    n = math.prod(batch)
    if n * C == 0:
        return nothing
    kernel = how.kernels("softmax.cu", y.dtype).softmax_backward
    return kernel[how.blocks(n), how.threads].prepare(row_stride(dy), row_stride(y), n, C)

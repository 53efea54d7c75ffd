"""Softmax over the last dimension: one launch a direction, each row read once and written once."""

import functools
from collections.abc import Callable

from torch import Tensor

from kernels.cuda.launch import check, check_gradient, empty, like, likes, nothing, without_data
from kernels.cuda.rows import WIDEST, aligned, kernels, rows, shape


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
    (n, C), how = x.shape, shape(x.shape[1], x.dtype, aligned, WIDEST)
    if n * C == 0:
        return nothing
    launch = kernels("softmax.cu", x.dtype, how).softmax_forward[how.blocks(n), how.threads]
    return lambda x_, y: launch(x_, y, x.strides[0], n, C)


@functools.lru_cache(maxsize=1024)
def _backward_plan(dy: tuple, y: tuple, aligned: bool) -> Callable:
    """-> what launches the kernel on dy, y and dx."""
    dy, y = likes(dy, y)
    check("softmax", dy, y)
    (n, C), how = y.shape, shape(y.shape[1], y.dtype, aligned, WIDEST)
    if n * C == 0:
        return nothing
    launch = kernels("softmax.cu", y.dtype, how).softmax_backward[how.blocks(n), how.threads]
    return lambda dy_, y_, dx: launch(dy_, y_, dx, dy.strides[0], y.strides[0], n, C)

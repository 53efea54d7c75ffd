"""Rotary positions, one launch a direction: the rotation back is the same kernel with the other sign."""

import functools
from collections.abc import Callable

from torch import Tensor

from kernels.checks import check_rope
from kernels.cuda.launch import cdiv, check, empty, like, likes, module, nothing, without_data
from kernels.cuda.rows import aligned

BLOCK = 256


def rope_forward(x: Tensor, cos: Tensor, sin: Tensor):
    """Rotate feature pairs (i, i + D/2) by the position's angles (Su et al., 2021).

    x `(B, T, H, D)` of any strides, cos and sin `(T, D/2)`: the tables' rows of these T positions; all of
    one dtype, float32, bfloat16 or float16. Raises `ValueError` for shapes or devices, `TypeError` for
    dtypes.
    """
    check_rope(x, cos, sin)
    return _rotate(x, cos, sin, 1.0), (cos, sin)


def rope_backward(dy: Tensor, saved: tuple) -> Tensor:
    """-> dx: a rotation's transpose is the rotation back."""
    check_rope(dy, *saved)
    return _rotate(dy, *saved, -1.0)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    y = empty(x)
    if not without_data(x):
        x, cos, sin = (z if z.stride(-1) == 1 else z.contiguous() for z in (x, cos, sin))
        _plan(like(x), like(cos), like(sin), aligned(x, cos, sin), sign)(x, cos, sin, y)
    return y


@functools.lru_cache(maxsize=1024)
def _plan(x: tuple, cos: tuple, sin: tuple, aligned: bool, sign: float) -> Callable:
    """-> what launches the kernel on x, cos, sin and y, with the sine times `sign`."""
    x, cos, sin = likes(x, cos, sin)
    check("rope", x, cos, sin)
    (B, T, H), half = x.shape[:3], x.shape[3] // 2
    if x.shape.numel() == 0:
        return nothing
    if x.shape.numel() >= 2**32:
        raise ValueError(f"rope: at most 2³² - 1 numbers at a time, got {tuple(x.shape)}.")
    strides = *x.strides[:3], cos.strides[0], sin.strides[0]
    vector = 16 // x.dtype.itemsize
    if not aligned or half % vector or any(stride % vector for stride in strides):
        vector = 1
    groups = B * T * H * half // vector
    launch = module("rope.cu", x.dtype, VECTOR=vector).rotate[cdiv(groups, BLOCK), BLOCK]
    return launch.prepare(groups, T, H, half, *strides, sign)

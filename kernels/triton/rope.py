"""Rotary positions: each pair of features turned by an angle that grows with the position.

The rotation back is the same kernel with the sine's sign changed, and a program has read a pair before it
writes it, so the result may take the input's place.
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import check_rope
from kernels.triton.launch import cdiv, check, empty, launch, power_of_2


@triton.jit
def _rotate_kernel(
    x_ptr, cos_ptr, sin_ptr, y_ptr, N, T, H, x_b, x_t, x_h, y_b, y_t, y_h, cos_t, sin_t,
    HALF: tl.constexpr, INVERSE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """BLOCK_N of the N = B T H heads, each (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)."""
    head = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    d = tl.arange(0, BLOCK_D)[None, :]
    inside = (head < N) & (d < HALF)
    b, t, h = (head // H // T).to(tl.int64), head // H % T, head % H
    cos = tl.load(cos_ptr + t * cos_t + d, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + t * sin_t + d, mask=inside, other=0.0).to(tl.float32)
    if INVERSE:
        sin = -sin
    x_ptr += b * x_b + t.to(tl.int64) * x_t + h * x_h + d
    y_ptr += b * y_b + t.to(tl.int64) * y_t + h * y_h + d
    x1 = tl.load(x_ptr, mask=inside, other=0.0).to(tl.float32)
    x2 = tl.load(x_ptr + HALF, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr, (x1 * cos - x2 * sin).to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(y_ptr + HALF, (x2 * cos + x1 * sin).to(y_ptr.dtype.element_ty), mask=inside)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, y: Tensor, inverse: bool) -> Tensor:
    B, T, H, D = x.shape
    x, cos, sin = (z if z.stride(-1) == 1 else z.contiguous() for z in (x, cos, sin))
    BLOCK_D = power_of_2(D // 2, 2**16)
    BLOCK_N = max(1024 // BLOCK_D, 1)
    launch(
        _rotate_kernel, (cdiv(B * T * H, BLOCK_N),), x, cos, sin, y, B * T * H, T, H,
        *x.stride()[:3], *y.stride()[:3], cos.stride(0), sin.stride(0),
        HALF=D // 2, INVERSE=inverse, BLOCK_N=BLOCK_N, BLOCK_D=BLOCK_D,
    )  # fmt: skip
    return y


def rope_forward(x: Tensor, cos: Tensor, sin: Tensor):
    """Rotate feature pairs (i, i + D/2) by the position's angles (Su et al., 2021).

    x `(B, T, H, D)` of any strides, cos and sin `(T, D/2)`: the tables' rows of these T positions; all of
    one dtype, float32, bfloat16 or float16. Raises `ValueError` for shapes or devices, `TypeError` for
    dtypes.
    """
    check_rope(x, cos, sin)
    check("rope", x, cos, sin)
    return _rotate(x, cos, sin, empty(x), inverse=False), (cos, sin)


def rope_backward(dy: Tensor, saved: tuple) -> Tensor:
    """-> dx: a rotation's transpose is the rotation back."""
    check_rope(dy, *saved)
    check("rope", dy, *saved)
    return _rotate(dy, *saved, empty(dy), inverse=True)


def rope_(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool = False) -> Tensor:
    """`rope_forward`, or with `inverse` the rotation back, in x's own memory -> x. x has dense features."""
    check_rope(x, cos, sin)
    check("rope", x, cos, sin)
    if x.stride(-1) != 1:
        raise ValueError("rope_: the features of x must be neighbours in memory; use rope_forward.")
    return _rotate(x, cos, sin, x, inverse)

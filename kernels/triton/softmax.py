"""Softmax over the last dimension: whole rows in registers, so that each is read once and written once.

A row too wide for that is read twice: once for its largest score and the sum of exponentials, both found
in one pass (Milakov and Gimelshein, 2018), and once to write the probabilities.
"""

import functools

import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.arithmetic import LOG2_E
from kernels.triton.launch import cdiv, check, check_gradient, empty, launch, rows

WIDEST = 32768  # columns that a program holds at a time; wider rows go through it in blocks


@triton.jit
def _load(x, row, stride, columns, mask, other):
    return tl.load(x + row * stride + columns, mask=mask, other=other).to(tl.float32)


@triton.jit
def _softmax_forward(
    x, y, x_stride, rows, C, ROWS: tl.constexpr, BLOCK: tl.constexpr, ONE_BLOCK: tl.constexpr
):
    """ROWS rows: y = exp(x - max x) / Σ exp(x - max x)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    inside = row < rows
    if ONE_BLOCK:
        mask = inside & (columns < C)
        scores = _load(x, row, x_stride, columns, mask, -float("inf"))
        scores = tl.where(inside, scores, 0.0)  # rows past the last: -inf - -inf would be NaN
        largest = tl.max(scores, 1, keep_dims=True)
        e = tl.exp2((scores - largest) * LOG2_E)
        p = e / tl.sum(e, 1, keep_dims=True)
        tl.store(y + row * C + columns, p.to(y.dtype.element_ty), mask=mask)
    else:
        # Every lane keeps the largest score that it has met, and its sum of exponentials relative to that.
        largest = tl.full([ROWS, BLOCK], -float("inf"), tl.float32)
        total = tl.zeros([ROWS, BLOCK], tl.float32)
        for start in range(0, C, BLOCK):
            mask = inside & (start + columns < C)
            scores = _load(x, row, x_stride, start + columns, mask, -float("inf"))
            new = tl.maximum(largest, scores)
            base = tl.where(new == -float("inf"), 0.0, new)  # nothing met yet: -inf - -inf would be NaN
            total = total * tl.exp2((largest - base) * LOG2_E) + tl.exp2((scores - base) * LOG2_E)
            largest = new
        top = tl.max(largest, 1, keep_dims=True)
        whole = tl.sum(total * tl.exp2((largest - top) * LOG2_E), 1, keep_dims=True)
        for start in range(0, C, BLOCK):
            mask = inside & (start + columns < C)
            scores = _load(x, row, x_stride, start + columns, mask, -float("inf"))
            p = tl.exp2((scores - top) * LOG2_E) / whole
            tl.store(y + row * C + start + columns, p.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _softmax_backward(
    dy, y, dx, dy_stride, y_stride, rows, C,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, ONE_BLOCK: tl.constexpr,
):  # fmt: skip
    """ROWS rows: dx = y (dy - Σ dy y)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    inside = row < rows
    if ONE_BLOCK:
        mask = inside & (columns < C)
        p = _load(y, row, y_stride, columns, mask, 0.0)
        dp = _load(dy, row, dy_stride, columns, mask, 0.0)
        out = p * (dp - tl.sum(dp * p, 1, keep_dims=True))
        tl.store(dx + row * C + columns, out.to(dx.dtype.element_ty), mask=mask)
    else:
        products = tl.zeros([ROWS, BLOCK], tl.float32)
        for start in range(0, C, BLOCK):
            mask = inside & (start + columns < C)
            p = _load(y, row, y_stride, start + columns, mask, 0.0)
            products += p * _load(dy, row, dy_stride, start + columns, mask, 0.0)
        mean_dp = tl.sum(products, 1, keep_dims=True)
        for start in range(0, C, BLOCK):
            mask = inside & (start + columns < C)
            p = _load(y, row, y_stride, start + columns, mask, 0.0)
            out = p * (_load(dy, row, dy_stride, start + columns, mask, 0.0) - mean_dp)
            tl.store(dx + row * C + start + columns, out.to(dx.dtype.element_ty), mask=mask)


@functools.cache
def _shape(C: int, most_warps: int) -> dict:
    """Tiles of 1024 elements or one row: on an H100 larger ones were no faster."""
    BLOCK = triton.next_power_of_2(C)
    if BLOCK > WIDEST:
        return {"ROWS": 1, "BLOCK": WIDEST // 2, "ONE_BLOCK": False, "num_warps": 32}
    ROWS = max(1024 // BLOCK, 1)
    num_warps = max(min(ROWS * BLOCK // 512, most_warps), 1)
    return {"ROWS": ROWS, "BLOCK": BLOCK, "ONE_BLOCK": True, "num_warps": num_warps}


def softmax_forward(x: Tensor):
    """y = exp(x - max x) / Σ exp(x - max x) over the last dimension of x `(..., C)`."""
    check("softmax", x)
    C = int(x.shape[-1])
    shape = _shape(C, 32)
    y = empty(x)
    flat, n, stride = rows(x)
    launch(_softmax_forward, (cdiv(n, shape["ROWS"]),), flat, y, stride, n, C, **shape)
    return y, (y,)


def softmax_backward(dy: Tensor, saved: tuple) -> Tensor:
    """-> dx."""
    (y,) = saved
    check("softmax", dy, y)
    check_gradient("softmax", dy, y)
    C = int(y.shape[-1])
    shape = _shape(C, 16)
    dx = empty(y)
    (dy, _, dy_stride), (y, n, stride) = rows(dy), rows(y)
    launch(_softmax_backward, (cdiv(n, shape["ROWS"]),), dy, y, dx, dy_stride, stride, n, C, **shape)
    return dx

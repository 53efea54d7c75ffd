"""Softmax over the last dimension: a row in registers, so that it is read once and written once.

A row too wide for that is read twice: once for its largest score and the sum of exponentials, both found
in one pass (Milakov and Gimelshein, 2018), and once to write the probabilities.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.launch import check, launch, rows

MAX_BLOCK = 16384  # the most columns that a program holds at a time
LOG2E: tl.constexpr = tl.constexpr(math.log2(math.e))  # exp(x) = 2^(x log₂ e), and 2^x is an instruction


@triton.jit
def _softmax_forward(x, y, x_stride, C, BLOCK: tl.constexpr, ONE_BLOCK: tl.constexpr):
    """One row: y = exp(x - max x) / Σ exp(x - max x)."""
    row = tl.program_id(0).to(tl.int64)
    x += row * x_stride
    y += row * C
    columns = tl.arange(0, BLOCK)
    if ONE_BLOCK:
        scores = tl.load(x + columns, mask=columns < C, other=-float("inf")).to(tl.float32)
        e = tl.exp2((scores - tl.max(scores)) * LOG2E)
        tl.store(y + columns, (e / tl.sum(e)).to(y.dtype.element_ty), mask=columns < C)
    else:
        # Each lane keeps the largest score it has met, and the sum of exponentials relative to it.
        largest = tl.full([BLOCK], -float("inf"), tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        for start in range(0, C, BLOCK):
            scores = tl.load(x + start + columns, mask=start + columns < C, other=-float("inf")).to(
                tl.float32
            )
            new = tl.maximum(largest, scores)
            # A lane that has met nothing but -inf yet has no exponential to correct: -inf - -inf is NaN.
            seen = tl.where(new == -float("inf"), 0.0, new)
            total = total * tl.exp2((largest - seen) * LOG2E) + tl.exp2((scores - seen) * LOG2E)
            largest = new
        top = tl.max(largest)
        whole = tl.sum(total * tl.exp2((largest - top) * LOG2E))
        for start in range(0, C, BLOCK):
            scores = tl.load(x + start + columns, mask=start + columns < C, other=-float("inf")).to(
                tl.float32
            )
            p = tl.exp2((scores - top) * LOG2E) / whole
            tl.store(y + start + columns, p.to(y.dtype.element_ty), mask=start + columns < C)


@triton.jit
def _softmax_backward(dy, y, dx, dy_stride, y_stride, C, BLOCK: tl.constexpr, ONE_BLOCK: tl.constexpr):
    """One row: dx = y (dy - Σ dy y)."""
    row = tl.program_id(0).to(tl.int64)
    dy += row * dy_stride
    y += row * y_stride
    dx += row * C
    columns = tl.arange(0, BLOCK)
    if ONE_BLOCK:
        p = tl.load(y + columns, mask=columns < C, other=0.0).to(tl.float32)
        dp = tl.load(dy + columns, mask=columns < C, other=0.0).to(tl.float32)
        tl.store(dx + columns, (p * (dp - tl.sum(dp * p))).to(dx.dtype.element_ty), mask=columns < C)
    else:
        products = tl.zeros([BLOCK], tl.float32)
        for start in range(0, C, BLOCK):
            p = tl.load(y + start + columns, mask=start + columns < C, other=0.0).to(tl.float32)
            dp = tl.load(dy + start + columns, mask=start + columns < C, other=0.0).to(tl.float32)
            products += dp * p
        mean_dp = tl.sum(products)
        for start in range(0, C, BLOCK):
            p = tl.load(y + start + columns, mask=start + columns < C, other=0.0).to(tl.float32)
            dp = tl.load(dy + start + columns, mask=start + columns < C, other=0.0).to(tl.float32)
            out = p * (dp - mean_dp)
            tl.store(dx + start + columns, out.to(dx.dtype.element_ty), mask=start + columns < C)


def _shape(C: int) -> dict:
    BLOCK = min(triton.next_power_of_2(C), MAX_BLOCK)
    return {"BLOCK": BLOCK, "ONE_BLOCK": C <= BLOCK, "num_warps": min(max(BLOCK // 512, 1), 16)}


def softmax_forward(x: Tensor):
    """y = exp(x - max x) / Σ exp(x - max x) over the last dimension of x `(..., C)`."""
    check("softmax", x)
    C, flat = x.shape[-1], rows(x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    launch(_softmax_forward, (flat.shape[0],), flat, y, flat.stride(0), C, **_shape(C))
    return y, (y,)


def softmax_backward(dy: Tensor, saved: tuple) -> Tensor:
    """-> dx."""
    (y,) = saved
    check("softmax", dy, y)
    C, dy, flat = y.shape[-1], rows(dy), rows(y)
    dx = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    launch(_softmax_backward, (flat.shape[0],), dy, flat, dx, dy.stride(0), flat.stride(0), C, **_shape(C))
    return dx

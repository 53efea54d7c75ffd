"""RMSNorm and LayerNorm, alone or with the residual addition before them: one launch forward, two backward.

The first of these gives dx, and of the weights' gradients one partial sum a block; the second adds these up
in a fixed order, so that two runs give the same bits.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from kernels.checks import check_width
from kernels.cuda.launch import (
    Like,
    cdiv,
    check,
    check_gradient,
    empty,
    like,
    likes,
    module,
    nothing,
    processors,
    shared_memory,
    without_data,
)
from kernels.cuda.rows import Shape, aligned, row_stride, rows, shape

# How many threads of the backward pass a processor has registers for, if each has so many numbers of a row.
RESIDENT = {4: 1024, 8: 768, 16: 512, 32: 256}


def rmsnorm_forward(x: Tensor, weight: Tensor, eps: float):
    """y = w x / √(mean(x²) + ε). x `(..., C)`, weight `(C)` (Zhang and Sennrich, 2019).

    Here as in all of them: float32, bfloat16 or float16, all of one dtype, summed in float32; `saved` has
    1/√… of each row, then each row's mean. Raises `ValueError` for shapes and devices that do not fit,
    `TypeError` for dtypes.
    """
    y, _, stats = _forward("rmsnorm", x, None, weight, None, eps)
    return y, (x, weight, stats)


def rmsnorm_backward(dy: Tensor, saved: tuple):
    """-> dx, dweight."""
    x, weight, stats = saved
    return _backward("rmsnorm", dy, None, x, weight, stats)[:2]


def layernorm_forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float):
    """y = w (x - μ) / √(σ² + ε) + b. x `(..., C)`, weight and bias `(C)` (Ba et al., 2016)."""
    y, _, stats = _forward("layernorm", x, None, weight, bias, eps)
    return y, (x, weight, stats)


def layernorm_backward(dy: Tensor, saved: tuple):
    """-> dx, dweight, dbias."""
    x, weight, stats = saved
    return _backward("layernorm", dy, None, x, weight, stats)


def add_rmsnorm_forward(x: Tensor, residual: Tensor, weight: Tensor, eps: float):
    """h = x + residual and y = rmsnorm(h), in one pass -> (y, h)."""
    y, h, stats = _forward("rmsnorm", x, residual, weight, None, eps)
    return (y, h), (h, weight, stats)


def add_rmsnorm_backward(dy: tuple[Tensor, Tensor], saved: tuple):
    """-> dx, dresidual (the same array), dweight."""
    h, weight, stats = saved
    dx, dweight, _ = _backward("rmsnorm", *dy, h, weight, stats)
    return dx, dx, dweight


def add_layernorm_forward(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float):
    """h = x + residual and y = layernorm(h), in one pass -> (y, h)."""
    y, h, stats = _forward("layernorm", x, residual, weight, bias, eps)
    return (y, h), (h, weight, stats)


def add_layernorm_backward(dy: tuple[Tensor, Tensor], saved: tuple):
    """-> dx, dresidual (the same array), dweight, dbias."""
    h, weight, stats = saved
    dx, dweight, dbias = _backward("layernorm", *dy, h, weight, stats)
    return dx, dx, dweight, dbias


def _forward(norm: str, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float):
    """-> y, h (None without a residual), stats `(1 or 2, rows)` of float32."""
    check_width(norm, x, weight.shape[0])
    if residual is not None and residual.shape != x.shape:
        raise ValueError(
            f"add_{norm}: x {tuple(x.shape)} and residual {tuple(residual.shape)} must have one shape."
        )
    y, stats = empty(x), _stats(x, bias)
    h = None if residual is None else empty(x)
    if not without_data(x):
        x, weight = rows(x), weight.contiguous()
        residual = None if residual is None else rows(residual)
        bias = None if bias is None else bias.contiguous()
        wide = aligned(x, residual, weight, bias)
        plan = _forward_plan(norm, like(x), like(residual), like(weight), like(bias), wide, eps)
        plan(x, residual, weight, bias, y, h, stats)
    return y, h, stats


def _stats(x: Tensor, bias: Tensor | None) -> Tensor:
    """float32: 1/√… of each row, and with a bias each row's mean."""
    shape = (1 if bias is None else 2, *x.shape[:-1])
    return torch.empty(shape, dtype=torch.float32, device=x.device)


def _backward(norm: str, dy: Tensor, dh: Tensor | None, x: Tensor, weight: Tensor, stats: Tensor):
    """-> dx, dweight, dbias (None for RMSNorm)."""
    check_gradient(norm, dy, x)
    if dh is not None:
        check_gradient(norm, dh, x)
    dx, dweight = empty(x), empty(weight)
    dbias = empty(weight) if norm == "layernorm" else None
    if not without_data(x):
        dy, x, weight = rows(dy), rows(x), weight.contiguous()
        dh = None if dh is None else rows(dh)
        wide = aligned(dy, dh, x, weight)
        plan = _backward_plan(norm, like(dy), like(dh), like(x), like(weight), wide)
        plan(dy, dh, x, weight, stats, dx, dweight, dbias)
    return dx, dweight, dbias


@functools.lru_cache(maxsize=1024)
def _forward_plan(
    norm: str, x: tuple, residual: tuple | None, weight: tuple, bias: tuple | None, aligned: bool, eps: float
) -> Callable:
    """-> what launches the kernel on x, residual, weight, bias, y, h and stats."""
    x, residual, weight, bias = likes(x, residual, weight, bias)
    check(norm if residual is None else f"add_{norm}", x, residual, weight, bias)
    if bias is not None and bias.shape != weight.shape:
        raise ValueError(
            f"{norm}: weight {tuple(weight.shape)} and bias {tuple(bias.shape)} must have one shape."
        )
    (*batch, C), how = x.shape, shape(x, aligned, residual)
    n = math.prod(batch)
    if n * C == 0:
        return nothing
    kernel = getattr(how.kernels("norms.cu", x.dtype), f"{norm}_forward")
    return kernel[how.blocks(n), how.threads].prepare(row_stride(x), row_stride(residual), n, C, float(eps))


def _backward_shape(x: Like, aligned: bool, *others: Like | None) -> Shape:
    """As for the forward pass, with fewer numbers a thread: each takes registers for its sums, too."""
    return shape(x, aligned, *others, warp=2048 // x.dtype.itemsize, thread_bytes=16, threads=512)


def _resident(how: Shape) -> int:
    """How many blocks of the backward pass a processor works on at a time."""
    numbers = min((n for n in RESIDENT if n >= how.PIECES * how.VECTOR), default=max(RESIDENT))
    return max(RESIDENT[numbers] // how.threads, 1)


def _stages(how: Shape, x: Like, resident: int) -> tuple[int, int]:
    """-> how many rows have room in shared memory, 0, 2 or 3; and how many bytes one takes, of a block."""
    stage_bytes = 2 * how.PIECES * how.VECTOR * how.threads * x.dtype.itemsize
    sums = 2 * x.shape[-1] * 4 if how.BLOCK_ROWS > 1 else 0  # a block's, which its warps add up there
    its_own = sums + 2048
    stages = min((shared_memory(x.device) // resident - its_own) // stage_bytes, 3)
    return (stages if stages > 1 else 0), stage_bytes


@functools.lru_cache(maxsize=1024)
def _backward_plan(
    norm: str, dy: tuple, dh: tuple | None, x: tuple, weight: tuple, aligned: bool
) -> Callable:
    """-> what launches the kernels on dy, dh, x, weight, stats, dx, dweight and dbias."""
    dy, dh, x, weight = likes(dy, dh, x, weight)
    check(norm, dy, dh, x, weight)
    (*batch, C), how = x.shape, _backward_shape(x, aligned, dy, dh)
    n = math.prod(batch)
    if C == 0:
        return nothing
    resident = _resident(how)
    stages, stage_bytes = _stages(how, x, resident)
    kernels = module("norms.cu", x.dtype, **how._asdict(), STAGES=stages)
    blocks = min(how.blocks(n), processors(x.device) * resident)
    outputs = 1 if norm == "rmsnorm" else 2
    add_up = kernels.sum_gradients[(cdiv(C, 32), outputs), 256].prepare(blocks, C)
    launch = nothing
    if n > 0:
        kernel = getattr(kernels, f"{norm}_backward")[blocks, how.threads, stages * stage_bytes]
        launch = kernel.prepare(row_stride(dy), row_stride(dh), row_stride(x), n, C)

    def run(dy, dh, x, weight, stats, dx, dweight, dbias):
        parts = torch.empty((blocks, 2, C), dtype=torch.float32, device=x.device)
        launch(dy, dh, x, weight, stats, dx, parts)
        add_up(parts, dweight, dbias)

    return run

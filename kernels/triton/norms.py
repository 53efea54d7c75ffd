"""RMSNorm and LayerNorm, alone or with the residual addition before them, each one kernel a direction.

A norm reads a row, needs a number or two about the whole row, and writes the row: almost no arithmetic, so
the time is that of moving the bytes, and the one thing to get right is to move each byte once. A program
therefore holds whole rows in registers. The gradient of the weight is a sum over all rows: each program
of the backward pass sums the rows that it sees, in registers, and a second kernel adds these partial sums
in a fixed order, so that two runs give the same bits. A few tiles of rows are one program's work, whose sums
are the gradient: the host would be busier with a second kernel than the GPU with the first.

`normalize` is RMSNorm without its weight, for a model that multiplies the weight into the product that comes
next. What it returns is x̂ = x r, and all that its gradient needs of x:

    ∂x̂/∂x = r (I - x̂ x̂ᵀ / C),  so  dx = r (dx̂ - x̂ mean(dx̂ x̂)).

So nobody needs x any longer, and what is added to it later may take its place. (From y = w x̂ one could not
find x̂ again: not where w = 0.)
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import check_width
from kernels.triton.launch import Gpu, cdiv, check, check_gradient, empty, gpu, launch, power_of_2, rows

WIDEST = 16384  # columns that a program holds at a time; wider rows go through it in blocks
FEW = 4  # tiles of rows that one program of the backward pass works through alone


@triton.jit
def _load(x, row, stride, columns, mask):
    return tl.load(x + row * stride + columns, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _load_sum(x, residual, row, x_stride, residual_stride, columns, mask):
    """A block of h = x + residual, rounded as it will be stored; of x without a residual."""
    h = _load(x, row, x_stride, columns, mask)
    if residual is not None:
        h = (h + _load(residual, row, residual_stride, columns, mask)).to(x.dtype.element_ty).to(tl.float32)
    return h


@triton.jit
def _norm_forward(
    x, residual, weight, bias, y, h, mean, rstd, x_stride, residual_stride, rows, eps,
    C: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ROWS rows: y = w (h - μ) / √(mean((h - μ)²) + ε) + b, where h = x + residual; μ = 0 without a mean, and
    w = 1 without a weight.

    The loops over blocks are unrolled. A row of one block is loaded once: the compiler sees the same load
    three times with no store between, and keeps the first. A wider row comes from the L2 cache again.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    inside = row < rows
    mu = 0.0
    if mean is not None:
        total = tl.zeros([ROWS, BLOCK], tl.float32)
        for start in tl.static_range(0, C, BLOCK):
            columns = start + tl.arange(0, BLOCK)[None, :]
            mask = inside & (columns < C)
            total += _load_sum(x, residual, row, x_stride, residual_stride, columns, mask)
        mu = tl.sum(total, 1, keep_dims=True) / C

    squares = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in tl.static_range(0, C, BLOCK):
        columns = start + tl.arange(0, BLOCK)[None, :]
        mask = inside & (columns < C)
        centered = _load_sum(x, residual, row, x_stride, residual_stride, columns, mask) - mu
        squares += tl.where(mask, centered * centered, 0.0)
    r = tl.rsqrt(tl.sum(squares, 1, keep_dims=True) / C + eps)

    for start in tl.static_range(0, C, BLOCK):
        columns = start + tl.arange(0, BLOCK)[None, :]
        mask = inside & (columns < C)
        block = _load_sum(x, residual, row, x_stride, residual_stride, columns, mask)
        out = (block - mu) * r
        if weight is not None:
            out *= _load(weight, 0, 0, columns, columns < C)
        if bias is not None:
            out += _load(bias, 0, 0, columns, columns < C)
        tl.store(y + row * C + columns, out.to(y.dtype.element_ty), mask=mask)
        if residual is not None:
            tl.store(h + row * C + columns, block.to(h.dtype.element_ty), mask=mask)
    tl.store(rstd + row, r, mask=inside)
    if mean is not None:
        tl.store(mean + row, mu, mask=inside)


@triton.jit
def _load_x_hat(x, weight, mu, r, row, stride, columns, mask):
    """A block of x̂, as it was stored where there is no weight."""
    x_hat = _load(x, row, stride, columns, mask)
    if weight is not None:
        x_hat = (x_hat - mu) * r
    return x_hat


@triton.jit
def _norm_backward(
    dy, dh, x, weight, mean, rstd, dx, dweights, dbiases, dy_stride, dh_stride, x_stride, rows,
    C: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """ROWS rows at a time, the programs taking turns: dx of each row, and the sums for dweight and dbias.
    Without a weight x̂ stands in x's place, w = 1, and there are no sums.

    With x̂ = (x - μ) r and g = w dy:  dx = r (g - mean(g) - x̂ mean(g x̂)) + dh,  dw = Σ dy x̂,  db = Σ dy;
    RMSNorm has no mean(g). `dweights` and `dbiases` are (programs, C): each program's sums over its rows, and
    the gradients themselves where one program is enough.
    While a tile is worked on, the next STAGES - 1 are on their way into shared memory.
    """
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)[None, :]
    w = 1.0
    if weight is not None:
        w = _load(weight, 0, 0, columns, columns < C)
    dw = tl.zeros([ROWS, BLOCK], tl.float32)
    db = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in tl.range(program * ROWS, rows, tl.num_programs(0) * ROWS, num_stages=STAGES):
        row = first + tl.arange(0, ROWS)[:, None]
        inside = row < rows
        r = tl.load(rstd + row, mask=inside, other=0.0)
        mu = 0.0
        if mean is not None:
            mu = tl.load(mean + row, mask=inside, other=0.0)
        sum_g = tl.zeros([ROWS, BLOCK], tl.float32)
        sum_gx = tl.zeros([ROWS, BLOCK], tl.float32)
        for start in tl.static_range(0, C, BLOCK):
            columns = start + tl.arange(0, BLOCK)[None, :]
            mask = inside & (columns < C)
            if C > BLOCK and weight is not None:
                w = _load(weight, 0, 0, columns, columns < C)
            g = _load(dy, row, dy_stride, columns, mask) * w
            sum_g += g
            sum_gx += g * _load_x_hat(x, weight, mu, r, row, x_stride, columns, mask)
        mean_gx = tl.sum(sum_gx, 1, keep_dims=True) / C
        mean_g = 0.0
        if mean is not None:
            mean_g = tl.sum(sum_g, 1, keep_dims=True) / C

        for start in tl.static_range(0, C, BLOCK):
            columns = start + tl.arange(0, BLOCK)[None, :]
            mask = inside & (columns < C)
            if C > BLOCK and weight is not None:
                w = _load(weight, 0, 0, columns, columns < C)
            d = _load(dy, row, dy_stride, columns, mask)
            x_hat = _load_x_hat(x, weight, mu, r, row, x_stride, columns, mask)
            out = r * (d * w - mean_g - x_hat * mean_gx)
            if dh is not None:
                out += _load(dh, row, dh_stride, columns, mask)
            tl.store(dx + row * C + columns, out.to(dx.dtype.element_ty), mask=mask)
            if weight is not None and C <= BLOCK:
                dw += d * x_hat
                db += d
            elif weight is not None:  # ROWS is 1, and the sums of so wide a row lie in the L2 cache
                later = (columns < C) & (first > program)
                dw = d * x_hat + _load(dweights, program, C, columns, later)
                tl.store(dweights + program * C + columns, dw, mask=mask)
                if mean is not None:
                    db = d + _load(dbiases, program, C, columns, later)
                    tl.store(dbiases + program * C + columns, db, mask=mask)
    if C <= BLOCK and weight is not None:
        columns = tl.arange(0, BLOCK)
        place = program * C + columns
        tl.store(dweights + place, tl.sum(dw, 0).to(dweights.dtype.element_ty), mask=columns < C)
        if mean is not None:
            tl.store(dbiases + place, tl.sum(db, 0).to(dbiases.dtype.element_ty), mask=columns < C)


@triton.jit
def _sum_partial(
    dweights, dbiases, dweight, dbias, programs, C: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """dweight = the sum of the rows of `dweights` (programs, C), always in the same order; dbias alike."""
    partial, total = dweights, dweight
    if dbias is not None and tl.program_id(1) == 1:
        partial, total = dbiases, dbias
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    sums = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, programs, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        mask = (row < programs) & (columns < C)
        sums += tl.load(partial + row.to(tl.int64) * C + columns, mask=mask, other=0.0)
    tl.store(total + columns, tl.sum(sums, 0).to(total.dtype.element_ty), mask=columns < C)


def _forward(
    operation: str, x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float
):
    """-> y (x̂ without a weight), h (x without a residual), mean (None without a bias), rstd."""
    if weight is not None:
        check_width(operation, x, weight.shape[0])
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"{operation}: x {tuple(x.shape)} and residual {tuple(residual.shape)} differ.")
    if bias is not None and bias.shape != weight.shape:
        raise ValueError(f"{operation}: weight {tuple(weight.shape)} and bias {tuple(bias.shape)} differ.")
    check(operation, x, residual, weight, bias)
    shape = _forward_shape(int(x.shape[-1]))
    y = empty(x)
    h = x if residual is None else empty(x)
    flat, n, stride = rows(x)
    other, _, other_stride = (None, 0, 0) if residual is None else rows(residual)
    rstd = x.new_empty(n, dtype=torch.float32)
    mean = None if bias is None else torch.empty_like(rstd)
    launch(
        _norm_forward, (cdiv(n, shape["ROWS"]),), flat, other, _dense(weight), _dense(bias),
        y, h, mean, rstd, stride, other_stride, n, eps, **shape,
    )  # fmt: skip
    return y, h, mean, rstd


def _dense(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _backward(
    dy: Tensor, dh: Tensor | None, x: Tensor, weight: Tensor | None, mean: Tensor | None, rstd: Tensor
):
    """-> dx, dweight, dbias (None without a mean). Without a weight x is x̂, and has a gradient alone."""
    for gradient in (dy, dh):
        if gradient is not None:
            check_gradient("norm", gradient, x)
    C = int(x.shape[-1])  # under `torch.compile` a symbol, and kernels are made for a number
    dx = empty(x)
    dweight = None if weight is None else empty(weight)
    dbias = None if mean is None else empty(weight)
    dy, _, dy_stride = rows(dy)
    x, n, x_stride = rows(x)
    dh, _, dh_stride = (None, 0, 0) if dh is None else rows(dh)
    programs, shape = _backward_shape(C, 2 if dh is None else 3, x.dtype.itemsize, gpu(x))
    tiles = cdiv(n, shape["ROWS"])
    alone = weight is not None and tiles <= FEW and shape["BLOCK"] >= C
    partial = weight is not None and not alone
    programs = 1 if alone else min(programs, tiles)
    dweights = x.new_empty(programs, C, dtype=torch.float32) if partial else dweight
    dbiases = torch.empty_like(dweights) if partial and mean is not None else dbias
    launch(
        _norm_backward, (programs,), dy, dh, x, _dense(weight), mean, rstd, dx, dweights, dbiases,
        dy_stride, dh_stride, x_stride, n, **shape,
    )  # fmt: skip
    if partial:
        launch(
            _sum_partial, (cdiv(C, 32), 1 if mean is None else 2),
            dweights, dbiases, dweight, dbias, programs, C=C, ROWS=32, BLOCK=32,
        )  # fmt: skip
    return dx, dweight, dbias


# Tiles of rows, by width alone: the best of what was measured on an H100 is best for all widths alike.


@functools.cache
def _forward_shape(C: int) -> dict:
    """Many small programs: while some wait for their rows, others compute."""
    BLOCK = power_of_2(C, WIDEST)
    ROWS = 1 if C > BLOCK else max(2048 // BLOCK, 1)
    return {"C": C, "ROWS": ROWS, "BLOCK": BLOCK, "num_warps": max(ROWS * BLOCK // 512, 1)}


@functools.cache
def _backward_shape(C: int, loads: int, itemsize: int, gpu: Gpu) -> tuple[int, dict]:
    """-> the number of programs, and the shape of each.

    Few programs with many elements each, so that there are few partial sums. What hides the waiting is
    loading ahead, where the GPU can (from compute capability 8.0 on) and the tiles fit.
    """
    BLOCK = power_of_2(C, WIDEST)
    ROWS = 1 if C > BLOCK else max(4096 // BLOCK, 1)
    tile = ROWS * BLOCK
    ahead = 2 * loads * tile * itemsize  # bytes of shared memory for two tiles on their way
    STAGES = 3 if tile <= 8192 and ahead + 2048 <= gpu.shared and gpu.capability >= 80 else 1
    programs = gpu.processors * max(8192 // tile, 1)
    return programs, {
        "C": C,
        "ROWS": ROWS,
        "BLOCK": BLOCK,
        "STAGES": STAGES,
        "num_warps": max(tile // 1024, 1),
    }


def rmsnorm_forward(x: Tensor, weight: Tensor, eps: float):
    """y = w x / √(mean(x²) + ε). x `(..., C)`, weight `(C)` (Zhang and Sennrich, 2019)."""
    y, _, _, rstd = _forward("rmsnorm", x, None, weight, None, eps)
    return y, (x, weight, rstd)


def rmsnorm_backward(dy: Tensor, saved: tuple):
    """-> dx, dweight."""
    x, weight, rstd = saved
    return _backward(dy, None, x, weight, None, rstd)[:2]


def normalize_forward(x: Tensor, eps: float):
    """x̂ = x / √(mean(x²) + ε), and x as it is: what x goes on to has a gradient, too -> (x̂, x).

    x `(..., C)`; it may be overwritten before the backward pass. Raises `ValueError` for devices, `TypeError`
    for dtypes.
    """
    x_hat, _, _, rstd = _forward("normalize", x, None, None, None, eps)
    return (x_hat, x), (x_hat, rstd)


def normalize_backward(dy: tuple[Tensor, Tensor], saved: tuple) -> Tensor:
    """-> dx, the sum of what comes through x̂ and what came to x itself."""
    x_hat, rstd = saved
    return _backward(*dy, x_hat, None, None, rstd)[0]


def layernorm_forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float):
    """y = w (x - μ) / √(σ² + ε) + b. x `(..., C)`, weight and bias `(C)` (Ba et al., 2016)."""
    y, _, mean, rstd = _forward("layernorm", x, None, weight, bias, eps)
    return y, (x, weight, mean, rstd)


def layernorm_backward(dy: Tensor, saved: tuple):
    """-> dx, dweight, dbias."""
    x, weight, mean, rstd = saved
    return _backward(dy, None, x, weight, mean, rstd)


def add_rmsnorm_forward(x: Tensor, residual: Tensor, weight: Tensor, eps: float):
    """h = x + residual and y = rmsnorm(h), in one pass -> (y, h)."""
    y, h, _, rstd = _forward("add_rmsnorm", x, residual, weight, None, eps)
    return (y, h), (h, weight, rstd)


def add_rmsnorm_backward(dy: tuple[Tensor, Tensor], saved: tuple):
    """-> dx, dresidual (the same array), dweight."""
    dy, dh = dy
    h, weight, rstd = saved
    dx, dweight, _ = _backward(dy, dh, h, weight, None, rstd)
    return dx, dx, dweight


def add_layernorm_forward(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float):
    """h = x + residual and y = layernorm(h), in one pass -> (y, h)."""
    y, h, mean, rstd = _forward("add_layernorm", x, residual, weight, bias, eps)
    return (y, h), (h, weight, mean, rstd)


def add_layernorm_backward(dy: tuple[Tensor, Tensor], saved: tuple):
    """-> dx, dresidual (the same array), dweight, dbias."""
    dy, dh = dy
    h, weight, mean, rstd = saved
    dx, dweight, dbias = _backward(dy, dh, h, weight, mean, rstd)
    return dx, dx, dweight, dbias

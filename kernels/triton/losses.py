"""Cross-entropy, and the output layer fused with it: logits that never stand in memory all at once.

`linear_cross_entropy` costs three matrix products of N x C x V: the logits, dx and dweight. Computing the
logits again in the backward pass would be a fourth, so both gradients are computed in the forward pass,
chunk of rows by chunk of rows, as sums over the tokens; the backward pass only multiplies them by
dy / (number of targets). With x a row of the input, y its target and l = x Wᵀ its logits,

    e_v = exp(l_v - l_y)        Z = Σ_v e_v        loss = log Z        dlogits = e / Z - one_hot(y)

and neither e nor its sum needs the row's maximum: the target's own logit, one dot product a row, is known
before any other. So the matrix product that computes a tile of logits turns it into e while it is still in
registers, and the softmax never makes a pass of its own over memory. Dividing by Z moves to the narrow side
of the other two products, where it is N x C work: with e' = e - Z one_hot(y),

    dx = (e' W) / Z             dweight = e'ᵀ (x / Z)

A token of which the model was sure that it is another one has an e that overflows. Its chunk is done once
more, with its lse (by then known) in the place of l_y.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._subclasses import FakeTensor

from kernels.checks import check_classes, check_width
from kernels.triton.arithmetic import LOG2_E, dot, halves
from kernels.triton.launch import (
    cdiv,
    check,
    check_integers,
    empty,
    for_tma,
    gpu,
    launch,
    matrix,
    on_tensor_cores,
    padded,
    part,
    power_of_2,
    rows,
    tiles,
)

CHUNK_BYTES = 200 * 2**20  # of e in memory at a time, or an eighth of it: each chunk is added to dweight


# Cross-entropy of logits that exist


@triton.jit
def _lse_kernel(
    logits_ptr, targets_ptr, lse_ptr, losses_ptr, V, stride, ignore_index, BLOCK: tl.constexpr
):  # fmt: skip
    """One row: lse = log Σ exp(l), in one pass, and lse - l_y."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * stride
    columns = tl.arange(0, BLOCK)
    m = float("-inf")  # the maximum so far, and the sum of exp(l - m): Milakov and Gimelshein (2018)
    s = 0.0
    for start in range(0, V, BLOCK):
        x = tl.load(logits_ptr + start + columns, mask=columns < V - start, other=float("-inf"))
        x = x.to(tl.float32)
        m_new = tl.maximum(m, tl.max(x))
        s = s * _exp(m - m_new) + tl.sum(_exp(x - m_new))
        m = m_new
    lse = m + tl.log(s)
    target = tl.load(targets_ptr + row)
    known = (target >= 0) & (target < V)
    picked = tl.load(logits_ptr + target, mask=known, other=float("nan")).to(tl.float32)
    tl.store(lse_ptr + row, lse)
    tl.store(losses_ptr + row, tl.where(target == ignore_index, 0.0, lse - picked))


@triton.jit
def _exp(x):
    return tl.exp2(x * LOG2_E)


@triton.jit
def _mean_kernel(losses_ptr, targets_ptr, loss_ptr, count_ptr, N, ignore_index, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float32)
    count = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, N, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        total += tl.load(losses_ptr + rows, mask=rows < N, other=0.0)
        target = tl.load(targets_ptr + rows, mask=rows < N, other=ignore_index)
        count += tl.where(target == ignore_index, 0.0, 1.0)
    count = tl.sum(count)
    tl.store(count_ptr, count)
    tl.store(loss_ptr, tl.sum(total) / count)


@triton.jit
def _dlogits_kernel(
    dy_ptr, logits_ptr, targets_ptr, lse_ptr, count_ptr, dlogits_ptr,
    V, stride, ignore_index, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(V, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    columns = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits_ptr + row * stride + columns, mask=columns < V, other=float("-inf"))
    target = tl.load(targets_ptr + row)
    scale = tl.load(dy_ptr).to(tl.float32) / tl.load(count_ptr)
    scale = tl.where(target == ignore_index, 0.0, 1.0) * scale
    p = _exp(x.to(tl.float32) - tl.load(lse_ptr + row))
    dlogits = (p - tl.where(columns == target, 1.0, 0.0)) * scale
    tl.store(dlogits_ptr + row * V + columns, dlogits.to(dlogits_ptr.dtype.element_ty), mask=columns < V)


def cross_entropy_forward(logits: Tensor, targets: Tensor, ignore_index: int = -100):
    """Mean of -log softmax(logits)[target] over the targets that are not `ignore_index`.

    logits `(..., V)` float32, bfloat16 or float16, targets `(...)` integers -> a float32 scalar: 16 bits do
    not tell a loss of 4.00 from one of 4.01. Logits are read once. A target outside 0 … V-1 makes the loss
    nan. Raises `ValueError` for shapes or devices that differ, `TypeError` for other dtypes.
    """
    check_classes(logits, targets)
    check("cross_entropy", logits, targets)
    check_integers("cross_entropy", "targets", targets)
    V, N = logits.shape[-1], targets.numel()
    (flat, _, stride), labels = rows(logits), targets.contiguous()
    lse, losses = _numbers(logits, N), _numbers(logits, N)
    block = power_of_2(V, 8192)
    launch(
        _lse_kernel, (N,), flat, labels, lse, losses, V, stride, ignore_index,
        BLOCK=block, num_warps=min(max(block // 512, 1), 8),
    )  # fmt: skip
    loss, count = _mean(losses, labels, ignore_index)
    return loss, (logits, targets, lse, count, ignore_index)


def cross_entropy_backward(dy: Tensor, saved: tuple) -> Tensor:
    """-> dlogits = (softmax(logits) - one_hot(targets)) / number of targets."""
    logits, targets, lse, count, ignore_index = saved
    V, (flat, n, stride) = logits.shape[-1], rows(logits)
    dlogits = empty(logits)
    block = power_of_2(V, 4096)
    launch(
        _dlogits_kernel, (n * cdiv(V, block),),
        dy, flat, targets.contiguous(), lse, count, dlogits, V, stride, ignore_index,
        BLOCK=block, num_warps=min(max(block // 512, 1), 8),
    )  # fmt: skip
    return dlogits


def _numbers(x: Tensor, *shape: int) -> Tensor:
    return torch.empty(*shape, dtype=torch.float32, device=x.device)


def _mean(losses: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The mean of the losses that count, and their number; nan and 0 where none does."""
    loss, count = losses.new_empty(()), losses.new_empty(())
    launch(
        _mean_kernel, (1,), losses, labels, loss, count, losses.numel(), ignore_index,
        BLOCK=4096, num_warps=8,
    )  # fmt: skip
    return loss, count


# The output layer and cross-entropy in one


@triton.jit
def _target_logits_kernel(
    x_ptr, weight_ptr, targets_ptr, picked_ptr, N, V, C, stride_x, stride_w, ignore_index,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    target = tl.load(targets_ptr + rows, mask=rows < N, other=0).to(tl.int64)
    ignored = target == ignore_index
    known = (rows < N) & (target >= 0) & (target < V) & ~ignored
    picked = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(0, C, BLOCK_C):
        columns = start + tl.arange(0, BLOCK_C)
        inside = known[:, None] & (columns < C)[None, :]
        x = tl.load(x_ptr + rows.to(tl.int64)[:, None] * stride_x + columns[None, :], mask=inside, other=0.0)
        w = tl.load(weight_ptr + target[:, None] * stride_w + columns[None, :], mask=inside, other=0.0)
        picked += tl.sum(x.to(tl.float32) * w.to(tl.float32), 1)
    # exp(l - inf) = 0: with this reference an ignored row has no say in any of the sums that follow.
    picked = tl.where(known, picked, tl.where(ignored, float("inf"), float("nan")))
    tl.store(picked_ptr + rows, picked, mask=rows < N)


@triton.jit
def _exp_logits_kernel(
    losses_ptr, reference_ptr, m_ptr, s_ptr, x_desc, weight_desc, e_desc, R, V, C, LIMIT,
    AGAIN: tl.constexpr, PROGRAMS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """e = exp(x Wᵀ - reference), and of each row of each tile of logits the maximum m and Σ exp(l - m).

    `AGAIN` is the second try: it does nothing unless a loss is above `LIMIT`.
    """
    n_m, n_n = tl.cdiv(R, BLOCK_M), tl.cdiv(V, BLOCK_N)
    n_tiles = n_m * n_n
    if AGAIN:
        worst = 0.0
        for start in range(0, R, 1024):
            some = start + tl.arange(0, 1024)
            worst = tl.maximum(worst, tl.max(tl.load(losses_ptr + some, mask=some < R, other=0.0)))
        n_tiles = tl.where(worst > LIMIT, n_tiles, 0)
    # A program takes many tiles, and loads the next one's first blocks while it stores the last one's e.
    # Neighbouring programs share a tile of the weight; the chunk of x stays in the L2 cache.
    for tile in tl.range(tl.program_id(0), n_tiles, PROGRAMS, flatten=True):
        first_row, first_column = (tile % n_m) * BLOCK_M, (tile // n_m) * BLOCK_N
        logits = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(tl.cdiv(C, BLOCK_K)):
            x = x_desc.load([first_row, k * BLOCK_K])
            w = weight_desc.load([first_column, k * BLOCK_K])
            logits = dot(x, w.T, logits)
        rows = first_row + tl.arange(0, BLOCK_M)
        columns = first_column + tl.arange(0, BLOCK_N)
        logits = tl.where(columns[None, :] < V, logits, float("-inf"))
        m = tl.max(logits, 1)
        p = tl.exp2(logits * LOG2_E - (m * LOG2_E)[:, None])
        if not AGAIN:
            place = (tile // n_m) * R + rows
            tl.store(m_ptr + place, m, mask=rows < R)
            tl.store(s_ptr + place, tl.sum(p, 1), mask=rows < R)
        if e_desc is not None:
            reference = tl.load(reference_ptr + rows, mask=rows < R, other=float("inf"))
            e = (p * _exp(m - reference)[:, None]).to(e_desc.dtype)
            left, right = halves(e)
            e_desc.store([first_row, first_column], left)
            e_desc.store([first_row, first_column + BLOCK_N // 2], right)


@triton.jit
def _rows_kernel(
    targets_ptr, picked_ptr, m_ptr, s_ptr, losses_ptr, lse_ptr, reference_ptr, scale_ptr, x_ptr, x_scaled_ptr,
    R, C, stride_x, n_tiles, ignore_index, LIMIT,
    BLOCK_R: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A few rows' tiles put together: lse and loss; then the reference for a second try, 1 / Z and x / Z."""
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = rows < R
    m = tl.full((BLOCK_R,), float("-inf"), tl.float32)
    s = tl.zeros((BLOCK_R,), tl.float32)
    for start in range(0, n_tiles, BLOCK_T):
        tiles = start + tl.arange(0, BLOCK_T)
        place = tiles[:, None] * R + rows[None, :]
        real = (tiles < n_tiles)[:, None] & inside[None, :]
        m_tile = tl.load(m_ptr + place, mask=real, other=float("-inf"))
        s_tile = tl.load(s_ptr + place, mask=real, other=0.0)
        m_new = tl.maximum(m, tl.max(m_tile, 0))
        safe = tl.where(inside, m_new, 0.0)
        s = s * _exp(m - safe) + tl.sum(s_tile * _exp(m_tile - safe[None, :]), 0)
        m = m_new
    lse = m + tl.log(s)
    picked = tl.load(picked_ptr + rows, mask=inside, other=0.0)
    counts = tl.load(targets_ptr + rows, mask=inside, other=ignore_index) != ignore_index
    loss = tl.where(counts, lse - picked, 0.0)
    tl.store(losses_ptr + rows, loss, mask=inside)
    # Where the guess was wrong, exp(l - lse) is the second try's e, and its Z is 1.
    reference = tl.where(loss > LIMIT, lse, picked)
    scale = tl.where(counts, _exp(reference - lse), 0.0)
    tl.store(lse_ptr + rows, lse, mask=inside)
    tl.store(reference_ptr + rows, reference, mask=inside)
    tl.store(scale_ptr + rows, scale, mask=inside)
    if x_scaled_ptr is not None:
        rows = rows.to(tl.int64)[:, None]
        for start in range(0, C, BLOCK_C):
            columns = start + tl.arange(0, BLOCK_C)[None, :]
            both = inside[:, None] & (columns < C)
            x = tl.load(x_ptr + rows * stride_x + columns, mask=both, other=0.0).to(tl.float32)
            x = (x * scale[:, None]).to(x_scaled_ptr.dtype.element_ty)
            tl.store(x_scaled_ptr + rows * C + columns, x, mask=both)


@triton.jit
def _subtract_targets_kernel(
    e_ptr, targets_ptr, reference_ptr, lse_ptr, R, V, stride_e, ignore_index, BLOCK: tl.constexpr
):
    """e' = e - Z one_hot(target), with Z = exp(lse - reference)."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    target = tl.load(targets_ptr + rows, mask=rows < R, other=ignore_index).to(tl.int64)
    known = (target != ignore_index) & (target >= 0) & (target < V)
    z = _exp(tl.load(lse_ptr + rows, mask=known) - tl.load(reference_ptr + rows, mask=known))
    place = e_ptr + rows.to(tl.int64) * stride_e + target
    e = tl.load(place, mask=known).to(tl.float32) - z
    tl.store(place, e.to(e_ptr.dtype.element_ty), mask=known)


@triton.jit
def _scale_kernel(
    dy_ptr, x_ptr, scale_ptr, count_ptr, y_ptr, N, C, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr
):
    """y = x scale dy / count, a few rows."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    factor = tl.load(dy_ptr).to(tl.float32) / tl.load(count_ptr)
    if scale_ptr is not None:
        factor *= tl.load(scale_ptr + rows, mask=rows < N, other=0.0)[:, None]
    for start in range(0, C, BLOCK_C):
        columns = start + tl.arange(0, BLOCK_C)
        place = rows.to(tl.int64)[:, None] * C + columns[None, :]
        inside = (rows < N)[:, None] & (columns < C)[None, :]
        y = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32) * factor
        tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=inside)


def _config(x: Tensor) -> dict:
    """Tiles of the logits and programs a processor, by dtype and GPU; measured on an H100, the others fit."""
    if not on_tensor_cores(x):
        return dict(BLOCK_M=64, BLOCK_N=64, BLOCK_K=16, per_processor=4, num_warps=4, num_stages=2)
    if gpu(x).capability == 90:
        return dict(BLOCK_M=128, BLOCK_N=256, BLOCK_K=64, per_processor=1, num_warps=8, num_stages=4)
    return dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=32, per_processor=2, num_warps=4, num_stages=3)


def linear_cross_entropy_forward(x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int = -100):
    """cross_entropy(x Wᵀ, targets), with an eighth of the logits in memory, or `CHUNK_BYTES`, at a time.

    x `(..., C)` and weight `(V, C)` float32, bfloat16 or float16, targets `(...)` integers -> a float32
    scalar. A target outside 0 … V-1 makes the loss nan. `saved` is e' W in x's shape, 1 / Z `(rows)`,
    e'ᵀ (x / Z) `(V, C)` in float32, the number of targets and the gradients' dtype: the gradients but for
    two factors, and not the inputs. Where no gradient will be asked for, `linear_cross_entropy_inference`
    costs a third. Raises `ValueError` for shapes or devices that differ, `TypeError` for other dtypes.
    """
    # Before the division by Z, fp16 could overflow. dweight is a sum over chunks: fp32.
    dx = torch.empty(x.shape, dtype=torch.float32 if x.dtype == torch.float16 else x.dtype, device=x.device)
    dweight = _numbers(x, *weight.shape)
    loss, count, scale = _loss(x, weight, targets, ignore_index, dx, dweight)
    return loss, (dx, scale, dweight, count, str(x.dtype).removeprefix("torch."))


def linear_cross_entropy_inference(x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int = -100):
    """The loss of `linear_cross_entropy_forward` alone, without the two products that gradients need."""
    return _loss(x, weight, targets, ignore_index)[0]


def linear_cross_entropy_backward(dy: Tensor, saved: tuple):
    """-> dx, dweight: what the forward pass summed, times dy / number of targets."""
    dx, scale, dweight, count, dtype = saved
    dtype = getattr(torch, dtype)
    return _scaled(dy, dx, scale, count, dtype), _scaled(dy, dweight, None, count, dtype)


def _scaled(dy: Tensor, x: Tensor, scale: Tensor | None, count: Tensor, dtype: torch.dtype) -> Tensor:
    C = x.shape[-1]
    y, N = torch.empty(x.shape, dtype=dtype, device=x.device), x.numel() // C
    launch(
        _scale_kernel, (cdiv(N, 4),), dy, x, scale, count, y, N, C,
        BLOCK_N=4, BLOCK_C=power_of_2(C, 1024),
    )  # fmt: skip
    return y


def _loss(x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, dx=None, dweight=None) -> tuple:
    """-> loss, number of targets, 1 / Z of each row. Fills dx with e' W and dweight with e'ᵀ (x / Z)."""
    check_width("linear_cross_entropy", x, weight.shape[1])
    check("linear_cross_entropy", x, weight, targets)
    if x.shape[:-1] != targets.shape:
        raise ValueError(
            f"linear_cross_entropy: x {tuple(x.shape)} needs targets of shape {tuple(x.shape[:-1])}, "
            f"got {tuple(targets.shape)}."
        )
    check_integers("linear_cross_entropy", "targets", targets)
    (V, C), N = weight.shape, targets.numel()
    x, weight, labels = for_tma(matrix(x)), for_tma(matrix(weight)), targets.reshape(-1).contiguous()
    numbers = _numbers(x, 5, N)  # of each row: picked, losses, lse, reference, scale
    launch(
        _target_logits_kernel, (cdiv(N, 8),), x, weight, labels, numbers,
        N, V, C, x.stride(0), weight.stride(0), ignore_index,
        BLOCK_N=8, BLOCK_C=power_of_2(C, 512),
    )  # fmt: skip

    # Chunks of one size, as few as may be. 16,384 rows fill any GPU.
    most = max(min(max(CHUNK_BYTES // (V * x.element_size()), N // 8), 16384), 16)
    size = 16 * cdiv(N, 16 * cdiv(N, most))
    n_tiles = cdiv(V, _config(x)["BLOCK_N"])
    m, s = (_numbers(x, n_tiles, size) for _ in range(2))
    e, x_scaled = (None, None) if dx is None else (padded(x, size, V), x.new_empty(size, C))
    # Above it, Z = exp(loss) leaves the range in which e's dtype is precise.
    limit = 10.0 if x.dtype == torch.float16 else 64.0
    for start in range(0, N, size):
        R = min(size, N - start)
        chunk, label = part(x, start, R), part(labels, start, R)
        picked, losses, lse, reference, scale = part(numbers, start, R, 1).unbind()
        exp_logits = _exp_logits(chunk, weight, e, m, s, limit)
        exp_logits(losses, picked, again=False)
        launch(
            _rows_kernel, (cdiv(R, 8),), label, picked, m, s, losses, lse, reference, scale,
            chunk, x_scaled, R, C, chunk.stride(0), n_tiles, ignore_index, limit,
            BLOCK_R=8, BLOCK_T=128, BLOCK_C=power_of_2(C, 512),
        )  # fmt: skip
        if dx is None:
            continue
        exp_logits(losses, reference, again=True)
        launch(
            _subtract_targets_kernel, (cdiv(R, 128),), e, label, reference, lse,
            R, V, e.stride(0), ignore_index, BLOCK=128,
        )  # fmt: skip
        e_rows, x_rows = part(e, 0, R), part(x_scaled, 0, R)
        _multiply_add(part(dx.view(N, C), start, R), e_rows, weight, beta=0)
        _multiply_add(dweight, e_rows.t(), x_rows, beta=int(start > 0))
    _, losses, _, _, scale = numbers.unbind()
    loss, count = _mean(losses, labels, ignore_index)
    return loss, count, scale


def _exp_logits(x, weight, e, m, s, limit: float) -> Callable:
    """The launch of both tries, a function of losses, reference and `again`."""
    (R, C), V = x.shape, weight.shape[0]
    config = _config(x)
    programs = gpu(x).processors * config.pop("per_processor")
    M, N, K = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
    fetched = tiles(x, x.shape, x.stride(), (M, K)), tiles(weight, weight.shape, weight.stride(), (N, K))
    stored = None if e is None else tiles(e, e.shape, e.stride(), (M, N // 2))
    return lambda losses, reference, again: launch(
        _exp_logits_kernel, (programs,), losses, reference, m, s, *fetched, stored, R, V, C, limit,
        AGAIN=again, PROGRAMS=programs, **config,
    )  # fmt: skip


def _multiply_add(out: Tensor, a: Tensor, b: Tensor, beta: int) -> None:
    """out ← beta out + a b by the library's matrix product, summed in fp32 and rounded to out's dtype."""
    if isinstance(out, FakeTensor):
        return
    if out.dtype == a.dtype:
        torch.addmm(out, a, b, beta=beta, out=out)
    elif out.is_cuda:
        torch.ops.aten.addmm.dtype_out(out, a, b, out.dtype, beta=beta, out=out)
    else:
        torch.addmm(out, a.float(), b.float(), beta=beta, out=out)

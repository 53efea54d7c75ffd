"""Attention in two ways: composed of products and a softmax, and fused as FlashAttention-2 (Dao, 2023).

`composed_attention_forward` and `_backward` are how the first GPTs computed it: scores `(B, H, T, S)` stand
in memory, `matmul.cu` multiplies and `attention.cu` has the softmax between the products. `attention_forward`
and `_backward`, the engine's, are the kernels of `flash.cu`, which need memory linear in T and S.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.checks import check_attention
from kernels.cuda.launch import (
    Like,
    cdiv,
    check,
    like,
    likes,
    module,
    nothing,
    processors,
    shared_memory,
    without_data,
)
from kernels.cuda.matmul import has_tensor_cores, matmul
from kernels.packed import empty_beside

LOG2_E = math.log2(math.e)
WIDEST_HEAD = 256


@dataclass(frozen=True)
class Tiles:
    """What `flash.cuh` wants to know: the width of a head rounded up, the rows that a block keeps, those that
    it walks along at a time, and whether tensor cores multiply them."""

    HEAD: int
    BLOCK_ROWS: int
    BLOCK_COLUMNS: int
    tensor_cores: bool

    @property
    def macros(self) -> dict[str, int]:
        sizes = {name: getattr(self, name) for name in ("HEAD", "BLOCK_ROWS", "BLOCK_COLUMNS")}
        return sizes | ({"TENSOR_CORES": 1} if self.tensor_cores else {})

    @property
    def threads(self) -> int:
        return self.BLOCK_ROWS * (2 if self.tensor_cores else 4)

    def shared_bytes(self, kept: int) -> int:
        """What a block asks for: `kept` tiles of its own rows, two of those it walks along, scores."""
        rows = kept * self.BLOCK_ROWS + 2 * self.BLOCK_COLUMNS
        if self.tensor_cores:
            return 2 * rows * (self.HEAD + 8)
        return 4 * (rows * (self.HEAD + 4) + self.BLOCK_ROWS * (self.BLOCK_COLUMNS + 4))


def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None = None,
    causal: bool = True,
    window: int | None = None,
    softmax_scale: float | None = None,
):
    """softmax(softmax_scale q kᵀ, masked) v for every head, in memory linear in T and S.

    q `(B, T, H, D)`, k and v `(B, S, H_kv, D)`, sink `(H)` or None -> y `(B, T, H, D)`, contiguous; of any
    strides, in float32, bfloat16 or float16, summed in float32, D up to 256.
    `kernels.reference.attention_forward` says what the arguments mean. `saved` holds the inputs, y, and lse
    `(B, H, T)` in float32: the logarithm, to base 2, of each query's sum of exponentials.
    Raises `ValueError` for shapes and devices, `TypeError` for dtypes.
    """
    softmax_scale = _scale(q, softmax_scale)
    y = q.new_empty(q.shape)
    lse = torch.empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32, device=q.device)
    if not without_data(q):
        dense = [_dense(x) for x in (q, k, v)]
        sink_values = None if sink is None else sink.contiguous()
        plan = _forward_plan(*map(like, dense), like(sink), causal, window, softmax_scale)
        plan(*dense, sink_values, y, lse)
    return y, (q, k, v, sink, y, lse, causal, window, softmax_scale)


def attention_backward(dy: Tensor, saved: tuple):
    """-> dq, dk, dv, dsink (None without a sink). dy `(B, T, H, D)`, of any strides.

    The gradients of q, k and v that are neighbours in one array are neighbours in one, too.
    """
    q, k, v, sink, y, lse, causal, window, softmax_scale = saved
    dq, dk, dv = empty_beside(q, k, v)
    delta = torch.empty_like(lse)
    dsink = None if sink is None else sink.new_empty(sink.shape)
    if not without_data(q):
        dense = [_dense(x) for x in (q, k, v, dy)]
        plan = _backward_plan(*map(like, dense), dq.stride(1), dk.stride(1), causal, window, softmax_scale)
        plan(*dense, y, lse, delta, dq, dk, dv)
        _sink_gradient(sink, lse, delta, dsink)
    return dq, dk, dv, dsink


def composed_attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None = None,
    causal: bool = True,
    window: int | None = None,
    softmax_scale: float | None = None,
):
    """The same as `attention_forward`, one step after the other: `saved` holds p `(B, H, T, S)`."""
    softmax_scale = _scale(q, softmax_scale)
    _check(q, k, v, sink, causal, window)
    (B, T, H, _), (S, H_kv) = q.shape, k.shape[1:3]
    p = q.new_empty((B, H, T, S))
    lse = torch.empty((B, H, T), dtype=torch.float32, device=q.device)
    y = q.new_empty(q.shape)
    for heads in _sharing(H, H_kv):  # one query head of each group: as many as there are heads of k and v
        matmul(_heads(q[:, :, heads]), _heads(k).mT, out=p[:, heads], alpha=softmax_scale)
    if lse.numel() and not without_data(q):
        softmax = module("attention.cu", q.dtype).masked_softmax_forward[cdiv(B * H * T, 4), 128]
        sink_values = None if sink is None else sink.contiguous()
        softmax(p, sink_values, lse, B * H * T, H, T, S, *_reach(causal, window, T, S))
    for heads in _sharing(H, H_kv):
        matmul(p[:, heads], _heads(v), out=_heads(y[:, :, heads]))
    return y, (q, k, v, sink, p, lse, softmax_scale)


def composed_attention_backward(dy: Tensor, saved: tuple):
    """-> dq, dk, dv, dsink (None without a sink)."""
    q, k, v, sink, p, lse, softmax_scale = saved
    (B, H, T, S), H_kv = p.shape, k.shape[2]
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    delta = torch.empty_like(lse)
    ds = torch.empty_like(p)
    for heads in _sharing(H, H_kv):
        matmul(_heads(dy[:, :, heads]), _heads(v).mT, out=ds[:, heads])  # dp, until the softmax's backward
    if lse.numel() and not without_data(q):
        softmax = module("attention.cu", q.dtype).masked_softmax_backward[cdiv(B * H * T, 4), 128]
        softmax(ds, p, delta, B * H * T, S)
    for i, heads in enumerate(_sharing(H, H_kv)):
        matmul(ds[:, heads], _heads(k), out=_heads(dq[:, :, heads]), alpha=softmax_scale)
        # Those who share a head of k and v add their gradients.
        q_heads, dy_heads = _heads(q[:, :, heads]), _heads(dy[:, :, heads])
        matmul(ds[:, heads].mT, q_heads, out=_heads(dk), alpha=softmax_scale, accumulate=i > 0)
        matmul(p[:, heads].mT, dy_heads, out=_heads(dv), accumulate=i > 0)
    dsink = None if sink is None else sink.new_empty(sink.shape)
    if not without_data(q):
        _sink_gradient(sink, lse, delta, dsink)
    return dq, dk, dv, dsink


def _sharing(H: int, H_kv: int) -> list[slice]:
    """For each place in a group of query heads that share a head of k and v: the heads at that place."""
    group = H // H_kv
    return [slice(place, None, group) for place in range(group)]


def _heads(x: Tensor) -> Tensor:
    """`(B, T, H, D)` as `(B, H, T, D)`."""
    return x.transpose(1, 2)


def _dense(x: Tensor) -> Tensor:
    """x, or a copy of it whose rows have no gaps between features."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _scale(q: Tensor, softmax_scale: float | None) -> float:
    return max(q.shape[-1:], default=1) ** -0.5 if softmax_scale is None else softmax_scale


def _reach(causal: bool, window: int | None, T: int, S: int) -> tuple[int, int]:
    """How far before and after its own position a query sees."""
    everything = T + S
    return (everything if window is None else window - 1), (0 if causal else everything)


def _check(q, k, v, sink, causal: bool, window: int | None) -> None:
    check_attention(q, k, v, sink, causal, window)
    check("attention", q, k, v, sink)


def _sink_gradient(sink: Tensor | None, lse: Tensor, delta: Tensor, dsink: Tensor | None) -> None:
    if sink is not None:
        B, H, T = lse.shape
        kernel = module("attention.cu", sink.dtype).attention_dsink[H, 256]
        kernel(sink.contiguous(), lse, delta, dsink, B, H, T)


@functools.lru_cache(maxsize=256)
def _forward_plan(
    q: tuple, k: tuple, v: tuple, sink: tuple | None, causal: bool, window: int | None, softmax_scale: float
) -> Callable:
    """-> what launches the kernel on q, k, v, sink, y and lse."""
    q, k, v, sink = likes(q, k, v, sink)
    _check(q, k, v, sink, causal, window)
    (B, T, H, D), (S, H_kv) = q.shape, k.shape[1:3]
    if D > WIDEST_HEAD:
        raise ValueError(f"attention: heads of width {D}; the cuda engine has kernels up to {WIDEST_HEAD}.")
    if B * T * H * D == 0:
        return nothing
    places = [stride for x in (q, k, v) for stride in x.strides[:3]]
    numbers = (*places, H, H // H_kv, T, S, D, *_reach(causal, window, T, S), softmax_scale * LOG2_E)
    return _launch("flash_forward", q, B * H, T, D, 1, numbers)


@functools.lru_cache(maxsize=256)
def _backward_plan(
    q: tuple,
    k: tuple,
    v: tuple,
    dy: tuple,
    dq_row: int,
    dk_row: int,
    causal: bool,
    window: int | None,
    softmax_scale: float,
) -> Callable:
    """-> what launches the kernels on q, k, v, dy, y, lse, delta, dq, dk and dv."""
    q, k, v, dy = likes(q, k, v, dy)
    check("attention", q, dy)
    if dy.shape != q.shape:
        raise ValueError(
            f"attention: dy must have the shape of the output, {tuple(q.shape)}, got {tuple(dy.shape)}."
        )
    (B, T, H, D), (S, H_kv) = q.shape, k.shape[1:3]
    if D == 0 or B * H_kv * (T + S) == 0:
        return nothing
    places = [stride for x in (q, k, v, dy) for stride in x.strides[:3]]
    sizes = (H, H // H_kv, T, S, D, *_reach(causal, window, T, S), softmax_scale * LOG2_E, softmax_scale)
    launch_dq = _launch("flash_dq", q, B * H, T, D, 2, (*places, dq_row, *sizes))
    launch_dkv = _launch("flash_dkv", q, B * H_kv, S, D, 2, (*places, dk_row, *sizes))

    def run(q, k, v, dy, y, lse, delta, dq, dk, dv):
        launch_dq(q, k, v, y, lse, dy, dq, delta)
        launch_dkv(q, k, v, lse, dy, delta, dk, dv)

    return run


def _launch(kernel: str, q: Like, heads: int, n_rows: int, D: int, kept: int, numbers: tuple) -> Callable:
    """A kernel of `flash.cu` with a block for every few of `n_rows` rows of each of `heads` heads: it takes
    tensors, the numbers that come after them are known."""
    tiles = _tiles(q.dtype, D, heads, n_rows, kept, q.device)
    blocks = cdiv(n_rows, tiles.BLOCK_ROWS) * heads
    if blocks == 0:
        return nothing
    launch = getattr(module("flash.cu", q.dtype, **tiles.macros), kernel)
    return launch[blocks, tiles.threads, tiles.shared_bytes(kept)].prepare(*numbers)


# Rows and columns of a tile, from the most work that a block does to the least.
SIZES = ((128, 64), (64, 64), (64, 32), (32, 32), (32, 16), (16, 16), (8, 16))


def _tiles(dtype: torch.dtype, D: int, heads: int, n_rows: int, kept: int, device: torch.device) -> Tiles:
    """The largest tiles that fit; with fewer rows, if there are not enough for all processors."""
    head, tensor_cores = max(16, 1 << (D - 1).bit_length()), has_tensor_cores(dtype, device)
    # What was fastest on an H100. Threads alone have no registers for the first; with narrow heads the
    # backward pass has too little work to wait for so much.
    first = (2 if kept == 2 and head <= 64 else 0) if tensor_cores else 1
    fitting = [Tiles(head, *size, tensor_cores) for size in SIZES[first:]]
    largest = next(tiles for tiles in fitting if tiles.shared_bytes(kept) <= shared_memory(device))
    if cdiv(n_rows, largest.BLOCK_ROWS) * heads >= processors(device):
        return largest
    return replace(largest, BLOCK_ROWS=min(largest.BLOCK_ROWS, max(16, largest.BLOCK_ROWS // 2)))

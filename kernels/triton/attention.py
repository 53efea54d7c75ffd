"""Attention as FlashAttention-2 (Dao, 2023): what is checked, chosen and launched around its three kernels.

The kernels, and the derivation, are in `flash_forward` and `flash_backward`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from kernels.checks import check_attention
from kernels.packed import empty_beside
from kernels.triton.arithmetic import LOG2_E
from kernels.triton.flash_backward import _dkv_kernel, _dq_kernel
from kernels.triton.flash_forward import _forward_kernel
from kernels.triton.launch import INTERPRETED, TENSOR, Gpu, Launch, Tiles, cdiv, check, empty, gpu, power_of_2

WIDEST_HEAD = 256
COPY_ENGINE = 90  # compute capability (times ten) from which tensor descriptors are fetched in hardware
LARGE = 512 * 512  # scores a head from which the gain of descriptors covers the time to make them

# (BLOCK_M, BLOCK_N, num_warps, num_stages, maxnreg) by the width of a head that they go up to. Those of
# the H100 in 16 bits are the fastest of a sweep on one, as `tools/tune_attention.py` makes it; up to 64 wide,
# one tile serves 1,024 and 4,096 tokens, and takes up to 4 % more than the fastest of each. The others have
# been compiled, not timed: they fit the shared memory and, most of them, the registers (A100 is an L4's too).
FORWARD, DQ, DKV = "forward", "dq", "dkv"
TILES = {
    "H100": {
        FORWARD: {
            32: (128, 64, 4, 3, None),
            64: (64, 64, 4, 2, 96),
            128: (64, 64, 4, 3, None),
            256: (128, 64, 8, 2, None),
        },
        DQ: {
            64: (64, 64, 4, 3, None),
            128: (128, 64, 8, 3, None),
            256: (64, 32, 4, 3, None),
        },
        DKV: {64: (64, 64, 4, 2, 168), 128: (64, 64, 4, 2, None), 256: (64, 64, 8, 2, None)},
    },
    "A100": {
        FORWARD: {64: (128, 64, 4, 3, None), 128: (128, 32, 4, 3, None), 256: (64, 32, 4, 2, None)},
        DQ: {64: (64, 64, 4, 3, None), 128: (64, 32, 4, 2, None), 256: (32, 32, 4, 2, None)},
        DKV: {64: (32, 64, 4, 3, None), 128: (32, 64, 4, 2, None), 256: (16, 64, 8, 2, None)},
    },
    "H100, float32": {
        FORWARD: {64: (64, 64, 4, 2, None), 128: (32, 32, 8, 1, None), 256: (16, 16, 4, 1, None)},
        DQ: {64: (32, 32, 4, 1, None), 128: (32, 32, 8, 1, None), 256: (16, 16, 4, 1, None)},
        DKV: {64: (32, 32, 4, 1, None), 128: (32, 32, 8, 1, None), 256: (16, 16, 4, 1, None)},
    },
    # Triton does not use a T4's tensor cores. A number of a tile takes many instructions there: small tiles,
    # for many threads.
    "T4": {kernel: {64: (32, 32, 8, 1, None), 256: (16, 16, 8, 1, None)} for kernel in (FORWARD, DQ, DKV)},
    "interpreter": {kernel: {WIDEST_HEAD: (32, 32, 4, 1, None)} for kernel in (FORWARD, DQ, DKV)},
}

# A B200 is given those of an H100, but for one that its products ask too much shared memory for.
TILES["B200"] = TILES["H100"] | {DKV: TILES["H100"][DKV] | {256: (32, 64, 8, 2, None)}}
TILES["B200, float32"] = TILES["H100, float32"]
# On an A100 the compiler has not enough registers for one of them.
TILES["A100, float32"] = TILES["H100, float32"] | {
    FORWARD: TILES["H100, float32"][FORWARD] | {64: (64, 32, 4, 2, None)}
}
# And four tiles of float32, 256 wide, leave none of a T4's shared memory to exchange numbers among warps.
TILES["T4, float32"] = TILES["T4"] | {
    DKV: {64: (32, 32, 8, 1, None), 128: (16, 16, 8, 1, None), 256: (16, 16, 2, 1, None)}
}


def _table(here: Gpu, dtype: torch.dtype) -> str:
    if INTERPRETED:
        return "interpreter"
    if here.capability < COPY_ENGINE:
        name = "T4" if here.capability < 80 else "A100"
    else:
        name = "H100" if here.capability < 100 else "B200"
    return f"{name}, float32" if dtype == torch.float32 else name


def _tiles(kernel: str, here: Gpu, dtype: torch.dtype, D: int) -> tuple:
    return next(tiles for width, tiles in TILES[_table(here, dtype)][kernel].items() if width >= D)


def _precision(here: Gpu) -> str:
    """How float32 is multiplied. Tensor cores would round factors to 10 bits (TF32); but three such products,
    of the leading parts and of what was cut off, add up to float32 again. On an H100, T = 2048, D = 64, the
    largest relative error was 6e-7, against 1e-6 by ordinary multiply-adds, in a fifth of the time."""
    return "tf32x3" if here.capability >= 80 else "ieee"


def _options(warps: int, stages: int, registers: int | None) -> dict:
    options = {"num_warps": warps, "num_stages": stages}
    return options if registers is None else options | {"maxnreg": registers}


class Like(NamedTuple):
    """What of a tensor decides how it is computed with."""

    shape: tuple
    strides: tuple
    dtype: torch.dtype
    device: torch.device


def _planned(plan: Callable, tensors: tuple, *choices) -> tuple:
    """`plan` for tensors like these, of which it gets what `Like` holds and whether all are aligned."""
    alike = tuple([None if x is None else (x.shape, x.stride(), x.dtype, x.device) for x in tensors])
    if isinstance(tensors[0], FakeTensor):  # with sizes that may be symbols
        return plan.__wrapped__(alike, True, *choices)
    return plan(alike, not any([x is not None and x.data_ptr() % 16 for x in tensors]), *choices)


def _by_copy_engine(here: Gpu, T: int, S: int, *inputs: Like) -> bool:
    """Whether the copy engine should fetch tiles of these: dense rows that begin at multiples of 16 bytes."""
    return (
        here.capability >= COPY_ENGINE
        and T * S >= LARGE
        and all(
            x.dtype.itemsize == 2
            and x.strides[3] == 1
            and all(stride > 0 and stride % 8 == 0 for stride in x.strides[:3])
            for x in inputs
        )
    )


def _heads(x: Like, BLOCK: int, descriptors: bool) -> tuple:
    """What a kernel fetches tiles of x `(B, T, H, D)` from, and x's strides: x itself, or the descriptor of
    a `(B, H, T, D)` made of tiles `(1, 1, BLOCK, D rounded up)`."""
    if not descriptors:
        return TENSOR, x.strides
    (B, T, H, D), (b, t, h, _) = x.shape, x.strides
    return Tiles((B, H, T, D), (b, h, t, 1), (1, 1, BLOCK, max(16, power_of_2(D, WIDEST_HEAD)))), x.strides


def _nonnegative(q: Tensor, softmax_scale: float) -> tuple[Tensor, float, int]:
    """The kernels take a maximum before they scale, so they need a scale above zero. q carries the sign."""
    sign = (softmax_scale > 0) - (softmax_scale < 0)
    return (q, softmax_scale, 1) if sign == 1 else (q * sign, abs(softmax_scale) or 1.0, sign)


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
    strides, in float32, bfloat16 or float16, D up to 256. `kernels.reference.attention_forward` says what
    the arguments mean. `saved` holds the inputs, y, and lse `(B, H, T rounded up to 4)` in float32: for
    each query the logarithm, to base 2, of the sum of 2^(log₂e softmax_scale q·k), the sink included.
    Raises `ValueError` for shapes and devices, `TypeError` for dtypes, `RuntimeError` without a GPU.
    """
    if softmax_scale is None:
        softmax_scale = max(q.shape[-1:], default=1) ** -0.5
    signed_q, scale, _ = _nonnegative(q, softmax_scale)
    lse_shape, run = _planned(_plan_forward, (signed_q, k, v, sink), causal, window, scale)
    y = empty(q)
    lse = torch.empty(lse_shape, dtype=torch.float32, device=q.device)
    run(y, signed_q, k, v, sink, lse)
    return y, (q, k, v, sink, y, lse, causal, window, softmax_scale)


@functools.lru_cache(maxsize=256)
def _plan_forward(
    alike: tuple, aligned: bool, causal: bool, window: int | None, scale: float
) -> tuple[tuple, Launch]:
    """-> the shape of lse, and the launch with y, q, k, v, sink and lse: kept, since a model asks again."""
    q, k, v, sink = [x and Like(*x) for x in alike]
    check_attention(q, k, v, sink, causal, window)
    check("attention", q, k, v, sink)
    (B, T, H, D), (S, H_kv) = q.shape, k.shape[1:3]
    if D > WIDEST_HEAD:
        raise ValueError(f"attention: heads of width {D}; the triton engine has kernels up to {WIDEST_HEAD}.")
    here, T_padded = gpu(q), 4 * cdiv(T, 4)
    BLOCK_M, BLOCK_N, *options = _tiles(FORWARD, here, q.dtype, D)
    descriptors = aligned and _by_copy_engine(here, T, S, q, k, v)
    return (B, H, T_padded), Launch(
        _forward_kernel,
        (cdiv(T, BLOCK_M) * B * H,),
        TENSOR,
        *_heads(q, BLOCK_M, descriptors),
        *_heads(k, BLOCK_N, descriptors),
        *_heads(v, BLOCK_N, descriptors),
        TENSOR, 0 if sink is None else sink.strides[0], TENSOR,
        H, H // H_kv, T, S, T_padded, min(window or 0, S), scale * LOG2_E.value,
        D, causal, window is not None, _precision(here), BLOCK_M, BLOCK_N,
        **_options(*options),
    )  # fmt: skip


def attention_backward(dy: Tensor, saved: tuple):
    """-> dq, dk, dv, dsink (None without a sink). dy `(B, T, H, D)`, of any strides.

    The gradients of q, k and v that are neighbours in one array are neighbours in one, too.
    """
    return turned_attention_backward(dy, saved, None, None)


def turned_attention_backward(
    dy: Tensor, saved: tuple, cos: Tensor | None, sin: Tensor | None
) -> tuple[Tensor | None, ...]:
    """`attention_backward`; with dense tables `(T, D/2)`, dq and dk are turned back."""
    q, k, v, sink, y, lse, causal, window, softmax_scale = saved
    signed_q, scale, sign = _nonnegative(q, softmax_scale)
    dq, dk, dv = empty_beside(q, k, v)
    sums_shape, run_dq, run_dkv = _planned(
        _plan_backward, (signed_q, k, v, sink, y, dy, cos), dq.stride(1), dk.stride(1), causal, window, scale
    )
    delta = torch.empty_like(lse)
    dsink = None if sink is None else torch.empty(sums_shape, dtype=torch.float32, device=q.device)
    run_dq(dq, signed_q, k, v, sink, y, lse, dy, delta, dsink, cos, sin)
    run_dkv(dk, dv, signed_q, k, v, lse, dy, delta, cos, sin)
    return (
        dq if sign == 1 else dq * sign,
        dk,
        dv,
        None if sink is None else dsink.sum(0).to(sink.dtype),
    )


@functools.lru_cache(maxsize=256)
def _plan_backward(
    alike: tuple, aligned: bool, dq_t: int, dk_t: int, causal: bool, window: int | None, scale: float
) -> tuple[tuple, Launch, Launch]:
    """-> the shape of the partial sums of dsink; the launches with dq, q, k, v, sink, y, lse, dy, delta,
    dsink, cos and sin, and with dk, dv, q, k, v, lse, dy, delta, cos and sin."""
    q, k, v, sink, y, dy, _ = [x and Like(*x) for x in alike]
    check("attention", q, dy)
    if dy.shape != y.shape:
        raise ValueError(
            f"attention: dy {tuple(dy.shape)} must have the shape of the output, {tuple(y.shape)}."
        )
    here = gpu(q)
    (B, T, H, D), (S, H_kv) = q.shape, k.shape[1:3]
    T_padded = 4 * cdiv(T, 4)
    descriptors = aligned and _by_copy_engine(here, T, S, q, k, v, y, dy)
    numbers = (H, H // H_kv, T, S, T_padded, min(window or 0, S), scale * LOG2_E.value, scale)
    choices = (D, causal, window is not None, _precision(here))

    BLOCK_M, BLOCK_N, *options = _tiles(DQ, here, q.dtype, D)
    n_blocks = cdiv(T, BLOCK_M)
    run_dq = Launch(
        _dq_kernel,
        (n_blocks * B * H,),
        TENSOR, dq_t,
        *_heads(q, BLOCK_M, descriptors),
        *_heads(k, BLOCK_N, descriptors),
        *_heads(v, BLOCK_N, descriptors),
        TENSOR, 0 if sink is None else sink.strides[0], _heads(y, BLOCK_M, descriptors)[0], TENSOR,
        *_heads(dy, BLOCK_M, descriptors), TENSOR, TENSOR, TENSOR, TENSOR,
        *numbers, *choices, BLOCK_M, BLOCK_N,
        **_options(*options),
    )  # fmt: skip

    BLOCK_M, BLOCK_N, *options = _tiles(DKV, here, q.dtype, D)
    per_query = Tiles((B * H, T), (T_padded, 1), (1, BLOCK_M)) if descriptors else TENSOR  # lse and delta
    run_dkv = Launch(
        _dkv_kernel,
        (cdiv(S, BLOCK_N) * B * H_kv,),
        TENSOR, TENSOR, dk_t,
        *_heads(q, BLOCK_M, descriptors),
        *_heads(k, BLOCK_N, descriptors),
        *_heads(v, BLOCK_N, descriptors),
        per_query,
        *_heads(dy, BLOCK_M, descriptors),
        per_query, TENSOR, TENSOR,
        *numbers, *choices, BLOCK_M, BLOCK_N,
        **_options(*options),
    )  # fmt: skip
    return (B * n_blocks, H), run_dq, run_dkv

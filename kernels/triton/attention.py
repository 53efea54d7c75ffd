"""Attention as FlashAttention-2 (Dao, 2023): what is checked, chosen and launched around its three kernels.

The kernels, and the derivation, are in `flash_forward` and `flash_backward`.
"""

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.checks import check_attention
from kernels.triton.arithmetic import LOG2_E
from kernels.triton.flash_backward import _dkv_kernel, _dq_kernel
from kernels.triton.flash_forward import _forward_kernel
from kernels.triton.launch import INTERPRETED, Gpu, check, empty, gpu, launch, tiles

WIDEST_HEAD = 256
COPY_ENGINE = 90  # compute capability (times ten) from which tensor descriptors are fetched in hardware
LARGE = 512 * 512  # scores a head from which the gain of descriptors covers the time to make them

# (BLOCK_M, BLOCK_N, num_warps, num_stages, maxnreg) by the width of a head that they go up to. Those of the
# H100 are the fastest of a sweep on one. The others have been compiled, not timed: they fit the shared memory
# and, most of them, the registers of the GPU (A100 stands for an L4 too, and H100 for a B200).
FORWARD, DQ, DKV = "forward", "dq", "dkv"
TILES = {
    "H100": {
        FORWARD: {
            32: (128, 64, 4, 3, None),
            64: (64, 128, 4, 2, None),
            128: (64, 64, 4, 3, None),
            256: (128, 64, 8, 2, None),
        },
        DQ: {
            32: (64, 64, 4, 3, None),
            64: (128, 64, 4, 3, None),
            128: (128, 64, 8, 3, None),
            256: (64, 32, 4, 2, None),
        },
        DKV: {64: (64, 64, 4, 2, 168), 128: (64, 64, 4, 2, None), 256: (32, 64, 8, 2, None)},
    },
    "A100": {
        FORWARD: {64: (128, 64, 4, 3, None), 128: (128, 32, 4, 3, None), 256: (64, 32, 4, 2, None)},
        DQ: {64: (64, 64, 4, 3, None), 128: (64, 32, 4, 2, None), 256: (32, 32, 4, 2, None)},
        DKV: {64: (32, 64, 4, 3, None), 128: (32, 64, 4, 2, None), 256: (16, 64, 8, 2, None)},
    },
    "float32": {
        FORWARD: {64: (64, 64, 4, 2, None), 128: (32, 32, 8, 1, None), 256: (16, 16, 4, 1, None)},
        DQ: {64: (32, 32, 4, 1, None), 128: (32, 32, 8, 1, None), 256: (16, 16, 4, 1, None)},
        DKV: {64: (32, 32, 4, 1, None), 128: (32, 32, 8, 1, None), 256: (16, 16, 4, 1, None)},
    },
    # Triton does not use a T4's tensor cores. A number of a tile takes many instructions there: small tiles.
    "T4": {
        kernel: {64: (32, 32, 8, 1, None), 128: (16, 16, 8, 1, None), 256: (16, 16, 2, 1, None)}
        for kernel in (FORWARD, DQ, DKV)
    },
    "interpreter": {kernel: {WIDEST_HEAD: (32, 32, 4, 1, None)} for kernel in (FORWARD, DQ, DKV)},
}


def _tiles(kernel: str, here: Gpu, dtype: torch.dtype, D: int) -> tuple:
    if INTERPRETED:
        table = "interpreter"
    elif here.capability < 80:
        table = "T4"
    elif dtype == torch.float32:
        table = "float32"
    else:
        table = "A100" if here.capability < COPY_ENGINE else "H100"
    return next(tiles for width, tiles in TILES[table][kernel].items() if width >= D)


def _precision(here: Gpu) -> str:
    """How float32 is multiplied. Tensor cores would round factors to 10 bits (TF32); but three such products,
    of the leading parts and of what was cut off, add up to float32 again. On an H100, T = 2048, D = 64, the
    largest relative error was 6e-7, against 1e-6 by ordinary multiply-adds, in a fifth of the time."""
    return "tf32x3" if here.capability >= 80 else "ieee"


def _options(warps: int, stages: int, registers: int | None) -> dict:
    options = {"num_warps": warps, "num_stages": stages}
    return options if registers is None else options | {"maxnreg": registers}


def _by_copy_engine(here: Gpu, T: int, S: int, *tensors: Tensor) -> bool:
    """Whether the copy engine should fetch tiles of these: dense rows that begin at multiples of 16 bytes."""
    return (
        here.capability >= COPY_ENGINE
        and T * S >= LARGE
        and all(
            x.dtype.itemsize == 2
            and x.stride(3) == 1
            and all(stride > 0 and stride % 8 == 0 for stride in x.stride()[:3])
            and (isinstance(x, FakeTensor) or x.data_ptr() % 16 == 0)
            for x in tensors
        )
    )


def _heads(x: Tensor, BLOCK: int, descriptors: bool) -> tuple:
    """What a kernel fetches tiles of x `(B, T, H, D)` from, and x's strides: x itself, or the descriptor of
    a `(B, H, T, D)` made of tiles `(1, 1, BLOCK, D rounded up)`."""
    strides = x.stride()
    if not descriptors:
        return x, strides
    (B, T, H, D), width = x.shape, max(16, 1 << (x.shape[3] - 1).bit_length())
    order = (strides[0], strides[2], strides[1], 1)
    return tiles(x, (B, H, T, D), order, (1, 1, BLOCK, width)), strides


def _per_query(x: Tensor, T: int, BLOCK: int, descriptors: bool) -> Tensor | TensorDescriptor:
    """x `(B, H, T_padded)` itself, or the descriptor of a `(B H, T)` made of tiles `(1, BLOCK)`."""
    B, H, T_padded = x.shape
    return tiles(x, (B * H, T), (T_padded, 1), (1, BLOCK)) if descriptors else x


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
    check_attention(q, k, v, sink, causal, window)
    check("attention", q, k, v, sink)
    (B, T, H, D), (S, H_kv) = q.shape, k.shape[1:3]
    if D > WIDEST_HEAD:
        raise ValueError(f"attention: heads of width {D}; the triton engine has kernels up to {WIDEST_HEAD}.")
    if S == 0 and sink is None:
        raise ValueError("attention: a softmax over no keys; give at least one key, or a sink.")
    softmax_scale = D**-0.5 if softmax_scale is None else softmax_scale
    y = empty(q)
    lse = torch.empty((B, H, -(-T // 4) * 4), dtype=torch.float32, device=q.device)
    saved = (q, k, v, sink, y, lse, causal, window, softmax_scale)

    q, scale, _ = _nonnegative(q, softmax_scale)
    here = gpu(q)
    BLOCK_M, BLOCK_N, *options = _tiles(FORWARD, here, q.dtype, D)
    descriptors = _by_copy_engine(here, T, S, q, k, v)
    launch(
        _forward_kernel,
        (-(-T // BLOCK_M) * B * H,),
        y,
        *_heads(q, BLOCK_M, descriptors),
        *_heads(k, BLOCK_N, descriptors),
        *_heads(v, BLOCK_N, descriptors),
        sink, 0 if sink is None else sink.stride(0), lse,
        H, H // H_kv, T, S, lse.shape[2], min(window or 0, S), scale * LOG2_E.value,
        D, causal, window is not None, _precision(here), BLOCK_M, BLOCK_N,
        **_options(*options),
    )  # fmt: skip
    return y, saved


def attention_backward(dy: Tensor, saved: tuple):
    """-> dq, dk, dv, dsink (None without a sink). dy `(B, T, H, D)`, of any strides."""
    q, k, v, sink, y, lse, causal, window, softmax_scale = saved
    check("attention", q, dy)
    if dy.shape != y.shape:
        raise ValueError(
            f"attention: dy {tuple(dy.shape)} must have the shape of the output, {tuple(y.shape)}."
        )
    (B, T, H, D), (S, H_kv) = q.shape, k.shape[1:3]
    dq, dk, dv = map(empty, (q, k, v))
    delta = torch.empty_like(lse)

    q, scale, sign = _nonnegative(q, softmax_scale)
    here = gpu(q)
    descriptors = _by_copy_engine(here, T, S, q, k, v, y, dy)
    numbers = (H, H // H_kv, T, S, lse.shape[2], min(window or 0, S), scale * LOG2_E.value, scale)
    choices = (D, causal, window is not None, _precision(here))

    BLOCK_M, BLOCK_N, *options = _tiles(DQ, here, q.dtype, D)
    n_blocks = -(-T // BLOCK_M)
    dsink = None if sink is None else torch.empty((B * n_blocks, H), dtype=torch.float32, device=q.device)
    launch(
        _dq_kernel,
        (n_blocks * B * H,),
        dq,
        *_heads(q, BLOCK_M, descriptors),
        *_heads(k, BLOCK_N, descriptors),
        *_heads(v, BLOCK_N, descriptors),
        sink, 0 if sink is None else sink.stride(0), _heads(y, BLOCK_M, descriptors)[0], lse,
        *_heads(dy, BLOCK_M, descriptors), delta, dsink,
        *numbers, *choices, BLOCK_M, BLOCK_N,
        **_options(*options),
    )  # fmt: skip

    BLOCK_M, BLOCK_N, *options = _tiles(DKV, here, q.dtype, D)
    launch(
        _dkv_kernel,
        (-(-S // BLOCK_N) * B * H_kv,),
        dk, dv,
        *_heads(q, BLOCK_M, descriptors),
        *_heads(k, BLOCK_N, descriptors),
        *_heads(v, BLOCK_N, descriptors),
        _per_query(lse, T, BLOCK_M, descriptors),
        *_heads(dy, BLOCK_M, descriptors),
        _per_query(delta, T, BLOCK_M, descriptors),
        *numbers, *choices, BLOCK_M, BLOCK_N,
        **_options(*options),
    )  # fmt: skip
    return (
        dq if sign == 1 else dq * sign,
        dk,
        dv,
        None if sink is None else dsink.sum(0).to(sink.dtype),
    )

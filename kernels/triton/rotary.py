"""Causal attention with rotary positions, from the product that makes queries, keys and values on.

The rotation on its own reads and writes every query and key once more, which takes an H200 a third of the
time of the product before it. Here a tile of qkv = x Wᵀ + b has whole heads, and is turned while it is still
in registers. In the backward pass it is the kernels of `flash_backward` that turn gradients back.
"""

import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import linear

from kernels.checks import check_rope, check_width
from kernels.packed import joined
from kernels.triton.arithmetic import corner, halves, product
from kernels.triton.attention import WIDEST_HEAD, attention_forward, turned_attention_backward
from kernels.triton.elementwise import bias_gradient
from kernels.triton.launch import (
    INTERPRETED,
    check,
    for_tma,
    fuses_products,
    gpu,
    launch,
    matrix,
    power_of_2,
    tiles,
)
from kernels.triton.rope import rope_

# The fastest of a sweep on an H200.
TILES = dict(BLOCK_M=128, BLOCK_N=256, BLOCK_K=64, per_processor=1, num_warps=8, num_stages=3)
if INTERPRETED:  # small arrays shall have many tiles
    TILES |= dict(BLOCK_M=32, BLOCK_N=128, BLOCK_K=16)


@triton.jit
def _store_turned(tile, bias_ptr, cos, sin, qkv_desc, row, column, N, TURNED, HALF: tl.constexpr):
    """A tile of whole heads: each (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), where it begins before
    column TURNED. cos and sin `(rows, HALF)`."""
    WIDTH: tl.constexpr = tile.shape[1]
    HEADS: tl.constexpr = WIDTH // (2 * HALF)
    if bias_ptr is not None:
        columns = column + tl.arange(0, WIDTH)
        tile += tl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    pairs = tl.permute(tl.reshape(tile, (tile.shape[0], HEADS, 2, HALF)), (0, 1, 3, 2))
    x1, x2 = tl.split(pairs)
    turns = (column + tl.arange(0, HEADS) * (2 * HALF) < TURNED)[None, :, None]
    cos = tl.where(turns, cos[:, None, :], 1.0)
    sin = tl.where(turns, sin[:, None, :], 0.0)
    pairs = tl.join(x1 * cos - x2 * sin, x2 * cos + x1 * sin)
    tile = tl.reshape(tl.permute(pairs, (0, 1, 3, 2)), tile.shape)
    qkv_desc.store([row, column], tile.to(qkv_desc.dtype))


@triton.jit
def _turned_kernel(
    x_ptr, x_desc, weight_desc, qkv_desc, M, N, K, bias_ptr, cos_ptr, sin_ptr, T, TURNED,
    HALF: tl.constexpr, PROGRAMS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """qkv = x Wᵀ + bias `(M, N)`, its first TURNED columns turned: row i by the tables' row i modulo T."""
    # A program takes many tiles, and loads the next one's first blocks while it finishes the last one.
    n_tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), n_tiles, PROGRAMS, flatten=True):
        row, column = corner(tile, M, N, BLOCK_M, BLOCK_N)
        qkv = product(x_desc, weight_desc, row, column, K, True, BLOCK_M, BLOCK_N, BLOCK_K)
        t = (row + tl.arange(0, BLOCK_M)) % T
        place = t[:, None] * HALF + tl.arange(0, HALF)[None, :]
        cos = tl.load(cos_ptr + place).to(tl.float32)
        sin = tl.load(sin_ptr + place).to(tl.float32)
        # In halves: a whole tile to store would not fit beside the blocks being loaded.
        left, right = halves(qkv)
        _store_turned(left, bias_ptr, cos, sin, qkv_desc, row, column, N, TURNED, HALF)
        _store_turned(right, bias_ptr, cos, sin, qkv_desc, row, column + BLOCK_N // 2, N, TURNED, HALF)


def _fuses(x: Tensor, D: int) -> bool:
    """Whether to use the kernel above: half a tile must have whole heads."""
    most = TILES["BLOCK_N"] // 2
    return fuses_products(x) and 16 <= D <= most and power_of_2(D, most) == D and x.numel() > 0


def _turned_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, cos: Tensor, sin: Tensor, qkv: Tensor, turned: int
) -> None:
    """qkv `(B, T, heads, D)` = x Wᵀ + bias, the first `turned` heads turned."""
    a, b, y = for_tma(matrix(x)), for_tma(matrix(weight)), qkv.view(-1, weight.shape[0])
    options, D = dict(TILES), qkv.shape[3]
    programs = gpu(x).processors * options.pop("per_processor")
    m, n, k = (options[f"BLOCK_{side}"] for side in "MNK")
    blocks = (a, (m, k)), (b, (n, k)), (y, (m, n // 2))
    launch(
        _turned_kernel, (programs,), a, *(tiles(z, z.shape, z.stride(), block) for z, block in blocks),
        *y.shape, a.shape[1], None if bias is None else bias.contiguous(), cos, sin, qkv.shape[1], turned * D,
        HALF=D // 2, PROGRAMS=programs, **options,
    )  # fmt: skip


def rotary_attention_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    n_head: int,
    cos: Tensor,
    sin: Tensor,
    sink: Tensor | None,
    window: int | None,
):
    """Causal attention of x with itself: queries, keys and values by one product, positions by rotation.

    x `(B, T, C)`; weight `((H + 2 H_kv) D, C)` and bias `((H + 2 H_kv) D)` or None make queries, keys and
    values side by side, H = n_head of them queries. cos and sin `(T, D/2)` as for `rope_forward`; sink and
    window as for `attention_forward` -> y `(B, T, H, D)`. Raises `ValueError` for shapes and devices,
    `TypeError` for dtypes.
    """
    check("rotary_attention", x, weight, bias, cos, sin, sink)
    check_width("rotary_attention", x, weight.shape[1])
    D, width = 2 * cos.shape[-1], weight.shape[0]
    n_kv_head, odd = divmod(width - n_head * D, 2 * D)
    if n_kv_head < 1 or odd or x.dim() != 3 or (bias is not None and bias.shape != (width,)):
        raise ValueError(
            f"rotary_attention: expected x (B, T, C), and a weight and a bias or None for {n_head} heads of "
            f"queries, of width {D} by the tables, and as many of keys as of values; got x {tuple(x.shape)}, "
            f"weight {tuple(weight.shape)}, bias {bias if bias is None else tuple(bias.shape)}."
        )
    heads, turned = (n_head, n_kv_head, n_kv_head), n_head + n_kv_head
    cos, sin = cos.contiguous(), sin.contiguous()
    if _fuses(x, D):
        qkv = x.new_empty(*x.shape[:2], sum(heads), D)
        check_rope(qkv, cos, sin)
        _turned_product(x, weight, bias, cos, sin, qkv, turned)
    else:
        qkv = linear(x, weight, bias).unflatten(-1, (-1, D))
        rope_(qkv.narrow(-2, 0, turned), cos, sin)
    y, saved = attention_forward(*qkv.split(heads, dim=-2), sink, True, window)
    return y, (x, weight, bias is not None, qkv, heads, cos, sin, *saved[3:])


def rotary_attention_backward(dy: Tensor, saved: tuple):
    """-> dx, dweight, dbias and dsink (None for a bias or sink that is None)."""
    x, weight, has_bias, qkv, heads, cos, sin, *saved = saved
    D = qkv.shape[-1]
    by_kernels = max(16, power_of_2(D, WIDEST_HEAD)) == D  # a tile is no wider than a head
    tables = (cos, sin) if by_kernels else (None, None)
    dq, dk, dv, dsink = turned_attention_backward(dy, (*qkv.split(heads, dim=-2), *saved), *tables)
    dqkv = joined((dq, dk, dv))
    if not by_kernels:
        rope_(dqkv.narrow(-2, 0, heads[0] + heads[1]), cos, sin, inverse=True)
    flat = dqkv.view(-1, weight.shape[0])
    dx, dweight = (flat @ weight).view(x.shape), flat.t() @ matrix(x)
    return dx, dweight, bias_gradient(flat, has_bias), dsink

"""MLPs whose nonlinearity happens inside their matrix products, before the results are stored.

GELU on its own reads and writes N x F numbers in the forward pass, and reads two and writes one of them for
each in the backward pass, which takes a GPU most of the time of the product beside it. Here a tile of

    pre = x Wuᵀ + bu        becomes pre and h = gelu(pre)           in the forward pass,
    dh  = dy Wd             becomes dpre = dh gelu'(pre)            in the backward pass,

while it is still in registers, so that the forward pass never reads pre, and dh never stands in memory. The
other products have nothing to be fused with and stay with the library.

The same of a SwiGLU MLP, whose gate and up are one product and lie side by side: a tile of both becomes one
of h, and a tile of dh = dy Wd those of dgate and dup.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import linear

from kernels.checks import check_mlp
from kernels.packed import joined
from kernels.triton.activations import (
    SLOPE,
    gelu_backward,
    gelu_forward,
    sigmoid_of_gelu,
    swiglu_backward,
    swiglu_forward,
)
from kernels.triton.arithmetic import corner, dot, halves
from kernels.triton.elementwise import sum_middle
from kernels.triton.launch import INTERPRETED, check, for_tma, gpu, launch, matrix, padded, tiles

# fmt: off
GELU = dict(
    BLOCK_M=128, BLOCK_N=256, BLOCK_K=64, PARTS=2,
    GROUP=8, per_processor=1, num_warps=8, num_stages=3,
)
SWIGLU = dict(
    BLOCK_M=256, BLOCK_N=64, BLOCK_K=64, PARTS=1, TOGETHER=False,
    GROUP=8, per_processor=1, num_warps=8, num_stages=3,
)
SWIGLU_BACKWARD = dict(
    BLOCK_M=128, BLOCK_N=64, BLOCK_K=64, PARTS=1, TOGETHER=True,
    GROUP=8, per_processor=2, num_warps=4, num_stages=2,
)
# fmt: on
if INTERPRETED:  # small arrays shall have many tiles
    for _config in (GELU, SWIGLU, SWIGLU_BACKWARD):
        _config |= dict(BLOCK_M=64, BLOCK_N=64, BLOCK_K=16, PARTS=2)


@triton.jit
def _sigmoid(pre, QUICK: tl.constexpr):
    """`sigmoid_of_gelu`, or with `QUICK` by the instruction for tanh. That is off by 2⁻¹² of σ's range, an
    eighth of what bfloat16 rounds away, and takes 6 % off the time of a whole kernel on an H100."""
    if QUICK:
        square = pre * pre
        u = pre * (square * (0.044715 * SLOPE / 2) + SLOPE / 2)
        tanh = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [u], dtype=tl.float32, is_pure=True, pack=1
        )
        sigma, slope = tanh * 0.5 + 0.5, square * (3 * 0.044715 * SLOPE) + SLOPE
    else:
        sigma, slope = sigmoid_of_gelu(pre)
    return sigma, slope


# What follows takes a tile in so many `PARTS`: a whole one may not fit beside the blocks being loaded.


@triton.jit
def _store_both(
    pre, bias_ptr, pre_desc, h_desc, row, column, N,
    QUICK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """pre + bias, and gelu of it."""
    if PARTS > 1:
        left, right = halves(pre)
        _store_both(left, bias_ptr, pre_desc, h_desc, row, column, N, QUICK, PARTS // 2)
        column += left.shape[1]
        _store_both(right, bias_ptr, pre_desc, h_desc, row, column, N, QUICK, PARTS // 2)
    else:
        if bias_ptr is not None:
            columns = column + tl.arange(0, pre.shape[1])
            pre += tl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
        pre_desc.store([row, column], pre.to(pre_desc.dtype))
        sigma, _ = _sigmoid(pre, QUICK)
        h_desc.store([row, column], (pre * sigma).to(h_desc.dtype))


@triton.jit
def _store_gradient(dh, pre_desc, dpre_desc, row, column, QUICK: tl.constexpr, PARTS: tl.constexpr):
    """dh gelu'(pre)."""
    if PARTS > 1:
        left, right = halves(dh)
        _store_gradient(left, pre_desc, dpre_desc, row, column, QUICK, PARTS // 2)
        column += left.shape[1]
        _store_gradient(right, pre_desc, dpre_desc, row, column, QUICK, PARTS // 2)
    else:
        pre = pre_desc.load([row, column]).to(tl.float32)
        sigma, slope = _sigmoid(pre, QUICK)
        dpre = dh * (sigma + pre * sigma * (1 - sigma) * slope)
        dpre_desc.store([row, column], dpre.to(dpre_desc.dtype))


@triton.jit
def _up_kernel(
    x_ptr, x_desc, up_desc, pre_desc, h_desc, M, N, K, bias_ptr,
    QUICK: tl.constexpr, PROGRAMS: tl.constexpr, PARTS: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """pre = x Wuᵀ + bias `(M, N)` and h = gelu(pre)."""
    # A program takes many tiles, and loads the next one's first blocks while it finishes the last one.
    n_tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), n_tiles, PROGRAMS, flatten=True):
        row, column = corner(tile, M, N, BLOCK_M, BLOCK_N, GROUP)
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, K, BLOCK_K):
            total = dot(x_desc.load([row, k]), up_desc.load([column, k]).T, total)
        _store_both(total, bias_ptr, pre_desc, h_desc, row, column, N, QUICK, PARTS)


@triton.jit
def _down_backward_kernel(
    dy_ptr, dy_desc, down_desc, pre_desc, dpre_desc, M, N, K,
    QUICK: tl.constexpr, PROGRAMS: tl.constexpr, PARTS: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dpre = (dy Wd) gelu'(pre) `(M, N)`."""
    n_tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), n_tiles, PROGRAMS, flatten=True):
        row, column = corner(tile, M, N, BLOCK_M, BLOCK_N, GROUP)
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, K, BLOCK_K):
            total = dot(dy_desc.load([row, k]), down_desc.load([k, column]), total)
        _store_gradient(total, pre_desc, dpre_desc, row, column, QUICK, PARTS)


@triton.jit
def _swiglu(gate, QUICK: tl.constexpr):
    """silu(gate), and its derivative. The sigmoid with `QUICK` as in `_sigmoid`."""
    if QUICK:
        tanh = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [gate * 0.5], dtype=tl.float32, is_pure=True, pack=1
        )
        sigma = tanh * 0.5 + 0.5
    else:
        sigma = tl.sigmoid(gate)
    silu = gate * sigma
    return silu, sigma + silu * (1 - sigma)


@triton.jit
def _store_pair(first_desc, second_desc, first, second, row, column):
    """Two tiles into an array `(M, 2, N)`, by one copy; by two where `second_desc` is not None. Each copy
    waits until the one before has been read, but one of two takes twice the memory."""
    first, second = first.to(first_desc.dtype), second.to(first_desc.dtype)
    if second_desc is None:
        first_desc.store([row, 0, column], tl.permute(tl.join(first, second), (0, 2, 1)))
    else:
        first_desc.store([row, column], first)
        second_desc.store([row, column], second)


@triton.jit
def _store_swiglu(
    gate, up, gate_desc, up_desc, h_desc, row, column,
    QUICK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """gate and up, and silu(gate) up."""
    if PARTS > 1:
        left_gate, right_gate = halves(gate)
        left_up, right_up = halves(up)
        _store_swiglu(left_gate, left_up, gate_desc, up_desc, h_desc, row, column, QUICK, PARTS // 2)
        column += left_up.shape[1]
        _store_swiglu(right_gate, right_up, gate_desc, up_desc, h_desc, row, column, QUICK, PARTS // 2)
    else:
        _store_pair(gate_desc, up_desc, gate, up, row, column)
        silu, _ = _swiglu(gate, QUICK)
        h_desc.store([row, column], (silu * up).to(h_desc.dtype))


@triton.jit
def _store_swiglu_gradients(
    dh, pair_desc, dgate_desc, dup_desc, row, column, QUICK: tl.constexpr, PARTS: tl.constexpr
):  # fmt: skip
    """dh up silu'(gate), and dh silu(gate)."""
    if PARTS > 1:
        left, right = halves(dh)
        _store_swiglu_gradients(left, pair_desc, dgate_desc, dup_desc, row, column, QUICK, PARTS // 2)
        column += left.shape[1]
        _store_swiglu_gradients(right, pair_desc, dgate_desc, dup_desc, row, column, QUICK, PARTS // 2)
    else:
        gate, up = tl.split(tl.permute(pair_desc.load([row, 0, column]).to(tl.float32), (0, 2, 1)))
        silu, slope = _swiglu(gate, QUICK)
        _store_pair(dgate_desc, dup_desc, dh * up * slope, dh * silu, row, column)


@triton.jit
def _swiglu_up_kernel(
    x_ptr, x_desc, weight_desc, gate_desc, up_desc, h_desc, M, N, K,
    QUICK: tl.constexpr, PROGRAMS: tl.constexpr, PARTS: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """gate and up = x Wᵀ `(M, 2, N)`, with W `(2, N, K)`, and h = silu(gate) up `(M, N)`."""
    n_tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), n_tiles, PROGRAMS, flatten=True):
        row, column = corner(tile, M, N, BLOCK_M, BLOCK_N, GROUP)
        # Both in one product: of two, the compiler makes tensor cores wait for each before the next.
        total = tl.zeros((BLOCK_M, 2 * BLOCK_N), tl.float32)
        for k in range(0, K, BLOCK_K):
            weight = tl.reshape(weight_desc.load([0, column, k]), (2 * BLOCK_N, BLOCK_K))
            total = dot(x_desc.load([row, k]), weight.T, total)
        gate, up = halves(total)
        _store_swiglu(gate, up, gate_desc, up_desc, h_desc, row, column, QUICK, PARTS)


@triton.jit
def _swiglu_down_backward_kernel(
    dy_ptr, dy_desc, down_desc, pair_desc, dgate_desc, dup_desc, M, N, K,
    QUICK: tl.constexpr, PROGRAMS: tl.constexpr, PARTS: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dgate and dup `(M, 2, N)`, from dh = dy Wd and gate and up, which lie like them."""
    n_tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), n_tiles, PROGRAMS, flatten=True):
        row, column = corner(tile, M, N, BLOCK_M, BLOCK_N, GROUP)
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, K, BLOCK_K):
            total = dot(dy_desc.load([row, k]), down_desc.load([k, column]), total)
        _store_swiglu_gradients(total, pair_desc, dgate_desc, dup_desc, row, column, QUICK, PARTS)


def _fuses(x: Tensor) -> bool:
    """Whether to use the kernels above: they are made for Hopper's copy engine and 16-bit tensor cores.

    Everywhere else the products are the library's and GELU a kernel of its own. The interpreter runs them
    in every dtype, so that they are tested.
    """
    return INTERPRETED or (gpu(x).capability == 90 and x.dtype != torch.float32)


def _product(kernel, a: Tensor, b: Tensor, b_block: str, results: tuple, *bias, config: dict) -> None:
    """Launch a kernel above on a `(M, K)`, b, and arrays `(M, N)`, `(M, 2, N)` or None to load or to store.

    `b_block` names the sides of b's tiles, "nk" if it is `(N, K)`. Arrays go in `PARTS` parts of a tile.
    """
    (M, K), N = a.shape, results[0].shape[-1]
    if M == 0:  # of nothing there is no descriptor
        return
    options = dict(config)
    options.pop("TOGETHER", None)
    programs = gpu(a).processors * options.pop("per_processor")
    sides = {side: options[f"BLOCK_{side.upper()}"] for side in "mnk"} | {"2": 2}
    m, part = sides["m"], sides["n"] // options["PARTS"]
    blocks = (a, (m, sides["k"])), (b, tuple(sides[side] for side in b_block))
    blocks += tuple((y, y if y is None else (m, *y.shape[1:-1], part)) for y in results)
    fetched = [x if x is None else tiles(x, x.shape, x.stride(), block) for x, block in blocks]
    # `launch` asks its first argument for the GPU, and a descriptor does not know it.
    launch(
        kernel, (programs,), a, *fetched, M, N, K, *bias,
        QUICK=a.dtype == torch.bfloat16 and not INTERPRETED, PROGRAMS=programs, **options,
    )  # fmt: skip


def gelu_mlp_forward(x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None):
    """y = gelu(x upᵀ + up_bias) downᵀ + down_bias, with the tanh approximation of GELU, as `gelu_forward`.

    x `(..., C)`, up `(F, C)`, down `(C_out, F)`, biases `(F)` and `(C_out)` or None -> y `(..., C_out)`.
    float32 (exact products), bfloat16 or float16, all of one dtype, summed in float32. `saved` has beside
    the inputs pre and h, `(rows, F)` each. Raises `ValueError` for shapes or devices that do not fit,
    `TypeError` for dtypes.
    """
    check_mlp(x, up, up_bias, down, down_bias)
    check("gelu_mlp", x, up, up_bias, down, down_bias)
    flat = for_tma(matrix(x))
    if _fuses(x):
        pre, h = (padded(flat, flat.shape[0], up.shape[0]) for _ in range(2))
        bias = None if up_bias is None else up_bias.contiguous()
        _product(_up_kernel, flat, for_tma(matrix(up)), "nk", (pre, h), bias, config=GELU)
    else:
        pre = linear(flat, up, up_bias)
        h, _ = gelu_forward(pre)
    y = linear(h, down, down_bias).view(*x.shape[:-1], down.shape[0])
    return y, (x, up, down, pre, h, up_bias is not None, down_bias is not None)


def gelu_mlp_inference(x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None):
    """y alone: nothing is kept, and x may be one row, which has no use for tiles of 128."""
    check_mlp(x, up, up_bias, down, down_bias)
    check("gelu_mlp", x, up, up_bias, down, down_bias)
    return linear(gelu_forward(linear(x, up, up_bias))[0], down, down_bias)


def gelu_mlp_backward(dy: Tensor, saved: tuple):
    """-> dx, dup, dup_bias, ddown, ddown_bias (a bias that is None has the gradient None)."""
    x, up, down, pre, h, has_up_bias, has_down_bias = saved
    check("gelu_mlp", dy, x, up, down)
    _check_gradient("gelu_mlp", dy, x, down)
    flat = for_tma(matrix(dy))
    if _fuses(dy):
        pre, dpre = for_tma(pre), padded(pre, *pre.shape)  # a compiler may have kept pre in another layout
        _product(_down_backward_kernel, flat, for_tma(matrix(down)), "kn", (pre, dpre), config=GELU)
    else:
        dpre = gelu_backward(flat @ down, (pre,))
    return _gradients(dpre, flat, x, up, h, has_up_bias, has_down_bias)


def swiglu_mlp_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, down_bias: Tensor | None
):
    """y = (silu(gate) up) downᵀ + down_bias, where gate and up are the two halves of x weightᵀ + bias.

    x `(..., C)`, weight `(2 F, C)` with gate's rows first, down `(C_out, F)`, biases `(2 F)` and `(C_out)` or
    None -> y `(..., C_out)`. dtypes as in `gelu_mlp_forward`. `saved` has beside the inputs gate and up
    together, `(rows, 2, F)`, and h `(rows, F)`. Raises `ValueError` for shapes or devices that do not fit,
    `TypeError` for dtypes.
    """
    check_mlp(x, weight, bias, down, down_bias, "swiglu_mlp", 2)
    check("swiglu_mlp", x, weight, bias, down, down_bias)
    flat, F = for_tma(matrix(x)), down.shape[1]
    if bias is None and _fuses_pair(x, F):
        pair, h = flat.new_empty(flat.shape[0], 2, F), flat.new_empty(flat.shape[0], F)
        both = for_tma(matrix(weight)).unflatten(0, (2, F))
        _product(_swiglu_up_kernel, flat, both, "2nk", (*_copied(pair, SWIGLU), h), config=SWIGLU)
    else:
        pair = linear(flat, weight, bias).unflatten(1, (2, F))
        h, _ = swiglu_forward(*pair.unbind(1))
    y = linear(h, down, down_bias).view(*x.shape[:-1], down.shape[0])
    return y, (x, weight, down, pair, h, bias is not None, down_bias is not None)


def swiglu_mlp_inference(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, down_bias: Tensor | None
):
    """y alone, as of `gelu_mlp_inference`."""
    check_mlp(x, weight, bias, down, down_bias, "swiglu_mlp", 2)
    check("swiglu_mlp", x, weight, bias, down, down_bias)
    h, _ = swiglu_forward(*linear(x, weight, bias).chunk(2, dim=-1))
    return linear(h, down, down_bias)


def swiglu_mlp_backward(dy: Tensor, saved: tuple):
    """-> dx, dweight, dbias, ddown, ddown_bias (a bias that is None has the gradient None)."""
    x, weight, down, pair, h, has_bias, has_down_bias = saved
    check("swiglu_mlp", dy, x, weight, down)
    _check_gradient("swiglu_mlp", dy, x, down)
    flat, dpair = for_tma(matrix(dy)), torch.empty_like(pair)
    if _fuses_pair(dy, down.shape[1]):
        arrays, down = (pair, *_copied(dpair, SWIGLU_BACKWARD)), for_tma(matrix(down))
        _product(_swiglu_down_backward_kernel, flat, down, "kn", arrays, config=SWIGLU_BACKWARD)
    elif len(pair):
        dpair = joined(swiglu_backward((flat @ down).unsqueeze(1), pair.split(1, dim=1)))
    return _gradients(dpair.flatten(1), flat, x, weight, h, has_bias, has_down_bias)


def _copied(pair: Tensor, config: dict) -> tuple[Tensor, Tensor | None]:
    """`(M, 2, N)` as a kernel is to store it: its halves by one copy, or each by one."""
    return (pair, None) if config["TOGETHER"] else pair.unbind(1)


def _fuses_pair(x: Tensor, F: int) -> bool:
    """Whether to use SwiGLU's kernels: gate and up `(rows, 2, F)` must begin at multiples of 16 bytes."""
    return _fuses(x) and F * x.element_size() % 16 == 0


def _check_gradient(operation: str, dy: Tensor, x: Tensor, down: Tensor) -> None:
    if dy.shape != (*x.shape[:-1], down.shape[0]):
        raise ValueError(
            f"{operation}: x {tuple(x.shape)} and down {tuple(down.shape)} have no gradient "
            f"{tuple(dy.shape)}."
        )


def _gradients(
    dpre: Tensor, dy: Tensor, x: Tensor, up: Tensor, h: Tensor, has_up_bias, has_down_bias
) -> tuple:
    """All five of an MLP, from that of the first product `(rows, ...)`."""
    dup, ddown = dpre.t() @ matrix(x), dy.t() @ h
    return (dpre @ up).view(x.shape), dup, _sum(dpre, has_up_bias), ddown, _sum(dy, has_down_bias)


def _sum(d: Tensor, wanted: bool) -> Tensor | None:
    """A bias's gradient, `(rows, F)` -> `(F)`."""
    return sum_middle(d.unsqueeze(0), d.dtype).view(-1) if wanted else None

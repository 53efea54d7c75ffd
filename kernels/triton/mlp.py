"""MLPs whose nonlinearity happens inside their matrix products, before the results are stored.

GELU on its own reads and writes N x F numbers in the forward pass, and reads two and writes one of them for
each in the backward pass, which takes a GPU most of the time of the product beside it. Here a tile of

    pre = x Wuᵀ + bu        becomes pre and h = gelu(pre)           in the forward pass,
    dh  = dy Wd             becomes dpre = dh gelu'(pre)            in the backward pass,

while it is still in registers, so that the forward pass never reads pre, and dh never stands in memory. The
other products have nothing to be fused with and stay with the library.

Of a SwiGLU MLP it is the second that is fused: a tile of dh = dy Wd becomes those of dgate and dup, where
SwiGLU on its own would read dh again. Its forward pass is the library's product and a kernel of its own.
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

# By sweeps on an H100: GELU's the fastest, SwiGLU's within 1 % of that. A tile of SwiGLU's gradients reads
# and writes twice as much: small tiles, three programs a processor, of which one multiplies while one waits.
GELU = dict(BLOCK_M=128, BLOCK_N=256, BLOCK_K=64, per_processor=1, num_warps=8, num_stages=3)
SWIGLU = dict(BLOCK_M=128, BLOCK_N=64, BLOCK_K=64, per_processor=3, num_warps=4, num_stages=2)
if INTERPRETED:  # small arrays shall have many tiles
    for _tiles in (GELU, SWIGLU):
        _tiles |= dict(BLOCK_M=64, BLOCK_N=64, BLOCK_K=16)


@triton.jit
def _quick_sigmoid(half):
    """σ(2 half) = tanh(half) / 2 + 1/2, by the instruction for tanh. That is off by 2⁻¹² of σ's range, an
    eighth of what bfloat16 rounds away, and takes 6 % off the time of a whole kernel of GELU's on an H100."""
    tanh = tl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [half], dtype=tl.float32, is_pure=True, pack=1
    )
    return tanh * 0.5 + 0.5


@triton.jit
def _sigmoid(pre, QUICK: tl.constexpr):
    """`sigmoid_of_gelu`."""
    if QUICK:
        square = pre * pre
        sigma = _quick_sigmoid(pre * (square * (0.044715 * SLOPE / 2) + SLOPE / 2))
        slope = square * (3 * 0.044715 * SLOPE) + SLOPE
    else:
        sigma, slope = sigmoid_of_gelu(pre)
    return sigma, slope


@triton.jit
def _store_both(pre, bias_ptr, pre_desc, h_desc, row, column, N, QUICK: tl.constexpr):
    """pre + bias, and gelu of it."""
    if bias_ptr is not None:
        columns = column + tl.arange(0, pre.shape[1])
        pre += tl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    pre_desc.store([row, column], pre.to(pre_desc.dtype))
    sigma, _ = _sigmoid(pre, QUICK)
    h_desc.store([row, column], (pre * sigma).to(h_desc.dtype))


@triton.jit
def _store_gradient(dh, pre_desc, dpre_desc, row, column, QUICK: tl.constexpr):
    """dh gelu'(pre)."""
    pre = pre_desc.load([row, column]).to(tl.float32)
    sigma, slope = _sigmoid(pre, QUICK)
    dpre = dh * (sigma + pre * sigma * (1 - sigma) * slope)
    dpre_desc.store([row, column], dpre.to(dpre_desc.dtype))


@triton.jit
def _up_kernel(
    x_ptr, x_desc, up_desc, pre_desc, h_desc, M, N, K, bias_ptr,
    QUICK: tl.constexpr, PROGRAMS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """pre = x Wuᵀ + bias `(M, N)` and h = gelu(pre)."""
    # A program takes many tiles, and loads the next one's first blocks while it finishes the last one.
    n_tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), n_tiles, PROGRAMS, flatten=True):
        row, column = corner(tile, M, N, BLOCK_M, BLOCK_N)
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, K, BLOCK_K):
            total = dot(x_desc.load([row, k]), up_desc.load([column, k]).T, total)
        left, right = halves(total)
        _store_both(left, bias_ptr, pre_desc, h_desc, row, column, N, QUICK)
        _store_both(right, bias_ptr, pre_desc, h_desc, row, column + BLOCK_N // 2, N, QUICK)


@triton.jit
def _down_backward_kernel(
    dy_ptr, dy_desc, down_desc, pre_desc, dpre_desc, M, N, K,
    QUICK: tl.constexpr, PROGRAMS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dpre = (dy Wd) gelu'(pre) `(M, N)`."""
    n_tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), n_tiles, PROGRAMS, flatten=True):
        row, column = corner(tile, M, N, BLOCK_M, BLOCK_N)
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, K, BLOCK_K):
            total = dot(dy_desc.load([row, k]), down_desc.load([k, column]), total)
        left, right = halves(total)
        _store_gradient(left, pre_desc, dpre_desc, row, column, QUICK)
        _store_gradient(right, pre_desc, dpre_desc, row, column + BLOCK_N // 2, QUICK)


@triton.jit
def _store_swiglu_gradients(dh, gate_desc, up_desc, dgate_desc, dup_desc, row, column, QUICK: tl.constexpr):
    """dh up silu'(gate), and dh silu(gate)."""
    gate = gate_desc.load([row, column]).to(tl.float32)
    up = up_desc.load([row, column]).to(tl.float32)
    sigma = _quick_sigmoid(gate * 0.5) if QUICK else tl.sigmoid(gate)
    silu = gate * sigma
    dgate_desc.store([row, column], (dh * up * (sigma + silu * (1 - sigma))).to(dgate_desc.dtype))
    dup_desc.store([row, column], (dh * silu).to(dup_desc.dtype))


@triton.jit
def _swiglu_down_backward_kernel(
    dy_ptr, dy_desc, down_desc, gate_desc, up_desc, dgate_desc, dup_desc, M, N, K,
    QUICK: tl.constexpr, PROGRAMS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dgate and dup `(M, N)`, from dh = dy Wd."""
    n_tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), n_tiles, PROGRAMS, flatten=True):
        row, column = corner(tile, M, N, BLOCK_M, BLOCK_N)
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, K, BLOCK_K):
            total = dot(dy_desc.load([row, k]), down_desc.load([k, column]), total)
        left, right = halves(total)
        _store_swiglu_gradients(left, gate_desc, up_desc, dgate_desc, dup_desc, row, column, QUICK)
        column += BLOCK_N // 2
        _store_swiglu_gradients(right, gate_desc, up_desc, dgate_desc, dup_desc, row, column, QUICK)


def _fuses(x: Tensor) -> bool:
    """Whether to use the kernels above: they are made for Hopper's copy engine and 16-bit tensor cores.

    Everywhere else the products are the library's and GELU a kernel of its own. The interpreter runs them
    in every dtype, so that they are tested.
    """
    return INTERPRETED or (gpu(x).capability == 90 and x.dtype != torch.float32)


def _product(kernel, a: Tensor, b: Tensor, b_transposed: bool, results: tuple, *bias, config=GELU) -> None:
    """Launch a kernel above: results `(M, N)`, from a `(M, K)` and b `(K, N)`, or `(N, K)` if transposed.

    Results are loaded and stored in halves of a tile.
    """
    (M, K), N = a.shape, results[0].shape[1]
    if M == 0:  # of nothing there is no descriptor
        return
    options = dict(config)
    programs = gpu(a).processors * options.pop("per_processor")
    m, n, k = (options[f"BLOCK_{side}"] for side in "MNK")
    blocks = (a, (m, k)), (b, (n, k) if b_transposed else (k, n)), *((y, (m, n // 2)) for y in results)
    fetched = [tiles(x, x.shape, x.stride(), block) for x, block in blocks]
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
        _product(_up_kernel, flat, for_tma(matrix(up)), True, (pre, h), bias)
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
    if dy.shape != (*x.shape[:-1], down.shape[0]):
        raise ValueError(
            f"gelu_mlp: x {tuple(x.shape)} and down {tuple(down.shape)} have no gradient {tuple(dy.shape)}."
        )
    flat = for_tma(matrix(dy))
    if _fuses(dy):
        pre, dpre = for_tma(pre), padded(pre, *pre.shape)  # a compiler may have kept pre in another layout
        _product(_down_backward_kernel, flat, for_tma(matrix(down)), False, (pre, dpre))
    else:
        dpre = gelu_backward(flat @ down, (pre,))
    dup, ddown = dpre.t() @ matrix(x), flat.t() @ h
    return (dpre @ up).view(x.shape), dup, _sum(dpre, has_up_bias), ddown, _sum(flat, has_down_bias)


def swiglu_linear_forward(whole: Tensor, weight: Tensor, bias: Tensor | None = None):
    """y = swiglu(gate, up) weightᵀ + bias, with gate and up as they come out of one product.

    whole `(..., 2, F)`, weight `(C_out, F)`, bias `(C_out)` or None -> y `(..., C_out)`; float32, bfloat16 or
    float16, all of one dtype. Raises `ValueError` for shapes and devices, `TypeError` for dtypes.
    """
    check("swiglu_linear", whole, weight, bias)
    if whole.dim() < 2 or whole.shape[-2] != 2 or whole.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"swiglu_linear: weight {tuple(weight.shape)} needs gate and up together, of shape "
            f"(..., 2, {weight.shape[1]}), got {tuple(whole.shape)}."
        )
    h, _ = swiglu_forward(*whole.unbind(-2))
    return linear(h, weight, bias), (whole, weight, h, bias is not None)


def swiglu_linear_backward(dy: Tensor, saved: tuple):
    """-> dwhole, dweight, dbias (None for a bias that is None)."""
    whole, weight, h, has_bias = saved
    check("swiglu_linear", dy, whole, weight)
    if dy.shape != (*whole.shape[:-2], weight.shape[0]):
        raise ValueError(
            f"swiglu_linear: gate and up {tuple(whole.shape)} and weight {tuple(weight.shape)} have no "
            f"gradient {tuple(dy.shape)}."
        )
    pair = whole.contiguous().view(-1, *whole.shape[-2:])
    flat, dpair = for_tma(matrix(dy)), torch.empty_like(pair)
    if _fuses(dy) and pair.shape[-1] * pair.element_size() % 16 == 0:
        arrays = (*pair.unbind(1), *dpair.unbind(1))
        down = for_tma(matrix(weight))
        _product(_swiglu_down_backward_kernel, flat, down, False, arrays, config=SWIGLU)
    elif len(pair):
        dpair = joined(swiglu_backward((flat @ weight).unsqueeze(1), pair.split(1, dim=1)))
    return dpair.view(whole.shape), flat.t() @ matrix(h), _sum(flat, has_bias)


def _sum(d: Tensor, wanted: bool) -> Tensor | None:
    """A bias's gradient, `(rows, F)` -> `(F)`."""
    return sum_middle(d.unsqueeze(0), d.dtype).view(-1) if wanted else None

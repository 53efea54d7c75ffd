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
from kernels.triton.arithmetic import corner, dot, halves, product
from kernels.triton.elementwise import bias_gradient
from kernels.triton.launch import (
    INTERPRETED,
    check,
    for_tma,
    fuses_products,
    gpu,
    launch,
    matrix,
    padded,
    tiles,
)
from kernels.triton.residual import add_product

# Found by sweeps on an H100. A tile of SwiGLU reads and writes twice as much as one of GELU: of two programs
# a processor one multiplies while the other waits for memory. Of SWIGLU_BACKWARD's sweep, with M, N, K =
# 131,072, 1728, 640 in bfloat16, where to read and to write takes 0.66 ms, and the library's product 0.46:
#
#     128 x 128 x 32, two, 5 stages   1.004 ms      128 x 64 x 64, three, 2 stages   1.159 ms
#     128 x 256 x 64, one, 3 stages   1.046         256 x 64 x 64, one, 3 stages     1.233
GELU = dict(BLOCK_M=128, BLOCK_N=256, BLOCK_K=64, per_processor=1, num_warps=8, num_stages=3)
SWIGLU = dict(BLOCK_M=128, BLOCK_N=64, BLOCK_K=64, per_processor=2, num_warps=4, num_stages=3)
SWIGLU_BACKWARD = dict(
    BLOCK_M=128, BLOCK_N=128, BLOCK_K=32, per_processor=2, num_warps=8, num_stages=5, maxnreg=128
)
if INTERPRETED:  # small arrays shall have many tiles
    for _tiles in (GELU, SWIGLU, SWIGLU_BACKWARD):
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
        pre = product(x_desc, up_desc, row, column, K, True, BLOCK_M, BLOCK_N, BLOCK_K)
        if bias_ptr is not None:
            columns = column + tl.arange(0, BLOCK_N)
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
def _down_backward_kernel(
    dy_ptr, dy_desc, down_desc, pre_desc, dpre_desc, M, N, K,
    QUICK: tl.constexpr, PROGRAMS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dpre = (dy Wd) gelu'(pre) `(M, N)`."""
    n_tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), n_tiles, PROGRAMS, flatten=True):
        row, column = corner(tile, M, N, BLOCK_M, BLOCK_N)
        dh = product(dy_desc, down_desc, row, column, K, False, BLOCK_M, BLOCK_N, BLOCK_K)
        # In halves: what a whole tile loads and stores would not fit beside the blocks being loaded.
        left, right = halves(dh)
        _store_gradient(left, pre_desc, dpre_desc, row, column, QUICK)
        _store_gradient(right, pre_desc, dpre_desc, row, column + BLOCK_N // 2, QUICK)


@triton.jit
def _swiglu_up_kernel(
    x_ptr, x_desc, weight_desc, gate_desc, up_desc, h_desc, M, N, K,
    QUICK: tl.constexpr, PROGRAMS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """gate and up = x Wᵀ `(M, N)`, with the weights of both together `(2, N, K)`, and h = silu(gate) up."""
    n_tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), n_tiles, PROGRAMS, flatten=True):
        row, column = corner(tile, M, N, BLOCK_M, BLOCK_N)
        # Both in one product: of two, the compiler makes tensor cores wait for each before the next.
        pair = tl.zeros((BLOCK_M, 2 * BLOCK_N), tl.float32)
        for k in range(0, K, BLOCK_K):
            weight = tl.reshape(weight_desc.load([0, column, k]), (2 * BLOCK_N, BLOCK_K))
            pair = dot(x_desc.load([row, k]), weight.T, pair)
        gate, up = halves(pair)
        gate_desc.store([row, column], gate.to(gate_desc.dtype))
        up_desc.store([row, column], up.to(up_desc.dtype))
        sigma = _quick_sigmoid(gate * 0.5) if QUICK else tl.sigmoid(gate)
        h_desc.store([row, column], (gate * sigma * up).to(h_desc.dtype))


@triton.jit
def _store_swiglu_gradients(dh, pair_desc, dgate_desc, dup_desc, row, column, QUICK: tl.constexpr):
    """dh up silu'(gate), and dh silu(gate)."""
    gate, up = tl.split(tl.permute(pair_desc.load([row, 0, column]).to(tl.float32), (0, 2, 1)))
    sigma = _quick_sigmoid(gate * 0.5) if QUICK else tl.sigmoid(gate)
    silu = gate * sigma
    dgate_desc.store([row, column], (dh * up * (sigma + silu * (1 - sigma))).to(dgate_desc.dtype))
    dup_desc.store([row, column], (dh * silu).to(dup_desc.dtype))


@triton.jit
def _swiglu_down_backward_kernel(
    dy_ptr, dy_desc, down_desc, pair_desc, dgate_desc, dup_desc, M, N, K,
    QUICK: tl.constexpr, PROGRAMS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dgate and dup `(M, N)`, from dh = dy Wd and from gate and up together `(M, 2, N)`."""
    n_tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), n_tiles, PROGRAMS, flatten=True):
        row, column = corner(tile, M, N, BLOCK_M, BLOCK_N)
        dh = product(dy_desc, down_desc, row, column, K, False, BLOCK_M, BLOCK_N, BLOCK_K)
        for half in tl.static_range(2):
            left, right = halves(halves(dh)[half])
            first = column + half * (BLOCK_N // 2)
            _store_swiglu_gradients(left, pair_desc, dgate_desc, dup_desc, row, first, QUICK)
            _store_swiglu_gradients(right, pair_desc, dgate_desc, dup_desc, row, first + BLOCK_N // 4, QUICK)


def _fuses_pair(x: Tensor, F: int) -> bool:
    """Whether to use SwiGLU's: gate and up `(rows, 2, F)` must begin at multiples of 16 bytes."""
    return fuses_products(x) and F * x.element_size() % 16 == 0


def _product(kernel, options: dict, a: Tensor, b: Tensor, arrays: tuple, *bias, parts=0) -> None:
    """Launch a kernel above on a `(M, K)`, b and arrays `(M, N)` or `(M, 2, N)` to load or to store.

    b is `(N, K)` or `(2, N, K)`. In the backward pass it is `(K, N)`, and arrays go in `parts` of a tile.
    """
    (M, K), N = a.shape, arrays[0].shape[-1]
    if M == 0:  # of nothing there is no descriptor
        return
    options = dict(options)
    programs = gpu(a).processors * options.pop("per_processor")
    m, n, k = (options[f"BLOCK_{side}"] for side in "MNK")
    blocks = (a, (m, k)), (b, (k, n) if parts else (*b.shape[:-2], n, k))
    blocks += tuple((y, (m, *y.shape[1:-1], n // (parts or 1))) for y in arrays)
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
    if fuses_products(x):
        pre, h = (padded(flat, flat.shape[0], up.shape[0]) for _ in range(2))
        bias = None if up_bias is None else up_bias.contiguous()
        _product(_up_kernel, GELU, flat, for_tma(matrix(up)), (pre, h), bias)
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
    if fuses_products(dy):
        pre, dpre = for_tma(pre), padded(pre, *pre.shape)  # a compiler may have kept pre in another layout
        _product(_down_backward_kernel, GELU, flat, for_tma(matrix(down)), (pre, dpre), parts=2)
    else:
        dpre = gelu_backward(flat @ down, (pre,))
    return _gradients(dpre, flat, x, up, h, has_up_bias, has_down_bias)


def swiglu_mlp_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    onto: Tensor | None = None,
):
    """y = (silu(gate) up) downᵀ + down_bias, where gate and up are the two halves of x weightᵀ + bias.

    x `(..., C)`, weight `(2 F, C)` with gate's rows first, down `(C_out, F)`, biases `(2 F)` and `(C_out)` or
    None -> y `(..., C_out)`. In place of a down_bias there may be `onto`, `(..., C_out)`: the product is
    added to it in its memory, as by `linear_onto`. dtypes as in `gelu_mlp_forward`. `saved` has beside the
    inputs gate and up together, `(rows, 2, F)`, and h `(rows, F)`. Raises `ValueError` for shapes or devices
    that do not fit, `TypeError` for dtypes.
    """
    _check_swiglu(x, weight, bias, down, down_bias, onto)
    flat, F = for_tma(matrix(x)), down.shape[1]
    if bias is None and _fuses_pair(x, F):
        pair, h = flat.new_empty(flat.shape[0], 2, F), flat.new_empty(flat.shape[0], F)
        both = for_tma(matrix(weight)).unflatten(0, (2, F))
        _product(_swiglu_up_kernel, SWIGLU, flat, both, (*pair.unbind(1), h))
    else:
        pair = linear(flat, weight, bias).unflatten(1, (2, F))
        h, _ = swiglu_forward(*pair.unbind(1))
    y = _down(h.view(*x.shape[:-1], F), down, down_bias, onto)
    return y, (x, weight, down, pair, h, bias is not None, down_bias is not None, onto is not None)


def swiglu_mlp_inference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    onto: Tensor | None = None,
):
    """y alone, as of `gelu_mlp_inference`."""
    _check_swiglu(x, weight, bias, down, down_bias, onto)
    h, _ = swiglu_forward(*linear(x, weight, bias).chunk(2, dim=-1))
    return _down(h, down, down_bias, onto)


def swiglu_mlp_backward(dy: Tensor, saved: tuple):
    """-> dx, dweight, dbias, ddown, ddown_bias (a bias that is None has the gradient None), donto (dy itself,
    or None)."""
    x, weight, down, pair, h, has_bias, has_down_bias, has_onto = saved
    check("swiglu_mlp", dy, x, weight, down)
    _check_gradient("swiglu_mlp", dy, x, down)
    flat, dpair = for_tma(matrix(dy)), torch.empty_like(pair)
    if _fuses_pair(dy, down.shape[1]):
        arrays = pair, *dpair.unbind(1)
        _product(_swiglu_down_backward_kernel, SWIGLU_BACKWARD, flat, for_tma(matrix(down)), arrays, parts=4)
    elif len(pair):
        dpair = joined(swiglu_backward((flat @ down).unsqueeze(1), pair.split(1, dim=1)))
    gradients = _gradients(dpair.flatten(1), flat, x, weight, h, has_bias, has_down_bias)
    return *gradients, dy if has_onto else None


def _check_swiglu(x, weight, bias, down, down_bias, onto) -> None:
    check_mlp(x, weight, bias, down, down_bias, "swiglu_mlp", 2)
    check("swiglu_mlp", x, weight, bias, down, down_bias)
    if onto is not None and down_bias is not None:
        raise ValueError("swiglu_mlp: give a down_bias or what the product is added to, not both.")


def _down(h: Tensor, down: Tensor, down_bias: Tensor | None, onto: Tensor | None) -> Tensor:
    return linear(h, down, down_bias) if onto is None else add_product("swiglu_mlp", h, down, onto)


def _check_gradient(operation: str, dy: Tensor, x: Tensor, down: Tensor) -> None:
    if dy.shape != (*x.shape[:-1], down.shape[0]):
        raise ValueError(
            f"{operation}: x {tuple(x.shape)} and down {tuple(down.shape)} have no gradient "
            f"{tuple(dy.shape)}."
        )


def _gradients(
    dpre: Tensor, dy: Tensor, x: Tensor, up: Tensor, h: Tensor, has_up_bias: bool, has_down_bias: bool
) -> tuple[Tensor | None, ...]:
    """All five of an MLP, from that of the first product `(rows, ...)`."""
    dup, ddown = dpre.t() @ matrix(x), dy.t() @ h
    dup_bias, ddown_bias = bias_gradient(dpre, has_up_bias), bias_gradient(dy, has_down_bias)
    return (dpre @ up).view(x.shape), dup, dup_bias, ddown, ddown_bias

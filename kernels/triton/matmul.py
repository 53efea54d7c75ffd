"""The matrix product, with operands in any layout: `linear` and its three gradients are one kernel.

y = x Wᵀ, dx = dy W and dweight = dyᵀ x differ in which operand is read transposed, and a transpose is a
pair of strides exchanged. A program computes one tile of the product; what it reads of A and B comes mostly
from the L2 cache, because programs that run at the same time are neighbours in both directions.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import check_linear
from kernels.triton.arithmetic import corner, dot
from kernels.triton.elementwise import bias_gradient, sum_middle
from kernels.triton.launch import cdiv, check, gpu, launch, matrix, on_tensor_cores


@triton.jit
def _matmul_kernel(
    a_ptr, b_ptr, bias_ptr, c_ptr, M, N, K, a_row, a_column, b_row, b_column,
    SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """C = A B + bias, a tile a program; with SPLIT > 1, each of C's SPLIT layers sums a part of K."""
    n_m, n_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    tile, layer = tl.program_id(0) % (n_m * n_n), tl.program_id(0) // (n_m * n_n)
    row, column = corner(tile, M, N, BLOCK_M, BLOCK_N)
    rows = (row + tl.arange(0, BLOCK_M)).to(tl.int64)[:, None]
    columns = (column + tl.arange(0, BLOCK_N)).to(tl.int64)[None, :]
    ks = tl.arange(0, BLOCK_K)
    part = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLIT) * BLOCK_K
    start = layer * part
    a_ptrs = a_ptr + rows * a_row + (start + ks).to(tl.int64)[None, :] * a_column
    b_ptrs = b_ptr + (start + ks).to(tl.int64)[:, None] * b_row + columns * b_column
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(start, min(start + part, K), BLOCK_K):
        a = tl.load(a_ptrs, mask=(rows < M) & (ks[None, :] < K - k), other=0.0)
        b = tl.load(b_ptrs, mask=(ks[:, None] < K - k) & (columns < N), other=0.0)
        total = dot(a, b, total)
        a_ptrs += BLOCK_K * a_column
        b_ptrs += BLOCK_K * b_row
    if bias_ptr is not None:
        total += tl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)
    place = c_ptr + layer.to(tl.int64) * M * N + rows * N + columns
    tl.store(place, total.to(c_ptr.dtype.element_ty), mask=(rows < M) & (columns < N))


def _matmul(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b + bias. a `(M, K)` and b `(K, N)` of any strides -> `(M, N)`."""
    (M, K), N = a.shape, b.shape[1]
    config, split = _config(a, M, N, K)
    tiles = cdiv(M, config["BLOCK_M"]) * cdiv(N, config["BLOCK_N"])
    dtype = a.dtype if split == 1 else torch.float32
    c = torch.empty((split, M, N), dtype=dtype, device=a.device)
    launch(
        _matmul_kernel, (tiles * split,), a, b, bias, c, M, N, K, *a.stride(), *b.stride(),
        SPLIT=split, **config,
    )  # fmt: skip
    return c.view(M, N) if split == 1 else sum_middle(c.view(1, split, M * N), a.dtype).view(M, N)


def _config(a: Tensor, M: int, N: int, K: int) -> tuple[dict, int]:
    """Tiles by dtype, GPU and size, and in how many parts K is summed: enough that every processor works."""
    capability, processors, _ = gpu(a)
    if not on_tensor_cores(a):
        config = dict(BLOCK_M=64, BLOCK_N=64, BLOCK_K=16, num_warps=4, num_stages=2)
    elif min(M, N) <= 64:
        config = dict(BLOCK_M=64, BLOCK_N=64, BLOCK_K=32, num_warps=4, num_stages=2)
    elif capability < 90:
        config = dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=32, num_warps=4, num_stages=3)
    else:
        config = dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=64, num_warps=8, num_stages=3)
    tiles = cdiv(M, config["BLOCK_M"]) * cdiv(N, config["BLOCK_N"])
    # A part has at least 512 terms: shorter ones cost more to add up than they save.
    return config, max(min(cdiv(2 * processors, max(tiles, 1)), K // 512), 1)


def linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None = None):
    """y = x Wᵀ + b. x `(..., C_in)`, weight `(C_out, C_in)`, bias `(C_out)` -> y `(..., C_out)`.

    float32 (exact products), bfloat16 or float16, all of one dtype, summed in float32. Raises `ValueError`
    for shapes or devices that do not fit, `TypeError` for dtypes.
    """
    check_linear(x, weight, bias)
    check("linear", x, weight, bias)
    bias_values = None if bias is None else bias.contiguous()
    y = _matmul(matrix(x), weight.t(), bias_values).view(*x.shape[:-1], weight.shape[0])
    return y, (x, weight, bias is not None)


def linear_backward(dy: Tensor, saved: tuple):
    """-> dx, dweight, dbias (None without a bias)."""
    x, weight, has_bias = saved
    check("linear", dy, x, weight)
    if dy.shape != (*x.shape[:-1], weight.shape[0]):
        raise ValueError(
            f"linear: x {tuple(x.shape)} and weight {tuple(weight.shape)} have no gradient {tuple(dy.shape)}."
        )
    flat = matrix(dy)
    dx = _matmul(flat, weight).view(x.shape)
    dweight = _matmul(flat.t(), matrix(x))
    return dx, dweight, bias_gradient(flat, has_bias)

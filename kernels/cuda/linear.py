"""The linear layer y = x Wᵀ + bias and its gradients: one launch forward, one or two backward.

`linear.cu` has the kernels, which read rows without gaps; others are copied first. Here stands what is
checked and decided before. For tensors of one kind that is the same every time: a plan, made once and kept.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from kernels.checks import check_linear
from kernels.cuda.launch import cdiv, check, like, likes, module, nothing, without_data
from kernels.cuda.matmul import Product, choose, part_of, whole
from kernels.cuda.rows import aligned, row_stride, rows


def linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None = None):
    """y = x Wᵀ + bias. x `(..., C_in)`, weight `(C_out, C_in)`, bias `(C_out)` -> y `(..., C_out)`.

    float32, bfloat16 or float16, all of one dtype, of any strides; summed in float32. Raises `ValueError` for
    shapes and devices that do not fit, `TypeError` for dtypes.
    """
    return product(x, weight, bias), (x, weight, bias is not None)


def linear_backward(dy: Tensor, saved: tuple):
    """-> dx, dweight, dbias (None without a bias). dy `(..., C_out)`, of any strides."""
    x, weight, has_bias = saved
    return gradients(dy, x, weight, has_bias)


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + bias."""
    y = x.new_empty((*x.shape[:-1], weight.shape[0]))
    if not without_data(x):
        _launch_forward(x, weight, bias, y, None)
    return y


def product_and_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """x Wᵀ + bias, and its GELU."""
    pre, h = (x.new_empty((*x.shape[:-1], weight.shape[0])) for _ in range(2))
    if not without_data(x):
        _launch_forward(x, weight, bias, pre, h)
    return pre, h


def gradients(dy: Tensor, x: Tensor, weight: Tensor, has_bias: bool, pre: Tensor | None = None) -> tuple:
    """-> dx = dy W, dweight = dyᵀ x, and dbias = Σ dy over the rows, or None.

    With `pre`, of which x is the GELU, the first is the gradient of pre: dx times GELU's slope there.
    """
    dx = dy.new_empty(x.shape)
    dweight = dy.new_empty(weight.shape)
    dbias = dy.new_empty(weight.shape[0]) if has_bias else None
    if not without_data(dy):
        dy, x, weight = rows(dy), rows(x), rows(weight)
        plan = _backward_plan(like(dy), like(x), like(weight), aligned(dy, x, weight))
        plan(dy, x, weight, pre, dx, dweight, dbias)
    return dx, dweight, dbias


def _launch_forward(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, h: Tensor | None) -> None:
    x, weight, bias = rows(x), rows(weight), None if bias is None else bias.contiguous()
    _forward_plan(like(x), like(weight), like(bias), aligned(x, weight))(x, weight, bias, y, h)


@functools.lru_cache(maxsize=1024)
def _forward_plan(x: tuple, weight: tuple, bias: tuple | None, aligned: bool) -> Callable:
    """-> what launches the kernel on x, weight, bias, y and h."""
    x, weight, bias = likes(x, weight, bias)
    C_out, C_in = weight.shape
    check_linear(x, weight, bias)
    check("linear", x, weight, bias)
    n_rows, strides = math.prod(x.shape[:-1]), (row_stride(x), row_stride(weight))
    if n_rows * C_out == 0:
        return nothing
    tiles, _ = choose(x.dtype, x.device, Product(n_rows, C_out, C_in))
    fits = aligned and whole(tiles, C_in, *strides)
    kernels = module("linear.cu", x.dtype, **vars(tiles), WHOLE=fits)
    launch = kernels.linear_forward[tiles.count(n_rows, C_out), tiles.threads]
    return launch.prepare(*strides, n_rows, C_out, C_in)


@functools.lru_cache(maxsize=1024)
def _backward_plan(dy: tuple, x: tuple, weight: tuple, aligned: bool) -> Callable:
    """-> what launches the kernels on dy, x, weight, pre, dx, dweight and dbias."""
    dy, x, weight = likes(dy, x, weight)
    check("linear", dy, x, weight)
    C_out, C_in = weight.shape
    n_rows, strides = math.prod(x.shape[:-1]), (row_stride(dy), row_stride(x), row_stride(weight))
    if (math.prod(dy.shape[:-1]), dy.shape[-1]) != (n_rows, C_out):
        raise ValueError(
            f"linear: x {tuple(x.shape)} and weight {tuple(weight.shape)} have no gradient {tuple(dy.shape)}."
        )
    if C_out * C_in == 0:
        return nothing
    tiles, parts = choose(
        dy.dtype, dy.device, Product(n_rows, C_in, C_out), Product(C_out, C_in, n_rows, splits=True)
    )
    k_part, n_parts = part_of(n_rows, parts, tiles)
    blocks = tiles.count(C_out, C_in) * n_parts + tiles.count(n_rows, C_in)
    fits = aligned and whole(tiles, C_out, C_in, *strides)
    kernels = module("linear.cu", dy.dtype, **vars(tiles), WHOLE=fits)
    launch = kernels.linear_backward[blocks, tiles.threads].prepare(
        *strides, n_parts, k_part, n_rows, C_out, C_in
    )
    if n_parts == 1:
        return lambda *tensors: launch(*tensors, None)

    n_weights = C_out * C_in
    add_up = kernels.sum_dweight[cdiv(n_weights + C_out, 256), 256].prepare(n_parts, n_weights, C_out)

    def run(dy, x, weight, pre, dx, dweight, dbias):
        sums = torch.empty((n_parts, n_weights + C_out), dtype=torch.float32, device=dy.device)
        launch(dy, x, weight, pre, dx, dweight, dbias, sums)
        add_up(sums, dweight, dbias)

    return run

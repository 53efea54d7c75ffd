"""The linear layer y = x Wᵀ + bias and its gradients: a launch for y, one for dx, one or two for dW and db.

`linear.cu` has the kernels: they read x, W and dy in any strides and sum in float32. Here stands what is
checked and decided before. For tensors of one kind that is the same every time: a plan, made once and kept.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from kernels.checks import check_width
from kernels.cuda.launch import Like, cdiv, check, like, likes, module, without_data
from kernels.cuda.matmul import choose, choose_tiles


def linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None = None):
    """y = x Wᵀ + bias. x `(..., C_in)`, weight `(C_out, C_in)`, bias `(C_out)` -> y `(..., C_out)`.

    float32, bfloat16 or float16, all of one dtype, of any strides; summed in float32. Raises `ValueError` for
    shapes and devices that do not fit, `TypeError` for dtypes.
    """
    (y,) = times_weight("linear_forward", x, weight, bias, n_outputs=1)
    return y, (x, weight, bias is not None)


def linear_backward(dy: Tensor, saved: tuple):
    """-> dx, dweight, dbias (None without a bias). dy `(..., C_out)`, of any strides."""
    x, weight, has_bias = saved
    check_gradient("linear", dy, x, weight)
    return gradient_of_input(dy, weight), *gradients_of_weights(dy, x, has_bias)


def check_gradient(operation: str, dy: Tensor, x: Tensor, weight: Tensor) -> None:
    """A gradient has the shape of what it is the gradient of: a kernel would read past its end."""
    expected = (*x.shape[:-1], weight.shape[0])
    if tuple(dy.shape) != expected:
        raise ValueError(f"{operation}: dy must have the shape of y, {expected}, got {tuple(dy.shape)}.")


def times_weight(kernel: str, x: Tensor, weight: Tensor, bias: Tensor | None, n_outputs: int) -> list[Tensor]:
    """x Wᵀ + bias, by a kernel of `linear.cu` that stores `n_outputs` arrays: it, and what it makes of it."""
    shape = (*x.shape[:-1], weight.shape[0])
    if without_data(x):
        return [x.new_empty(shape) for _ in range(n_outputs)]
    x, bias = _rows(x), None if bias is None else bias.contiguous()
    launch = _forward_plan(kernel, like(x), like(weight), like(bias))
    outputs = [x.new_empty(shape) for _ in range(n_outputs)]
    launch(x, weight, bias, *outputs)
    return outputs


def gradient_of_input(dy: Tensor, weight: Tensor, pre: Tensor | None = None) -> Tensor:
    """dx = dy W; with `pre`, times GELU's slope there: the gradient of pre, when gelu(pre) was the input."""
    dx = dy.new_empty((*dy.shape[:-1], weight.shape[1]))
    if without_data(dy):
        return dx
    dy = _rows(dy)
    if pre is None:
        _dx_plan("linear_dx", like(dy), like(weight))(dy, weight, dx)
    else:
        _dx_plan("linear_dx_gelu", like(dy), like(weight))(dy, weight, pre, dx)
    return dx


def gradients_of_weights(dy: Tensor, x: Tensor, has_bias: bool) -> tuple[Tensor, Tensor | None]:
    """dweight = dyᵀ x and dbias = Σ dy over the rows, or None."""
    dweight = dy.new_empty((dy.shape[-1], x.shape[-1]))
    dbias = dy.new_empty(dy.shape[-1]) if has_bias else None
    if not without_data(dy):
        dy, x = _rows(dy), _rows(x)
        _dweight_plan(like(dy), like(x), has_bias)(dy, x, dweight, dbias)
    return dweight, dbias


def _rows(x: Tensor) -> Tensor:
    """x, or a copy of it if its rows do not lie at one distance."""
    return x if x.is_contiguous() or x.dim() == 2 else x.reshape(-1, x.shape[-1])


def _matrix(x: Like) -> tuple[int, tuple[int, int]]:
    """-> how many rows `_rows` gave; and how far it is from a row, and from a feature, to the next."""
    if len(x.shape) == 2:
        return x.shape[0], x.strides
    return math.prod(x.shape[:-1]), (x.shape[-1], 1)


@functools.lru_cache(maxsize=1024)
def _forward_plan(kernel: str, x: tuple, weight: tuple, bias: tuple | None) -> Callable:
    """-> what launches the kernel on x, weight, bias and the outputs."""
    x, weight, bias = likes(x, weight, bias)
    C_out, C_in = weight.shape
    check("linear", x, weight, bias)
    check_width("linear", x, C_in)
    if bias is not None and tuple(bias.shape) != (C_out,):
        raise ValueError(
            f"linear: weight {tuple(weight.shape)} needs a bias of shape ({C_out},), got {tuple(bias.shape)}."
        )
    return _product_plan(kernel, x, weight, width=C_out)


@functools.lru_cache(maxsize=1024)
def _dx_plan(kernel: str, dy: tuple, weight: tuple) -> Callable:
    """-> what launches the kernel on dy, weight, pre if it takes that, and dx."""
    dy, weight = likes(dy, weight)
    check("linear", dy, weight)
    return _product_plan(kernel, dy, weight, width=weight.shape[1])


def _product_plan(kernel: str, x: Like, weight: Like, width: int) -> Callable:
    """-> what launches a kernel that makes `(rows, width)` of x, or dy, and the weight."""
    n_rows, x_strides = _matrix(x)
    if n_rows * width == 0:
        return _nothing
    tiles = choose_tiles(n_rows, width, x.device)
    kernels = module("linear.cu", x.dtype, **tiles._asdict())
    launch = getattr(kernels, kernel)[tiles.count(n_rows, width), tiles.threads]
    numbers = (*x_strides, *weight.strides, n_rows, *weight.shape)
    return lambda *tensors: launch(*tensors, *numbers)


@functools.lru_cache(maxsize=1024)
def _dweight_plan(dy: tuple, x: tuple, has_bias: bool) -> Callable:
    """-> what launches the kernels on dy, x, dweight and dbias."""
    dy, x = likes(dy, x)
    check("linear", dy, x)
    C_out, C_in = dy.shape[-1], x.shape[-1]
    (n_rows, dy_strides), (_, x_strides) = _matrix(dy), _matrix(x)
    if C_out * C_in == 0:
        return _nothing
    tiles, k_part = choose(C_out, C_in, n_rows, 1, dy.device)
    n_parts = max(cdiv(n_rows, k_part), 1)
    kernels = module("linear.cu", dy.dtype, **tiles._asdict())
    product = kernels.linear_dweight[(tiles.count(C_out, C_in), n_parts), tiles.threads]
    numbers = (*dy_strides, *x_strides, k_part, n_rows, C_out, C_in)
    if n_parts == 1:
        return lambda dy, x, dweight, dbias: product(dy, x, dweight, dbias, None, *numbers)

    n_weights = C_out * C_in
    add_up = kernels.sum_dweight[cdiv(n_weights + C_out, 256), 256]

    def run(dy, x, dweight, dbias):
        parts = torch.empty((n_parts, n_weights + C_out), dtype=torch.float32, device=dy.device)
        product(dy, x, dweight, dbias, parts, *numbers)
        add_up(parts, dweight, dbias, n_parts, n_weights, C_out)

    return run


def _nothing(*_) -> None:
    """The launch of a product that has no numbers."""

"""Sums and products that broadcast, GELU and SwiGLU: one launch each.

What broadcasting repeats, the backward pass sums, always in one order, so always to the same bits.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from kernels.cuda.launch import (
    Like,
    cdiv,
    check,
    check_gradient,
    empty,
    like,
    likes,
    module,
    nothing,
    processors,
    without_data,
)
from kernels.cuda.rows import aligned

BLOCK = 256
SUM_COLUMNS = 32  # of a block that sums
SHORTEST_PIECE = 64  # rows: shorter pieces of a sum cost more to add up than they save


def add_forward(a: Tensor, b: Tensor):
    """y = a + b, broadcasting as usual. float32, bfloat16 or float16, both of one dtype, of any strides.

    Raises `TypeError` for dtypes, `ValueError` for devices and for results of 2³¹ numbers or more,
    `RuntimeError` for shapes that do not broadcast.
    """
    return _join("add", a, b), (tuple(a.shape), tuple(b.shape))


def add_backward(dy: Tensor, saved: tuple):
    """-> da, db: both are dy, summed where the input was repeated."""
    _check_gradient("add", dy, *saved)
    return sum_to(dy, saved[0]), sum_to(dy, saved[1])


def mul_forward(a: Tensor, b: Tensor):
    """y = a b, elementwise, broadcasting as usual. Dtypes and errors as for add."""
    return _join("mul", a, b), (a, b)


def mul_backward(dy: Tensor, saved: tuple):
    """-> da, db: each is dy times the other factor, summed where the input was repeated."""
    a, b = saved
    _check_gradient("mul", dy, a.shape, b.shape)
    return sum_to(_join("mul", dy, b), a.shape), sum_to(_join("mul", dy, a), b.shape)


def gelu_forward(x: Tensor):
    """y = x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))), as in GPT-2 (Hendrycks and Gimpel, 2016).

    x of any shape, float32, bfloat16 or float16. Raises `TypeError` for other dtypes.
    """
    return _map("gelu", "gelu_forward", x)[0], (x,)


def gelu_backward(dy: Tensor, saved: tuple) -> Tensor:
    """-> dx."""
    check_gradient("gelu", dy, *saved)
    return _map("gelu", "gelu_backward", dy, *saved)[0]


def swiglu_forward(gate: Tensor, up: Tensor):
    """y = gate σ(gate) up, elementwise (Shazeer, 2020).

    gate and up of one shape, float32, bfloat16 or float16. Raises `ValueError` for shapes or devices that
    differ, `TypeError` for dtypes.
    """
    if gate.shape != up.shape:
        raise ValueError(f"swiglu: gate {tuple(gate.shape)} and up {tuple(up.shape)} must have one shape.")
    return _map("swiglu", "swiglu_forward", gate, up)[0], (gate, up)


def swiglu_backward(dy: Tensor, saved: tuple):
    """-> dgate, dup."""
    check_gradient("swiglu", dy, saved[0])
    return _map("swiglu", "swiglu_backward", dy, *saved, n_outputs=2)


def _check_gradient(operation: str, dy: Tensor, a: tuple, b: tuple) -> None:
    if not (dy.shape == a == b) and dy.shape != torch.broadcast_shapes(a, b):
        raise ValueError(
            f"{operation}: a gradient {tuple(dy.shape)} is not what {tuple(a)} and {tuple(b)} broadcast to."
        )


def _map(operation: str, kernel: str, *inputs: Tensor, n_outputs: int = 1) -> tuple[Tensor, ...]:
    """A kernel over arrays of one shape without gaps; one with gaps is copied first."""
    outputs = tuple([empty(inputs[0]) for _ in range(n_outputs)])
    if not without_data(inputs[0]):
        inputs = [x.contiguous() for x in inputs]
        plan = _map_plan(operation, kernel, aligned(*inputs), *map(like, inputs))
        plan(*inputs, *outputs)
    return outputs


@functools.lru_cache(maxsize=1024)
def _map_plan(operation: str, kernel: str, aligned: bool, *inputs: tuple) -> Callable:
    """-> what launches the kernel on inputs and outputs."""
    inputs = likes(*inputs)
    check(operation, *inputs)
    n, dtype = inputs[0].shape.numel(), inputs[0].dtype
    if n == 0:
        return nothing
    vector = 16 // dtype.itemsize if aligned else 1
    kernels = module("elementwise.cu", dtype, VECTOR=vector)
    return getattr(kernels, kernel)[cdiv(n, BLOCK * vector), BLOCK].prepare(n)


def _join(operation: str, a: Tensor, b: Tensor) -> Tensor:
    if without_data(a):
        return a.new_empty(torch.broadcast_shapes(a.shape, b.shape))
    shape, run = _join_plan(operation, like(a), like(b), aligned(a, b))
    y = empty(a) if a.shape == shape else a.new_empty(shape)
    run(a, b, y)
    return y


@functools.lru_cache(maxsize=1024)
def _join_plan(operation: str, a: tuple, b: tuple, aligned: bool) -> tuple[torch.Size, Callable]:
    """-> the shape of y, and what launches `add` or `mul` on a, b and y."""
    a, b = likes(a, b)
    check(operation, a, b)
    shape = torch.broadcast_shapes(a.shape, b.shape)
    if shape.numel() == 0:
        return shape, nothing
    if shape.numel() >= 2**31:
        raise ValueError(f"{operation}: at most 2³¹ - 1 numbers at a time, got {tuple(shape)}.")
    sizes, strides = _merge(shape, (_expanded(a, shape), _expanded(b, shape)))
    if len(sizes) > 4:  # the kernel has four dimensions: what does not fit is copied first
        return shape, lambda a, b, y: y.copy_(
            _join(operation, *(x.expand(shape).contiguous() for x in (a, b)))
        )
    sizes = (1,) * (4 - len(sizes)) + sizes
    a_strides, b_strides = ((0,) * (4 - len(s)) + s for s in strides)

    vector = 16 // a.dtype.itemsize
    together = [sizes[3], *(s for one in (a_strides, b_strides) for s in one[:3])]
    if not aligned or a_strides[3] != 1 or b_strides[3] != 1 or any(n % vector for n in together):
        vector = 1
    groups = shape.numel() // vector
    numbers = (
        *(groups, sizes[1], sizes[2], sizes[3] // vector),
        *(*a_strides[:3], a_strides[3] * vector, *b_strides[:3], b_strides[3] * vector),
    )
    kernels = module("elementwise.cu", a.dtype, VECTOR=vector)
    return shape, getattr(kernels, operation)[cdiv(groups, BLOCK), BLOCK].prepare(*numbers)


def _expanded(x: Like, shape: tuple) -> tuple:
    """The strides of x broadcast to a shape: 0 along a dimension in which it is repeated."""
    new = len(shape) - len(x.shape)
    its = [0 if size == 1 else stride for size, stride in zip(x.shape, x.strides, strict=True)]
    return (0,) * new + tuple(its)


def _merge(shape: tuple, strides: tuple[tuple, ...]) -> tuple[tuple, tuple[tuple, ...]]:
    """As few dimensions as possible: two neighbours are one where every array steps through them evenly.

    `strides` are those of each array -> the sizes that are left, and the strides of each array.
    """
    kept: list[list[int]] = []  # [size, stride of the first array, of the second, ...]
    for size, *steps in zip(shape, *strides, strict=True):
        if size == 1:
            continue
        if kept and all(outer == size * inner for outer, inner in zip(kept[-1][1:], steps, strict=True)):
            kept[-1] = [kept[-1][0] * size, *steps]
        else:
            kept.append([size, *steps])
    kept = kept or [[1, *(1 for _ in strides)]]
    sizes, *merged = zip(*kept, strict=True)
    return sizes, tuple(merged)


# Sums of what was repeated


def sum_to(gradient: Tensor, shape: tuple) -> Tensor:
    """Undo broadcasting: sum `gradient` over every dimension along which `shape` was repeated."""
    if gradient.shape == shape:
        return gradient
    full = (1,) * (gradient.dim() - len(shape)) + tuple(shape)
    stretched = [i for i, size in enumerate(full) if size != gradient.shape[i]]
    while stretched:  # dimensions side by side in one go
        last = first = stretched.pop()
        while stretched and stretched[-1] == first - 1:
            first = stretched.pop()
        before, between, after = (
            gradient.shape[:first],
            gradient.shape[first : last + 1],
            gradient.shape[last + 1 :],
        )
        gradient = sum_middle(gradient.reshape(before.numel(), between.numel(), after.numel()))
        gradient = gradient.view(*before, *(1,) * len(between), *after)
    return gradient.view(shape)


def sum_middle(x: Tensor) -> Tensor:
    """The sum over the middle of x `(outer, R, C)` -> `(outer, C)`, summed in float32."""
    y = x.new_empty((x.shape[0], x.shape[2]))
    if not without_data(x):
        _sum_plan(like(x))(x.contiguous(), y)
    return y


@functools.lru_cache(maxsize=1024)
def _sum_plan(x: tuple) -> Callable:
    """-> what launches the kernels on x and y."""
    (x,) = likes(x)
    check("sum", x)
    (outer, R, C), kernels = x.shape, module("elementwise.cu", x.dtype)
    if outer * C == 0:
        return nothing
    if R == 0:
        return lambda x, y: y.zero_()
    blocks = outer * cdiv(C, SUM_COLUMNS)
    pieces = max(min(4 * processors(x.device) // blocks, R // SHORTEST_PIECE), 1)
    if pieces == 1:
        return kernels.sum[blocks, BLOCK].prepare(R, C)

    piece = cdiv(R, pieces)
    pieces = cdiv(R, piece)
    first = kernels.sum_to_parts[blocks * pieces, BLOCK].prepare(R, C, piece)
    second = kernels.sum_parts[blocks, BLOCK].prepare(pieces, C)

    def run(x, y):
        parts = torch.empty((outer, pieces, C), dtype=torch.float32, device=x.device)
        first(x, parts)
        second(parts, y)

    return run

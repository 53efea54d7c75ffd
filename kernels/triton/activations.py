"""GELU and SwiGLU: a few operations a number, so the time is that of moving the numbers.

The backward passes read the inputs again and compute the sigmoid again: saving it would cost as much memory
traffic as the whole forward pass, and computing it costs nothing that the memory does not wait for anyway.
"""

import math

import triton
import triton.language as tl
from torch import Tensor

from kernels.packed import empty_beside
from kernels.triton.arithmetic import LOG2_E
from kernels.triton.launch import cdiv, check, check_gradient, empty, launch, matrix

BLOCK = 1024
SLOPE = tl.constexpr(2 * math.sqrt(2 / math.pi))  # of GELU's 2u at 0


@triton.jit
def sigmoid_of_gelu(x):
    """(1 + tanh u) / 2 = σ(2u), with u = √(2/π) (x + 0.044715 x³); and the derivative of 2u.

    σ(v) = 1 / (1 + 2^(-v log₂ e)) as the square of 1 / √…, which is one instruction: a division takes many.
    """
    square = x * x
    root = tl.rsqrt(tl.exp2(x * (square * (-0.044715 * SLOPE * LOG2_E) - SLOPE * LOG2_E)) + 1)
    return root * root, square * (3 * 0.044715 * SLOPE) + SLOPE


@triton.jit
def _place(stride, C, BLOCK: tl.constexpr):
    """Where in an array of rows `stride` apart, and in a dense one, this program's block of a row begins;
    the columns from there on, and which of them exist."""
    blocks = tl.cdiv(C, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    start = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK
    columns = tl.arange(0, BLOCK)
    return row * stride + start, row * C + start, columns, columns < C - start


@triton.jit
def _load(pointer, columns, inside):
    return tl.load(pointer + columns, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _store(pointer, columns, value, inside):
    tl.store(pointer + columns, value.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _gelu_forward(x, y, x_stride, C, BLOCK: tl.constexpr):
    at, out, columns, inside = _place(x_stride, C, BLOCK)
    x = _load(x + at, columns, inside)
    sigma, _ = sigmoid_of_gelu(x)
    _store(y + out, columns, x * sigma, inside)


@triton.jit
def _gelu_backward(dy, x, dx, dy_stride, x_stride, C, BLOCK: tl.constexpr):
    at_dy, _, columns, inside = _place(dy_stride, C, BLOCK)
    at_x, out, _, _ = _place(x_stride, C, BLOCK)
    dy, x = _load(dy + at_dy, columns, inside), _load(x + at_x, columns, inside)
    sigma, slope = sigmoid_of_gelu(x)
    _store(dx + out, columns, dy * (sigma + x * sigma * (1 - sigma) * slope), inside)


@triton.jit
def _swiglu_forward(gate, up, y, gate_stride, up_stride, C, BLOCK: tl.constexpr):
    at_gate, out, columns, inside = _place(gate_stride, C, BLOCK)
    at_up, _, _, _ = _place(up_stride, C, BLOCK)
    gate, up = _load(gate + at_gate, columns, inside), _load(up + at_up, columns, inside)
    _store(y + out, columns, gate * tl.sigmoid(gate) * up, inside)


@triton.jit
def _swiglu_backward(
    dy, gate, up, dgate, dup, dy_stride, gate_stride, up_stride, dgate_stride, dup_stride, C,
    BLOCK: tl.constexpr,
):  # fmt: skip
    at_dy, _, columns, inside = _place(dy_stride, C, BLOCK)
    at_gate, _, _, _ = _place(gate_stride, C, BLOCK)
    at_up, _, _, _ = _place(up_stride, C, BLOCK)
    at_dgate, _, _, _ = _place(dgate_stride, C, BLOCK)
    at_dup, _, _, _ = _place(dup_stride, C, BLOCK)
    dy = _load(dy + at_dy, columns, inside)
    gate, up = _load(gate + at_gate, columns, inside), _load(up + at_up, columns, inside)
    sigma = tl.sigmoid(gate)
    silu = gate * sigma
    _store(dgate + at_dgate, columns, dy * up * (sigma + silu * (1 - sigma)), inside)
    _store(dup + at_dup, columns, dy * silu, inside)


def _run(kernel, *arrays: Tensor) -> Tensor:
    """The kernel over inputs of one shape and a dense output, which is the result."""
    y = empty(arrays[0])
    _launch(kernel, *arrays, also=(y,))
    return y


def _launch(kernel, *arrays: Tensor, also: tuple[Tensor, ...] = ()) -> None:
    """The kernel over arrays of one shape, dense ones as one long row, others row by row.

    The kernel takes them, those of `also`, the rows' distance in each of the first, and their length.
    """
    if all(x.is_contiguous() for x in arrays):
        n, C, strides = 1, arrays[0].numel(), (0,) * len(arrays)
    else:
        arrays = [matrix(x) for x in arrays]
        (n, C), strides = arrays[0].shape, [x.stride(0) for x in arrays]
    launch(kernel, (n * cdiv(C, BLOCK),), *arrays, *also, *strides, C, BLOCK=BLOCK)


def gelu_forward(x: Tensor):
    """y = x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))), as in GPT-2 (Hendrycks and Gimpel, 2016).

    x of any shape, float32, bfloat16 or float16. Raises `TypeError` for other dtypes.
    """
    check("gelu", x)
    return _run(_gelu_forward, x), (x,)


def gelu_backward(dy: Tensor, saved: tuple) -> Tensor:
    """-> dx."""
    check("gelu", dy, *saved)
    check_gradient("gelu", dy, *saved)
    return _run(_gelu_backward, dy, *saved)


def swiglu_forward(gate: Tensor, up: Tensor):
    """y = gate σ(gate) up, elementwise (Shazeer, 2020).

    gate and up of one shape, float32, bfloat16 or float16. Raises `ValueError` for shapes or devices that
    differ, `TypeError` for dtypes.
    """
    check("swiglu", gate, up)
    if gate.shape != up.shape:
        raise ValueError(f"swiglu: gate {tuple(gate.shape)} and up {tuple(up.shape)} must have one shape.")
    return _run(_swiglu_forward, gate, up), (gate, up)


def swiglu_backward(dy: Tensor, saved: tuple):
    """-> dgate, dup: neighbours in one array, where gate and up are."""
    check("swiglu", dy, *saved)
    check_gradient("swiglu", dy, saved[0])
    gate, up = saved
    dgate, dup = (
        d.view(gate.shape) for d in empty_beside(matrix(gate).unsqueeze(1), matrix(up).unsqueeze(1))
    )
    _launch(_swiglu_backward, dy, gate, up, dgate, dup)
    return dgate, dup

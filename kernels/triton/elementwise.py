"""Sums and products of arrays that broadcast, and the sums that their gradients need.

What broadcasting repeats, the backward pass sums. The sum over a long dimension is cut into pieces of equal
length, one a program, and the pieces are summed by the same kernel: always in one order, so always to the
same bits, which atomic additions would not give.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.launch import cdiv, check, empty, launch, power_of_2

PIECE = 256  # terms of a long sum that one program adds up


@triton.jit
def _binary_kernel(
    a_ptr, b_ptr, y_ptr, n, T, C, a_0, a_1, a_2, b_0, b_1, b_2,
    PRODUCT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of columns of some of the n rows (i, t) of y `(B, T, C)`, narrow rows together; a and b have
    any strides, 0 where they repeat."""
    blocks = tl.cdiv(C, BLOCK)
    first = (tl.program_id(0) // blocks).to(tl.int64) * ROWS
    start = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK
    rows, columns = tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK)[None, :]
    inside = (rows < n - first) & (columns < C - start)
    t = (first % T).to(tl.int32) + rows
    i, t = first // T + t // T, (t % T).to(tl.int64)
    a = tl.load(a_ptr + (i * a_0 + t * a_1 + start * a_2) + columns * a_2, mask=inside).to(tl.float32)
    b = tl.load(b_ptr + (i * b_0 + t * b_1 + start * b_2) + columns * b_2, mask=inside).to(tl.float32)
    y = a * b if PRODUCT else a + b
    y_rows = y_ptr + (first * C + start + rows.to(tl.int64) * C)
    tl.store(y_rows + columns, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _mul_backward_kernel(dy_ptr, a_ptr, b_ptr, da_ptr, db_ptr, n, BLOCK: tl.constexpr):
    """Both gradients of a product that repeats nothing, from one reading of dy."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    places = start + tl.arange(0, BLOCK)
    inside = places < n
    dy = tl.load(dy_ptr + places, mask=inside).to(tl.float32)
    a = tl.load(a_ptr + places, mask=inside).to(tl.float32)
    b = tl.load(b_ptr + places, mask=inside).to(tl.float32)
    tl.store(da_ptr + places, (dy * b).to(da_ptr.dtype.element_ty), mask=inside)
    tl.store(db_ptr + places, (dy * a).to(db_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _sum_kernel(
    x_ptr, y_ptr, R, C, stride_outer, stride_r,
    PIECE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y[outer, piece, :] = Σ over the piece's rows r of x[outer, r, :]."""
    blocks, pieces = tl.cdiv(C, BLOCK_C), max(tl.cdiv(R, PIECE), 1)
    columns = (tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    piece = tl.program_id(0) // blocks % pieces
    outer = (tl.program_id(0) // blocks // pieces).to(tl.int64)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for start in range(0, PIECE, BLOCK_R):
        r = (piece * PIECE + start + tl.arange(0, BLOCK_R))[:, None]
        x = x_ptr + outer * stride_outer + r.to(tl.int64) * stride_r + columns
        total += tl.load(x, mask=(r < R) & (columns < C), other=0.0).to(tl.float32)
    y = tl.sum(total, 0)[None, :].to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + (outer * pieces + piece) * C + columns, y, mask=columns < C)


def sum_middle(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over the middle of x `(outer, R, C)` -> `(outer, C)` of a dtype, summed in float32."""
    outer, R, C = x.shape
    x = x if x.stride(2) == 1 else x.contiguous()
    piece = power_of_2(R, PIECE)
    pieces = max(cdiv(R, piece), 1)
    y = torch.empty((outer, pieces, C), dtype=dtype if pieces == 1 else torch.float32, device=x.device)
    block_c = power_of_2(C, 256 if outer * pieces * C >= 2**20 else 64)
    launch(
        _sum_kernel, (outer * pieces * cdiv(C, block_c),), x, y, R, C, x.stride(0), x.stride(1),
        PIECE=piece, BLOCK_R=min(piece, 16), BLOCK_C=block_c,
    )  # fmt: skip
    return y.view(outer, C) if pieces == 1 else sum_middle(y, dtype)


def bias_gradient(dy: Tensor, has_bias: bool) -> Tensor | None:
    """The gradient of a bias that was added to every row: dy `(rows, C)` -> `(C)`, or None without a bias."""
    return sum_middle(dy.unsqueeze(0), dy.dtype).view(-1) if has_bias else None


def _binary(operation: str, a: Tensor, b: Tensor) -> Tensor:
    check(operation, a, b)
    if a.shape == b.shape and a.is_contiguous() and b.is_contiguous():
        y = empty(a)
        a, b, (B, T, C) = a.view(1, 1, -1), b.view(1, 1, -1), (1, 1, a.numel())  # one long row
    else:
        shape = torch.broadcast_shapes(a.shape, b.shape)
        y = torch.empty(shape, dtype=a.dtype, device=a.device)
        a, b = _three(a.expand(shape)), _three(b.expand(shape))
        B, T, C = a.shape
    block = power_of_2(C, 1024)
    rows = power_of_2(B * T, 1024 // block)
    launch(
        _binary_kernel, (cdiv(B * T, rows) * cdiv(C, block),), a, b, y, B * T, T, C, *a.stride(), *b.stride(),
        PRODUCT=operation == "mul", ROWS=rows, BLOCK=block,
    )  # fmt: skip
    return y


def _three(x: Tensor) -> Tensor:
    """x with three dimensions: the kernel's. Only more than three that do not merge are copied."""
    return x.reshape(-1, *x.shape[-2:]) if x.dim() > 2 else x.expand(*(1,) * (3 - x.dim()), *x.shape)


def _sum_to(gradient: Tensor, shape: tuple) -> Tensor:
    """Undo broadcasting: sum `gradient` over every dimension along which `shape` was repeated."""
    if gradient.shape == shape:
        return gradient
    full = (1,) * (gradient.dim() - len(shape)) + tuple(shape)
    for i, size in enumerate(full):
        if size != gradient.shape[i]:
            before, after = gradient.shape[:i], gradient.shape[i + 1 :]
            # dims before i that were to be summed are of size 1 by now
            gradient = sum_middle(
                gradient.reshape(_size(before), gradient.shape[i], _size(after)), gradient.dtype
            ).view(*before, 1, *after)
    return gradient.reshape(shape)


def _check_gradient(operation: str, dy: Tensor, *shapes: tuple) -> None:
    check(operation, dy)
    if any(dy.shape != shape for shape in shapes) and dy.shape != torch.broadcast_shapes(*shapes):
        raise ValueError(f"{operation}: a gradient {tuple(dy.shape)} is not what {shapes} broadcast to.")


def _size(shape: tuple) -> int:
    return torch.Size(shape).numel()


def add_forward(a: Tensor, b: Tensor):
    """y = a + b, broadcasting as usual. float32, bfloat16 or float16, both of one dtype.

    Raises `TypeError` for dtypes, `ValueError` for devices, `RuntimeError` for shapes that do not broadcast.
    """
    return _binary("add", a, b), (tuple(a.shape), tuple(b.shape))


def add_backward(dy: Tensor, saved: tuple):
    """-> da, db: both are dy, summed where the input was repeated."""
    shape_a, shape_b = saved
    _check_gradient("add", dy, shape_a, shape_b)
    return _sum_to(dy, shape_a), _sum_to(dy, shape_b)


def mul_forward(a: Tensor, b: Tensor):
    """y = a b, elementwise, broadcasting as usual. Dtypes and errors as for add."""
    return _binary("mul", a, b), (a, b)


def mul_backward(dy: Tensor, saved: tuple):
    """-> da, db: each is dy times the other factor, summed where the input was repeated."""
    a, b = saved
    _check_gradient("mul", dy, a.shape, b.shape)
    if a.shape == b.shape:
        check("mul", dy, a)
        da, db, n = empty(a), empty(b), a.numel()
        block = power_of_2(n, 1024)
        launch(
            _mul_backward_kernel, (cdiv(n, block),),
            dy.contiguous(), a.contiguous(), b.contiguous(), da, db, n, BLOCK=block,
        )  # fmt: skip
        return da, db
    return _sum_to(_binary("mul", dy, b), a.shape), _sum_to(_binary("mul", dy, a), b.shape)

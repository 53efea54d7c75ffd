"""Looking up rows of a table, and adding gradients up into them without a race.

Two tokens with one id add to one row of the gradient. Atomic additions would do it in any order, and floats
added in another order give other bits. So the backward pass sorts the ids, which brings the tokens of each
row together in the order of their positions, and gives each row of the table one program that sums them.
For few tokens or a small table, sorting takes longer than multiplying by the matrix of 0 and 1 that says
which token has which id.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.arithmetic import dot
from kernels.triton.elementwise import sum_middle
from kernels.triton.launch import cdiv, check, check_integers, gpu, launch, matrix, power_of_2

PIECE = 32  # sorted tokens that are summed together where they have one id
# Tokens times rows of the table up to which the matrix product is taken, by bytes of a number:
# fp32 products do without tensor cores.
ONE_HOT = {2: 2**23, 4: 2**20}


@triton.jit
def _gather_kernel(weight_ptr, ids_ptr, y_ptr, N, V, C, stride, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr):
    places = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    ids = tl.load(ids_ptr + places, mask=places < N, other=0).to(tl.int64)[:, None]
    places = places.to(tl.int64)[:, None]
    known = (ids >= 0) & (ids < V)
    for start in range(0, C, BLOCK_C):
        columns = start + tl.arange(0, BLOCK_C)[None, :]
        inside = (places < N) & (columns < C)
        y = tl.load(weight_ptr + ids * stride + columns, mask=inside & known, other=float("nan"))
        tl.store(y_ptr + places * C + columns, y, mask=inside)


@triton.jit
def _add_rows(total, x_ptr, order_ptr, start, stop, C, stride, columns, BLOCK_N: tl.constexpr):
    """total + the rows order[start], …, order[stop - 1] of x; rows start, …, stop - 1 without an order."""
    for i in range(start, stop, BLOCK_N):
        places = i + tl.arange(0, BLOCK_N)
        inside = (places < stop)[:, None] & (columns < C)
        if order_ptr is not None:
            places = tl.load(order_ptr + places, mask=places < stop, other=0)
        x = x_ptr + places.to(tl.int64)[:, None] * stride + columns
        total += tl.load(x, mask=inside, other=0.0).to(tl.float32)
    return total


@triton.jit
def _pieces_kernel(
    dy_ptr, ids_ptr, order_ptr, sums_ptr, C, stride,
    PIECE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The sum of a whole piece of the sorted tokens, if they all have one id."""
    piece = tl.program_id(0)
    start = piece * PIECE
    if tl.load(ids_ptr + start) == tl.load(ids_ptr + start + PIECE - 1):
        columns = (tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
        total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
        total = _add_rows(total, dy_ptr, order_ptr, start, start + PIECE, C, stride, columns, BLOCK_N)
        place = sums_ptr + piece.to(tl.int64) * C + columns
        tl.store(place, tl.sum(total, 0)[None, :], mask=columns < C)


@triton.jit
def _scatter_kernel(
    dy_ptr, order_ptr, starts_ptr, sums_ptr, dweight_ptr, C, stride,
    PIECE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One row of dweight, whose tokens are sorted[start:stop]: those before the first whole piece, the sums
    of the pieces, and those after the last."""
    row = tl.program_id(0).to(tl.int64)
    columns = (tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    start, stop = tl.load(starts_ptr + row), tl.load(starts_ptr + row + 1)
    first, last = tl.cdiv(start, PIECE), stop // PIECE
    head = min(first * PIECE, stop)
    tail = max(last * PIECE, head)
    total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    total = _add_rows(total, dy_ptr, order_ptr, start, head, C, stride, columns, BLOCK_N)
    total = _add_rows(total, sums_ptr, None, first, last, C, C, columns, BLOCK_N)
    total = _add_rows(total, dy_ptr, order_ptr, tail, stop, C, stride, columns, BLOCK_N)
    total = tl.sum(total, 0)[None, :].to(dweight_ptr.dtype.element_ty)
    tl.store(dweight_ptr + row * C + columns, total, mask=columns < C)


@triton.jit
def _one_hot_kernel(
    dy_ptr, ids_ptr, sums_ptr, N, V, C, stride, LENGTH,
    BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One layer of one_hot(ids)ᵀ dy, over LENGTH tokens: a sum of rows is a product with a 0-1 matrix."""
    layer = tl.program_id(2)
    rows = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)[:, None]
    columns = (tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    total = tl.zeros((BLOCK_V, BLOCK_C), tl.float32)
    for start in range(layer * LENGTH, min((layer + 1) * LENGTH, N), BLOCK_N):
        places = start + tl.arange(0, BLOCK_N)
        ids = tl.load(ids_ptr + places, mask=places < N, other=-1)[None, :]
        x = dy_ptr + places.to(tl.int64)[:, None] * stride + columns
        x = tl.load(x, mask=(places < N)[:, None] & (columns < C), other=0.0)
        total = dot((ids == rows).to(tl.float32).to(x.dtype), x, total)
    place = sums_ptr + (layer * V + rows).to(tl.int64) * C + columns
    tl.store(place, total.to(sums_ptr.dtype.element_ty), mask=(rows < V) & (columns < C))


def embedding_forward(ids: Tensor, weight: Tensor):
    """Rows of a table. ids `(...)` integers, weight `(V, C)` -> y `(..., C)`.

    weight is float32, bfloat16 or float16. An id outside 0 … V-1 gives a row of nan. Raises `TypeError` for
    other dtypes, `ValueError` for devices that differ.
    """
    check("embedding", weight, ids)
    check_integers("embedding", "ids", ids)
    (V, C), weight = weight.shape, matrix(weight)
    y = torch.empty((*ids.shape, C), dtype=weight.dtype, device=weight.device)
    BLOCK_C = power_of_2(C, 256)
    BLOCK_N = max(2048 // BLOCK_C, 1)
    launch(
        _gather_kernel, (cdiv(ids.numel(), BLOCK_N),), weight, ids.contiguous(), y,
        ids.numel(), V, C, weight.stride(0), BLOCK_N=BLOCK_N, BLOCK_C=BLOCK_C,
    )  # fmt: skip
    return y, (ids, V)


def embedding_backward(dy: Tensor, saved: tuple) -> Tensor:
    """-> dweight `(V, C)`: each row collects the gradients of all the places that looked it up."""
    ids, V = saved
    check("embedding", dy, ids)
    if dy.shape[:-1] != ids.shape:
        raise ValueError(f"embedding: ids {tuple(ids.shape)} have no gradient {tuple(dy.shape)}.")
    dy, ids = matrix(dy), ids.reshape(-1)
    return (
        _by_one_hot(dy, ids, V) if V * ids.numel() <= ONE_HOT[dy.element_size()] else _by_sorting(dy, ids, V)
    )


def _by_one_hot(dy: Tensor, ids: Tensor, V: int) -> Tensor:
    N, C = dy.shape
    tiles = cdiv(V, 64), cdiv(C, 64)
    layers = max(min(4 * gpu(dy).processors // (tiles[0] * tiles[1]), N // 256), 1)
    length = 64 * cdiv(cdiv(N, layers), 64)
    dtype = dy.dtype if layers == 1 else torch.float32
    sums = torch.empty((layers, V, C), dtype=dtype, device=dy.device)
    launch(
        _one_hot_kernel, (*tiles, layers), dy, ids.contiguous(), sums, N, V, C, dy.stride(0), length,
        BLOCK_V=64, BLOCK_N=64, BLOCK_C=64, num_warps=4, num_stages=3,
    )  # fmt: skip
    return (sums if layers == 1 else sum_middle(sums.view(1, layers, V * C), dy.dtype)).view(V, C)


def _by_sorting(dy: Tensor, ids: Tensor, V: int) -> Tensor:
    N, C = dy.shape
    ids, order = ids.int().sort(stable=True)
    starts = torch.searchsorted(
        ids, torch.arange(V + 1, dtype=torch.int32, device=ids.device), out_int32=True
    )
    # A common token has thousands of places: pieces of them are summed by programs of their own.
    sums = torch.empty((N // PIECE, C), dtype=torch.float32, device=dy.device)
    dweight = torch.empty((V, C), dtype=dy.dtype, device=dy.device)
    block = power_of_2(C, 256)
    launch(
        _pieces_kernel, (N // PIECE, cdiv(C, block)), dy, ids, order, sums, C, dy.stride(0),
        PIECE=PIECE, BLOCK_N=16, BLOCK_C=block, num_warps=4,
    )  # fmt: skip
    block = power_of_2(C, 1024)
    launch(
        _scatter_kernel, (V, cdiv(C, block)), dy, order, starts, sums, dweight, C, dy.stride(0),
        PIECE=PIECE, BLOCK_N=4, BLOCK_C=block, num_warps=4,
    )  # fmt: skip
    return dweight

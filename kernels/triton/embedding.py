"""Looking up rows of a table, and adding gradients up into them without a race.

Two tokens with one id add to one row of the gradient. Atomic additions would do it in any order, and floats
added in another order give other bits. So the backward pass sorts the ids, which brings the tokens of each
row together in the order of their positions, and gives each row of the table one program that sums them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.launch import check, launch, rows


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
def _scatter_kernel(
    dy_ptr, order_ptr, starts_ptr, dweight_ptr, C, stride, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr
):
    """One row of dweight: the sum of dy[order[i]] for i from starts[row] to starts[row + 1]."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    start, stop = tl.load(starts_ptr + row), tl.load(starts_ptr + row + 1)
    total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for i in range(start, stop, BLOCK_N):
        some = i + tl.arange(0, BLOCK_N)
        places = tl.load(order_ptr + some, mask=some < stop, other=0)[:, None]
        inside = (some < stop)[:, None] & (columns < C)
        total += tl.load(dy_ptr + places * stride + columns, mask=inside, other=0.0).to(tl.float32)
    total = tl.sum(total, 0)[None, :].to(dweight_ptr.dtype.element_ty)
    tl.store(dweight_ptr + row * C + columns, total, mask=columns < C)


def embedding_forward(ids: Tensor, weight: Tensor):
    """Rows of a table. ids `(...)` integers, weight `(V, C)` -> y `(..., C)`.

    weight is float32, bfloat16 or float16. An id outside 0 … V-1 gives a row of nan. Raises `TypeError` for
    other dtypes, `ValueError` for devices that differ.
    """
    check("embedding", weight, ids)
    if ids.is_floating_point():
        raise TypeError(f"embedding: ids must be integers, not {ids.dtype}.")
    (V, C), weight = weight.shape, rows(weight)
    y = torch.empty((*ids.shape, C), dtype=weight.dtype, device=weight.device)
    BLOCK_C = min(triton.next_power_of_2(C), 256)
    BLOCK_N = max(2048 // BLOCK_C, 1)
    launch(
        _gather_kernel, (triton.cdiv(ids.numel(), BLOCK_N),), weight, ids.contiguous(), y,
        ids.numel(), V, C, weight.stride(0), BLOCK_N=BLOCK_N, BLOCK_C=BLOCK_C,
    )  # fmt: skip
    return y, (ids, V)


def embedding_backward(dy: Tensor, saved: tuple) -> Tensor:
    """-> dweight `(V, C)`: each row collects the gradients of all the places that looked it up."""
    ids, V = saved
    dy, C = rows(dy), dy.shape[-1]
    ids, order = ids.reshape(-1).int().sort(stable=True)
    starts = torch.searchsorted(
        ids, torch.arange(V + 1, dtype=torch.int32, device=ids.device), out_int32=True
    )
    dweight = torch.empty((V, C), dtype=dy.dtype, device=dy.device)
    # A large table fills the GPU with whole rows. A small one has many tokens a row, and is cut into columns.
    BLOCK_C = min(triton.next_power_of_2(C), 1024 if V >= 16384 else 64)
    BLOCK_N = max(2048 // BLOCK_C, 1)
    launch(
        _scatter_kernel, (V, triton.cdiv(C, BLOCK_C)), dy, order, starts, dweight, C, dy.stride(0),
        BLOCK_N=BLOCK_N, BLOCK_C=BLOCK_C, num_warps=2,
    )  # fmt: skip
    return dweight

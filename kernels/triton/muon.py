"""What Muon does to matrices of one shape besides multiplying them: momentum and norm before, the step after.

PyTorch would read and write every matrix a dozen times. Here it is three launches for all matrices of a
shape, however many: the mean and the look ahead; the division by the norm, which can begin only when a whole
matrix has been seen; and, after the products, weight decay together with the step.
"""

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.adamw import TYPES, at
from kernels.triton.launch import cdiv, check, launch

BLOCK = 2048  # numbers of a program: of the momenta, and of the weights
NORMALIZED = 8192  # numbers of a program that first adds up a matrix's sums of squares
SUMS = 256  # of which it reads so many at a time


@triton.jit
def _look_ahead_kernel(
    table_ptr, factor_ptr, m_ptr, u_ptr, squares_ptr, N, momentum,
    G: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    matrix = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < N
    g = tl.load(at(table_ptr, matrix, G, ALIGNED) + i, mask=inside, other=0.0).to(tl.float32)
    if factor_ptr is not None:
        g *= tl.load(factor_ptr).to(tl.float32)
    m = tl.load(m_ptr + matrix * N + i, mask=inside, other=0.0).to(tl.float32)
    m = momentum * m + (1 - momentum) * g
    u = momentum * m + (1 - momentum) * g
    tl.store(m_ptr + matrix * N + i, m.to(m_ptr.dtype.element_ty), mask=inside)
    tl.store(u_ptr + matrix * N + i, u.to(u_ptr.dtype.element_ty), mask=inside)
    tl.store(squares_ptr + matrix * tl.num_programs(0) + tl.program_id(0), tl.sum(u * u))


@triton.jit
def _normalize_kernel(
    u_ptr, x_ptr, squares_ptr, N, sums,
    SUMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    matrix = tl.program_id(1).to(tl.int64)
    total = tl.zeros([SUMS], tl.float32)  # always in the same order: the same norm in every program
    for start in range(0, sums, SUMS):
        j = start + tl.arange(0, SUMS)
        total += tl.load(squares_ptr + matrix * sums + j, mask=j < sums, other=0.0)
    norm = tl.maximum(tl.sqrt(tl.sum(total)), 1e-7)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    u = tl.load(u_ptr + matrix * N + i, mask=i < N, other=0.0).to(tl.float32)
    tl.store(x_ptr + matrix * N + i, (u / norm).to(x_ptr.dtype.element_ty), mask=i < N)


@triton.jit
def _update_kernel(
    table_ptr, o_ptr, N, size, decay,
    W: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    matrix = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < N
    w_ptr = at(table_ptr, matrix, W, ALIGNED) + i
    w = tl.load(w_ptr, mask=inside, other=0.0).to(tl.float32)
    o = tl.load(o_ptr + matrix * N + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(w_ptr, (w * (1 - decay) - size * o).to(W), mask=inside)


def look_ahead_(
    gradients: Sequence[Tensor],
    m: Tensor,
    momentum: float,
    dtype: torch.dtype,
    factor: Tensor | None = None,
) -> Tensor:
    """Muon's momentum (Jordan et al., 2024): what Newton-Schulz starts from, `(n, R, C)` in `dtype`.

    With μ = `momentum`, m ← μ m + (1-μ) g, in place, for the n matrices whose means lie in the stack m
    `(n, R, C)`; then u = μ m + (1-μ) g, the look ahead (Nesterov, 1983), each divided by its Frobenius norm.
    Where there is a `factor`, a tensor of one number, it clips: g is that times a gradient. Everything is
    computed in float32; for a `dtype` of 16 bits u waits for its norm in bfloat16, which has float32's range:
    a gradient may be smaller than all that float16 can hold.

    Raises `ValueError` for shapes, layouts or devices that do not fit, `TypeError` for dtypes.
    """
    table, aligned = _table_of(gradients, m)
    n, N = m.shape[0], m[0].numel()
    u = torch.empty_like(m, dtype=torch.float32 if dtype == torch.float32 else torch.bfloat16)
    x = torch.empty_like(m, dtype=dtype)
    sums = cdiv(N, BLOCK)
    squares = m.new_empty(n, sums, dtype=torch.float32)  # parts, not atomics: every run adds them alike
    launch(
        _look_ahead_kernel, (sums, n), table, factor, m, u, squares, N, momentum,
        G=TYPES[gradients[0].dtype], ALIGNED=aligned, BLOCK=BLOCK,
    )  # fmt: skip
    launch(
        _normalize_kernel, (cdiv(N, NORMALIZED), n), u, x, squares, N, sums,
        SUMS=SUMS, BLOCK=NORMALIZED, num_warps=8,
    )  # fmt: skip
    return x


def update_(weights: Sequence[Tensor], o: Tensor, size: float, decay: float) -> None:
    """w ← (1 - decay) w - size o, in place, for n weights `(R, C)` and the stack o `(n, R, C)`.

    Raises `ValueError` for shapes, layouts or devices that do not fit, `TypeError` for dtypes.
    """
    table, aligned = _table_of(weights, o)
    N = o[0].numel()
    launch(
        _update_kernel, (cdiv(N, BLOCK), len(weights)), table, o, N, size, decay,
        W=TYPES[weights[0].dtype], ALIGNED=aligned, BLOCK=BLOCK,
    )  # fmt: skip


def _table_of(tensors: Sequence[Tensor], stack: Tensor) -> tuple[Tensor, bool]:
    """The addresses of separate tensors for a kernel to look up, and whether all are multiples of 16."""
    check("muon", stack)
    check("muon", *tensors)
    fit = all(x.shape == stack.shape[1:] and x.is_contiguous() for x in tensors)
    if not fit or len(tensors) != len(stack) or tensors[0].device != stack.device:
        shapes = ", ".join(str(tuple(x.shape)) for x in tensors)
        raise ValueError(
            f"muon: expected dense tensors, one for each matrix of a stack {tuple(stack.shape)} and on its "
            f"device, {stack.device}; got {shapes} on {tensors[0].device}."
        )
    addresses = tuple(x.data_ptr() for x in tensors)
    return _table(addresses, stack.device), not any(address % 16 for address in addresses)


@functools.lru_cache(maxsize=64)
def _table(addresses: tuple[int, ...], device: torch.device) -> Tensor:
    """(n) int64. A training step meets the same addresses again and again: one copy to the GPU for each."""
    return torch.tensor(addresses, device=device)

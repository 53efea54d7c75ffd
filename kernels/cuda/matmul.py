"""The matrix product C[b] = alpha A[b] B[b] (+ bias) (+ C[b]), for matrices of any size, strides and layout.

`product.cuh` has the algorithm and `matmul.cu` the kernel. Here stands what is decided before a launch: how
large a tile of C one block computes, and in how many parts K is summed so that every processor has work.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.cuda.launch import Like, cdiv, check, emulated, like, likes, module, processors, without_data


class Tiles(NamedTuple):
    """The macros of `product.cuh`."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    THREAD_M: int
    THREAD_N: int

    @property
    def threads(self) -> int:
        return self.BLOCK_M // self.THREAD_M * (self.BLOCK_N // self.THREAD_N)

    def count(self, M: int, N: int) -> int:
        """How many tiles an `(M, N)` has."""
        return cdiv(M, self.BLOCK_M) * cdiv(N, self.BLOCK_N)


# Large tiles read memory least often; small ones give every processor of the GPU a share of a small product.
LARGE, MEDIUM, SMALL = Tiles(128, 128, 16, 8, 8), Tiles(64, 64, 16, 4, 4), Tiles(32, 32, 32, 4, 4)
SHORTEST_PART = 128  # terms of a sum: shorter parts cost more to add up than they save


def choose_tiles(M: int, N: int, device: torch.device, matrices: int = 1) -> Tiles:
    """The largest tiles of which `matrices` products `(M, N)` have one for every processor."""
    wanted = processors(device)
    for tiles in (SMALL,) if emulated() else (LARGE, MEDIUM):
        if tiles.count(M, N) * matrices >= wanted:
            return tiles
    return SMALL


def choose(M: int, N: int, K: int, matrices: int, device: torch.device) -> tuple[Tiles, int]:
    """-> the tiles, and how many terms of K a block sums: all of them, if there are tiles enough."""
    tiles = choose_tiles(M, N, device, matrices)
    parts = cdiv(processors(device), tiles.count(M, N) * matrices)
    parts = max(1, min(parts, K // SHORTEST_PART))
    return tiles, max(cdiv(cdiv(K, parts), tiles.BLOCK_K) * tiles.BLOCK_K, 1)


def matmul(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor | None = None,
    alpha: float = 1.0,
    accumulate: bool = False,
) -> Tensor:
    """alpha a b (+ bias) (+ out, with `accumulate`), every matrix of a batch.

    a `(..., M, K)`, b `(..., K, N)`, at most two leading dimensions, which broadcast; bias `(N)`; all of any
    strides, of one dtype, summed in float32. -> `(..., M, N)`, in `out` if that is given: of that shape, its
    columns neighbours in memory, sharing none with a and b. A transposed factor is a view: `a.mT`.
    Raises `ValueError` for shapes and devices, `TypeError` for dtypes.
    """
    if without_data(a):
        return out if out is not None else torch.matmul(a, b)
    bias = None if bias is None else bias.contiguous()
    plan = _plan(like(a), like(b), like(bias), like(out))
    c = a.new_empty(plan.shape) if out is None else out
    plan.run(a, b, bias, c, alpha, accumulate)
    return c


class _Plan(NamedTuple):
    """The shape of C; and what computes it, a function of a, b, bias, c, alpha and accumulate."""

    shape: tuple
    run: object


@functools.lru_cache(maxsize=1024)
def _plan(a: tuple, b: tuple, bias: tuple | None, out: tuple | None) -> _Plan:
    a, b, bias, out = likes(a, b, bias, out)
    check("matmul", a, b, bias, out)
    batch = _checked_batch(a, b, bias)
    (M, K), N = a.shape[-2:], b.shape[-1]
    c = out or Like((*batch, M, N), _contiguous((*batch, M, N)), a.dtype, a.device)
    if tuple(c.shape) != (*batch, M, N) or (N > 1 and c.strides[-1] != 1):
        raise ValueError(
            f"matmul: expected an out of shape {(*batch, M, N)} whose columns are neighbours, got "
            f"{tuple(c.shape)} with strides {c.strides}."
        )
    outer, inner = (1, 1, *batch)[-2:]
    matrices = outer * inner
    if matrices * M * N == 0:
        return _Plan(c.shape, lambda *_: None)

    tiles, k_part = choose(M, N, K, matrices, a.device)
    n_parts = max(cdiv(K, k_part), 1)
    kernels = module("matmul.cu", a.dtype, **tiles._asdict())
    product = kernels.matmul[(tiles.count(M, N) * matrices, n_parts), tiles.threads]
    c_numbers = (*_batch_strides(c, batch), c.strides[-2])
    numbers = (
        *(M, N, K, k_part, inner),
        *(*_batch_strides(a, batch), *a.strides[-2:]),
        *(*_batch_strides(b, batch), *b.strides[-2:]),
        *c_numbers,
    )
    if n_parts == 1:
        return _Plan(c.shape, lambda a, b, bias, c, *how: product(a, b, bias, c, None, *numbers, *how))

    add_up = kernels.sum_parts[cdiv(matrices * M * N, 256), 256]

    def run(a, b, bias, c, alpha, accumulate):
        parts = torch.empty((n_parts, matrices, M, N), dtype=torch.float32, device=a.device)
        product(a, b, None, c, parts, *numbers, 1.0, False)
        add_up(parts, n_parts, bias, c, M, N, matrices, inner, *c_numbers, alpha, accumulate)

    return _Plan(c.shape, run)


def _checked_batch(a: Like, b: Like, bias: Like | None) -> tuple:
    """-> the leading dimensions of C."""
    if len(a.shape) < 2 or len(b.shape) < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"matmul: expected a (..., M, K) and b (..., K, N), got {tuple(a.shape)} and {tuple(b.shape)}."
        )
    if bias is not None and tuple(bias.shape) != (b.shape[-1],):
        raise ValueError(f"matmul: expected a bias of shape ({b.shape[-1]},), got {tuple(bias.shape)}.")
    batch = tuple(torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]))
    if len(batch) > 2:
        raise ValueError(
            f"matmul: at most two leading dimensions, got {batch}; flatten some of them with reshape."
        )
    return batch


def _contiguous(shape: tuple) -> tuple:
    strides = [1]
    for size in shape[:0:-1]:
        strides.insert(0, strides[0] * max(size, 1))
    return tuple(strides)


def _batch_strides(x: Like, batch: tuple) -> tuple[int, int]:
    """From a matrix to the next in the outer and in the inner batch dimension; 0 where they share one."""
    sizes, strides = (1, 1, *x.shape[:-2])[-2:], (0, 0, *x.strides[:-2])[-2:]
    return tuple(0 if size == 1 else stride for size, stride in zip(sizes, strides, strict=True))

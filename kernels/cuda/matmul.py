"""The matrix product C[b] = alpha A[b] B[b] (+ bias) (+ C[b]), for matrices of any size, strides and layout.

`product.cuh` has the algorithm and `matmul.cu` the kernel. Here stands what is decided before a launch: how
large a tile of C one block computes, and in how many parts K is summed so that every processor has work.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.cuda.launch import Like, cdiv, check, like, likes, module, processors, without_data
from kernels.cuda.rows import aligned


@dataclass(frozen=True)
class Tiles:
    """The macros of `product.cuh`."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int

    pack = 4  # numbers that a thread fetches at once

    def count(self, M: int, N: int) -> int:
        """How many tiles an `(M, N)` has."""
        return cdiv(M, self.BLOCK_M) * cdiv(N, self.BLOCK_N)


@dataclass(frozen=True)
class FloatTiles(Tiles):
    """Those of `float_tile.cuh`, beside them."""

    THREAD_M: int
    THREAD_N: int
    SLICES: int = 1

    @property
    def threads(self) -> int:
        return self.BLOCK_M // self.THREAD_M * (self.BLOCK_N // self.THREAD_N) * self.SLICES


@dataclass(frozen=True)
class TensorTiles(Tiles):
    """Those of `tensor_tile.cuh`."""

    WARP_M: int
    WARP_N: int
    TENSOR_CORES: int = 1

    pack = 8

    @property
    def threads(self) -> int:
        return 32 * (self.BLOCK_M // self.WARP_M) * (self.BLOCK_N // self.WARP_N)


# Large tiles read memory least often; small ones give every processor of the GPU a share of a small product.
# With each, how many products of two numbers one processor adds up in a µs: measured on an H100 with products
# of 4096 x 4096, for the smallest floats with layers of 128 to 512 features. Only their proportions matter.
FLOAT_TILES = {
    FloatTiles(128, 128, 8, 8, 8): 171e3,
    FloatTiles(128, 64, 16, 8, 4): 145e3,
    FloatTiles(32, 32, 64, 4, 4, SLICES=4): 90e3,
}
TENSOR_TILES = {
    TensorTiles(128, 128, 32, 64, 32): 665e3,
    TensorTiles(64, 64, 32, 32, 32): 417e3,
    TensorTiles(32, 32, 64, 16, 16): 309e3,
}
SHORTEST_PART = 256  # terms of a sum: shorter parts cost more to add up than they save


class Product(NamedTuple):
    """`matrices` products `(M, K) (K, N)` that one launch computes; whether K may be summed in parts."""

    M: int
    N: int
    K: int
    matrices: int = 1
    splits: bool = False


def choose(dtype: torch.dtype, device: torch.device, *products: Product) -> tuple[Tiles, int]:
    """-> the tiles for a launch that computes these products, and in how many parts to sum those that split.

    The choice is the one with the shortest time by a simple account of it: every processor does its share of
    all work, and in the end most of them wait for blocks that began late, half of one on average.
    """

    speeds = TENSOR_TILES if has_tensor_cores(dtype, device) else FLOAT_TILES

    def microseconds(tiles: Tiles, parts: int) -> float:
        work, longest, extra = 0.0, 0.0, 0.0
        for M, N, K, matrices, splits in products:
            depth = cdiv(K, parts) if splits else K
            block = tiles.BLOCK_M * tiles.BLOCK_N * cdiv(depth, tiles.BLOCK_K) * tiles.BLOCK_K
            work += tiles.count(M, N) * matrices * (cdiv(K, depth) if depth else 1) * block
            longest = max(longest, block)
            if splits and parts > 1:  # another launch, that reads what was written
                extra += 0.5 + parts * matrices * M * N / 6e4  # fitted to the same layers
        busy = max(longest, work / processors(device) + longest / 2)
        return busy / speeds[tiles] + extra

    most = max([1] + [p.K // SHORTEST_PART for p in products if p.splits])
    choices = [(tiles, 2**i) for tiles in speeds for i in range(most.bit_length())]
    return min(choices, key=lambda choice: microseconds(*choice))


@functools.cache
def has_tensor_cores(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether tensor cores multiply this type there: float16 since Turing, bfloat16 since Ampere."""
    if dtype == torch.float32 or device.type == "cpu":
        return dtype != torch.float32
    return torch.cuda.get_device_capability(device) >= ((7, 5) if dtype == torch.float16 else (8, 0))


def whole(tiles: Tiles, *sizes: int) -> bool:
    """Whether all sizes and strides are whole packs, so that no pack is cut and each begins where it may."""
    return all(size % tiles.pack == 0 for size in sizes)


def _whole(tiles: Tiles, x: Like, k: int) -> bool:
    """The same of a factor whose dimension `k`, -1 or -2, is summed over."""
    n, packed = len(x.shape), k if x.strides[k] == 1 else -3 - k
    others = [stride for dim, stride in enumerate(x.strides) if dim != n + packed]
    return x.strides[packed] == 1 and whole(tiles, x.shape[packed], *others)


def part_of(K: int, parts: int, tiles: Tiles) -> tuple[int, int]:
    """-> how many terms of K each of the parts sums, whole slabs; and how many parts that makes."""
    k_part = max(1, cdiv(cdiv(K, parts), tiles.BLOCK_K)) * tiles.BLOCK_K
    return k_part, max(1, cdiv(K, k_part))


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
    if accumulate and out is None:
        raise ValueError("matmul: accumulate adds to what out holds; give it an out.")
    if without_data(a):
        return out if out is not None else torch.matmul(a, b)
    bias = None if bias is None else bias.contiguous()
    shape, run = _plan(like(a), like(b), like(bias), like(out), aligned(a, b), float(alpha), accumulate)
    c = a.new_empty(shape) if out is None else out
    run(a, b, bias, c)
    return c


@functools.lru_cache(maxsize=1024)
def _plan(
    a: tuple,
    b: tuple,
    bias: tuple | None,
    out: tuple | None,
    aligned: bool,
    alpha: float,
    accumulate: bool,
) -> tuple[tuple, Callable]:
    """-> the shape of C, and what launches the kernels on a, b, bias and c."""
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
        return c.shape, lambda *_: None

    tiles, parts = choose(a.dtype, a.device, Product(M, N, K, matrices, splits=True))
    k_part, n_parts = part_of(K, parts, tiles)
    layout = {
        "A_LIES_ALONG_K": a.strides[-1] == 1,
        "B_LIES_ALONG_K": b.strides[-2] == 1,
        "WHOLE": aligned and _whole(tiles, a, k=-1) and _whole(tiles, b, k=-2),
    }
    kernels = module("matmul.cu", a.dtype, **vars(tiles), **layout)
    place, how = (*_batch_strides(c, batch), c.strides[-2]), (alpha, accumulate)
    product = kernels.matmul[(tiles.count(M, N) * matrices, n_parts), tiles.threads].prepare(
        *(M, N, K, k_part, inner),
        *(*_batch_strides(a, batch), *a.strides[-2:]),
        *(*_batch_strides(b, batch), *b.strides[-2:]),
        *place,
        *how,
    )
    if n_parts == 1:
        return c.shape, lambda a, b, bias, c: product(a, b, bias, c, None)

    add_up = kernels.sum_products[cdiv(matrices * M * N, 256), 256].prepare(
        n_parts, M, N, matrices, inner, *place, *how
    )

    def run(a, b, bias, c):
        sums = torch.empty((n_parts, matrices, M, N), dtype=torch.float32, device=a.device)
        product(a, b, None, c, sums)
        add_up(sums, bias, c)

    return c.shape, run


def _checked_batch(a: Like, b: Like, bias: Like | None) -> tuple:
    """-> the leading dimensions of C."""
    if len(a.shape) < 2 or len(b.shape) < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"matmul: expected a (..., M, K) and b (..., K, N), got {tuple(a.shape)} and {tuple(b.shape)}."
        )
    if bias is not None and tuple(bias.shape) != (b.shape[-1],):
        raise ValueError(f"matmul: expected a bias of shape ({b.shape[-1]},), got {tuple(bias.shape)}.")
    try:
        batch = tuple(torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]))
    except RuntimeError as mismatch:
        raise ValueError(
            f"matmul: the leading dimensions of a {tuple(a.shape)} and b {tuple(b.shape)} do not broadcast."
        ) from mismatch
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

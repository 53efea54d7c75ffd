"""What kernels of several families compute with: base-2 exponentials, products that keep their digits, and
the tiles of a product."""

import math

import triton
import triton.language as tl

from kernels.triton import launch

INTERPRETED = tl.constexpr(launch.INTERPRETED)
EXACT = tl.constexpr("ieee")
LOG2_E = tl.constexpr(math.log2(math.e))  # exp(x) = 2^(x log₂ e), and 2^x is one instruction


@triton.jit
def dot(a, b, total, PRECISION: tl.constexpr = EXACT):
    """a b, added to `total` if given, summed in float32.

    `PRECISION` is of float32 factors, exact unless given: tf32 would keep 10 bits of each. In bfloat16
    Triton's interpreter would multiply the bits as if they were integers; a float32 holds the same numbers.
    """
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def corner(tile, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr = 8):
    """Where a tile of an `(M, N)` product begins: down `GROUP` rows of tiles, then one column on. Tiles that
    are computed at the same time are a square, and share what they read."""
    n_m, n_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    first = tile // (GROUP * n_n) * GROUP
    height = min(n_m - first, GROUP)
    row, column = first + tile % (GROUP * n_n) % height, tile % (GROUP * n_n) // height
    return row * BLOCK_M, column * BLOCK_N


@triton.jit
def product(
    a_desc, b_desc, row, column, K,
    TRANSPOSED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The tile of a b that begins at row and column, in float32: a `(M, K)`, b `(K, N)`, or, if TRANSPOSED,
    of a bᵀ, with b `(N, K)`. Both are fetched block by block by the copy engine."""
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, K, BLOCK_K):
        a = a_desc.load([row, k])
        b = b_desc.load([column, k]).T if TRANSPOSED else b_desc.load([k, column])
        total = dot(a, b, total)
    return total


@triton.jit
def halves(tile):
    """The left and the right half. A half to store may fit beside the blocks being loaded where a whole tile
    would not."""
    shape: tl.constexpr = (tile.shape[0], 2, tile.shape[1] // 2)
    return tl.split(tl.permute(tl.reshape(tile, shape), (0, 2, 1)))

"""What kernels of several families compute with: base-2 exponentials, and products that keep their digits."""

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

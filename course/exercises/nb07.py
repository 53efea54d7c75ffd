"""Checkers of notebook 07: the floor of an optimizer, and three kernels."""

import math

import torch

from course import device
from course.exercises.checking import Wrong, exercise, expect_close
from course.exercises.kernel_calls import call

# --- 07.1 -------------------------------------------------------------------------------


@exercise("07.1")
def adamw_floor(floor) -> None:
    for n, rate, bandwidth in (
        (1000, 60e12, 3e12),
        (7, 2e9, 4e12),
        (124_000_000, 1e12, 3e11),
        (10, 1e6, 1e6),
    ):
        result = floor(n, rate, bandwidth)
        if not isinstance(result, tuple) or len(result) != 2:
            raise Wrong("The function should return two things: seconds, and which limit.")
        got, limit = result
        moving, computing = 28 * n / bandwidth, 15 * n / rate
        expected = max(moving, computing)
        case = f"n = {n:,}, rate = {rate:.0e}, bandwidth = {bandwidth:.0e}"
        if not math.isclose(got, expected, rel_tol=1e-9):
            reason = {
                moving
                + computing: "Moving and computing go on at the same time: the larger counts, not the sum.",
                16 * n / bandwidth: "What is written counts, too.",
                7 * n / bandwidth: "These are numbers; a float32 has four bytes.",
                min(moving, computing): "Of the two times the larger is the floor.",
            }
            why = next(
                (words for value, words in reason.items() if math.isclose(got, value, rel_tol=1e-9)), ""
            )
            raise Wrong(f"{case}: {got:.3g} s, expected {expected:.3g} s. {why}".strip())
        name = "memory" if moving > computing else "arithmetic"
        if limit != name:
            raise Wrong(f"{case}: the time is right, and the limit is {name!r}, not {limit!r}.")


# --- 07.2 -------------------------------------------------------------------------------


@exercise("07.2")
def affine(function) -> None:
    for M, N, what in (
        (3, 8, ""),
        (5, 13, ""),
        (1, 1, ""),
        (7, 6, "transposed"),
        (4, 9, "every second column"),
    ):
        x = device.normal(M, N, seed=M, dtype=torch.float32)
        if what == "transposed":
            x = device.normal(N, M, seed=M, dtype=torch.float32).T
        elif what:
            x = device.normal(M, 2 * N, seed=M, dtype=torch.float32)[:, ::2]
        scale, bias = (device.normal(k, seed=9, dtype=torch.float32) for k in (M, N))
        expected = scale[:, None] * x + bias
        got = call(function, x, scale, bias, shape=(M, N), dtype=torch.float32)
        if what and not torch.allclose(got, expected, atol=1e-5):
            raise Wrong(
                f"For an x that is no contiguous matrix ({what}, strides {x.stride()}) the values are wrong: "
                "both strides have to be used."
            )
        if torch.allclose(got, x * scale[:, None], atol=1e-6):
            raise Wrong("The bias is missing.")
        if M != N and torch.allclose(got, x + bias, atol=1e-6):
            raise Wrong("The scale is missing.")
        expect_close("y", got, expected, 1e-5)


# --- 07.3 -------------------------------------------------------------------------------


@exercise("07.3")
def logsumexp(function) -> None:
    for M, N, shift in ((2, 8, 0.0), (3, 11, 0.0), (1, 1, 0.0), (4, 33, 1e4), (4, 33, -1e4)):
        x = shift + device.normal(M, 2 * N, seed=N, dtype=torch.float32)[:, :N]
        expected = torch.logsumexp(x.double(), -1)
        got = call(function, x, shape=(M,), dtype=torch.float32)
        if not torch.isfinite(got).all():
            raise Wrong(
                f"For scores near {shift:g} the result is {got[0].item()}: exponentials of large scores "
                "overflow, those of small ones vanish. First subtract the row's maximum."
            )
        padded = (1 << (N - 1).bit_length()) - N  # up to the block, a power of two
        if padded and shift == 0:
            with_zeros = torch.log(x.double().exp().sum(-1) + padded)
            if torch.allclose(got.double(), with_zeros, atol=1e-5):
                raise Wrong(
                    f"With N = {N}, {padded} masked elements were counted as scores of 0, and e⁰ = 1. Load "
                    "them as something whose exponential is 0."
                )
        expect_close("the result", got, expected, 1e-6)


# --- 07.4 -------------------------------------------------------------------------------


@exercise("07.4")
def wide_softmax(function) -> None:
    for M, N, BLOCK, kind in (
        (2, 16, 16, "random"),
        (2, 50, 16, "random"),
        (3, 40, 8, "rising"),
        (2, 70, 32, "large"),
    ):
        x = device.normal(M, N, seed=N, dtype=torch.float32)
        if kind == "rising":  # each block has a larger maximum than the one before
            x = x + torch.arange(N, device=x.device)
        elif kind == "large":
            x = x * 1e4
        expected = torch.softmax(x.double(), -1)
        got = call(function, x, BLOCK, shape=(M, N), dtype=torch.float32)
        case = f"M = {M}, N = {N}, BLOCK = {BLOCK}"
        if not torch.isfinite(got).all():
            raise Wrong(f"{case}: some results are not finite. Which exponent is above 0, or which sum is 0?")
        sums = got.double().sum(-1)
        if not torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
            reason = " Was every block read, and is the sum so far corrected when the maximum grows?"
            raise Wrong(f"{case}: the rows add up to {sums[0].item():.4g}, not to 1.{reason}")
        expect_close("y", got, expected, 1e-5)

"""The checkers of notebook 08: the bytes of a norm, and kernels of norms and sums."""

import math

import torch

from course import device
from course.exercises.checking import Wrong, exercise, expect_close
from kernels import reference

EPS = 1e-3  # large enough that a forgotten epsilon shows
SINGLE = 1e-5  # the tolerance of sums in float32
HALF = device.pick(cpu=1e-2, gpu=6e-3)  # of one rounding to bfloat16, which Triton's interpreter cuts off
SHAPES = ((3, 5), (4, 96), (6, 200), (1, 1))


def _half() -> torch.dtype:
    return torch.float16 if device.DTYPE is torch.float16 else torch.bfloat16


def _expect_untouched(name: str, now: torch.Tensor, then: torch.Tensor) -> None:
    if not torch.equal(now, then):
        raise Wrong(f"The input {name} was modified, and it belongs to the caller.")


@exercise("08.1")
def layernorm_bytes(answer) -> None:
    for N, C, P, itemsize in ((1024, 512, 8, 2), (7, 3, 5, 4), (16384, 768, 1056, 2)):
        forward, backward = answer(N, C, P, itemsize)
        arrays, row, statistics = N * C * itemsize, C * itemsize, 2 * N * 4
        sums = 4 * P * C * 4
        want = 2 * arrays + 2 * row + statistics
        if forward != want:
            known = {
                want - statistics: "mean and rstd, written once each, are missing.",
                want - statistics // 2: "one of mean and rstd is missing, or both count 2 bytes a number.",
                want - 2 * row: "weight and bias, read once each, are missing.",
                want - row: "one of weight and bias is missing.",
                2 * arrays: "everything but x and y is missing: small, but it is counted here.",
            }
            raise Wrong(_bytes("forward", forward, want, known, N, C, P, itemsize))
        want = 3 * arrays + 3 * row + statistics + sums
        if backward != want:
            known = {
                want - sums: "the two arrays of partial sums are missing.",
                want - sums // 2: "half is missing of the partial sums: two arrays, in float32 whatever x "
                "is, each written and then read.",
                want + row: "the backward does not need bias.",
                want - 2 * row: "dweight and dbias are written too.",
                want - statistics: "mean and rstd are read again, to recompute x_hat.",
                want - arrays: "dy and x are read and dx is written: three arrays of N C numbers.",
                want + arrays: "x_hat is not stored: dy, x and dx are the only arrays of N C numbers.",
            }
            raise Wrong(_bytes("backward", backward, want, known, N, C, P, itemsize))


def _bytes(name: str, got, want: int, known: dict[int, str], N, C, P, itemsize) -> str:
    reason = known.get(got)
    guess = f" By the number, {reason}" if reason else " Which array is missing, or counted twice?"
    return f"{name} for N={N}, C={C}, P={P}, itemsize={itemsize} is {got}, expected {want}.{guess}"


@exercise("08.2")
def layernorm_forward(answer) -> None:
    precisions = ((torch.float32, SINGLE), (_half(), HALF))
    for dtype, tolerance in precisions:
        for i in range(len(SHAPES) - 1):
            _expect_layernorm(answer, i, dtype, tolerance)
    # A mean that is large beside the deviations: mean(x²) - mean² has no correct digit left in float32.
    x = 4000 + device.normal(3, 100, seed=829, dtype=torch.float32)
    ones, zeros = torch.ones(100, device=x.device), torch.zeros(100, device=x.device)
    y, _ = answer(x, ones, zeros, EPS)
    want, _ = reference.layernorm_forward(x.double(), ones.double(), zeros.double(), EPS)
    if not torch.isfinite(y).all() or (y.double() - want).abs().max() > 1e-2:
        raise Wrong(
            "Rows with a mean near 4000 and a deviation near 1 come out wrong: is the variance "
            "mean(x²) - mean²? Subtract the mean first, then square."
        )
    # Last a row of one number, of which the same mistake leaves a variance that is not quite 0.
    for dtype, tolerance in precisions:
        _expect_layernorm(answer, len(SHAPES) - 1, dtype, tolerance)


def _expect_layernorm(answer, i: int, dtype: torch.dtype, tolerance: float) -> None:
    N, C = SHAPES[i]
    x = 3 + device.normal(N, C, seed=820 + i, dtype=dtype)
    weight, bias = (device.normal(C, seed=830 + 2 * i + k, dtype=dtype) for k in (0, 1))
    given = x.clone()
    y, saved = answer(x, weight, bias, EPS)
    _expect_untouched("x", x, given)
    wide = [t.double() for t in (x, weight, bias)]
    want, (_, _, mean, rstd) = reference.layernorm_forward(*wide, EPS)
    if len(saved) != 4:
        raise Wrong(f"saved should be (x, weight, mean, rstd), and has {len(saved)} items.")
    shape = f"for rows of {C}"
    expect_close(f"mean, {shape},", saved[2], mean[:, 0], SINGLE)
    _expect_rstd(saved[3], wide[0], rstd[:, 0], shape)
    if y.dtype != dtype:
        raise Wrong(f"y is {y.dtype} and x is {dtype}: they should be the same.")
    expect_close(f"y, {shape},", y, want, tolerance)


def _expect_rstd(got, x, want, shape: str) -> None:
    """Name the mistakes that a variance invites."""
    C = x.shape[-1]
    block = 1 << (C - 1).bit_length()
    squares = ((x - x.mean(-1, keepdim=True)) ** 2).sum(-1)
    masked = squares + (block - C) * x.mean(-1) ** 2
    known = {
        "rstd counts masked places: they hold 0 - mean, and their squares joined the sum.": masked / C + EPS,
        "rstd divides by BLOCK, and the row has C places.": squares / block + EPS,
        "rstd divides by C - 1: a norm divides by C.": squares / max(C - 1, 1) + EPS,
        "rstd has no eps in it.": squares / C,
        "rstd is RMSNorm's: the mean was not subtracted.": (x * x).mean(-1) + EPS,
        "rstd is the root and not one over it.": 1 / (squares / C + EPS),
    }
    if got.shape == want.shape and not torch.allclose(got.double(), want, rtol=SINGLE):
        for message, variance in known.items():
            if torch.allclose(got.double(), torch.rsqrt(variance), rtol=SINGLE):
                raise Wrong(f"For rows of {C}: {message}")
    expect_close(f"rstd, {shape},", got, want, SINGLE)


@exercise("08.3")
def l2norm_backward(answer) -> None:
    for dtype, tolerance in ((torch.float32, SINGLE), (_half(), HALF)):
        for i, (N, C) in enumerate(SHAPES[:3]):
            x, dy = (device.normal(N, C, seed=840 + 2 * i + k, dtype=dtype) for k in (0, 1))
            n = torch.rsqrt((x.float() ** 2).sum(-1) + EPS)
            y = (x * n[:, None]).to(dtype)
            given = dy.clone(), y.clone()
            dx = answer(dy, (y, n))
            _expect_untouched("dy", dy, given[0])
            _expect_untouched("y", y, given[1])
            d, y, n = dy.double(), y.double(), n.double()[:, None]
            along = (d * y).sum(-1, keepdim=True)
            known = {
                "the mean of dy y stands where its sum should: n has no 1/C in it.": n * (d - y * along / C),
                "only the direct path is there: x_j also changes n, and with it every y_i.": n * d,
                "the factor n is missing in front.": d - y * along,
                "the factor n belongs in front of both terms.": n * d - y * along,
                "the second term has the wrong sign: a longer x makes n smaller.": n * (d + y * along),
            }
            for message, mistaken in known.items():
                if (
                    isinstance(dx, torch.Tensor)
                    and dx.shape == d.shape
                    and (dx.double() - mistaken).abs().max() <= tolerance * mistaken.abs().max()
                ):
                    raise Wrong(f"For rows of {C}: {message}")
            expect_close(f"dx, for rows of {C},", dx, n * (d - y * along), tolerance)


@exercise("08.4")
def column_sum(answer) -> None:
    for dtype in (torch.float32, _half()):
        for i, (N, C, P) in enumerate(((1, 1, 1), (7, 5, 3), (40, 96, 4), (3, 33, 8), (600, 3, 2))):
            x = 1 + device.normal(N, C, seed=850 + i, dtype=dtype)
            poison = torch.full((P, C), math.nan, device=x.device)
            del poison  # what `torch.empty` finds next, with luck: memory that nobody wrote
            total, partial = answer(x, P)
            again, _ = answer(x, P)
            rows = x.double()
            want = torch.stack([rows[p::P].sum(0) for p in range(P)])
            where = f"for N={N}, C={C}, P={P},"
            for name, got in (("total", total), ("partial", partial)):
                if isinstance(got, torch.Tensor) and got.dtype != torch.float32:
                    raise Wrong(f"{name} is {got.dtype}, and should be float32 whatever x is.")
            if partial.shape == want.shape and N > P:
                chunks = torch.zeros_like(want)
                per = math.ceil(N / P)
                for p in range(P):
                    chunks[p] = rows[p * per : (p + 1) * per].sum(0)
                close = (partial.double() - chunks).abs().max() <= SINGLE * chunks.abs().max()
                if close and not torch.allclose(chunks, want):
                    raise Wrong(
                        f"{where} program p added neighbouring rows; asked for were p, p + P, p + 2P, …"
                    )
            if partial.shape == want.shape and P > N and not torch.isfinite(partial).all():
                raise Wrong(f"{where} some program has no rows: it should still store its zeros.")
            expect_close(f"partial, {where}", partial, want, SINGLE)
            expect_close(f"total, {where}", total, rows.sum(0), SINGLE)
            if not torch.equal(total, again):
                raise Wrong(f"{where} two runs gave different bits.")

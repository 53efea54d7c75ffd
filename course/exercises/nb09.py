"""The checkers of notebook 09: partial softmaxes, tiles, a kernel with distances, the gradient of a sink."""

import math

import numpy as np
import torch

from course import device
from course.exercises.checking import Wrong, exercise, expect_close
from course.exercises.kernel_calls import call

# --- 09.1 -------------------------------------------------------------------------------


def _state(scores: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """m, l and acc of these keys; scores of -inf do not count, and there may be none."""
    m = scores.amax(1)
    p = torch.exp(scores - torch.where(m == -math.inf, 0.0, m)[:, None])
    return m, p.sum(1), p @ values


@exercise("09.1")
def merge(function) -> None:
    for T, D, n, scale in ((3, 4, 5, 1.0), (7, 2, 1, 1.0), (4, 3, 6, 1000.0)):
        scores, values = scale * device.normal(T, 2 * n, seed=n), device.normal(2 * n, D, seed=n + 1)
        _merged(function, scores, values, n, f"T = {T}, D = {D}, scores of about {scale:g}")
    scores = device.normal(4, 6, seed=3)
    scores[1, 3:] = scores[2, :3] = scores[3] = -math.inf  # nothing in b; in a; in both
    values = device.normal(6, 3, seed=4)
    _merged(function, scores, values, 3, "with empty sets")


def _merged(function, scores, values, n: int, case: str) -> None:
    a, b = _state(scores[:, :n], values[:n]), _state(scores[:, n:], values[n:])
    kept = [x.clone() for x in (*a, *b)]
    got = function(a, b)
    if not isinstance(got, tuple) or len(got) != 3:
        raise Wrong("The function should return a state: three tensors, m, l and acc.")
    if not all(torch.equal(x, y) for x, y in zip((*a, *b), kept, strict=True)):
        raise Wrong("A state that came in was modified, and it belongs to the caller.")
    m, l, acc = _state(scores, values)
    if not torch.equal(got[0], m):
        raise Wrong(f"{case}: m is not the larger of the two maxima, entry by entry.")
    if got[1].isnan().any() or got[2].isnan().any():
        raise Wrong(
            f"{case}: some results are not a number. Where both maxima are -inf, -inf - (-inf) is none; "
            "where scores are large, a sum taken relative to no maximum overflows."
        )
    if torch.allclose(got[1], a[1] + b[1]) and not torch.allclose(got[1], l):
        raise Wrong(f"{case}: the sums were added, but they are relative to two different maxima.")
    if torch.allclose(got[2] * l[:, None], acc) and not torch.allclose(got[2], acc):
        raise Wrong(f"{case}: acc is already divided by l; a state is not, so that it can be merged again.")
    expect_close(f"l ({case})", got[1], l, 1e-10)
    expect_close(f"acc ({case})", got[2], acc, 1e-10)


# --- 09.2 -------------------------------------------------------------------------------


@exercise("09.2")
def count_tiles(function) -> None:
    for T, M, N, window in (
        (64, 16, 16, None), (64, 32, 16, None), (64, 16, 32, None), (48, 16, 16, 16), (96, 16, 32, 40),
        (96, 32, 16, 17), (64, 16, 16, 1), (64, 16, 16, 64), (60, 10, 6, 33),
    ):  # fmt: skip
        distance = np.arange(T)[:, None] - np.arange(T)
        seen = (distance >= 0) & (distance < (window or T))
        cut = seen.reshape(T // M, M, T // N, N).swapaxes(1, 2)
        some, every = cut.any((2, 3)), cut.all((2, 3))
        _counts(function, T, M, N, window, int(some.sum()), int((some & ~every).sum()))
    n = 2**17 // 256
    _counts(function, 2**17, 256, 256, None, n * (n + 1) // 2, n)
    _counts(function, 2**17, 256, 256, 256, 2 * n - 1, 2 * n - 1)


def _counts(function, T: int, M: int, N: int, window: int | None, visited: int, masked: int) -> None:
    case = f"T = {T}, BLOCK_M = {M}, BLOCK_N = {N}, window = {window}"
    got = function(T, M, N, window)
    if not isinstance(got, tuple) or len(got) != 2:
        raise Wrong("The function should return two numbers: tiles visited, and those that need a mask.")
    if got[0] != visited:
        few = "A tile of which only a corner is seen counts." if got[0] < visited else "Some are all hidden."
        raise Wrong(f"{case}: {got[0]} tiles visited, expected {visited}. {few}")
    if got[1] != masked:
        raise Wrong(
            f"{case}: the {visited} visited are right; {got[1]} of them masked, expected {masked}. A tile "
            "needs a mask where the diagonal cuts it, and where the window's far edge does."
        )


# --- 09.3 -------------------------------------------------------------------------------


@exercise("09.3")
def alibi(function) -> None:
    for T, D, slope in ((16, 16, 0.0), (16, 16, 0.5), (37, 32, 0.25), (1, 16, 1.0), (50, 16, 0.0625)):
        q, k, v = (device.normal(T, D, seed=s, dtype=torch.float32) for s in range(3))
        got = call(function, q, k, v, slope, shape=(T, D), dtype=torch.float32)
        case = f"T = {T}, D = {D}, slope = {slope}"
        if not torch.isfinite(got).all():
            raise Wrong(f"{case}: some results are not finite.")
        q, k, v, got = (x.double() for x in (q, k, v, got))
        distance = torch.arange(T, device=q.device)[:, None] - torch.arange(T, device=q.device)
        product = q @ k.T / math.sqrt(D)

        def attention(scores, hidden=distance < 0, v=v):
            return torch.softmax(scores.masked_fill(hidden, -math.inf), -1) @ v

        expected = attention(product - slope * distance)
        known = {
            "The slope's sign: farther keys should count less.": attention(product + slope * distance),
            "The distances make no difference.": attention(product),
            "2^x wants the slope in its own unit, too: times log2(e).": attention(
                product - slope * math.log(2) * distance
            ),
            "The scale 1/sqrt(D) belongs to the product alone, not to the distance.": attention(
                product - slope * distance / math.sqrt(D)
            ),
            "Later keys are not masked.": torch.softmax(product - slope * distance, -1) @ v,
        }
        if not torch.allclose(got, expected, atol=1e-4):
            for words, wrong in known.items():
                if torch.allclose(got, wrong, atol=1e-4):
                    raise Wrong(f"{case}: {words}")
        expect_close(f"o ({case})", got, expected, 2e-5)


# --- 09.4 -------------------------------------------------------------------------------


@exercise("09.4")
def sink_gradient(function) -> None:
    for B, T, H, D in ((1, 5, 1, 4), (2, 7, 3, 4), (3, 4, 2, 8)):
        q, k, v, do = (device.normal(B, T, H, D, seed=s) for s in range(4))
        sink = device.normal(H, seed=9).requires_grad_()
        scores = torch.einsum("bthd, bshd -> bhts", q, k) / math.sqrt(D)
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
        whole = torch.cat((scores, sink[:, None, None].expand(B, H, T, 1)), -1)
        o = torch.einsum("bhts, bshd -> bthd", torch.softmax(whole, -1)[..., :-1], v)
        (dsink,) = torch.autograd.grad((o * do).sum(), sink)
        o, lse, sink = o.detach(), torch.logsumexp(whole, -1).detach(), sink.detach()
        got = function(o, do, lse, sink)
        if not isinstance(got, tuple) or len(got) != 2:
            raise Wrong("The function should return two tensors: delta and dsink.")
        expect_close("delta", got[0], (o * do).sum(-1).transpose(1, 2), 1e-10)
        base_2 = -(torch.exp2(sink[:, None] - lse) * got[0]).sum((0, 2))
        if got[1].shape == base_2.shape and torch.allclose(got[1], base_2):
            raise Wrong("dsink: this lse is a natural logarithm, so the probability is exp, not exp2.")
        if got[1].dim() == 2:
            raise Wrong(
                f"dsink has shape {tuple(got[1].shape)}: a sink serves all sequences, so sum over B too."
            )
        expect_close("dsink", got[1], dsink, 1e-9)

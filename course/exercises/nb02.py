"""Checkers of notebook 02: a soft cap, QK-norm, a window with first tokens, slopes for distance."""

import numpy as np
import torch
from torch import Tensor

from course.exercises.checking import Wrong, exercise, expect_close


def _normal(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.tensor(rng.standard_normal(shape))


def _is(got, wrong: Tensor) -> bool:
    """Whether `got` is this particular wrong tensor."""
    if not isinstance(got, Tensor) or got.shape != wrong.shape:
        return False
    return torch.allclose(got.double(), wrong, rtol=1e-9, atol=1e-12)


def _expect_two(result, names: str) -> tuple:
    if not isinstance(result, tuple) or len(result) != 2:
        raise Wrong(f"The function should return two things: {names}.")
    return result


def _expect_unchanged(**tensors: tuple[Tensor, Tensor]) -> None:
    for name, (tensor, copy) in tensors.items():
        if not torch.equal(tensor, copy):
            raise Wrong(f"{name} was changed in place; make a new tensor instead.")


# --- 02.1 -------------------------------------------------------------------------------


@exercise("02.1")
def softcap(backward) -> None:
    rng = np.random.default_rng(21)
    for shape, c in [((5,), 2.0), ((3, 4), 0.7), ((2, 1, 7), 30.0)]:
        x, dy = 2 * _normal(rng, *shape), _normal(rng, *shape)
        y = c * torch.tanh(x / c)
        dy_before, y_before = dy.clone(), y.clone()
        dx = backward(dy, (y, c))
        slope = 1 - (y / c) ** 2
        if _is(dx, slope):
            raise Wrong("dx does not depend on dy: multiply the slope by dy.")
        if _is(dx, dy * (1 - y * y)):
            raise Wrong("dx is dy (1 - y²), but tanh(x/c) is y/c, not y: a c is missing inside.")
        if _is(dx, dy * slope * c):
            raise Wrong("dx is c times too large: the 1/c inside tanh has a derivative as well.")
        if _is(dx, dy * slope / c):
            raise Wrong("dx is c times too small: the c in front of tanh is missing.")
        if _is(dx, dy * (1 - torch.tanh(y / c) ** 2)):
            raise Wrong("tanh was taken twice: saved holds y, and y/c is tanh(x/c) already.")
        expect_close("dx", dx, dy * slope)
        _expect_unchanged(dy=(dy, dy_before), y=(y, y_before))


# --- 02.2 -------------------------------------------------------------------------------


@exercise("02.2")
def qk_norm(backward) -> None:
    rng = np.random.default_rng(22)
    for B, T, H, D in [(2, 3, 2, 4), (1, 5, 3, 7), (3, 1, 1, 2)]:
        x, gain, dy = _normal(rng, B, T, H, D), _normal(rng, D), _normal(rng, B, T, H, D)
        r = torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)
        before = x.clone(), gain.clone(), dy.clone()
        dx, dgain = _expect_two(backward(dy, (x, gain, r)), "dx, dgain")
        _check_qk_norm_dx(dx, dy, x, gain, r)
        _check_qk_norm_dgain(dgain, dy, x, r)
        _expect_unchanged(x=(x, before[0]), gain=(gain, before[1]), dy=(dy, before[2]))


def _check_qk_norm_dx(dx, dy: Tensor, x: Tensor, gain: Tensor, r: Tensor) -> None:
    x_hat, dx_hat = x * r, dy * gain

    def row_formula(g: Tensor, along: Tensor) -> Tensor:
        return r * (g - x_hat * along)

    along = (dx_hat * x_hat).sum(-1, keepdim=True)
    if _is(dx, r * dx_hat):
        raise Wrong("dx lacks the path through r: each x_j also changes the length of its vector.")
    if _is(dx, row_formula(dx_hat, along / x.shape[-1])):
        raise Wrong("dx takes the mean of dx_hat x_hat, as RMSNorm does: r has a sum here, no mean.")
    if _is(dx, row_formula(dy, (dy * x_hat).sum(-1, keepdim=True))):
        raise Wrong("dx ignores the gain: y = gain x_hat, so the gradient of x_hat is dy gain.")
    if _is(dx, row_formula(dx_hat, -along)):
        raise Wrong("dx adds the term along x_hat: it must be taken away, as r falls when x grows.")
    if _is(dx, row_formula(dx_hat, along) / r):
        raise Wrong("dx lacks a factor r.")
    if _is(dx, row_formula(dx_hat, (dx_hat * x_hat).sum())):
        raise Wrong("dx sums dx_hat x_hat over everything: every vector has a length of its own.")
    expect_close("dx", dx, row_formula(dx_hat, along))


def _check_qk_norm_dgain(dgain, dy: Tensor, x: Tensor, r: Tensor) -> None:
    each = dy * x * r  # (B, T, H, D)
    if isinstance(dgain, Tensor) and dgain.dim() > 1 and dgain.shape[-1] == x.shape[-1]:
        raise Wrong(
            f"dgain has shape {tuple(dgain.shape)}, expected {(x.shape[-1],)}: one gain serves the whole "
            "batch, all positions and all heads, so its gradient is summed over B, T and H."
        )
    if _is(dgain, (dy * x).sum((0, 1, 2))):
        raise Wrong("dgain is the sum of dy x: the gain multiplies x_hat = x r, not x.")
    if x[..., 0].numel() > 1 and _is(dgain, each.mean((0, 1, 2))):
        raise Wrong("dgain is a mean over B, T and H: gradients of a shared weight add, they are summed.")
    expect_close("dgain", dgain, each.sum((0, 1, 2)))


# --- 02.3 -------------------------------------------------------------------------------


@exercise("02.3")
def streaming_mask(mask) -> None:
    for T, S, window, n_first in [(6, 6, 2, 1), (7, 7, 3, 2), (3, 8, 2, 2), (1, 9, 4, 0), (4, 4, 9, 3)]:
        got = mask(T, S, window, n_first)
        if not isinstance(got, Tensor):
            raise Wrong(f"The mask should be a tensor, and is a {type(got).__name__}.")
        if got.shape != (T, S):
            raise Wrong(
                f"For T = {T} and S = {S} the mask has shape {tuple(got.shape)}: queries are rows, keys "
                f"are columns, {(T, S)}."
            )
        if got.dtype != torch.bool:
            raise Wrong(f"The mask has dtype {got.dtype}: make it boolean, True where a key is seen.")
        key = np.arange(S)
        distance = np.arange(S - T, S)[:, None] - key
        _explain_mask(got.cpu().numpy(), distance, window, n_first)


def _explain_mask(got: np.ndarray, distance: np.ndarray, window: int, n_first: int) -> None:
    T, S = distance.shape
    expected = (distance >= 0) & ((distance < window) | (np.arange(S) < n_first))
    if np.array_equal(got, expected):
        return
    if np.array_equal(got, ~expected):
        raise Wrong("The mask is inverted: it should be True where a query may look.")
    if np.array_equal(got.T, expected):
        raise Wrong("The mask is transposed: queries are rows, keys are columns.")
    case = f"With T = {T}, S = {S}, window = {window}, n_first = {n_first}"
    unaligned = np.arange(T)[:, None] - np.arange(S)
    if T < S and np.array_equal(got, (unaligned >= 0) & ((unaligned < window) | (np.arange(S) < n_first))):
        raise Wrong(f"{case}, query 0 must stand at position S - T = {S - T}, not at position 0.")
    t, s = (int(i) for i in np.argwhere(got != expected)[0])
    place = f"{case}, the query at position {S - T + t}"
    if got[t, s] and distance[t, s] < 0:
        raise Wrong(f"{place} sees key {s}, which comes later.")
    if got[t, s]:
        raise Wrong(
            f"{place} sees key {s}: its distance is {distance[t, s]}, outside the window, and it is not "
            "among the first."
        )
    if s < n_first:
        raise Wrong(f"{place} does not see key {s}, which is among the first {n_first} and earlier.")
    raise Wrong(f"{place} does not see key {s}: its distance {distance[t, s]} is inside the window.")


# --- 02.4 -------------------------------------------------------------------------------


@exercise("02.4")
def alibi_slopes(backward) -> None:
    rng = np.random.default_rng(24)
    for B, H, T in [(2, 3, 4), (1, 2, 6), (3, 1, 5)]:
        scores, dp = _normal(rng, B, H, T, T), _normal(rng, B, H, T, T)
        distance = torch.arange(T)[:, None] - torch.arange(T)
        p = torch.softmax(scores.masked_fill(distance < 0, -torch.inf), dim=-1)
        before = dp.clone(), p.clone(), distance.clone()
        dslope = backward(dp, p, distance)
        dscores = p * (dp - (dp * p).sum(-1, keepdim=True))
        each = -dscores * distance
        if isinstance(dslope, Tensor) and dslope.shape == (B, H) and (B, H) != (H,):
            raise Wrong(
                f"dslope has shape {(B, H)}: all sequences of the batch share a head's slope, so sum over "
                "the batch too."
            )
        expected = each.sum((0, 2, 3))
        if _is(dslope, -(dp * distance).sum((0, 2, 3))):
            raise Wrong("dslope uses dP as if it were dZ: go back through the softmax first.")
        if _is(dslope, -(p * dp * distance).sum((0, 2, 3))):
            raise Wrong("dslope uses P dP for dZ: the row sum of dP P must be taken from dP first.")
        if B > 1 and _is(dslope, each.mean(0).sum((1, 2))):
            raise Wrong("dslope is a mean over the batch: gradients of a shared slope are summed.")
        expect_close("dslope", dslope, expected)
        _expect_unchanged(dp=(dp, before[0]), p=(p, before[1]), distance=(distance, before[2]))

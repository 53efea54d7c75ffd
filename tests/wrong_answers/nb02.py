"""Mistakes that a careful person makes in notebook 02, and what the check must say to each."""

import torch


def _qk_norm(*, path=True, mean=False, gain_in_dx=True, shared=True, hat=True):
    """`qk_norm_backward` with one thing wrong."""

    def backward(dy, saved):
        x, gain, r = saved
        x_hat, dx_hat = x * r, dy * gain if gain_in_dx else dy
        along = (dx_hat * x_hat).sum(-1, keepdim=True) / (x.shape[-1] if mean else 1)
        dx = r * (dx_hat - x_hat * along) if path else r * dx_hat
        dgain = dy * (x_hat if hat else x)
        return dx, dgain.sum((0, 1, 2)) if shared else dgain.sum((0, 1))

    return backward


def _distance(T, S):
    return torch.arange(S - T, S)[:, None] - torch.arange(S)


def _right(T, S, window, n_first):
    distance = _distance(T, S)
    return (distance >= 0) & ((distance < window) | (torch.arange(S) < n_first))


def _first_even_if_later(T, S, window, n_first):
    distance = _distance(T, S)
    return ((distance >= 0) & (distance < window)) | (torch.arange(S) < n_first)


def _window_too_wide(T, S, window, n_first):
    distance = _distance(T, S)
    return (distance >= 0) & ((distance <= window) | (torch.arange(S) < n_first))


def _window_only(T, S, window, n_first):
    distance = _distance(T, S)
    return (distance >= 0) & (distance < window)


def _starts_at_zero(T, S, window, n_first):
    distance = torch.arange(T)[:, None] - torch.arange(S)
    return (distance >= 0) & ((distance < window) | (torch.arange(S) < n_first))


def _dscores(dp, p):
    return p * (dp - (dp * p).sum(-1, keepdim=True))


WRONG_ANSWERS = {
    "02.1": [
        (lambda dy, saved: dy * (1 - saved[0] ** 2), "a c is missing inside"),
        (lambda dy, saved: dy * (1 - (saved[0] / saved[1]) ** 2) * saved[1], "c times too large"),
        (lambda dy, saved: dy * (1 - torch.tanh(saved[0] / saved[1]) ** 2), "tanh was taken twice"),
        (lambda dy, saved: 1 - (saved[0] / saved[1]) ** 2, "does not depend on dy"),
        (lambda dy, saved: -dy * (1 - (saved[0] / saved[1]) ** 2), "wrong sign"),
    ],
    "02.2": [
        (_qk_norm(path=False), "lacks the path through r"),
        (_qk_norm(mean=True), "no mean"),
        (_qk_norm(gain_in_dx=False), "ignores the gain"),
        (_qk_norm(shared=False), "summed over B, T and H"),
        (_qk_norm(hat=False), "not x"),
        (lambda dy, saved: _qk_norm()(dy, saved)[0], "return two things"),
    ],
    "02.3": [
        (_first_even_if_later, "which comes later"),
        (_window_too_wide, "outside the window"),
        (_window_only, "among the first 1"),
        (_starts_at_zero, "must stand at position S - T"),
        (lambda T, S, window, n_first: _window_only(T, S, window, n_first).double(), "boolean"),
        (lambda T, S, window, n_first: _right(T, S, window, n_first).T, "transposed"),
        (lambda T, S, window, n_first: ~_right(T, S, window, n_first), "inverted"),
    ],
    "02.4": [
        (lambda dp, p, distance: (_dscores(dp, p) * distance).sum((0, 2, 3)), "wrong sign"),
        (lambda dp, p, distance: -(dp * distance).sum((0, 2, 3)), "back through the softmax"),
        (lambda dp, p, distance: -(p * dp * distance).sum((0, 2, 3)), "the row sum of dP P"),
        (lambda dp, p, distance: -(_dscores(dp, p) * distance).sum((2, 3)), "sum over the batch too"),
    ],
}

"""Plausible mistakes in the exercises of notebook 01, and what the checker must say about each."""

import torch


def _sigmoid_forward(x):
    y = torch.sigmoid(x)
    return y, (y,)


def _tanh_derivative(dy, saved):
    (y,) = saved
    return dy * (1 - y * y)


def _without_dy(dy, saved):
    (y,) = saved
    return y * (1 - y)


def _negative(dy, saved):
    (y,) = saved
    return dy * y * (y - 1)


def _forward_saving_both(x):
    y = torch.sigmoid(x)
    return y, (x, y)


def _backward_of_both(dy, saved):
    _, y = saved
    return dy * y * (1 - y)


def _forward_overflowing(x):
    y = torch.exp(x) / (1 + torch.exp(x))
    return y, (y,)


def _right_backward(dy, saved):
    (y,) = saved
    return dy * y * (1 - y)


def _forward_saving_x(x):
    return torch.sigmoid(x), (x,)


def _mean_without_factor(dy, saved):
    shape, dim = saved
    return dy.unsqueeze(dim).expand(shape)


def _mean_over_all(dy, saved):
    shape, dim = saved
    return dy.unsqueeze(dim).expand(shape) / shape.numel()


def _mean_not_repeated(dy, saved):
    shape, dim = saved
    return dy / shape[dim]


def _mean_wrong_dimension(dy, saved):
    shape, dim = saved
    if len(set(shape)) > 1:  # right by luck, but for square shapes
        return dy.unsqueeze(dim).expand(shape) / shape[dim]
    return dy.expand(shape) / shape[dim]


def _twice(dy, saved, keep):
    x, weight, h, y = saved
    dv = dy * (1 - y * y)
    dh = dv @ weight.T
    du = dh * (1 - h * h)
    return {
        "second": (du @ weight.T, h.T @ dv),
        "first": (du @ weight.T, x.T @ du),
        "dh": (dh, x.T @ du + h.T @ dv),
        "no tanh": (dh @ weight.T, x.T @ dh + h.T @ dv),
        "transposed": (du @ weight.T, (x.T @ du + h.T @ dv).T),
    }[keep]


def _smoothed(dy, saved, kind):
    logits, targets, epsilon = saved
    N, V = logits.shape
    p = torch.softmax(logits, dim=-1)
    onehot = torch.nn.functional.one_hot(targets, V).to(p.dtype)
    q = (1 - epsilon) * onehot + epsilon / V
    if kind == "overflow":
        p = torch.exp(logits) / torch.exp(logits).sum(-1, keepdim=True)
    return {
        "no epsilon": (p - onehot) * dy / N,
        "no share": (p - (1 - epsilon) * onehot) * dy / N,
        "no dy": (p - q) / N,
        "no mean": (p - q) * dy,
        "sign": (q - p) * dy / N,
        "overflow": (p - q) * dy / N,
    }[kind]


WRONG_ANSWERS = {
    "01.1": [
        ((_sigmoid_forward, _tanh_derivative), "tanh's derivative"),
        ((_sigmoid_forward, _without_dy), "does not depend on dy"),
        ((_sigmoid_forward, _negative), "wrong sign"),
        ((_forward_saving_both, _backward_of_both), "one tensor is enough"),
        ((_forward_overflowing, _right_backward), "overflowed"),
        ((_forward_saving_x, _right_backward), "needs the output y"),
    ],
    "01.2": [
        (_mean_without_factor, "factor of the mean is missing"),
        (_mean_over_all, "along dim only"),
        (_mean_not_repeated, "Repeat dy along dim"),
        (_mean_wrong_dimension, "wrong dimension"),
    ],
    "01.3": [
        (lambda dy, saved: _twice(dy, saved, "second"), "the first, x W, adds to it"),
        (lambda dy, saved: _twice(dy, saved, "first"), "the second, h W, adds to it"),
        (lambda dy, saved: _twice(dy, saved, "dh"), "what should be dh"),
        (lambda dy, saved: _twice(dy, saved, "no tanh"), "lacks the first tanh"),
        (lambda dy, saved: _twice(dy, saved, "transposed"), "transposed"),
    ],
    "01.4": [
        (lambda dy, saved: _smoothed(dy, saved, "no epsilon"), "ignores epsilon"),
        (lambda dy, saved: _smoothed(dy, saved, "no share"), "its sum must be 1"),
        (lambda dy, saved: _smoothed(dy, saved, "no dy"), "does not depend on dy"),
        (lambda dy, saved: _smoothed(dy, saved, "no mean"), "mean over N"),
        (lambda dy, saved: _smoothed(dy, saved, "sign"), "wrong sign"),
        (lambda dy, saved: _smoothed(dy, saved, "overflow"), "overflowed"),
    ],
}

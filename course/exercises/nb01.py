"""Checkers of notebook 01: sigmoid, mean, a weight used twice, label smoothing."""

import numpy as np
import torch
from torch import Tensor

from course.exercises.checking import Wrong, exercise, expect_close


def _normal(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.tensor(rng.standard_normal(shape))


def _unless_stub(value):
    """For answers that come in a tuple of functions, which the judge does not look into."""
    parts = value if isinstance(value, tuple) else (value,)
    if any(part is None or part is ... for part in parts):
        raise NotImplementedError
    return value


def _differs(got, wrong: Tensor) -> bool:
    """Whether `got` is not that particular wrong tensor."""
    if not isinstance(got, Tensor) or got.shape != wrong.shape:
        return True
    return not torch.allclose(got.double(), wrong, rtol=1e-9, atol=1e-12)


def _unchanged(name: str, tensor: Tensor, copy: Tensor) -> None:
    if not torch.equal(tensor, copy):
        raise Wrong(f"{name} was changed in place; make a new tensor instead.")


@exercise("01.1")
def sigmoid(pair) -> None:
    forward, backward = pair
    rng = np.random.default_rng(11)
    for shape in [(5,), (3, 4), (2, 1, 7)]:
        x, dy = 2 * _normal(rng, *shape), _normal(rng, *shape)
        copies = x.clone(), dy.clone()
        result = _unless_stub(forward(x))
        if not isinstance(result, tuple) or len(result) != 2:
            raise Wrong("sigmoid_forward should return two things: y and saved.")
        y, saved = result
        if isinstance(saved, tuple):
            _unless_stub(saved)
        expected = torch.sigmoid(copies[0])
        expect_close("y", y, expected)
        _saved_is_lean(saved, x)
        dx = _unless_stub(backward(dy, saved))
        if not _differs(dx, expected * (1 - expected)):
            raise Wrong("dx does not depend on dy: the local derivative must be multiplied by dy.")
        if not _differs(dx, copies[1] * (1 - expected * expected)):
            raise Wrong("dx is dy (1 - y²): that is tanh's derivative, not sigmoid's.")
        if not _differs(dx, copies[1] * copies[0] * (1 - copies[0])):
            raise Wrong("dx is dy x (1 - x): the formula needs the output y, and saved has x.")
        expect_close("dx", dx, copies[1] * expected * (1 - expected))
        _unchanged("x", x, copies[0])
        _unchanged("dy", dy, copies[1])
    _sigmoid_far_out(forward, backward)


def _saved_is_lean(saved, x: Tensor) -> None:
    if not isinstance(saved, tuple):
        raise Wrong(f"saved should be a tuple, such as (y,), and is a {type(saved).__name__}.")
    numbers = sum(part.numel() for part in saved if isinstance(part, Tensor))
    if numbers > x.numel():
        raise Wrong(f"saved holds {numbers} numbers for an input of {x.numel()}: one tensor is enough.")


def _sigmoid_far_out(forward, backward) -> None:
    x = torch.tensor([-1000.0, 0.0, 1000.0], dtype=torch.float64)
    y, saved = forward(x)
    if not torch.isfinite(y).all():
        raise Wrong(f"For x = [-1000, 0, 1000], y is {y.tolist()}: an exponential overflowed.")
    dx = backward(torch.ones_like(x), saved)
    if not torch.isfinite(dx).all():
        raise Wrong(f"For x = [-1000, 0, 1000], dx is {dx.tolist()}: an exponential overflowed.")
    expect_close("y at -1000, 0, 1000", y, torch.tensor([0.0, 0.5, 1.0]))
    expect_close("dx at -1000, 0, 1000", dx, torch.tensor([0.0, 0.25, 0.0]))


@exercise("01.2")
def mean(backward) -> None:
    rng = np.random.default_rng(12)
    for shape, dim in [((4, 3), 1), ((4, 3), 0), ((2, 3, 5), 1), ((2, 3, 5), -3), ((3, 3), -1)]:
        where = f" (x of shape {shape}, dim = {dim})"
        dy = _normal(rng, *(size for i, size in enumerate(shape) if i != dim % len(shape)))
        copy, n = dy.clone(), shape[dim]
        dx = backward(dy, (torch.Size(shape), dim))
        repeated = copy.unsqueeze(dim).expand(shape)
        if isinstance(dx, Tensor) and dx.shape == copy.shape and dx.shape != torch.Size(shape):
            raise Wrong(
                f"dx has the shape of dy, {tuple(dx.shape)}{where}: every entry of x took part in "
                "a mean, so each needs its gradient. Repeat dy along dim."
            )
        if not _differs(dx, repeated):
            raise Wrong(f"dx is dy repeated{where}; the factor of the mean is missing.")
        if not _differs(dx, repeated / repeated.numel()):
            raise Wrong(
                f"dx is divided by the number of all entries of x{where}; each mean was over the "
                f"{n} entries along dim only."
            )
        if shape == (3, 3) and not _differs(dx, copy.unsqueeze(0).expand(shape) / n):
            raise Wrong(f"dx repeats dy along the wrong dimension{where}.")
        expect_close(f"dx{where}", dx, repeated / n)
        _unchanged("dy", dy, copy)


@exercise("01.3")
def twice(backward) -> None:
    rng = np.random.default_rng(13)
    for N, C in [(4, 3), (1, 5), (3, 3), (6, 1)]:
        x, weight, dy = _normal(rng, N, C), _normal(rng, C, C) / C**0.5, _normal(rng, N, C)
        h = torch.tanh(x @ weight)
        y = torch.tanh(h @ weight)
        dv = dy * (1 - y * y)
        du = dv @ weight.T * (1 - h * h)
        first, second = x.T @ du, h.T @ dv
        result = backward(dy, (x, weight, h, y))
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise Wrong("Return two gradients: dx, dweight.")
        dx, dweight = result
        if not _differs(dx, dv @ weight.T):
            raise Wrong("dx is what should be dh: go on back, through the first tanh and product.")
        if not _differs(dx, dv @ weight.T @ weight.T):
            raise Wrong("dx lacks the first tanh: between the two products comes 1 - h².")
        expect_close("dx", dx, du @ weight.T)
        if not _differs(dweight, second):
            raise Wrong("dweight has only the second use of the weight; the first, x W, adds to it.")
        if not _differs(dweight, first):
            raise Wrong("dweight has only the first use of the weight; the second, h W, adds to it.")
        if not _differs(dweight, (first + second) / 2):
            raise Wrong("dweight is the mean of its two contributions; gradients add.")
        expect_close("dweight", dweight, first + second)


@exercise("01.4")
def smoothed(backward) -> None:
    rng = np.random.default_rng(14)
    for N, V, epsilon in [(4, 6, 0.1), (1, 3, 0.3), (5, 2, 0.0), (3, 7, 0.2)]:
        logits = 3 * _normal(rng, N, V)
        targets = torch.tensor(rng.integers(0, V, N))
        dy = torch.tensor(rng.uniform(0.5, 2.0))
        copy = logits.clone()
        p = torch.softmax(copy, dim=-1)
        onehot = torch.nn.functional.one_hot(targets, V).double()
        q = (1 - epsilon) * onehot + epsilon / V
        dlogits = backward(dy, (logits, targets, epsilon))
        _unchanged("logits", logits, copy)
        if epsilon:
            spread = (1 - epsilon) * onehot + epsilon / (V - 1) * (1 - onehot)
            for wrong, words in [
                (p - onehot, "dlogits ignores epsilon: the target is q, not onehot."),
                (p - (1 - epsilon) * onehot, "epsilon / V is missing from q: its sum must be 1."),
                (p - spread, "epsilon is shared by all V characters, the true one included."),
            ]:
                if not _differs(dlogits, wrong * dy / N):
                    raise Wrong(words)
        if not _differs(dlogits, (p - q) / N):
            raise Wrong("dlogits does not depend on dy: multiply by the gradient of the loss.")
        if N > 1 and not _differs(dlogits, (p - q) * dy):
            raise Wrong(f"dlogits is {N} times too large: the loss is a mean over N = {N} examples.")
        if not _differs(dlogits, p * (p - q) * dy / N):
            raise Wrong("dlogits has a factor p too many: differentiate log-sum-exp, not softmax.")
        expect_close("dlogits", dlogits, (p - q) * dy / N)
    _smoothed_far_out(backward)


def _smoothed_far_out(backward) -> None:
    logits = torch.tensor([[800.0, 0.0, -800.0]], dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    dlogits = backward(one, (logits, torch.tensor([2]), 0.3))
    if not torch.isfinite(dlogits).all():
        raise Wrong(
            "For logits [800, 0, -800], dlogits is not finite: an exponential overflowed. "
            "Subtract the largest logit first, or use torch.softmax."
        )
    expect_close("dlogits for large logits", dlogits, torch.tensor([[0.9, -0.1, -0.8]]), tolerance=1e-6)

"""Checkers of notebook 00."""

import torch

from course import device
from course.exercises.checking import Wrong, exercise, expect_close
from kernels.reference import cross_entropy_forward, softmax_forward


def _softmax(x: torch.Tensor) -> torch.Tensor:
    return softmax_forward(x)[0]


@exercise("00.1")
def softmax(answer) -> None:
    for seed, shape in enumerate(((5,), (3, 4), (4, 4), (2, 3, 7), (1, 1))):
        x = 2 * device.normal(*shape, seed=seed)
        got, expected = answer(x.clone()), _softmax(x)
        _same_shape("softmax(x)", got, expected)
        if not torch.allclose(got, expected):
            _explain_softmax(x, got)
        expect_close("softmax(x)", got, expected)
    large = device.normal(3, 4, seed=9) + 1000
    if not torch.isfinite(answer(large.clone())).all():
        raise Wrong(
            "Right for small x, but for x near 1000 it overflows: exp(1000) is inf, and inf / inf "
            "is nan. Subtract the largest value of each row first; the result stays the same."
        )
    expect_close("softmax(x) for x near 1000", answer(large.clone()), _softmax(large))
    apart = torch.tensor([[800.0, 801.0], [-900.0, -899.0]], dtype=torch.float64, device=large.device)
    if not torch.isfinite(answer(apart.clone())).all():
        raise Wrong(
            "Rows of very different size break it: subtract the largest value of each row, not of "
            "the whole x. x.amax(dim=-1, keepdim=True)."
        )
    expect_close("softmax(x) for rows of very different size", answer(apart.clone()), _softmax(apart))


def _explain_softmax(x: torch.Tensor, got: torch.Tensor) -> None:
    """Raise `Wrong` for the mistakes that have a name."""
    if torch.allclose(got, torch.exp(x)) or torch.allclose(got, torch.exp(x - x.max())):
        raise Wrong("These are the exponentials: divide each by the sum of its row.")
    if x.dim() == 1:
        return
    if torch.allclose(got, torch.softmax(x, 0)):
        raise Wrong("The numbers add up to 1 along the first dimension; along the last they should: dim=-1.")
    exponentials = (torch.exp(x), torch.exp(x - x.amax(-1, keepdim=True)))
    if any(torch.allclose(got, e / e.sum()) for e in exponentials):
        raise Wrong(
            "You divided by the sum of all of them: each row needs its own, .sum(dim=-1, keepdim=True)."
        )


@exercise("00.2")
def sampling_probabilities(answer) -> None:
    cases = (((5,), 0.5), ((3, 4), 2.0), ((2, 3, 7), 0.7), ((4, 4), 1.3))
    for seed, (shape, temperature) in enumerate(cases, start=20):
        logits = 2 * device.normal(*shape, seed=seed)
        got, expected = answer(logits.clone(), temperature), _softmax(logits / temperature)
        _same_shape("The result", got, expected)
        if torch.allclose(got, _softmax(logits * temperature)):
            raise Wrong(
                "A higher temperature makes it surer, and should make it bolder: divide the logits "
                "by the temperature, do not multiply."
            )
        if torch.allclose(got, _softmax(logits)):
            raise Wrong("The temperature changes nothing yet.")
        if torch.allclose(got, _softmax(logits) / temperature):
            raise Wrong(
                "You divided the probabilities, so they no longer add up to 1: divide the logits, "
                "before the softmax."
            )
        expect_close(f"The result at temperature {temperature}", got, expected)
    cold = answer(device.normal(2, 5, seed=30), 1e-3)
    expect_close("The result at temperature 0.001", cold, _softmax(device.normal(2, 5, seed=30) / 1e-3))


@exercise("00.3")
def perplexity(answer) -> None:
    for seed, (T, V) in enumerate(((6, 5), (1, 3), (17, 11), (9, 69)), start=40):
        logits = 2 * device.normal(T, V, seed=seed)
        targets = (torch.arange(T, device=logits.device) * 7 + seed) % V
        loss = cross_entropy_forward(logits, targets)[0]
        got, expected = answer(logits.clone(), targets.clone()), torch.exp(loss)
        if isinstance(got, float):
            got = torch.tensor(got, dtype=torch.float64, device=logits.device)
        _same_shape("The perplexity", got, expected)
        p = _softmax(logits).gather(1, targets[:, None])
        for other, words in (
            (loss, "This is the mean loss: its exponential is still missing."),
            (-loss, "This is the mean of log p: change its sign, then take the exponential."),
            (torch.exp(-loss), "It is below 1: the loss is minus log p. Is the sign missing?"),
            (torch.exp(loss * T), "You took the exponential of the sum: it is of the mean."),
            (
                (1 / p).mean(),
                "You averaged 1/p: average the losses, -log p, first.",
            ),
            (
                1 / p.mean(),
                "You averaged the p: average the losses, -log p, first.",
            ),
        ):
            close = (got - other).abs() <= 1e-8 * other.abs()
            if T > 1 and close and (got - expected).abs() > 1e-6 * expected:
                raise Wrong(words)
        expect_close("The perplexity", got, expected)


def _same_shape(name: str, got, expected: torch.Tensor) -> None:
    """Only what `expect_close` says of types and shapes, before values are looked at."""
    if not isinstance(got, torch.Tensor) or got.shape != expected.shape:
        expect_close(name, got, expected)

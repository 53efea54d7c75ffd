"""Checkers of notebook 06."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from course.exercises.checking import Wrong, exercise, expect_close


def _normal(rng, *shape: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape))


@exercise("06.1")
def debiased_mean(answer) -> None:
    rng = np.random.default_rng(61)
    for shape, steps in (((2, 3), 4), ((5,), 9), ((3,), 1)):
        gradients = [_normal(rng, *shape) for _ in range(steps)]
        betas = rng.uniform(0.3, 0.99, steps).tolist()
        m, left = torch.zeros(shape, dtype=torch.float64), 1.0
        for g, beta in zip(gradients, betas, strict=True):
            m, left = beta * m + (1 - beta) * g, left * beta
        expected = m / (1 - left)
        got = answer([g.clone() for g in gradients], list(betas))
        if isinstance(got, Tensor) and got.shape == m.shape and not torch.allclose(got, expected):
            if torch.allclose(got, m):
                raise Wrong("This is m itself: its weights do not add up to 1 yet.")
            if torch.allclose(got, m / (1 - betas[-1] ** steps)):
                raise Wrong(
                    "This divides by 1 - β**t with the last β, which would be right if every step had had "
                    "that β: each β was used once."
                )
        expect_close(f"the mean after {steps} steps", got, expected)


@exercise("06.2")
def root_factor(answer) -> None:
    for steps, warmup, decay in ((100, 10, 40), (50, 0, 50), (30, 5, 0), (20, 8, 16)):
        for step in range(steps + 1):
            if step < warmup:
                part, expected = "in the warm-up", (step + 1) / warmup
            elif decay and step >= steps - decay:
                part, expected = "in the fall", 1 - math.sqrt((step - steps + decay) / decay)
            else:
                part, expected = "in between", 1.0
            got = answer(step, steps, warmup, decay)
            where = f"root_factor({step}, steps={steps}, warmup={warmup}, decay={decay}), {part},"
            if not isinstance(got, float | int):
                raise Wrong(f"{where} should be a number, and is a {type(got).__name__}.")
            if abs(got - expected) > 1e-9:
                hint = _hint(step, part, got, expected)
                raise Wrong(f"{where} is {got:.6g}, expected {expected:.6g}.{hint}")


def _hint(step: int, part: str, got: float, expected: float) -> str:
    if part == "in the warm-up" and step == 0 and got == 0:
        return " A step with factor 0 is a step for nothing: the first one has 1 / warmup."
    if part == "in the fall" and abs(1 - got - (1 - expected) ** 2) < 1e-9:
        return " This falls in a straight line."
    if part == "in the fall" and abs(got**2 - (1 - (1 - expected) ** 2)) < 1e-9:
        return " This is √(1 - x), not 1 - √x."
    return ""


@exercise("06.3")
def combine(answer) -> None:
    rng = np.random.default_rng(63)
    for counts, scale, max_norm in (([3, 3], 8.0, 100.0), ([7, 1, 2], 2.0**16, 100.0), ([1, 5], 64.0, 0.5)):
        shapes = {"w": (3, 2), "b": (4,)}
        pieces = [{n: scale * _normal(rng, *shape) for n, shape in shapes.items()} for _ in counts]
        before = [{n: g.clone() for n, g in piece.items()} for piece in pieces]
        mean = _mean(pieces, counts, scale)
        norm = _norm(mean)
        got = answer(pieces, list(counts), scale, max_norm)
        for piece, old in zip(pieces, before, strict=True):
            if any(not torch.equal(piece[n], old[n]) for n in old):
                raise Wrong("The pieces' gradients were modified: they belong to the caller.")
        if not isinstance(got, dict) or set(got) != set(shapes):
            raise Wrong("Expected a dictionary with the names of the pieces' gradients; all are finite here.")
        _explain(got, pieces, counts, scale, mean, norm, max_norm)
        for name, g in mean.items():
            expect_close(f"the gradient of {name}", got[name], g * min(1.0, max_norm / norm), 1e-5)
    for bad in (math.inf, math.nan):
        pieces[0]["b"][1] = bad
        got = answer(pieces, list(counts), scale, max_norm)
        if not isinstance(got, str) or got != "skip":
            raise Wrong(f"One of the gradients is {bad}: expected the string 'skip'.")


def _explain(got, pieces, counts, scale, mean, norm, max_norm) -> None:
    def same(other: dict[str, Tensor]) -> bool:
        return all(torch.allclose(got[n], other[n], rtol=1e-5) for n in other)

    equal = _mean(pieces, [1] * len(counts), scale)
    if same(_clipped(mean, max_norm)):
        return
    if same(_clipped(equal, max_norm)) and len(set(counts)) > 1:
        raise Wrong("Every piece weighs the same here, but they had different numbers of tokens.")
    if same({n: g * scale for n, g in mean.items()}):
        raise Wrong("The gradients still have the scale in them.")
    if norm > max_norm:
        if same(mean):
            raise Wrong(f"The joint norm is {norm:.3f}, and should be at most {max_norm}.")
        if same({n: g * min(1.0, max_norm / g.norm()) for n, g in mean.items()}):
            raise Wrong("Each tensor was clipped by its own norm, which turns them: one factor for all.")
    scaled = {n: g * scale for n, g in mean.items()}
    if same({n: g / scale for n, g in _clipped(scaled, max_norm).items()}):
        raise Wrong("It was clipped while the scale was still in it: then the norm is too large by that.")


def _mean(pieces, counts, scale: float) -> dict[str, Tensor]:
    total = sum(counts) * scale
    weighed = list(zip(counts, pieces, strict=True))
    return {name: sum(n * piece[name] for n, piece in weighed) / total for name in pieces[0]}


def _norm(gradients: dict[str, Tensor]) -> float:
    return math.sqrt(sum(g.square().sum().item() for g in gradients.values()))


def _clipped(gradients: dict[str, Tensor], max_norm: float) -> dict[str, Tensor]:
    factor = min(1.0, max_norm / _norm(gradients))
    return {n: g * factor for n, g in gradients.items()}


class _NoDecomposition(TorchDispatchMode):
    """Lets everything through but decompositions that would do the exercise."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(word in str(function) for word in ("svd", "eig", "qr")):
            raise Wrong(f"It calls {function}: products of matrices are enough.")
        return function(*args, **(kwargs or {}))


@exercise("06.4")
def polar_factor(answer) -> None:
    rng = np.random.default_rng(64)
    for shape, smallest in (((4, 4), 0.1), ((3, 7), 0.002), ((8, 5), 0.0011)):
        u, _, vt = torch.linalg.svd(_normal(rng, *shape), full_matrices=False)
        s = torch.logspace(0, math.log10(smallest), min(shape), dtype=torch.float64)
        matrix = 30 * u @ torch.diag(s) @ vt
        with _NoDecomposition():
            got = answer(matrix.clone())
        if isinstance(got, Tensor) and got.shape == matrix.shape and torch.isfinite(got).all():
            values = torch.linalg.svdvals(got)
            if (values - 1).abs().max() > 1e-9:
                raise Wrong(
                    f"For a matrix {shape} whose singular values go from 30 down to {30 * smallest:.3g}, "
                    f"those of the answer lie between {values.min():.6f} and {values.max():.6f}: all should "
                    "be 1. Other coefficients, or more steps?"
                )
        expect_close(f"the polar factor of a matrix {shape}", got, u @ vt, 1e-9)

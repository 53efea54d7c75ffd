"""How an answer is judged. The checkers themselves stand in `nb01.py`, `nb02.py`, … beside this file.

A checker is a function of the learner's answer that raises `Wrong("what is wrong, in words")`, and
returns if it finds nothing wrong. A stub leaves `...` where the answer goes: that is 'not solved yet'.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch

_CHECKERS: dict[str, Callable] = {}


class Wrong(Exception):
    """An answer is wrong, and this is how, as a sentence for the learner."""


class _NotSolved(Exception):
    pass


@dataclass(frozen=True)
class Verdict:
    solved: bool
    text: str


def exercise(number: str) -> Callable:
    """Decorator: the function is the checker of exercise `number`, such as "01.2"."""

    def register(checker: Callable) -> Callable:
        _CHECKERS[number] = checker
        return checker

    return register


def check(number: str, answer) -> None:
    """Print whether `answer` solves an exercise, and if it does not, what is wrong with it."""
    print(judge(number, answer).text)


def judge(number: str, answer) -> Verdict:
    """The verdict on an answer. Raises `ValueError` for an exercise that does not exist."""
    try:
        importlib.import_module(f"course.exercises.nb{number.split('.')[0]}")
        checker = _CHECKERS[number]
    except (ModuleNotFoundError, KeyError):
        raise ValueError(f"There is no exercise {number!r}.") from None
    try:
        checker(_guard(answer))
    except (_NotSolved, NotImplementedError):
        return Verdict(False, f"Exercise {number}: not solved yet.")
    except Wrong as wrong:
        return Verdict(False, f"Exercise {number}: not right yet. {wrong}")
    except Exception as error:  # whatever the learner's own code raised
        return Verdict(False, f"Exercise {number}: not right yet. It raised {type(error).__name__}: {error}")
    return Verdict(True, f"Exercise {number}: solved.")


def _guard(answer):
    """A function whose stub still returns `...` (or nothing) is not solved, not wrong."""
    if not callable(answer):
        return _unless_stub(answer)

    def guarded(*args, **kwargs):
        return _unless_stub(answer(*args, **kwargs))

    return guarded


def _unless_stub(value):
    parts = value if isinstance(value, tuple | list) else (value,)
    if any(part is None or part is ... for part in parts):
        raise _NotSolved
    return value


def expect_close(name: str, got, expected: torch.Tensor, tolerance: float = 1e-8) -> None:
    """Raise `Wrong`, saying how, unless `got` equals `expected` to a relative `tolerance`."""
    if not isinstance(got, torch.Tensor):
        raise Wrong(f"{name} should be a tensor, and is a {type(got).__name__}.")
    if got.shape != expected.shape:
        hint = ""
        if got.dim() == 2 and got.T.shape == expected.shape:
            hint = " Is it transposed?"
        elif got.dim() > expected.dim():
            hint = " Is a sum missing?"
        elif got.numel() == expected.numel():
            hint = " The numbers are as many; only the shape differs."
        raise Wrong(f"{name} has shape {tuple(got.shape)}, expected {tuple(expected.shape)}.{hint}")
    got, expected = got.detach().double(), expected.detach().double()
    if not torch.isfinite(got).all():
        raise Wrong(f"{name} has values that are not finite (inf or nan).")
    scale = expected.abs().max().clamp(min=1e-12)
    error = (got - expected).abs()
    if error.max() <= tolerance * scale:
        return
    factor = (got * expected).sum() / (expected * expected).sum()
    if factor.abs() > 1e-6 and (got - factor * expected).abs().max() <= tolerance * scale:
        if abs(factor + 1) < 1e-6:
            raise Wrong(f"{name} has the wrong sign.")
        raise Wrong(f"{name} is {factor.item():.4g} times what it should be: check the factors.")
    square = got.dim() == 2 and got.shape[0] == got.shape[1]
    if square and (got.T - expected).abs().max() <= tolerance * scale:
        raise Wrong(f"{name} is transposed.")
    place = tuple(torch.unravel_index(error.argmax(), error.shape))
    index = ", ".join(str(int(i)) for i in place)
    raise Wrong(
        f"{name} has the right shape but wrong values: at [{index}] it is "
        f"{got[place].item():.6g}, expected {expected[place].item():.6g}."
    )

"""Checkers of notebook 16: what fits into a budget, what was seen before, when to save, batches ahead."""

import math
import threading
import time
from collections.abc import Callable

import numpy as np

from course.exercises.checking import Wrong, exercise

PATIENCE = 5.0  # seconds that a thread gets to do what it should do at once


def _number(name: str, got) -> float:
    if isinstance(got, bool) or not isinstance(got, int | float | np.integer | np.floating):
        raise Wrong(f"{name} should be a number, and is a {type(got).__name__}.")
    return float(got)


# --- 16.1 -------------------------------------------------------------------------------


@exercise("16.1")
def steps_that_fit(answer) -> None:
    cases = [
        (100, 1, 20, 10),
        (99, 1, 20, 10),
        (90, 1, 20, 10),
        (89, 1, 20, 10),
        (5, 1, 20, 10),
        (0, 1, 3, 2),
    ]
    cases += [
        (60, 2, 5, 0),
        (37, 3, 1, 4),
        (30, 1, 10, 25),
        (1000, 7, 13, 29),
        (19, 1, 20, 10),
        (20, 1, 20, 10),
    ]
    for case in cases:
        budget, step, every, pause = case
        call = f"steps_that_fit({budget}, step={step}, every={every}, pause={pause})"
        got = answer(*case)
        if _number(call, got) != int(got):
            raise Wrong(f"{call} is {got}: expected a whole number of steps.")
        expected = _most(*case)
        if got != expected:
            raise Wrong(f"{call} is {got:,}, expected {expected:,}. {_why(got, *case)}")
    started = time.perf_counter()
    expected, got = _most(4e9, 1, 400, 134.5), answer(4e9, 1, 400, 134.5)
    if got != expected:
        raise Wrong(f"For a budget of 4 billion seconds it is {got:,}, expected about {expected:,}.")
    if time.perf_counter() - started > 1:
        raise Wrong(
            "Billions of steps take too long to plan: compute how many rounds fit, do not count them."
        )


def _most(budget: float, step: float, every: int, pause: float) -> int:
    rounds, left = divmod(budget, every * step + pause)
    return int(rounds) * every + min(int(left // step), every - 1)


def _why(got: int, budget: float, step: float, every: int, pause: float) -> str:
    spent = got * step + got // every * pause
    if spent > budget:
        return f"With {got:,} steps it takes {spent:g} seconds: too long. Do the pauses count?"
    return (
        f"{got + 1:,} steps would take {(got + 1) * step + (got + 1) // every * pause:g} seconds: they fit."
    )


# --- 16.2 -------------------------------------------------------------------------------


@exercise("16.2")
def seen_before(answer) -> None:
    rng = np.random.default_rng(162)
    small = np.array([1, 2, 3, 4, 5, 6, 7, 8]), np.array([9, 3, 4, 5, 9, 9, 5, 6])
    cases = [(*small, 1), (*small, 2), (*small, 3), (*small, 4), (*small, 9)]
    training = rng.integers(0, 5, 400)
    for n in (1, 2, 3, 5):
        cases.append((training, rng.integers(0, 6, 90), n))
    cases.append((training, np.tile([0, 0, 0, 1, 2], 8), 3))  # windows that occur again and again
    cases.append((training[:3], rng.integers(0, 5, 40), 4))  # training has no window
    cases.append((training, training[5:25].astype(np.uint16), 20))  # the same numbers, another dtype
    for training, validation, n in cases:
        case = f"With {len(training)} training tokens, {len(validation)} to look at, and n = {n},"
        got = _number(f"{case} the share", answer(training.copy(), validation.copy(), n))
        expected = _share(training, validation, n)
        if abs(got - expected) > 1e-9:
            hint = _about_share(got, training, validation, n)
            raise Wrong(f"{case} the share is {got:.4f}, expected {expected:.4f}.{hint}")
    large = rng.integers(0, 9000, 200_000), rng.integers(0, 9000, 20_000)
    large[1][5000:9000] = large[0][70_000:74_000]
    started = time.perf_counter()
    got, expected = answer(*large, 12), (4000 - 11) / (20_000 - 11)
    if abs(got - expected) > 1e-9:
        raise Wrong(f"Of 20,000 tokens with a copied stretch of 4,000, the share is {got}, not {expected}.")
    if (took := time.perf_counter() - started) > 10:
        raise Wrong(f"200,000 tokens took {took:.0f} seconds: keep the training windows in a set.")


def _windows(tokens: np.ndarray, n: int) -> list[tuple]:
    return [tuple(tokens[i : i + n].tolist()) for i in range(len(tokens) - n + 1)]


def _share(training: np.ndarray, validation: np.ndarray, n: int) -> float:
    seen, windows = set(_windows(training, n)), _windows(validation, n)
    return sum(window in seen for window in windows) / len(windows) if windows else 0.0


def _about_share(got: float, training: np.ndarray, validation: np.ndarray, n: int) -> str:
    if training.dtype != validation.dtype and got == 0:
        return " Equal numbers of different dtypes have different bytes."
    windows = _windows(validation, n)
    seen = set(_windows(training, n))
    if windows and abs(got - sum(w in seen for w in set(windows)) / len(set(windows))) < 1e-9:
        return " A window that occurs twice in the validation text counts twice."
    apart = [tuple(validation[i : i + n].tolist()) for i in range(0, len(validation) - n + 1, n)]
    if apart and abs(got - sum(w in seen for w in apart) / len(apart)) < 1e-9:
        return " Windows overlap: the next one begins one token later, not n."
    blocks = {tuple(training[i : i + n].tolist()) for i in range(0, len(training) - n + 1, n)}
    if windows and abs(got - sum(w in blocks for w in windows) / len(windows)) < 1e-9:
        return " A training window may begin anywhere, not only at multiples of n."
    return ""


# --- 16.3 -------------------------------------------------------------------------------


@exercise("16.3")
def best_interval(answer) -> None:
    for c, m in ((2.0, 100.0), (3.0, 86_400.0), (0.5, 7200.0), (40.0, 5000.0)):
        pair = answer(c, m)
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise Wrong("The function should return two numbers: the interval, and the share that is lost.")
        t, lost = (_number(name, x) for name, x in zip(("The interval", "The share"), pair))
        best = math.sqrt(2 * c * m)
        least = c / best + best / (2 * m)
        where = f"For c = {c:g} and m = {m:g}"
        if abs(t - best) > 1e-6 * best:
            raise Wrong(f"{where} the interval is {t:.4g}, expected {best:.4g}.{_about_interval(t, c, m)}")
        if abs(lost - least) > 1e-6 * least:
            half = " That is one of the two terms: at the best interval they are equal."
            raise Wrong(
                f"{where} the share is {lost:.4g}, expected {least:.4g}."
                f"{half if abs(lost - least / 2) < 1e-6 * least else ''}"
            )


def _about_interval(t: float, c: float, m: float) -> str:
    if math.isclose(t, math.sqrt(c * m), rel_tol=1e-6):
        return " A failure costs half an interval on average, not a whole one: where is the 2?"
    if math.isclose(t, 2 * c * m, rel_tol=1e-6):
        return " That is its square."
    return ""


# --- 16.4 -------------------------------------------------------------------------------


class _Source:
    """Batches that remember which of them were asked for."""

    def __init__(self, broken: int | None = None):
        self.asked: list[int] = []
        self.threads: set[int] = set()
        self.broken = broken

    def at(self, step: int) -> str:
        self.threads.add(threading.get_ident())
        self.asked.append(step)
        if step == self.broken:
            raise OSError(f"batch {step} cannot be read")
        return f"batch {step}"


def _until(true: Callable[[], bool]) -> bool:
    """Whether it becomes true before long."""
    end = time.perf_counter() + PATIENCE
    while not true() and time.perf_counter() < end:
        time.sleep(0.002)
    return true()


@exercise("16.4")
def ahead(answer) -> None:
    for steps, depth in ((7, 2), (3, 5), (1, 1), (0, 2)):
        source = _Source()
        made = answer(source.at, steps, depth)
        if made is None or made is ...:
            raise NotImplementedError
        got = list(made)
        if got != [f"batch {i}" for i in range(steps)]:
            raise Wrong(
                f"ahead(at, {steps}, {depth}) gave {got}, expected batches 0 to {steps - 1} in order."
            )
        if sorted(source.asked) != list(range(steps)):
            raise Wrong(f"at was called for {source.asked}: expected each of {steps} steps once.")
    _works_while_the_consumer_does(answer)
    _raises_in_its_place(answer)
    _ends_when_nobody_listens(answer)


def _works_while_the_consumer_does(answer) -> None:
    depth, source = 3, _Source()
    batches = iter(answer(source.at, 50, depth))
    next(batches)
    if not _until(lambda: len(source.asked) >= 2):
        raise Wrong("While the consumer works on batch 0, nobody makes batch 1: `at` has to run in a thread.")
    if threading.get_ident() in source.threads:
        raise Wrong("`at` was called by the consumer's own thread: it should run in another one.")
    for _ in range(4):
        next(batches)
    _until(lambda: len(source.asked) >= 5 + depth)
    time.sleep(0.1)  # whoever goes too far has done so by now
    waiting = len(source.asked) - 5
    if waiting > depth:
        raise Wrong(f"{waiting} batches are made that nobody has asked for, with depth = {depth}.")
    if waiting < depth:
        raise Wrong(f"Only {waiting} batches are ahead of the consumer, with depth = {depth}.")
    batches.close()


def _raises_in_its_place(answer) -> None:
    source, got = _Source(broken=3), []
    try:
        for batch in answer(source.at, 6, 2):
            got.append(batch)
    except OSError:
        if len(got) != 3:
            raise Wrong(
                f"Batch 3 cannot be read, and that was raised after {len(got)} batches, not 3."
            ) from None
        return
    raise Wrong("Batch 3 raises an OSError, and the consumer never hears of it.")


def _ends_when_nobody_listens(answer) -> None:
    source = _Source()
    batches = iter(answer(source.at, 10_000, 2))
    next(batches)
    batches.close()
    if not _until(lambda: not source.threads & {thread.ident for thread in threading.enumerate()}):
        raise Wrong("The consumer stopped after one batch, and a thread lives on: shut it down in `finally`.")
    asked = len(source.asked)
    if asked > 4:
        raise Wrong(f"The consumer stopped after one batch, and {asked} were made with depth = 2.")

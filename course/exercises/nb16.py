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
    for budget in (4e5, 4e6, 4e7, 4e9):  # who counts is found out before it takes hours
        started = time.perf_counter()
        expected, got = _most(budget, 1, 400, 134.5), answer(budget, 1, 400, 134.5)
        if got != expected:
            raise Wrong(f"For a budget of {budget:,.0f} seconds it is {got:,}, expected {expected:,}.")
        if (took := time.perf_counter() - started) > 0.5:
            raise Wrong(
                f"{got:,} steps took {took:.1f} s to plan, and billions would take hours: compute how many "
                "rounds fit, do not count them."
            )


def _most(budget: float, step: float, every: int, pause: float) -> int:
    rounds, left = divmod(budget, every * step + pause)
    return int(rounds) * every + min(int(left // step), every - 1)


def _why(got: int, budget: float, step: float, every: int, pause: float) -> str:
    def seconds(steps: int) -> float:
        return steps * step + steps // every * pause

    if got < 0:
        return "There are no negative steps."
    if seconds(got) > budget:
        long = f"With {got:,} steps it takes {seconds(got):g} seconds: too long."
        if seconds(got) - pause <= budget:
            due = "The last step is" if got % every == 0 else f"Step {got // every * every:,} is"
            return f"{long} {due} due for a pause, and that counts, too."
        return f"{long} Do the pauses count?"
    whole = " The budget may be used up to the last second." if seconds(got + 1) == budget else ""
    return f"{got + 1:,} steps would take {seconds(got + 1):g} seconds: they fit.{whole}"


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
        try:
            got = _number(f"{case} the share", answer(training.copy(), validation.copy(), n))
        except (ValueError, ZeroDivisionError, IndexError) as error:
            none = n > min(len(training), len(validation))
            short = " Where there is no window, the share is 0." if none else ""
            raise Wrong(f"{case} it raised {type(error).__name__}: {error}.{short}") from None
        expected = _share(training, validation, n)
        if abs(got - expected) > 1e-9:
            hint = _about_share(got, training, validation, n)
            raise Wrong(f"{case} the share is {got:.4f}, expected {expected:.4f}.{hint}")
    for size in (5_000, 25_000, 200_000):  # who is slow is found out before it takes hours
        large = rng.integers(0, 9000, size), rng.integers(0, 9000, size // 10)
        copied = size // 50
        large[1][copied : 2 * copied] = large[0][-copied:]
        started = time.perf_counter()
        got, expected = answer(*large, 12), (copied - 11) / (size // 10 - 11)
        if abs(got - expected) > 1e-9:
            raise Wrong(
                f"Of {size // 10:,} tokens with a copied stretch of {copied:,}, the share is {got:.4f}, "
                f"expected {expected:.4f}."
            )
        if (took := time.perf_counter() - started) > (10 if size == 200_000 else 0.5):
            raise Wrong(f"{size:,} tokens took {took:.1f} seconds: keep the training windows in a set.")


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
    if not 0 <= got <= 1:
        return " A share lies between 0 and 1."
    if abs(got - _share(validation, training, n)) < 1e-9:
        return " That is the share of the training windows that occur in the validation text."
    if windows and abs(got - sum(w in seen for w in windows) / len(validation)) < 1e-9:
        return f" Count windows, not tokens: {len(validation)} tokens have {len(windows)} windows."
    short = set(_windows(training[:-1], n))
    if windows[1:] and abs(got - sum(w in short for w in windows[:-1]) / len(windows[1:])) < 1e-9:
        return " The last window ends with the last token: there are len(tokens) - n + 1 of them."
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
            raise Wrong(f"{where} the interval is {t:.6g}, expected {best:.6g}.{_about_interval(t, c, m)}")
        if abs(lost - least) > 1e-6 * least:
            half = " That is one of the two terms: at the best interval they are equal."
            raise Wrong(
                f"{where} the share is {lost:.6g}, expected {least:.6g}."
                f"{half if abs(lost - least / 2) < 1e-6 * least else ''}"
            )


def _about_interval(t: float, c: float, m: float) -> str:
    if math.isclose(t, math.sqrt(c * m), rel_tol=1e-6):
        return " A failure costs half an interval on average, not a whole one: where is the 2?"
    if math.isclose(t, 2 * c * m, rel_tol=1e-6):
        return " That is its square."
    if math.isclose(t, math.sqrt(2 * c / m), rel_tol=1e-6):
        return " That is the share that is lost: the interval comes first."
    if math.isclose(t, math.sqrt(2 * c * m), rel_tol=1e-2):
        return " Close: the derivative gives it exactly, without a search."
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
    if waiting == depth + 1:
        raise Wrong(
            f"{waiting} batches are ahead, with depth = {depth}: the one that the thread has in its hands "
            "counts, too."
        )
    if waiting > depth:
        raise Wrong(f"{waiting} batches are made that nobody has asked for, with depth = {depth}.")
    if waiting < depth:
        raise Wrong(
            f"Only {waiting} batches are ahead of the consumer, with depth = {depth}: the one that it works "
            "on is not ahead any more."
        )
    if len(source.threads) > 1:
        raise Wrong(f"`at` was called by {len(source.threads)} threads: one is enough, and keeps the order.")
    batches.close()


def _raises_in_its_place(answer) -> None:
    source, got, raised = _Source(broken=3), [], []

    def consume() -> None:
        try:
            got.extend(answer(source.at, 6, 2))  # batches that came before an error stay
        except Exception as error:
            raised.append(error)

    consumer = threading.Thread(target=consume, daemon=True)  # it may wait for ever, and this thread must not
    consumer.start()
    consumer.join(PATIENCE)
    if consumer.is_alive():
        raise Wrong("Batch 3 raises an OSError, the consumer never hears of it, and waits for ever.")
    if not raised:
        raise Wrong("Batch 3 raises an OSError, and the consumer never hears of it.")
    if not isinstance(raised[0], OSError):
        raise Wrong(f"Batch 3 raises an OSError, and the consumer gets {type(raised[0]).__name__}.")
    if len(got) != 3:
        raise Wrong(f"Batch 3 cannot be read, and that was raised after {len(got)} batches, not 3.")


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

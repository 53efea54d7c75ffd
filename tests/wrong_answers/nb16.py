"""Mistakes that a careful person could make in the exercises of notebook 16."""

import math
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np


def _no_pauses(budget, step, every, pause):
    return int(budget // step)


def _whole_rounds(budget, step, every, pause):
    return int(budget // (every * step + pause)) * every


def _free_last_pause(budget, step, every, pause):
    rounds, left = divmod(budget, every * step + pause)
    return int(rounds) * every + min(int(left // step), every)


def _share(overlap=True, once=False, blocks=False, same_dtype=True):
    def windows(tokens, n, stride=1):
        return [tokens[i : i + n].tobytes() for i in range(0, len(tokens) - n + 1, stride)]

    def answer(training, validation, n):
        if same_dtype:
            training, validation = training.astype(np.int64), validation.astype(np.int64)
        seen = set(windows(training, n, n if blocks else 1))
        found = windows(validation, n, 1 if overlap else n)
        found = set(found) if once else found
        return sum(window in seen for window in found) / max(1, len(found))

    return answer


def _tokens_alone(training, validation, n):
    return float(np.isin(validation, training).mean())


def _nothing_ahead(at, steps, depth):
    for i in range(steps):
        yield at(i)


def _everything_at_once(at, steps, depth):
    with ThreadPoolExecutor(1) as pool:
        yield from [future.result() for future in [pool.submit(at, i) for i in range(steps)]]


def _submitted_all(at, steps, depth):
    with ThreadPoolExecutor(1) as pool:
        futures = [pool.submit(at, i) for i in range(steps)]
        for future in futures:
            yield future.result()


def _swallows(at, steps, depth):
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(at, i) for i in range(min(depth, steps)))
        for i in range(steps):
            future = waiting.popleft()
            if i + depth < steps:
                waiting.append(pool.submit(at, i + depth))
            if future.exception() is None:
                yield future.result()


def _leaves_a_thread(at, steps, depth):
    made, room = deque(), threading.Semaphore(depth)
    there = threading.Semaphore(0)

    def work():
        for i in range(steps):
            room.acquire()
            try:
                made.append((at(i), None))
            except Exception as error:
                made.append((None, error))
            there.release()

    threading.Thread(target=work, daemon=True).start()
    for _ in range(steps):
        there.acquire()
        batch, error = made.popleft()
        room.release()
        if error:
            raise error
        yield batch


WRONG_ANSWERS = {
    "16.1": [
        (_no_pauses, "Do the pauses count"),
        (_whole_rounds, "they fit"),
        (_free_last_pause, "too long"),
    ],
    "16.2": [
        (_share(overlap=False), "Windows overlap"),
        (_share(once=True), "counts twice"),
        (_share(blocks=True), "may begin anywhere"),
        (_share(same_dtype=False), "different bytes"),
        (_tokens_alone, "expected"),
    ],
    "16.3": [
        (lambda c, m: (math.sqrt(c * m), 2 * math.sqrt(c / m)), "where is the 2"),
        (lambda c, m: (2 * c * m, 1.0), "its square"),
        (lambda c, m: (math.sqrt(2 * c * m), math.sqrt(c / (2 * m))), "one of the two terms"),
        (lambda c, m: math.sqrt(2 * c * m), "two numbers"),
    ],
    "16.4": [
        (_nothing_ahead, "nobody makes batch 1"),
        (_everything_at_once, "nobody has asked for"),
        (_submitted_all, "nobody has asked for"),
        (_swallows, "never hears of it"),
        (_leaves_a_thread, "a thread lives on"),
    ],
}

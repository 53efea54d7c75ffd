"""Mistakes that a careful person could make in the exercises of notebook 16."""

import math
import queue
import threading
import time
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


def _counts(budget, step, every, pause):
    n = 0
    while (n + 1) * step + (n + 1) // every * pause <= budget:
        n += 1
    return n


def _up_to_the_budget(budget, step, every, pause):
    n = 0
    while (n + 1) * step + (n + 1) // every * pause < budget:
        n += 1
    return n


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


def _off_by_one(training, validation, n):
    def windows(tokens):
        return [tuple(tokens[i : i + n].tolist()) for i in range(len(tokens) - n)]

    seen, found = set(windows(training)), windows(validation)
    return sum(window in seen for window in found) / max(1, len(found))


def _list_of_windows(training, validation, n):
    def windows(tokens):
        return [tuple(tokens[i : i + n].tolist()) for i in range(len(tokens) - n + 1)]

    seen, found = windows(training), windows(validation)
    return sum(window in seen for window in found) / max(1, len(found))


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


def _waits_for_ever(at, steps, depth):
    made = queue.Queue(max(1, depth - 1))

    def work():
        try:
            for i in range(steps):
                made.put(at(i))
        except OSError:
            pass

    threading.Thread(target=work, daemon=True).start()
    for _ in range(steps):
        yield made.get()


def _many_threads(at, steps, depth):
    def slowly(i):
        time.sleep(0.02)
        return at(i)

    with ThreadPoolExecutor(4) as pool:
        waiting = deque(pool.submit(slowly, i) for i in range(min(depth, steps)))
        for i in range(steps):
            batch = waiting.popleft().result()
            if i + depth < steps:
                waiting.append(pool.submit(slowly, i + depth))
            yield batch


def _one_in_hand(at, steps, depth):
    made = queue.Queue(depth)
    threading.Thread(target=lambda: [made.put(at(i)) for i in range(steps)], daemon=True).start()
    for _ in range(steps):
        yield made.get()


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
        (_free_last_pause, "due for a pause"),
        (_counts, "do not count them"),
        (_up_to_the_budget, "up to the last second"),
    ],
    "16.2": [
        (_share(overlap=False), "Windows overlap"),
        (_share(once=True), "counts twice"),
        (_share(blocks=True), "may begin anywhere"),
        (_share(same_dtype=False), "different bytes"),
        (_tokens_alone, "expected"),
        (_off_by_one, "len(tokens) - n + 1"),
        (_list_of_windows, "in a set"),
        (lambda t, v, n: _share()(v, t, n), "share of the training windows"),
        (lambda t, v, n: 100 * _share()(t, v, n), "between 0 and 1"),
    ],
    "16.3": [
        (lambda c, m: (math.sqrt(c * m), 2 * math.sqrt(c / m)), "where is the 2"),
        (lambda c, m: (2 * c * m, 1.0), "its square"),
        (lambda c, m: (math.sqrt(2 * c * m), math.sqrt(c / (2 * m))), "one of the two terms"),
        (lambda c, m: math.sqrt(2 * c * m), "two numbers"),
        (lambda c, m: (math.sqrt(2 * c / m), math.sqrt(2 * c * m)), "the interval comes first"),
    ],
    "16.4": [
        (_nothing_ahead, "nobody makes batch 1"),
        (_everything_at_once, "nobody has asked for"),
        (_submitted_all, "nobody has asked for"),
        (_swallows, "never hears of it"),
        (_leaves_a_thread, "a thread lives on"),
        (_waits_for_ever, "waits for ever"),
        (_many_threads, "one is enough"),
        (_one_in_hand, "in its hands"),
    ],
}

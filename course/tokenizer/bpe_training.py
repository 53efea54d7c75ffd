"""Training byte-pair encoding, incrementally (Sennrich et al., 2016; over bytes: Radford et al., 2019).

The most frequent pair of neighbours becomes a token, again and again. Counting all pairs anew each time
would take one pass through the text for each token; but a merge changes only the words it occurs in, and
in these only the pairs beside it. So it is enough to keep, for every pair, how often and in which words it
occurs, and a priority queue of the pairs by count.
"""

import heapq
import multiprocessing
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise

import regex

from course.tokenizer.pretokens import CHARACTERS, batches, blocks, slices, splitter, without_surrogates

BATCH = 1 << 20  # characters that a process counts at a time: more work than sending them


def count_pretokens(
    texts: Iterable[str], pattern: str, special_tokens: Iterable[str] = (), processes: int = 1
) -> Counter[bytes]:
    """How often each pre-token occurs, in UTF-8. Special tokens end a text and are not counted.

    With several `processes` the texts are counted a million characters at a time, a few millions for each
    process held at once. Raises `ValueError` for less than one.
    """
    if processes < 1:
        raise ValueError(f"processes = {processes}: expected a whole number of at least 1.")
    specials = regex.compile("|".join(map(regex.escape, special_tokens)) or r"(?!)")
    pieces = (
        block for text in texts for document in specials.split(text) for block in blocks(slices(document))
    )
    if processes == 1:
        counts = _count(pieces, pattern)
    else:
        counts = Counter()
        for part in _in_processes(partial(_count, pattern=pattern), batches(pieces, BATCH), processes):
            counts.update(part)
    return Counter({pretoken.encode(): count for pretoken, count in counts.items()})


def _count(pieces: Iterable[str], pattern: str) -> Counter[str]:
    find = splitter(pattern).findall
    counts = Counter()
    for piece in pieces:
        counts.update(find(without_surrogates(piece)))
    return counts


def _in_processes(function: Callable, batches: Iterable, processes: int) -> Iterator:
    """`function` of every batch, in order. Fresh processes: a copy of one that has threads can hang."""
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        running = deque()
        for batch in batches:
            running.append(pool.submit(function, batch))
            if len(running) > 2 * processes:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def learn(words: Counter[bytes], size: int) -> list[bytes]:
    """The first `size` tokens: all 256 bytes in GPT-2's order, then one for each merge, in order.

    Of several pairs that are equally frequent, the one whose left token is older is merged, then the one
    whose right token is: Hugging Face's rule, so that the merges compare. Raises `ValueError` if the words
    run out of pairs.
    """
    tokens = [bytes([byte]) for byte in CHARACTERS]
    ids = {token[0]: i for i, token in enumerate(tokens)}
    sequences = [[ids[byte] for byte in word] for word in words]
    frequencies = list(words.values())

    counts = defaultdict(int)
    places = defaultdict(set)  # the words in which a pair occurs; or did, before other merges
    for place, (sequence, frequency) in enumerate(zip(sequences, frequencies)):
        for pair in pairwise(sequence):
            counts[pair] += frequency
            places[pair].add(place)
    queue = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(queue)

    while len(tokens) < size:
        pair = _most_frequent(queue, counts)
        if pair is None:
            raise ValueError(
                f"The text has pairs for {len(tokens)} tokens, not for {size}: train on more text, or ask "
                "for a smaller vocabulary."
            )
        new = len(tokens)
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        changes = defaultdict(int)
        for place in places.pop(pair):
            _merge(sequences[place], pair, new, frequencies[place], place, changes, places)
        for changed, change in changes.items():
            counts[changed] += change
            if change > 0:  # what became rarer is put right when it comes up
                heapq.heappush(queue, (-counts[changed], changed))
        del counts[pair]
    return tokens


def _most_frequent(queue: list, counts: dict) -> tuple[int, int] | None:
    """The pair to merge next. Entries whose count is no longer true are met, and mended, on the way."""
    while queue:
        count, pair = heapq.heappop(queue)
        now = counts.get(pair, 0)
        if now == -count:
            return pair
        if 0 < now < -count:
            heapq.heappush(queue, (-now, pair))
    return None


def _merge(sequence, pair, new, frequency, place, changes, places) -> None:
    """Merge a pair in one word, in place, from left to right; note by how much that changes each count."""
    left, right = pair
    i = 0
    while i < len(sequence) - 1:
        if sequence[i] == left and sequence[i + 1] == right:
            if i > 0:
                before = sequence[i - 1]
                changes[before, left] -= frequency
                changes[before, new] += frequency
                places[before, new].add(place)
            if i + 2 < len(sequence):
                after = sequence[i + 2]
                changes[right, after] -= frequency
                changes[new, after] += frequency
                places[new, after].add(place)
            sequence[i : i + 2] = [new]
        i += 1

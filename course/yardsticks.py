"""What a loss is measured by: models without a network, and a compressor, on the same held-out text.

All losses are in nats a token, for `course.training.corpus.bits_per_byte`; a compressor's result is in bits a
byte already.
"""

import lzma
import math

import numpy as np

PRIOR = 50.0  # pairs that a bigram model has seen, as it were, before it counts its first


def uniform(vocab_size: int) -> float:
    """The loss of a model that has learned nothing: every token is as likely as any other."""
    return math.log(vocab_size)


def unigram(training: np.ndarray, validation: np.ndarray, vocab_size: int) -> float:
    """The loss of a model that knows how often each token occurs, and looks at nothing before it.

    Each token counts as seen once more than it was: one that never occurred is not impossible.
    """
    return float(-np.log(_frequencies(training, vocab_size))[validation[1:]].mean())


def bigram(training: np.ndarray, validation: np.ndarray, vocab_size: int) -> float:
    """The loss of a model that looks at one token before.

    p(b | a) = (count(a, b) + k p(b)) / (count(a) + k), with the unigram model's p and k = `PRIOR` (MacKay and
    Peto, 1995). Only the pairs of the validation text are looked up; memory is 8 bytes a training token.
    """
    p = _frequencies(training, vocab_size)
    pairs, counts = np.unique(_pairs(training, vocab_size), return_counts=True)
    wanted, repeats = np.unique(_pairs(validation, vocab_size), return_counts=True)
    places = np.searchsorted(pairs, wanted).clip(max=len(pairs) - 1)
    seen = np.where(pairs[places] == wanted, counts[places], 0)
    before, after = wanted // vocab_size, wanted % vocab_size
    firsts = np.bincount(training[:-1], minlength=vocab_size)
    likely = (seen + PRIOR * p[after]) / (firsts[before] + PRIOR)
    return float(-(repeats * np.log(likely)).sum() / repeats.sum())


def xz(text: bytes) -> float:
    """Bits a byte that the compressor xz needs, at its best: it learns as it reads."""
    return 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)


def _frequencies(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    counts = np.bincount(tokens, minlength=vocab_size) + 1.0
    return counts / counts.sum()


def _pairs(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Each two neighbours as one number."""
    return tokens[:-1].astype(np.int64) * vocab_size + tokens[1:]

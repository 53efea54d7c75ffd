"""The models without a network, against their definitions and on texts of known entropy."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from course import yardsticks

RNG = np.random.default_rng(0)


def test_uniform_and_unigram_are_entropies():
    training, validation = RNG.integers(0, 7, 200_000), RNG.integers(0, 7, 20_000)
    assert yardsticks.uniform(7) == pytest.approx(math.log(7))
    assert yardsticks.unigram(training, validation, 7) == pytest.approx(math.log(7), abs=1e-3)
    skewed = RNG.choice(3, 200_000, p=[0.7, 0.2, 0.1])
    entropy = -sum(p * math.log(p) for p in (0.7, 0.2, 0.1))
    assert yardsticks.unigram(skewed[:150_000], skewed[150_000:], 3) == pytest.approx(entropy, abs=0.01)


def test_a_token_that_never_occurred_is_not_impossible():
    training, validation = np.zeros(1000, np.uint16), np.array([0, 4, 4], np.uint16)
    for model in (yardsticks.unigram, yardsticks.bigram):
        assert 3 < model(training, validation, 5) < math.inf


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64])
def test_bigram_is_its_formula(dtype):
    training, validation = (RNG.integers(0, 60_000, n).astype(dtype) % 300 * 200 for n in (5000, 300))
    size, k = 60_000, yardsticks.PRIOR
    p = (np.bincount(training, minlength=size) + 1.0) / (len(training) + size)
    pairs = Counter(zip(training[:-1].tolist(), training[1:].tolist()))
    firsts = Counter(training[:-1].tolist())
    text = validation.tolist()
    losses = [-math.log((pairs[a, b] + k * p[b]) / (firsts[a] + k)) for a, b in itertools.pairwise(text)]
    assert yardsticks.bigram(training, validation, size) == pytest.approx(np.mean(losses))


def test_bigram_knows_what_unigram_cannot():
    tokens = np.tile(np.arange(8), 5000)  # each token follows from the one before
    assert yardsticks.unigram(tokens, tokens[:999], 8) == pytest.approx(math.log(8), abs=1e-3)
    assert yardsticks.bigram(tokens, tokens[:999], 8) < 0.02


def test_xz_needs_eight_bits_for_noise_and_few_for_a_refrain():
    assert yardsticks.xz(RNG.bytes(50_000)) == pytest.approx(8, abs=0.1)
    assert yardsticks.xz(b"And so it goes. " * 5000) < 0.1

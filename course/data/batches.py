"""From tokens, in memory or in a mapped file, to batches."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np


def check_tokens(tokens: np.ndarray, vocab_size: int) -> None:
    """Raise `ValueError` unless every token is in the vocabulary: once here, not at every step."""
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"Token id {low if low < 0 else high} is outside the vocabulary of {vocab_size}: was the "
            "text encoded with another tokenizer?"
        )


class Batches:
    """Random windows of a token stream, the same ones for the same seed and step.

    `batches.at(step)` gives ids and targets, int64 `(B, T)`, the targets one token further on; each is
    what `to` makes of a NumPy array. Nothing is remembered from step to step, so a run that starts again
    at step 1,000 sees what it would have seen. Raises `ValueError` for a text shorter than one window.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        batch_size: int,
        context_length: int,
        *,
        seed: int = 0,
        to: Callable = np.asarray,
    ):
        _check_length(tokens, context_length)
        self.tokens, self.batch_size, self.context_length = tokens, batch_size, context_length
        self.seed, self.to = seed, to

    def at(self, step: int) -> tuple:
        """The batch of a step, counted from 0."""
        rng = np.random.default_rng((self.seed, step))
        starts = rng.integers(0, len(self.tokens) - self.context_length, size=self.batch_size)
        return _windows(self.tokens, starts, self.context_length, self.to)


def in_order(
    tokens: np.ndarray, batch_size: int, context_length: int, *, to: Callable = np.asarray
) -> Iterator[tuple]:
    """The whole text once, as batches of neighbouring windows: what a validation loss is measured on.

    The last tokens that fill no window are left out.
    """
    _check_length(tokens, context_length)
    starts = np.arange(0, len(tokens) - context_length, context_length)
    for i in range(0, len(starts), batch_size):
        yield _windows(tokens, starts[i : i + batch_size], context_length, to)


def left_pad(prompts: Sequence[Sequence[int]], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of different lengths as one batch, as wide as the longest of them.

    -> ids int64 `(B, T)` and mask bool `(B, T)`, False where there is padding. That stands on the left, so
    that every prompt ends in the last column, where the next token is predicted. Raises `ValueError` for
    an empty prompt, which predicts nothing.
    """
    lengths = [len(prompt) for prompt in prompts]
    if not lengths or min(lengths) == 0:
        raise ValueError("Expected prompts of at least one token each: begin empty ones with end_of_text.")
    ids = np.full((len(prompts), max(lengths)), pad, dtype=np.int64)
    mask = np.zeros(ids.shape, dtype=bool)
    for row, prompt in enumerate(prompts):
        ids[row, -len(prompt) :] = prompt
        mask[row, -len(prompt) :] = True
    return ids, mask


def _windows(tokens, starts, context_length: int, to: Callable) -> tuple:
    windows = tokens[starts[:, None] + np.arange(context_length + 1)]
    windows = windows.astype(np.int64, copy=False)  # token files hold uint16 or uint32
    return to(windows[:, :-1]), to(windows[:, 1:])


def _check_length(tokens, context_length: int) -> None:
    if len(tokens) <= context_length:
        raise ValueError(
            f"A text of {len(tokens)} tokens has no window of {context_length + 1}: choose a shorter "
            "context_length or a longer text."
        )

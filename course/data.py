"""Texts by name, their training and validation parts, and batches of them.

`tales` ships with the course and is the default everywhere. Other texts are looked for in the folder
`COURSE_DATA_DIR`, if that is set, and in the course's own `data/`.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from course.tokenizer import END_OF_TEXT

DATA_DIR = Path(__file__).resolve().parent.parent / "data"
STORIES_PER_VALIDATION_STORY = 10  # every tenth story of `tales` is held out


@dataclass(frozen=True)
class Dataset:
    """A text file, where to get it, and how it is divided."""

    file: str
    source: str
    by_story: bool = False  # held out: every tenth story; otherwise the last tenth of the characters


DATASETS = {
    "tales": Dataset("tales.txt", "it ships with the course, in data/", by_story=True),
    "wizard_of_oz": Dataset("wizard_of_oz.txt", "Project Gutenberg, https://www.gutenberg.org/ebooks/55"),
    "tiny_shakespeare": Dataset(
        "tiny_shakespeare.txt",
        "https://github.com/karpathy/char-rnn/blob/master/data/tinyshakespeare/input.txt",
    ),
}


def find(name: str) -> Path | None:
    """The file of a dataset on this machine, or None. Raises `ValueError` for an unknown name."""
    if name not in DATASETS:
        raise ValueError(f"Unknown dataset {name!r}: choose one of {', '.join(DATASETS)}.")
    folders = [DATA_DIR]
    if own := os.environ.get("COURSE_DATA_DIR"):
        folders.insert(0, Path(own))
    for folder in folders:
        if (path := folder / DATASETS[name].file).is_file():
            return path
    return None


def load_text(name: str) -> str:
    """The whole text. Raises `FileNotFoundError` that says where to get it and where to put it."""
    if (path := find(name)) is None:
        dataset = DATASETS[name]
        raise FileNotFoundError(
            f"{dataset.file} is not on this machine: get it from {dataset.source}, put it under that "
            f"name into {DATA_DIR} or into a folder that the variable COURSE_DATA_DIR names."
        )
    return path.read_text(encoding="utf-8")


def stories(text: str) -> list[str]:
    """The documents between `END_OF_TEXT` marks, without surrounding white space."""
    return [story.strip() for story in text.split(END_OF_TEXT) if story.strip()]


def split(name: str) -> tuple[str, str]:
    """The training and the validation text of a dataset, always divided in the same way."""
    text = load_text(name)
    if not DATASETS[name].by_story:
        cut = len(text) * 9 // 10
        return text[:cut], text[cut:]
    every = STORIES_PER_VALIDATION_STORY
    parts: tuple[list[str], list[str]] = ([], [])
    for i, story in enumerate(stories(text)):
        parts[i % every == every - 1].append(story + END_OF_TEXT)
    return "".join(parts[0]), "".join(parts[1])


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


def _windows(tokens, starts, context_length: int, to: Callable) -> tuple:
    windows = tokens[starts[:, None] + np.arange(context_length + 1)]
    return to(windows[:, :-1]), to(windows[:, 1:])


def _check_length(tokens, context_length: int) -> None:
    if len(tokens) <= context_length:
        raise ValueError(
            f"A text of {len(tokens)} tokens has no window of {context_length + 1}: choose a shorter "
            "context_length or a longer text."
        )

"""What a recipe trains on: a tokenizer, and both parts of its text as tokens."""

import math
from dataclasses import dataclass
from pathlib import Path

from course import data
from course.checkpoint import Tokenizer
from course.data import TokenFile
from course.tokenizer import BPETokenizer, CharTokenizer
from course.training.recipe import Recipe


@dataclass(frozen=True)
class Corpus:
    tokenizer: Tokenizer
    training: TokenFile
    validation: TokenFile


def load(recipe: Recipe, tokenizer: Tokenizer | None = None, *, progress: bool = True) -> Corpus:
    """The tokens of a recipe's text, encoded once. `tokenizer` is that of a run that goes on."""
    if tokenizer is None:
        tokenizer = _tokenizer(recipe)
    return Corpus(tokenizer, *data.token_split(recipe.data, tokenizer, progress=progress))


def bits_per_byte(loss: float, tokens: TokenFile) -> float:
    """A loss, in nats a token, as bits a byte of text: what compares models of different tokenizers.

    The marks between documents are tokens, but no text.
    """
    return loss / math.log(2) * len(tokens.tokens) / tokens.text_bytes


def _tokenizer(recipe: Recipe) -> Tokenizer:
    if recipe.tokenizer == "char":
        return CharTokenizer.from_text(data.load_text(recipe.data))
    if recipe.tokenizer == "bpe":
        return BPETokenizer.train(data.sample(recipe.data, recipe.tokenizer_bytes), recipe.vocab_size)
    if not Path(recipe.tokenizer).is_file():
        raise FileNotFoundError(
            f"There is no tokenizer at {recipe.tokenizer}: expected char, bpe, or a file that `python -m "
            "course tokenize train` wrote."
        )
    return BPETokenizer.load(recipe.tokenizer)

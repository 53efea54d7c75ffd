"""How large should the vocabulary be? Measured on a text, for a model of given width and depth.

Larger tokens make a text shorter, and the table of embeddings larger; and a token that hardly ever occurs
is never learned. So: of the sizes in which few tokens are rare, take the one with the least arithmetic for
a byte of text.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from course.tokenizer.bpe import BPETokenizer
from course.tokenizer.characters import END_OF_TEXT

RARE = 50  # a token seen fewer times than this in the training text counts as rare
MAX_RARE_SHARE = 0.5  # of the merged tokens; the 256 bytes have to be there, seen or not


@dataclass(frozen=True)
class Size:
    """What one size of vocabulary gives: compression of held-out text, rare tokens, cost."""

    vocab_size: int
    bytes_per_token: float  # of text that the merges were not learned from, its marks left out
    rare_share: float  # of the merged tokens: seen fewer than RARE times in the training text
    embedding_parameters: int  # of one table; input and output share it
    flops_per_byte: float  # of training: 6 for each parameter that multiplies, a token


def analyse(
    training: str, held_out: str, sizes: Iterable[int], d_model: int, n_layer: int, pattern: str = "gpt4"
) -> list[Size]:
    """Train once, for the largest size; measure each size, which is that tokenizer's first merges.

    Raises `ValueError` as `BPETokenizer.train` does, and for a model without width or depth.
    """
    for name, value in (("d_model", d_model), ("n_layer", n_layer)):
        if value < 1:
            raise ValueError(f"{name} = {value}: expected a whole number of at least 1.")
    if not held_out:
        raise ValueError("There is no text to measure compression on: expected at least one character.")
    sizes = sorted(sizes)
    largest = BPETokenizer.train([training], sizes[-1], pattern)
    blocks = 12 * n_layer * d_model**2  # attention's 4 d², the MLP's 8 d²
    n_bytes = len(held_out.replace(END_OF_TEXT, "").encode())
    rows = []
    for size in sizes:
        tokenizer = largest.truncated(size)
        seen = np.bincount(tokenizer.encode(training), minlength=size)
        merged = seen[256 : len(tokenizer.tokens)]
        bytes_per_token = n_bytes / len(tokenizer.encode(held_out))
        rows.append(
            Size(
                vocab_size=size,
                bytes_per_token=bytes_per_token,
                rare_share=float(np.mean(merged < RARE)) if len(merged) else 0.0,
                embedding_parameters=size * d_model,
                flops_per_byte=6 * (blocks + size * d_model) / bytes_per_token,
            )
        )
    return rows


def recommend(rows: list[Size]) -> Size:
    """The size with the least arithmetic a byte, of those with few rare tokens (or the one with fewest)."""
    frequent = [row for row in rows if row.rare_share <= MAX_RARE_SHARE]
    if not frequent:
        return min(rows, key=lambda row: row.rare_share)
    return min(frequent, key=lambda row: row.flops_per_byte)

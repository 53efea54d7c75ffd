"""Text to numbers and back, the plain way: one token a character."""

import re
from collections.abc import Iterable

import numpy as np

END_OF_TEXT = "<|endoftext|>"  # stands between documents; one token, not thirteen characters


class CharTokenizer:
    """One token for each character of an alphabet, and one for `END_OF_TEXT`, which comes first.

    The alphabet's order does not matter: tokens are numbered in the order of the characters' code points.
    """

    def __init__(self, alphabet: Iterable[str]):
        self.tokens = [END_OF_TEXT, *sorted(set(alphabet))]
        self._ids = {token: i for i, token in enumerate(self.tokens)}

    @classmethod
    def from_text(cls, text: str) -> "CharTokenizer":
        """A tokenizer for exactly the characters of `text`."""
        return cls(text.replace(END_OF_TEXT, ""))

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    @property
    def end_of_text(self) -> int:
        """The id of the token between documents."""
        return 0

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, int64. Raises `ValueError`, naming the character, for one it never saw."""
        pieces = re.split(f"({re.escape(END_OF_TEXT)})", text)
        units = [u for piece in pieces for u in ([piece] if piece == END_OF_TEXT else piece)]
        try:
            return np.array([self._ids[u] for u in units], dtype=np.int64)
        except KeyError as unknown:
            raise ValueError(
                f"The character {unknown.args[0]!r} is not in this tokenizer's alphabet of "
                f"{self.vocab_size - 1} characters: leave it out, or make the tokenizer from a text "
                "that has it."
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids. Raises `ValueError` for an id outside the vocabulary."""
        pieces = []
        for i in map(int, ids):
            if not 0 <= i < self.vocab_size:
                raise ValueError(
                    f"Token id {i} is outside the vocabulary of {self.vocab_size}: "
                    "was it produced with another tokenizer?"
                )
            pieces.append(self.tokens[i])
        return "".join(pieces)

"""Text to numbers and back: one token a character, or byte-pair encoding (notebook 04)."""

from course.tokenizer.bpe import BPETokenizer
from course.tokenizer.characters import END_OF_TEXT, CharTokenizer

__all__ = ["END_OF_TEXT", "CharTokenizer", "BPETokenizer"]

"""What byte-pair encoding starts from: a text cut into pre-tokens, and bytes in a fixed order.

No merge ever reaches across the border between two pre-tokens. The patterns are the published ones of
GPT-2 (Radford et al., 2019), of GPT-4 (`cl100k_base`) and of GPT-4o (`o200k_base`), both in `tiktoken`.
"""

from collections.abc import Iterable, Iterator

import regex

PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "gpt4": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "gpt4o": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}

# In every pattern a pre-token ends here, whatever stands before or behind, and nothing before this place
# looks beyond it. (Not between "." and a line's end: GPT-4's keeps these together.)
_BORDER = regex.compile(r"(?r)(?<=\S)(?= )|(?<=[\p{L}\p{N}])(?=\s)")


def splitter(pattern: str) -> regex.Pattern:
    """The compiled pattern of that name: its `findall` cuts a text into pre-tokens, losing nothing."""
    if pattern not in PATTERNS:
        raise ValueError(f"There is no pattern {pattern!r}: choose one of {', '.join(PATTERNS)}.")
    return regex.compile(PATTERNS[pattern])


def blocks(chunks: Iterable[str]) -> Iterator[str]:
    """The same text, cut only where every pattern has a border: each block can be encoded by itself.

    What is held back until a border comes is usually a word; in a text without spaces it is all of it.
    """
    pending = ""
    for chunk in chunks:
        seen = max(len(pending) - 1, 0)  # before this, no border was found
        pending += chunk
        border = _BORDER.search(pending, seen)
        if border and border.start():
            yield pending[: border.start()]
            pending = pending[border.start() :]
    if pending:
        yield pending


def slices(text: str, length: int = 1 << 20) -> Iterator[str]:
    """A long text, a million characters at a time."""
    return (text[i : i + length] for i in range(0, len(text), length))


def batches(texts: Iterable[str], length: int) -> Iterator[list[str]]:
    """Texts in lists of about `length` characters together."""
    batch, characters = [], 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= length:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def without_surrogates(text: str) -> str:
    """A pair of surrogates as its character, a lone one as U+FFFD: so the text has UTF-8. As `tiktoken`."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _byte_characters() -> dict[int, str]:
    """A printable character for each byte, after GPT-2: itself if it has one, else one from U+0100 on."""
    ranges = (("!", "~"), ("¡", "¬"), ("®", "ÿ"))
    printable = [byte for first, last in ranges for byte in range(ord(first), ord(last) + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


# Its order is the order of the first 256 tokens, in GPT-2's vocabulary and in every one trained here.
CHARACTERS = _byte_characters()
_BYTES = {character: byte for byte, character in CHARACTERS.items()}


def visible(token: bytes) -> str:
    """Bytes as printable characters, as in GPT-2's and Hugging Face's files: b' the' -> 'Ġthe'."""
    return "".join(map(CHARACTERS.__getitem__, token))


def invisible(characters: str) -> bytes:
    """The bytes that `visible` shows. Raises `ValueError` for a character that stands for none."""
    try:
        return bytes(map(_BYTES.__getitem__, characters))
    except KeyError as unknown:
        raise ValueError(f"{unknown.args[0]!r} stands for no byte.") from None

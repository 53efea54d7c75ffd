"""Tokens on disk: a header and one number a token, mapped into memory and never read whole."""

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from course.atomic import replacing
from course.data.batches import check_tokens
from course.tokenizer.pretokens import batches

MAGIC, VERSION = b"T2TCtoks", 1
# magic, version, bytes a token, vocabulary, tokens, bytes of the text, fingerprint of the tokenizer
HEADER = struct.Struct("<8sIIQQQ64s")
START = 128  # where the tokens begin: a round number, so that they are aligned
DTYPES = {2: np.dtype("<u2"), 4: np.dtype("<u4")}
CHARACTERS_AT_ONCE = 2**20  # of text that is encoded in one go


@dataclass(frozen=True)
class TokenFile:
    """A file of tokens: `tokens` is mapped read-only, uint16 or uint32 `(count,)`.

    `text_bytes` are the UTF-8 bytes of the text, without the marks between documents.
    """

    path: Path
    tokens: np.ndarray
    vocab_size: int
    text_bytes: int
    fingerprint: str


def fingerprint(tokenizer) -> str:
    """What tells tokenizers apart: the SHA-256 (hex) over the vocabulary in the order of the ids."""
    if own := getattr(tokenizer, "fingerprint", None):
        return own
    digest = hashlib.sha256()
    for token in tokenizer.tokens:
        content = token if isinstance(token, bytes) else token.encode()
        digest.update(len(content).to_bytes(8, "little") + content)  # "ab", "c" is not "a", "bc"
    return digest.hexdigest()


def write_tokens(
    path: Path,
    documents: Iterable[str],
    tokenizer,
    *,
    expected_bytes: int | None = None,
    progress: bool = True,
) -> TokenFile:
    """Encode documents one after the other, each followed by `tokenizer.end_of_text`, into a new file.

    A little of the text is in memory at any time. The file appears under its name once it is whole.
    `expected_bytes` is for the progress bar alone. Raises `ValueError` if there are no documents or the
    tokenizer gives ids beyond its vocabulary, and `OSError` when the disk is full.
    """
    path, vocab_size, mark = Path(path), tokenizer.vocab_size, fingerprint(tokenizer)
    dtype = DTYPES[2 if vocab_size <= 2**16 else 4]
    encode, count, text_bytes = _encoder(tokenizer), 0, 0
    with (
        replacing(path) as temporary,
        tqdm(total=expected_bytes, desc=path.stem, unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        with open(temporary, "wb") as file:
            file.write(bytes(START))
            for some in batches(documents, CHARACTERS_AT_ONCE):
                size = sum(len(document.encode()) for document in some)
                for ids in encode(some):
                    tokens = np.append(np.asarray(ids, dtype=np.int64), tokenizer.end_of_text)
                    check_tokens(tokens, vocab_size)
                    file.write(tokens.astype(dtype).tobytes())
                    count += len(tokens)
                text_bytes += size
                bar.update(size)
            if not count:
                raise ValueError(f"There are no documents for {path.name}: expected at least one.")
            file.seek(0)
            header = (MAGIC, VERSION, dtype.itemsize, vocab_size, count, text_bytes, mark.encode())
            file.write(HEADER.pack(*header))
        bar.total = bar.n  # what was expected was an estimate
    return open_tokens(path, tokenizer)


def open_tokens(path: Path, tokenizer=None) -> TokenFile:
    """Map a file of tokens into memory.

    Raises `FileNotFoundError`, and `ValueError` for a file that is no token file, was cut short, or was
    written with another tokenizer than the one given.
    """
    path = Path(path)
    with open(path, "rb") as file:
        head = file.read(START)
    if len(head) < START or not head.startswith(MAGIC):
        raise ValueError(f"{path} is not a file of tokens: make one with `python -m course data prepare`.")
    _, version, width, vocab_size, count, text_bytes, mark = HEADER.unpack_from(head)
    if version != VERSION or width not in DTYPES:
        raise ValueError(
            f"{path} is of format version {version}, expected {VERSION}: delete it and prepare it again."
        )
    if (size := path.stat().st_size) != (expected := START + count * width):
        raise ValueError(
            f"{path} has {size:,} bytes, expected {expected:,}: it was cut short or written over; delete "
            "it and prepare it again."
        )
    if tokenizer is not None and mark.decode() != fingerprint(tokenizer):
        raise ValueError(
            f"{path} was written with another tokenizer (vocabulary {vocab_size:,}, this one's is "
            f"{tokenizer.vocab_size:,}): use that one, or prepare the text again with this one."
        )
    tokens = np.memmap(path, dtype=DTYPES[width], mode="r", offset=START, shape=(count,))
    return TokenFile(path, tokens, vocab_size, text_bytes, mark.decode())


def _encoder(tokenizer):
    """Documents to their ids. `END_OF_TEXT` written out in a document is text there, where the tokenizer
    can tell that from the mark between documents."""
    if hasattr(tokenizer, "to_tiktoken"):
        return tokenizer.to_tiktoken().encode_ordinary_batch
    encode = getattr(tokenizer, "encode_ordinary", tokenizer.encode)
    return lambda documents: map(encode, documents)

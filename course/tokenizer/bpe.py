"""Byte-level byte-pair encoding: any text, any bytes; written to be equal to `tiktoken` (and to be read)."""

import hashlib
import heapq
import json
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import regex

from course.atomic import replacing
from course.tokenizer.bpe_training import count_pretokens, learn
from course.tokenizer.characters import END_OF_TEXT
from course.tokenizer.pretokens import (
    PATTERNS,
    blocks,
    invisible,
    splitter,
    visible,
    without_surrogates,
)

FORMAT = "byte-pair encoding, version 1"  # the first entry of a saved file
TIKTOKEN_PATTERNS = {"gpt2": "gpt2", "r50k_base": "gpt2", "cl100k_base": "gpt4", "o200k_base": "gpt4o"}
LONG = 64  # bytes from which a queue finds the next merge faster than looking through all pairs
CACHE_SIZE = 1 << 18  # pre-tokens remembered with their ids


class _Cache(dict):
    """The ids of pre-tokens seen before; computes those of a new one. Starts anew when it is full."""

    def __init__(self, compute):
        self._compute = compute

    def __missing__(self, pretoken: str) -> list[int]:
        ids = self._compute(pretoken.encode())
        if len(pretoken) <= LONG:
            if len(self) >= CACHE_SIZE:
                self.clear()
            self[pretoken] = ids
        return ids


class BPETokenizer:
    """Tokens of one or more bytes, numbered in the order in which they were merged.

    `tokens` are the bytes of each id from 0 on: 256 single bytes first, then a token for each merge. Special
    tokens stand for no bytes of their own; they have ids of their own, by default the next ones.
    """

    def __init__(
        self,
        tokens: Iterable[bytes],
        pattern: str = "gpt4",
        special_tokens: dict[str, int] | Iterable[str] = (END_OF_TEXT,),
    ):
        self.tokens = list(tokens)
        self.pattern = pattern
        self._pretokens = splitter(pattern).findall
        if not isinstance(special_tokens, dict):
            special_tokens = {name: len(self.tokens) + i for i, name in enumerate(special_tokens)}
        self.special_tokens = special_tokens
        self._ranks = {token: i for i, token in enumerate(self.tokens)}
        self._check()
        self._bytes = dict(enumerate(self.tokens)) | {i: s.encode() for s, i in special_tokens.items()}
        self._cache = _Cache(self._encode_pretoken)

    def _check(self) -> None:
        if len(self._ranks) != len(self.tokens):
            raise ValueError("Two tokens have the same bytes: each may be in the vocabulary once.")
        if missing := [byte for byte in range(256) if bytes([byte]) not in self._ranks]:
            raise ValueError(f"The vocabulary lacks {len(missing)} of the 256 bytes, first {missing[0]}.")
        for name, i in self.special_tokens.items():
            if not name or regex.search(r"\s", name):
                raise ValueError(f"A special token is a word without spaces, not {name!r}.")
            if i < len(self.tokens):
                raise ValueError(f"The special token {name!r} has the id {i}, which is an ordinary token's.")
        if len(set(self.special_tokens.values())) != len(self.special_tokens):
            raise ValueError("Two special tokens have the same id.")

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        pattern: str = "gpt4",
        special_tokens: Iterable[str] = (END_OF_TEXT,),
        processes: int = 1,
    ) -> "BPETokenizer":
        """Learn merges from texts, until there are `vocab_size` tokens with the special ones.

        The same texts give the same tokens: ties between pairs are broken by age (`bpe_training.learn`). A
        text is only read once. Several `processes` count words in parallel, which pays from some ten
        megabytes on (a script that asks for them needs its `if __name__ == "__main__":`). Raises
        `ValueError` if the vocabulary is too small for all bytes, or larger than the texts have pairs for.
        """
        if isinstance(texts, str):
            texts = [texts]
        special_tokens = tuple(special_tokens)
        least = 256 + len(special_tokens)
        if vocab_size < least:
            raise ValueError(
                f"A vocabulary of {vocab_size} has no room for the 256 bytes and {len(special_tokens)} "
                f"special tokens: ask for {least} or more."
            )
        words = count_pretokens(texts, pattern, special_tokens, processes)
        return cls(learn(words, vocab_size - len(special_tokens)), pattern, special_tokens)

    def truncated(self, vocab_size: int) -> "BPETokenizer":
        """The tokenizer that training would have given for a smaller vocabulary: its first merges."""
        n = vocab_size - len(self.special_tokens)
        if not 256 <= n <= len(self.tokens):
            raise ValueError(f"Choose a size up to {self.vocab_size} that keeps all bytes, not {vocab_size}.")
        return BPETokenizer(self.tokens[:n], self.pattern, tuple(self.special_tokens))

    @property
    def vocab_size(self) -> int:
        """The largest id, plus one. (In `o200k_base`, not all ids below it are in use.)"""
        return 1 + max([len(self.tokens) - 1, *self.special_tokens.values()])

    @property
    def end_of_text(self) -> int:
        """The id of the token between documents."""
        if END_OF_TEXT not in self.special_tokens:
            raise ValueError(f"This tokenizer has no {END_OF_TEXT}: make it with one.")
        return self.special_tokens[END_OF_TEXT]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the vocabulary in the order of ids: texts encoded with the same one fit together."""
        digest = hashlib.sha256()
        for i, token in sorted(self._bytes.items()):
            digest.update(f"{i} {token.hex()}\n".encode())
        return digest.hexdigest()

    @cached_property
    def merges(self) -> list[tuple[bytes, bytes]]:
        """What each token after the single bytes was merged from."""
        return [tuple(self._merge(token, below=i)) for i, token in enumerate(self.tokens) if len(token) > 1]

    # Encoding

    def encode(
        self,
        text: str,
        allowed_special: Literal["all"] | Collection[str] = "all",
        disallowed_special: Literal["all"] | Collection[str] = "all",
    ) -> np.ndarray:
        """The ids of a text, int64.

        A special token in the text becomes its one id if it is allowed; if it is disallowed, that is a
        `ValueError`; if neither, it is text like any other. "all" disallowed means all that are not
        allowed. This is as in `tiktoken`, except for the default: there nothing is allowed, which is right
        for what strangers typed; here all are, as in `CharTokenizer`, since `END_OF_TEXT` between the
        documents of a corpus means what it says. For a stranger's text: `encode(text, allowed_special=())`.

        Surrogates are no text: a pair is read as the character it stands for, a lone one as U+FFFD.
        """
        pieces = self._split_special(text, allowed_special, disallowed_special)
        ids = []
        for i, piece in enumerate(pieces):
            if i % 2 == 1:
                ids.append(np.array([self.special_tokens[piece]]))
                continue
            found = map(self._cache.__getitem__, self._pretokens(without_surrogates(piece)))
            ids.append(np.fromiter(chain.from_iterable(found), dtype=np.int64))
        return np.concatenate(ids)

    def encode_stream(
        self,
        chunks: Iterable[str],
        allowed_special: Literal["all"] | Collection[str] = "all",
        disallowed_special: Literal["all"] | Collection[str] = "all",
    ) -> Iterator[np.ndarray]:
        """The ids of a text that comes in chunks, cut anywhere: together, those of the whole.

        Holds little more than a chunk at a time (a text without any space is held whole).
        """
        for block in blocks(chunks):
            yield self.encode(block, allowed_special, disallowed_special)

    def _split_special(self, text: str, allowed, disallowed) -> list[str]:
        """The text cut around allowed special tokens, which stand at the odd places."""
        allowed = self._specials_named(self.special_tokens if allowed == "all" else allowed)
        if disallowed == "all":
            disallowed = self.special_tokens.keys() - allowed
        for name in self._specials_named(disallowed):
            if name in text:
                raise ValueError(
                    f"The text contains the special token {name!r}, which is not allowed here: allow it with "
                    "allowed_special, or have it read as plain text with disallowed_special=()."
                )
        if not allowed:
            return [text]
        longest_first = sorted(allowed, key=len, reverse=True)
        return regex.split(f"({'|'.join(map(regex.escape, longest_first))})", text)

    def _specials_named(self, names: Iterable[str]) -> set[str]:
        if unknown := set(names) - self.special_tokens.keys():
            raise ValueError(f"{min(unknown)!r} is none of the special tokens {list(self.special_tokens)}.")
        return set(names)

    def _encode_pretoken(self, pretoken: bytes) -> list[int]:
        if pretoken in self._ranks:
            return [self._ranks[pretoken]]
        merge = self._merge if len(pretoken) < LONG else self._merge_long
        return [self._ranks[part] for part in merge(pretoken)]

    def _merge(self, pretoken: bytes, below: int | None = None) -> list[bytes]:
        """Merge neighbours, the oldest token first (older than `below`), until no two make a token.

        Looks through all pairs for each merge: quadratic, and the fastest for the length of a word.
        """
        rank_of, nothing = self._ranks.get, len(self.tokens) if below is None else below
        parts = [bytes([byte]) for byte in pretoken]
        while len(parts) > 1:
            ranks = [rank_of(left + right, nothing) for left, right in pairwise(parts)]
            oldest = min(ranks)
            if oldest >= nothing:
                break
            i = ranks.index(oldest)
            parts[i : i + 2] = [self.tokens[oldest]]
        return parts

    def _merge_long(self, pretoken: bytes) -> list[bytes]:
        """The same with a queue of the possible merges and a linked list of the parts: n log n.

        An entry of the queue is rank * n + position in one integer; it is out of date if the pair at the
        position has another rank by now.
        """
        rank_of, n = self._ranks.get, len(pretoken)
        parts = [bytes([byte]) for byte in pretoken]  # by the position of their first byte; None once merged
        after = list(range(1, n + 1))  # the position of the next part
        before = list(range(-1, n - 1))
        ranks = [rank_of(left + right) for left, right in pairwise(parts)] + [None]
        queue = [rank * n + i for i, rank in enumerate(ranks) if rank is not None]
        heapq.heapify(queue)
        while queue:
            rank, i = divmod(heapq.heappop(queue), n)
            if ranks[i] != rank:
                continue
            gone = after[i]
            parts[i], parts[gone], ranks[gone] = self.tokens[rank], None, None
            after[i] = following = after[gone]
            if following < n:
                before[following] = i
                ranks[i] = joined = rank_of(parts[i] + parts[following])
                if joined is not None:
                    heapq.heappush(queue, joined * n + i)
            else:
                ranks[i] = None
            if (previous := before[i]) >= 0:
                ranks[previous] = joined = rank_of(parts[previous] + parts[i])
                if joined is not None:
                    heapq.heappush(queue, joined * n + previous)
        return [part for part in parts if part is not None]

    # Decoding

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of some ids. Raises `ValueError` for an id outside the vocabulary."""
        try:
            return b"".join(map(self._bytes.__getitem__, map(int, ids)))
        except KeyError as unknown:
            raise ValueError(
                f"Token id {unknown.args[0]} is not in this vocabulary of {self.vocab_size}: "
                "was it produced with another tokenizer?"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; bytes that are no UTF-8, as in half a character, are shown as U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")

    # Files and relatives

    def save(self, path: str | Path) -> None:
        """Write one readable JSON file, in one move: never half of it."""
        _write(path, self.to_dict())

    def to_dict(self) -> dict:
        """Everything that `from_dict` makes the same tokenizer of, as JSON can hold it."""
        return {
            "format": FORMAT,
            "pattern": self.pattern,
            "special_tokens": self.special_tokens,
            "fingerprint": self.fingerprint,
            "tokens": [visible(token) for token in self.tokens],
        }

    @classmethod
    def load(cls, path: str | Path) -> "BPETokenizer":
        """Read what `save` wrote. Raises `ValueError` for any other file and for a damaged one."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError:  # no UTF-8, or no JSON
            raise ValueError(f"{path} is no tokenizer, or a part of one: it is not JSON.") from None
        return cls.from_dict(content, where=str(path))

    @classmethod
    def from_dict(cls, content: dict, where: str = "This") -> "BPETokenizer":
        """What `to_dict` gave. Raises `ValueError`, about `where` it is from, for anything else."""
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"{where} was not written by BPETokenizer.save: its format is not {FORMAT!r}.")
        try:
            tokenizer = cls(map(invisible, content["tokens"]), content["pattern"], content["special_tokens"])
            whole = tokenizer.fingerprint == content["fingerprint"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{where} is damaged ({error}): save the tokenizer anew.") from None
        if not whole:
            raise ValueError(f"{where} is damaged (its fingerprint is another): save the tokenizer anew.")
        return tokenizer

    def to_tiktoken(self, name: str = "course"):
        """The same tokenizer as a `tiktoken.Encoding`: compiled code, many times faster."""
        import tiktoken

        return tiktoken.Encoding(
            name,
            pat_str=PATTERNS[self.pattern],
            mergeable_ranks=self._ranks,
            special_tokens=self.special_tokens,
        )

    @classmethod
    def from_tiktoken(cls, name: str) -> "BPETokenizer":
        """GPT-2's tokenizer ("gpt2"), GPT-4's ("cl100k_base") or GPT-4o's ("o200k_base"), downloaded once.

        Raises `ValueError` for another name, `ConnectionError` if it can neither be downloaded nor was
        before.
        """
        import tiktoken

        if name not in TIKTOKEN_PATTERNS:
            raise ValueError(f"There is no {name!r} here: choose one of {', '.join(TIKTOKEN_PATTERNS)}.")
        try:
            encoding = tiktoken.get_encoding(name)
        except OSError as error:  # what `requests` raises is an OSError
            raise ConnectionError(
                f"tiktoken could not download {name!r} ({type(error).__name__}): connect to the internet "
                "once, or set TIKTOKEN_CACHE_DIR to a folder that has it."
            ) from error
        special = {name: encoding.encode_single_token(name) for name in sorted(encoding.special_tokens_set)}
        tokens = map(encoding.decode_single_token_bytes, range(min(special.values())))
        return cls(tokens, TIKTOKEN_PATTERNS[name], special)

    def to_hugging_face(self, path: str | Path) -> None:
        """Write a `tokenizer.json` that Hugging Face's `tokenizers` and `transformers` read."""
        by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        split = {
            "type": "Split",
            "pattern": {"Regex": PATTERNS[self.pattern]},
            "behavior": "Isolated",
            "invert": False,
        }
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        content = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": i, "content": s, **flags} for s, i in self.special_tokens.items()],
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, by_bytes]},
            "post_processor": None,
            "decoder": by_bytes,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {visible(token): i for i, token in enumerate(self.tokens)} | self.special_tokens,
                "merges": [[visible(left), visible(right)] for left, right in self.merges],
            },
        }
        _write(path, content)


def _write(path: str | Path, content: dict) -> None:
    with replacing(Path(path)) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

"""Text from a trained model, one token at a time.

PyTorch is imported where it is first needed, because that takes a second or more: whoever only asks a command
for `--help`, or misspells a setting, need not wait for it.
"""

import codecs
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from course.checkpoint import SHIPPED


def open_model(path: str | Path = SHIPPED, which: str = "best") -> tuple:
    """-> a `Transformer` on this machine's device, float32, and its tokenizer.

    `path` is a run's folder, of which the checkpoint `which` ("best" or "latest") is taken, or one file of
    weights: the small model that comes with the course, unless given. Raises as `run_folder.load` does.
    """
    from course import device, run_folder
    from course.model import Transformer

    config, weights, tokenizer = run_folder.load(path, which)
    return Transformer(config, weights=weights, device=device.DEVICE).eval(), tokenizer


def generate(
    model,
    tokenizer,
    prompt: str,
    n_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop: Iterable[str] = (),
) -> str:
    """`prompt` and up to `n_tokens` more tokens, as one string. The rest is as for `stream`."""
    settings = dict(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, stop=stop)
    return prompt + "".join(stream(model, tokenizer, prompt, n_tokens, **settings))


def stream(
    model,
    tokenizer,
    prompt: str,
    n_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop: Iterable[str] = (),
) -> Iterator[str]:
    """What follows `prompt`, piece by piece as it is written: up to `n_tokens` tokens.

    After an empty prompt, that is a new text. It ends early at the end of the text, or before the first of
    the strings in `stop`. Only the last `context_length` tokens are looked at. Each token is drawn from
    `next_token_distribution`, whose arguments `temperature`, `top_k` and `top_p` are; the same `seed` draws
    the same text. A piece is never half a character, nor the beginning of a string in `stop`; half a
    character at the end is left out.

    Raises `ValueError` at once for characters that the tokenizer lacks, for a tokenizer of another model, and
    for settings out of range.
    """
    check_settings(n_tokens, temperature, top_k, top_p, seed)
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    if "" in stop:
        raise ValueError("A stop string is empty, and every text contains that: leave it out.")
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"The tokenizer has {tokenizer.vocab_size} tokens and the model {model.config.vocab_size}: use "
            "the tokenizer that the model was trained with."
        )
    ids, owed = _encode(tokenizer, prompt)
    choose = functools.partial(_draw, np.random.default_rng(seed), temperature, top_k, top_p)
    tokens = _tokens(model, ids or [tokenizer.end_of_text], n_tokens, choose, tokenizer, owed)
    return _before(stop, _after(owed, map(_decoder(tokenizer), tokens)))


def check_settings(
    n_tokens: int, temperature: float, top_k: int | None, top_p: float | None, seed: int
) -> None:
    """Raise `ValueError`, naming the setting and what was expected, for one out of range."""
    for name, value in (("n_tokens", n_tokens), ("seed", seed)):
        if value < 0:
            raise ValueError(f"{name} = {value}: expected 0 or more.")
    if not temperature >= 0:
        raise ValueError(f"temperature = {temperature}: expected 0 (likeliest token) or more.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k = {top_k}: expected 1 (likeliest token) or more.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p = {top_p}: expected more than 0 and at most 1 (every token).")


def next_token_distribution(
    logits: np.ndarray, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> np.ndarray:
    """logits `(V,)` -> the probability of each token to be drawn, float64 `(V,)`.

    It is softmax(logits / `temperature`); at temperature 0, the likeliest token has it all. Then only the
    `top_k` likeliest tokens are kept, and of these the fewest whose probability reaches `top_p`: nucleus
    sampling (Holtzman et al., 2020). At least one always stays. Of equally likely tokens, the lower id
    counts as the likelier. Raises `FloatingPointError` for logits that are not numbers.
    """
    logits = np.asarray(logits, dtype=np.float64)
    highest = logits.max()
    if not np.isfinite(highest):
        raise FloatingPointError("The model's logits are not finite: its training broke down before this.")
    if temperature == 0:
        p = np.zeros(len(logits))
        p[logits.argmax()] = 1.0
        return p
    with np.errstate(over="ignore"):  # close to temperature 0, the others may be minus infinity
        p = np.exp((logits - highest) / temperature)
    p /= p.sum()
    if top_k is None and top_p is None:
        return p
    likeliest_first = np.argsort(-logits, kind="stable")
    p = _only(likeliest_first[:top_k], p)
    if top_p is not None and top_p < 1:  # at 1, rounding must not cost the least likely tokens
        reached = np.cumsum(p[likeliest_first])
        p = _only(likeliest_first[: 1 + np.searchsorted(reached, top_p)], p)
    return p


def _only(kept: np.ndarray, p: np.ndarray) -> np.ndarray:
    """The distribution `p`, given that it is one of the tokens `kept`."""
    q = np.zeros_like(p)
    q[kept] = p[kept]
    return q / q.sum()


def _draw(rng: np.random.Generator, temperature, top_k, top_p, logits: np.ndarray) -> int:
    p = next_token_distribution(logits, temperature, top_k, top_p)
    return int(rng.choice(len(p), p=p))


def _tokens(model, ids: list[int], n_tokens: int, choose: Callable, tokenizer, owed: str) -> Iterator[int]:
    """The ids that follow `ids`, up to the end of the text; the first one begins with `owed`. Only what the
    tokenizer can read is drawn."""
    from course import device

    for i in range(n_tokens):
        window = np.array([ids[-model.config.context_length :]])
        window = device.put(window, beside=model.weights["embedding.weight"])
        logits = model.logits(window)[0, -1, : tokenizer.vocab_size].double().cpu().numpy()
        if i == 0 and owed:
            fits = [tokenizer.decode([token]).startswith(owed) for token in range(len(logits))]
            logits[~np.array(fits)] = -np.inf
        ids.append(choose(logits))
        if ids[-1] == tokenizer.end_of_text:
            return
        yield ids[-1]


def _encode(tokenizer, prompt: str) -> tuple[list[int], str]:
    """The ids of a prompt, and what is still owed of it: the next token has to begin with that.

    What looks like a special token is plain text in it, where a tokenizer can tell the two apart: whoever
    typed it meant what it says. And where tokens are longer than characters, a word's token begins with its
    space. Few words of a training text follow a space that is a token of its own, so the space that a prompt
    ends with is left to what follows.
    """
    if not hasattr(tokenizer, "special_tokens"):
        return list(tokenizer.encode(prompt)), ""
    owed = " " if prompt.endswith(" ") and prompt.strip() else ""
    ids = tokenizer.encode(prompt.removesuffix(owed), allowed_special=(), disallowed_special=())
    return list(ids), owed


def _decoder(tokenizer) -> Callable[[int], str]:
    """A function from one id after the other to the text that is whole with it.

    A token of bytes may end inside a character: the rest of that comes with the tokens that follow. Bytes
    that are no UTF-8 at all become U+FFFD.
    """
    if not hasattr(tokenizer, "decode_bytes"):
        return lambda token: tokenizer.decode([token])
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
    return lambda token: decode(tokenizer.decode_bytes([token]))


def _after(owed: str, pieces: Iterable[str]) -> Iterator[str]:
    """The pieces without `owed`, which the first one begins with."""
    for piece in pieces:
        yield piece.removeprefix(owed)
        owed = ""


def _before(stop: tuple[str, ...], pieces: Iterable[str]) -> Iterator[str]:
    """The text up to the stop string that is complete first; what may be the beginning of one is held back
    until it is clear."""
    held = ""
    for piece in pieces:
        held += piece
        if found := [(held.index(s) + len(s), held.index(s)) for s in stop if s in held]:
            held = held[: min(found)[1]]
            break
        waiting = max((n for s in stop for n in range(len(s)) if held.endswith(s[:n])), default=0)
        ready = len(held) - waiting
        if ready:
            yield held[:ready]
            held = held[ready:]
    if held:
        yield held

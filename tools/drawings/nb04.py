"""The drawings of notebook 04: from text to vectors, UTF-8, the merges of a word, what one merge changes."""

from collections import Counter, defaultdict
from functools import cache
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Ellipse, Polygon, Rectangle

from course import data
from course.config import ModelConfig
from course.initial import initial_weights
from course.plots import BLUE, COLORS, GREEN, GRID, INK, ORANGE, PAPER, PURPLE, RED
from course.tokenizer import BPETokenizer
from course.tokenizer.pretokens import splitter
from drawings.shapes import arrow, canvas

FROG = "🐸"  # no font of matplotlib's has it, so that `_frog` draws it
FAINT = "#7d828a"


def _text(ax: Axes, x: float, y: float, text: str, size: float = 10, **more) -> None:
    ax.text(x, y, text, ha=more.pop("ha", "center"), va="center", fontsize=size, **more)


def _tile(ax: Axes, x: float, y: float, width: float, height: float, color: str, text="", size=9.5) -> None:
    """A rectangle with its lower left corner at (x, y)."""
    ax.add_patch(Rectangle((x, y), width, height, facecolor=f"{color}33", edgecolor=color, lw=1.2))
    _text(ax, x + width / 2, y + height / 2, text, size)


def _frog(ax: Axes, x: float, y: float, size: float) -> None:
    """The face of a frog, `size` wide, centred on (x, y)."""
    skin = {"facecolor": GREEN, "edgecolor": INK, "lw": 1.0}
    for side in (-1, 1):
        ax.add_patch(Circle((x + side * 0.25 * size, y + 0.24 * size), 0.17 * size, **skin))
    ax.add_patch(Ellipse((x, y - 0.05 * size), size, 0.68 * size, **skin))
    for side in (-1, 1):
        eye = x + side * 0.25 * size, y + 0.25 * size
        ax.add_patch(Circle(eye, 0.105 * size, facecolor="white", edgecolor="none"))
        ax.add_patch(Circle(eye, 0.055 * size, facecolor=INK, edgecolor="none"))
        ax.add_patch(Circle((x + side * 0.07 * size, y + 0.02 * size), 0.02 * size, facecolor=INK))
    mouth = [(x + 0.3 * size * s, y - 0.17 * size + 0.1 * size * s * s) for s in (-1, -0.5, 0, 0.5, 1)]
    ax.plot(*zip(*mouth), color=INK, lw=1.3)


@cache
def _tokenizer(vocab_size: int) -> BPETokenizer:
    return BPETokenizer.train(data.documents("tales", "training"), vocab_size)


def _shown(token: bytes) -> str:
    """A token as text with its spaces visible; as hexadecimal digits if it is no whole character."""
    try:
        return token.decode().replace(" ", "␣")
    except UnicodeDecodeError:
        return token.hex(" ")


# --- From text to vectors ---------------------------------------------------------------


def pipeline() -> Figure:
    """A sentence, its pre-tokens, its bytes, its tokens, their ids, and the rows of the embedding."""
    text = f"The princess's 3 frogs {FROG}"
    tokenizer = _tokenizer(512)
    pretokens = splitter(tokenizer.pattern).findall(text)
    ids = tokenizer.encode(text).tolist()
    C, cell = 8, 0.315
    rows = initial_weights(ModelConfig(512, 8, 1, 1, C), seed=0)["embedding.weight"][ids]

    figure, ax = canvas(10.35, 5.75)
    left, tall = 1.7, 0.4
    levels = {"text": 5.4, "pre-tokens": 4.6, "bytes": 3.8, "tokens": 3.0, "ids": 2.3, "vectors": 1.05}
    counts = {
        "text": f"{len(text)} characters",
        "pre-tokens": str(len(pretokens)),
        "bytes": str(len(text.encode())),
        "tokens": f"T = {len(ids)}",
        "ids": r"each $0 \leq$ id $< V = 512$",
        "vectors": "(T, C)",
    }
    for name, y in levels.items():
        _text(ax, 0.62, y + (0.09 if name != "ids" else 0), name, 11)
        if name not in ("ids",):
            _text(ax, 0.62, y - 0.13, counts[name], 8.5, color=FAINT)
    for (upper, lower), how in zip(
        pairwise(levels), ("cut by a pattern", "UTF-8", "merges", "number", "look up"), strict=True
    ):
        start = levels[upper] - (0.26 if upper != "ids" else 0.16)
        end = levels[lower] + (0.24 if lower != "ids" else 0.16)
        arrow(ax, (0.62, start), (0.62, end), color=FAINT)
        _text(ax, 0.7, (start + end) / 2, how, 8.5, color=BLUE, ha="left")

    at = 0  # the byte that a piece begins with
    owner = []  # the colour of each byte
    for n, pretoken in enumerate(pretokens):
        color, size = COLORS[n % 5], len(pretoken.encode())
        x, width = left + at * cell, size * cell
        _tile(ax, x + 0.02, levels["pre-tokens"] - tall / 2, width - 0.04, tall, color)
        plain = pretoken.removesuffix(FROG).replace(" ", "␣")
        frog = pretoken.endswith(FROG)
        middle = x + width / 2
        _text(ax, middle - (0.16 if frog else 0), levels["pre-tokens"], plain, 11)
        _text(ax, middle - (0.16 if frog else 0), levels["text"], plain.replace("␣", " "), 13)
        if frog:
            _frog(ax, middle + 0.12, levels["pre-tokens"], 0.3)
            _frog(ax, middle + 0.12, levels["text"], 0.36)
        owner += [color] * size
        at += size
    for n, byte in enumerate(text.encode()):
        x = left + n * cell
        _tile(ax, x + 0.02, levels["bytes"] - 0.16, cell - 0.04, 0.32, owner[n], f"{byte:02x}", 8.5)

    shades = LinearSegmentedColormap.from_list("two", [ORANGE, PAPER, BLUE], N=11)
    scale, at, high = abs(rows).max(), 0, 0.16
    top = levels["vectors"] + C * high / 2
    for id, row in zip(ids, rows, strict=True):
        token = tokenizer.tokens[id]
        x, width = left + at * cell, len(token) * cell
        middle = x + width / 2
        shown = _shown(token)
        size = 8.5 if shown == token.hex() else 11
        _tile(ax, x + 0.02, levels["tokens"] - tall / 2, width - 0.04, tall, owner[at], shown, size)
        _text(ax, middle, levels["ids"], str(id), 8)
        ax.plot([middle] * 2, [levels["tokens"] - 0.24, levels["ids"] + 0.13], color=GRID, lw=1)
        ax.plot([middle] * 2, [levels["ids"] - 0.13, top + 0.04], color=GRID, lw=1)
        for j, value in enumerate(row):
            corner = (middle - 0.11, top - (j + 1) * high)
            face = shades(0.5 + 0.5 * value / scale)
            ax.add_patch(Rectangle(corner, 0.22, high, facecolor=face, edgecolor=GRID, lw=0.6))
        rim = {"facecolor": "none", "edgecolor": owner[at], "lw": 1.2}
        ax.add_patch(Rectangle((middle - 0.11, top - C * high), 0.22, C * high, **rim))
        at += len(token)
    note = "one row of the embedding matrix (V, C) for each token, here upright; equal ids give equal rows"
    _text(ax, left + len(text.encode()) * cell / 2, 0.13, note, 9, color=FAINT)
    return figure


# --- UTF-8 ------------------------------------------------------------------------------


def utf8() -> Figure:
    """The bits of four code points, spread over one to four bytes."""
    figure, ax = canvas(9.4, 5.55)
    cell, gap, left = 0.19, 0.2, 2.25
    for n, character in enumerate(("a", "é", "€", FROG)):
        y = 4.3 - 1.3 * n
        encoded = character.encode()
        bytes_ = [f"{byte:08b}" for byte in encoded]
        # a leading byte's prefix ends with its first 0, and so does that of the others, which is 10
        prefixes = [bits.index("0") + 1 for bits in bytes_]
        payload = "".join(bits[p:] for bits, p in zip(bytes_, prefixes, strict=True))
        assert int(payload, 2) == ord(character)
        if character == FROG:
            _frog(ax, 0.45, y + 0.3, 0.55)
        else:
            _text(ax, 0.45, y + 0.3, character, 22)
        _text(ax, 1.35, y + 0.57, f"U+{ord(character):04X}", 11)
        _text(ax, 1.35, y + 0.03, f"{len(encoded)} byte{'s' * (len(encoded) > 1)}", 11)

        whole = len(bytes_) * 8 * cell + (len(bytes_) - 1) * gap
        start = left + (whole - len(payload) * cell) / 2  # the strip of the code point's bits, centred
        at = 0
        for b, (bits, prefix) in enumerate(zip(bytes_, prefixes, strict=True)):
            x = left + b * (8 * cell + gap)
            size = (8 - prefix) * cell
            upper = start + at * cell
            corners = [
                (upper, y + 0.46),
                (upper + size, y + 0.46),
                (x + 8 * cell, y + 0.16),
                (x + prefix * cell, y + 0.16),
            ]
            ax.add_patch(Polygon(corners, closed=True, facecolor=f"{BLUE}18", edgecolor=f"{BLUE}66", lw=0.8))
            for i, bit in enumerate(bits):
                color = ORANGE if i < prefix else BLUE
                _tile(ax, x + i * cell, y - 0.1, cell, 0.26, color, bit, 9)
                if i >= prefix:
                    _tile(ax, start + at * cell, y + 0.46, cell, 0.26, BLUE, bit, 9)
                    at += 1
            _text(ax, x + 4 * cell, y - 0.25, f"{encoded[b]:02x}", 10)
    for x, color, what in (
        (2.25, ORANGE, "prefix: first of 1 to 4 bytes, or (10) one more"),
        (7.05, BLUE, "bits of the code point"),
    ):
        _tile(ax, x, 5.3, cell, 0.2, color)
        _text(ax, x + 0.28, 5.4, what, 10, ha="left")
    return figure


# --- A word's merges --------------------------------------------------------------------


def merges() -> Figure:
    """The tree of one word: bytes below, one token at the top, each merge at its place in the order."""
    word, cell, step = b" princess", 0.86, 0.62
    tokenizer = _tokenizer(4096)
    left_and_right = {a + b: (a, b) for a, b in tokenizer.merges}
    rank = {token: i for i, token in enumerate(tokenizer.tokens)}
    inner = []  # (rank, begin, end, where it is cut), of each merge in the word

    def visit(begin: int, end: int) -> None:
        if end - begin == 1:
            return
        cut = begin + len(left_and_right[word[begin:end]][0])
        inner.append((rank[word[begin:end]], begin, end, cut))
        visit(begin, cut)
        visit(cut, end)

    visit(0, len(word))
    inner.sort()
    left, bottom = 0.15, 0.45
    figure, ax = canvas(9.4, bottom + step * (len(inner) + 0.95))
    middles = {}
    for i in range(len(word)):
        middles[i, i + 1] = left + (i + 0.5) * cell, bottom
    for n, (_, begin, end, cut) in enumerate(inner):
        x = (middles[begin, cut][0] + middles[cut, end][0]) / 2
        middles[begin, end] = x, bottom + (n + 1.1) * step

    for _, begin, end, cut in inner:
        x, y = middles[begin, end]
        for part in ((begin, cut), (cut, end)):
            px, py = middles[part]
            ax.plot([px, px, x], [py, y, y], color=FAINT, lw=1.3, zorder=1)
    for (begin, end), (x, y) in middles.items():
        token, leaf = word[begin:end], end - begin == 1
        color = GREEN if end - begin == len(word) else INK if leaf else BLUE
        width, height = max(0.42, 0.2 + 0.135 * len(token)), 0.38
        ax.add_patch(
            Rectangle((x - width / 2, y - height / 2), width, height, facecolor=PAPER, lw=0, zorder=2)
        )
        ax.add_patch(
            Rectangle(
                (x - width / 2, y - height / 2),
                width,
                height,
                facecolor=f"{color}22",
                edgecolor=color,
                lw=1.3,
                zorder=3,
            )
        )
        _text(ax, x, y, _shown(token), 11.5, zorder=4)
        if leaf:
            _text(ax, x, y - 0.33, f"{token[0]:02x}", 9, color=FAINT)
        else:
            _text(ax, x + width / 2 + 0.07, y + 0.15, f"#{rank[token] - 255:,}", 10, ha="left", color=RED)

    right = left + len(word) * cell
    stops = defaultdict(list)  # how many of the merges a smaller vocabulary has
    for size in (257, 512, 1024, 2048, 4096):
        stops[sum(r < size - 1 for r, *_ in inner)].append(f"{size:,}")
        assert len(word) - list(stops)[-1] == len(tokenizer.truncated(size).encode(word.decode()))
    for done, sizes in stops.items():
        y, pieces = bottom + (done + 0.6) * step, len(word) - done
        ax.plot([left, right + 0.1], [y, y], color=PURPLE, lw=1, ls=(0, (4, 3)), zorder=0)
        what = f"V = {' or '.join(sizes)}:\n{pieces} token{'s' * (pieces > 1)}"
        _text(ax, right + 0.2, y, what, 9.5, ha="left")
    return figure


# --- What a merge changes ---------------------------------------------------------------

WORDS = Counter({"xaby": 5, "cab": 4, "by": 2})


def _pairs(sequences: list[list[str]]) -> tuple[Counter, dict]:
    """How often each pair of neighbours occurs, and in which words."""
    counts, places = Counter(), defaultdict(set)
    for place, (sequence, frequency) in enumerate(zip(sequences, WORDS.values(), strict=True)):
        for pair in pairwise(sequence):
            counts[pair] += frequency
            places[pair].add(place)
    return counts, places


def _sequence(ax: Axes, x: float, y: float, tokens: list[str], marked: dict, color: str) -> None:
    """Tokens in a row, the first one's left edge at x; below, a bracket and a number for each marked pair."""
    wide, gap = 0.42, 0.14
    for i, token in enumerate(tokens):
        own = GREEN if len(token) > 1 else INK
        _tile(ax, x + i * (wide + gap), y - 0.2, wide, 0.4, own, token, 11.5)
    for i, pair in enumerate(pairwise(tokens)):
        if pair in marked:
            start = x + i * (wide + gap) + wide / 2 + 0.05
            end = start + wide + gap - 0.1
            ax.plot([start, start, end, end], [y - 0.25, y - 0.36, y - 0.36, y - 0.25], color=color, lw=1.3)
            _text(ax, (start + end) / 2, y - 0.52, f"{marked[pair]:+d}".replace("-", "−"), 10, color=color)


def incremental() -> Figure:
    """Merging a and b in three words: which pairs go and come, and what becomes of the three structures."""
    merged = ("a", "b")
    before = [list(word) for word in WORDS]
    after = [[merged[0] + merged[1] if t == "A" else t for t in word.replace("ab", "A")] for word in WORDS]
    old, old_places = _pairs(before)
    new, new_places = _pairs(after)
    assert max(old, key=old.get) == merged
    figure, ax = canvas(10.7, 4.1)

    _text(ax, 1.95, 3.95, "before", 11)
    _text(ax, 4.6, 3.95, "a and b merged", 11)
    for n, (one, other, (word, frequency)) in enumerate(zip(before, after, WORDS.items(), strict=True)):
        y = 3.3 - 1.42 * n
        _text(ax, 0.35, y + 0.1, f"word {n}", 10)
        _text(ax, 0.35, y - 0.13, f"{frequency} times", 9, color=FAINT)
        touched = word.count("ab") > 0
        gone = {pair: -frequency for pair in pairwise(one) if touched and pair not in pairwise(other)}
        come = {pair: frequency for pair in pairwise(other) if touched and pair not in pairwise(one)}
        _sequence(ax, 0.9, y, one, gone, RED)
        if touched:
            arrow(ax, (3.22, y), (3.62, y))
            _sequence(ax, 3.8, y, other, come, GREEN)
        else:
            _text(ax, 2.15, y, "a b is not in it: not looked at", 9.5, color=FAINT, ha="left")

    top, row, left = 3.95, 0.5, 5.9
    for x, title in ((0.3, "pair"), (1.15, "counts"), (2.05, "places")):
        _text(ax, left + x, top, title, 11)
    pairs = list(dict.fromkeys([merged, *old, *new]))
    for n, pair in enumerate(pairs):
        y = top - 0.5 - n * row
        color = FAINT if pair == merged else GREEN if pair not in old else RED
        count = f"{old[pair]} → {new[pair]}"
        if pair == merged:
            ax.plot([left - 0.05, left + 2.3], [y, y], color=FAINT, lw=1.2, zorder=3)
            count = str(old[pair])
        places = old_places[pair] | new_places[pair]
        _text(ax, left + 0.3, y, " ".join(pair), 11, color=color)
        _text(ax, left + 1.15, y, count, 11, color=color)
        _text(ax, left + 2.05, y, ", ".join(map(str, sorted(places))), 11, color=color)

    left = 8.85
    _text(ax, left + 0.5, top, "queue", 11)
    number = {token: i for i, token in enumerate([*sorted(set("".join(WORDS))), "".join(merged)])}
    entries = {(-count, pair) for pair, count in old.items() if pair != merged}
    entries |= {(-count, pair) for pair, count in new.items() if count > old[pair]}
    entries = sorted(entries, key=lambda entry: (entry[0], *map(number.get, entry[1])))
    for n, (negative, pair) in enumerate(entries):
        y, true = top - 0.5 - n * row, new[pair]
        stale = -negative != true
        _tile(ax, left, y - 0.18, 1.0, 0.36, FAINT if stale else BLUE)
        _text(ax, left + 0.2, y, str(-negative), 11, color=FAINT if stale else INK)
        _text(ax, left + 0.65, y, " ".join(pair), 11, color=FAINT if stale else INK)
        if stale:
            ax.plot([left + 0.05, left + 0.95], [y - 0.12, y + 0.12], color=RED, lw=1.5)
            _text(ax, left + 1.1, y, f"now {true}", 9.5, color=RED, ha="left")
    note = "put right when it comes up"
    _text(ax, left - 0.05, top - 0.5 - len(entries) * row, note, 9, color=RED, ha="left")
    return figure


DRAWINGS = {
    "04_pipeline": pipeline,
    "04_utf8": utf8,
    "04_merges": merges,
    "04_incremental": incremental,
}

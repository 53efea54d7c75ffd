"""A text as coloured chips, one a token: to step through the merges, to show once, and to plot."""

from collections.abc import Iterable, Sequence
from html import escape

import ipywidgets
import matplotlib.pyplot as plt
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.font_manager import FontProperties, findfont, get_font

from course.plots import GREEN, INK, ORANGE, PURPLE, RED, SKY, YELLOW
from course.tokenizer import BPETokenizer, CharTokenizer

BYTES = 256  # tokens of single bytes, before the first merge
FONT = FontProperties(family="DejaVu Sans Mono")  # comes with matplotlib
ADVANCE = 0.602  # of FONT: the width of a character, in font sizes


def _pale(color: str) -> str:
    return to_hex([1 - 0.45 * (1 - channel) for channel in to_rgb(color)])


CHIP = (
    "display:inline-block;margin:2px;padding:2px 4px;border-radius:4px;text-align:center;line-height:1.15;"
    f"color:{INK}"
)
PALE = [_pale(color) for color in (SKY, ORANGE, GREEN, PURPLE, YELLOW)]


def chips(tokenizer: BPETokenizer | CharTokenizer, text: str) -> HTML:
    """A text cut into its tokens: each with its id, a space as ·, bytes that are no character as hex."""
    ids = tokenizer.encode(text).tolist()
    tokens = _spelled(tokenizer, ids)
    return HTML(_html(ids, tokens, [_count(tokens)]))


def merge_stepper(tokenizer: BPETokenizer, text: str) -> ipywidgets.VBox:
    """A text that can be edited, cut as it is after the first n merges; n is a slider.

    The buttons go to the merges that change this text. What the last merge made is outlined.
    """
    merges = tokenizer.merges
    id_of = {token: i for i, token in enumerate(tokenizer.tokens)}
    halves = {id_of[left + right]: (id_of[left], id_of[right]) for left, right in merges}

    def after(n: int, i: int) -> list[int]:
        """What token i was after n merges. (A token has one history, whatever stands beside it.)"""
        if i < BYTES + n or i not in halves:
            return [i]
        left, right = halves[i]
        return after(n, left) + after(n, right)

    def steps() -> list[int]:
        """The numbers of merges after which the text looks different, and 0."""
        pending, met = set(tokenizer.encode(field.value).tolist()), set()
        while pending:
            met |= pending & halves.keys()
            pending = {half for i in pending & halves.keys() for half in halves[i]}
        return [0, *sorted(i - BYTES + 1 for i in met)]

    def show(_=None) -> None:
        n = slider.value
        ids = [part for i in tokenizer.encode(field.value).tolist() for part in after(n, i)]
        tokens = _spelled(tokenizer, ids)
        newest = BYTES + n - 1 if n else None
        lines = [f"{_number(n, 'merge')}, {_count(tokens)}"]
        if n:
            spelled = (tokenizer.tokens[newest], *merges[n - 1])
            whole, left, right = (f"'{escape(_visible(token))}'" for token in spelled)
            code = f'<code style="white-space:pre">{whole} = {left} + {right}</code>'
            where = f"{ids.count(newest)} × in this text" if newest in ids else "not in this text"
            lines.append(f"merge {n}: {code}, {where}")
        picture.value = _html(ids, tokens, lines, newest)
        back.disabled, forward.disabled = n == 0, n >= steps()[-1]

    def go_back(_) -> None:
        slider.value = max((step for step in steps() if step < slider.value), default=0)

    def go_forward(_) -> None:
        slider.value = min((step for step in steps() if step > slider.value), default=slider.value)

    wide = ipywidgets.Layout(width="auto", flex="1")
    narrow = ipywidgets.Layout(width="42px", flex="0 0 auto")
    field = ipywidgets.Textarea(text, rows=2, layout=wide)
    slider = ipywidgets.IntSlider(0, 0, len(merges), description="merges", layout=wide)
    back = ipywidgets.Button(description="◀", tooltip="the change before this one", layout=narrow)
    forward = ipywidgets.Button(description="▶", tooltip="the next merge in this text", layout=narrow)
    picture = ipywidgets.HTML()
    field.observe(show, "value")
    slider.observe(show, "value")
    back.on_click(go_back)
    forward.on_click(go_forward)
    show()
    return ipywidgets.VBox([field, ipywidgets.HBox([slider, back, forward]), picture])


def plot_chips(tokenizer: BPETokenizer, text: str, sizes: Sequence[int], ax: Axes | None = None) -> Axes:
    """A row for each size of vocabulary: the text cut as at that size, a box as wide as its bytes are many.

    Characters that matplotlib's font lacks are shown as the hex of their bytes. For a line of text, of
    some 80 bytes at most. Raises `ValueError` for a size that `BPETokenizer.truncated` does not have.
    """
    ax = ax or plt.subplots(figsize=(8.2, 0.5 + 0.4 * len(sizes)))[1]
    rows = []
    for size in sizes:
        smaller = tokenizer.truncated(size)
        ids = smaller.encode(text).tolist()
        rows.append((ids, _spelled(smaller, ids)))
    length = max(sum(map(len, rows[0][1])), 1)
    ax.set(xlim=(0, length), ylim=(len(rows) - 0.5, -0.5), xticks=[], ylabel="vocabulary")
    ax.set_yticks(range(len(rows)), [f"{size:,}" for size in sizes])
    ax.tick_params(left=False)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    counts = ax.secondary_yaxis("right")
    counts.set_yticks(range(len(rows)), [_number(len(ids), "token") for ids, _ in rows])
    counts.tick_params(right=False)
    counts.spines[:].set_visible(False)

    ax.figure.draw_without_rendering()  # lays it out, so that the width is known
    width = ax.get_window_extent().width / ax.figure.dpi * 72 / length  # of a byte, in points
    for y, (ids, tokens) in enumerate(rows):
        x = 0
        for token, color in zip(tokens, _colors(ids)):
            ax.barh(y, len(token), left=x, height=0.74, color=color, edgecolor=ax.get_facecolor(), lw=1.5)
            label = _drawable(token)
            points = min(10, 0.9 * len(token) * width / len(label) / ADVANCE)
            middle = x + len(token) / 2
            text = ax.text(middle, y, label, ha="center", va="center", size=points, fontproperties=FONT)
            text.set_parse_math(False)  # a $ is a $
            x += len(token)
    return ax


def _spelled(tokenizer: BPETokenizer | CharTokenizer, ids: Iterable[int]) -> list[bytes]:
    if isinstance(tokenizer, CharTokenizer):
        return [tokenizer.decode([i]).encode() for i in ids]
    return [tokenizer.decode_bytes([i]) for i in ids]


def _number(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"


def _count(tokens: Sequence[bytes]) -> str:
    length = sum(map(len, tokens))
    count = f"{_number(len(tokens), 'token')} for {_number(length, 'byte')}"
    return f"{count}: {length / len(tokens):.1f} bytes a token" if tokens else count


def _visible(token: bytes) -> str:
    """A token without invisible characters other than spaces, and with `\\xf0` for a part of a character."""
    text = token.decode(errors="backslashreplace").replace("\n", "⏎")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _drawable(token: bytes) -> str:
    """The same in the font's characters, each of the others as hex without `\\x`: boxes are narrow."""
    glyphs = get_font(findfont(FONT)).get_charmap()
    text = token.decode(errors="surrogateescape").replace("\n", "⏎").replace(" ", "·")
    fits = (c.isprintable() and ord(c) in glyphs for c in text)
    return "".join(c if fit else c.encode(errors="surrogateescape").hex() for c, fit in zip(text, fits))


def _colors(ids: Iterable[int]) -> list[str]:
    """A colour for each token, by its id, so that it keeps it; but never twice the same side by side."""
    places = [-1]
    for i in ids:
        place = i % len(PALE)
        places.append(place if place != places[-1] else (place + 1) % len(PALE))
    return [PALE[place] for place in places[1:]]


def _html(
    ids: Sequence[int], tokens: Sequence[bytes], lines: Sequence[str], outlined: int | None = None
) -> str:
    spans = []
    for i, token, color in zip(ids, tokens, _colors(ids)):
        outline = f"outline:2px solid {RED}" if i == outlined else ""
        label = escape(_visible(token).replace(" ", "·"))
        spans.append(
            f'<span style="{CHIP};background:{color};{outline}">'
            f'<span style="font-family:monospace">{label}</span><br><small style="font-size:9px">{i}</small>'
            "</span>" + "<br>" * (b"\n" in token)
        )
    below = "".join(f"<div>{line}</div>" for line in lines)
    return f'<div style="line-height:1.6;overflow-wrap:anywhere"><div>{"".join(spans)}</div>{below}</div>'

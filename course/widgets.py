"""What learners move: tokens as coloured chips, merge by merge (notebook 04)."""

import html
from collections.abc import Sequence

import ipywidgets as ipw
import matplotlib.pyplot as plt
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import FancyBboxPatch

from course import plots
from course.tokenizer import BPETokenizer

_TINTS = [to_hex([0.72 + 0.28 * c for c in to_rgb(color)]) for color in plots.COLORS]  # below dark letters
_CHIP = (
    f"display:inline-block; margin:2px 1px; padding:1px 5px; border-radius:5px; color:{plots.INK}; "
    "text-align:center; white-space:pre; line-height:1.3"
)


def merge_stepper(tokenizer: BPETokenizer, text: str) -> ipw.Widget:
    """A text as it looks after the first n merges; a slider and two buttons change n, typing the text.

    The buttons go to the next merge that this text has, which is seldom the next one of the vocabulary.
    """
    n_merges = len(tokenizer.tokens) - 256
    field = ipw.Text(text, layout=ipw.Layout(width="100%"), continuous_update=True)
    slider = ipw.IntSlider(0, 0, n_merges, description="merges", layout=ipw.Layout(width="75%"))
    back, on = (
        ipw.Button(icon=icon, layout=ipw.Layout(width="3em")) for icon in ("arrow-left", "arrow-right")
    )
    page = ipw.HTML()

    def show(_=None) -> None:
        page.value = _page(tokenizer, field.value, slider.value)

    def step(direction: int) -> None:
        ahead = [n for n in merges_of(tokenizer, field.value) if direction * (n - slider.value) > 0]
        slider.value = min(
            ahead, key=lambda n: abs(n - slider.value), default=n_merges if direction > 0 else 0
        )

    back.on_click(lambda _: step(-1))
    on.on_click(lambda _: step(+1))
    for widget in (field, slider):
        widget.observe(show, "value")
    show()
    return ipw.VBox([field, ipw.HBox([back, on, slider]), page])


def merges_of(tokenizer: BPETokenizer, text: str) -> list[int]:
    """The numbers of the merges, counted from 1, that happen in a text, in order."""
    ids = {token: i for i, token in enumerate(tokenizer.tokens)}
    found, todo = set(), {tokenizer.tokens[i] for i in tokenizer.encode(text, (), ())}
    while todo:
        i = ids[todo.pop()]
        if i >= 256 and i not in found:
            found.add(i)
            todo.update(tokenizer.merges[i - 256])
    return sorted(i - 255 for i in found)


def _page(tokenizer: BPETokenizer, text: str, n: int) -> str:
    small = tokenizer.truncated(256 + n + len(tokenizer.special_tokens))
    ids = small.encode(text, (), ())
    chips = "".join(
        f'<span style="background:{_TINTS[i % len(_TINTS)]}; {_CHIP}">'
        f"{html.escape(readable(small.tokens[token]))}"
        f'<br><span style="font-size:70%; opacity:0.65">{token}</span></span>'
        for i, token in enumerate(ids)
    )
    last = "no merge yet: every byte is a token"
    if n:
        left, right = (html.escape(readable(part)) for part in tokenizer.merges[n - 1])
        last = f"merge {n}: <b>{left}</b> + <b>{right}</b>"
    size = len(text.encode(errors="replace"))
    return (
        f'<div style="font-family:monospace; line-height:2.6">{chips}</div>'
        f"<div>{last} &nbsp;·&nbsp; {len(ids)} tokens for {size} bytes</div>"
    )


def readable(token: bytes) -> str:
    """A token as one reads it: "·" for a space, "⏎" for a line's end, and hex for a part of a character."""
    try:
        text = token.decode()
    except UnicodeDecodeError:
        return token.hex(" ")
    text = text.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")
    return text if text.isprintable() else token.hex(" ")


def plot_chips(tokenizer: BPETokenizer, text: str, sizes: Sequence[int], ax: Axes | None = None) -> Axes:
    """The same text cut by vocabularies of several sizes, one a row; a byte is as wide as any other."""
    ax = ax or plt.subplots(figsize=(9.5, 0.4 + 0.42 * len(sizes)))[1]
    glyphs = font_manager.get_font(font_manager.findfont("monospace")).get_charmap()
    for row, size in enumerate(sizes):
        small = tokenizer.truncated(size)
        ids = small.encode(text, (), ())
        start = 0
        for i, token in enumerate(small.tokens[i] for i in ids):
            label, width = readable(token), len(token)
            if any(ord(character) not in glyphs for character in label):
                label = token.hex(" ")
            box = FancyBboxPatch(
                (start + 0.08, row - 0.36), width - 0.16, 0.72, boxstyle="round,pad=0,rounding_size=0.12",
                facecolor=_TINTS[i % len(_TINTS)], edgecolor="none",
            )  # fmt: skip
            ax.add_patch(box)
            fits = len(label) <= 2 * width
            ax.text(start + width / 2, row, label if fits else "…", ha="center", va="center",
                    fontfamily="monospace", fontsize=8 if len(label) <= width else 6)  # fmt: skip
            start += width
        ax.text(-0.8, row, f"{size:,} tokens: {len(ids)}", ha="right", va="center", fontsize=9)
    ax.set(xlim=(0, max(1, len(text.encode()))), ylim=(len(sizes) - 0.5, -0.5))
    ax.axis("off")
    return ax

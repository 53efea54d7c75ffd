"""The house style of every plot, and the few kinds of plot that several notebooks draw.

Colours are Okabe and Ito's, which stay apart for colour-blind readers; the panel is a light grey-white of its
own, so that a picture reads the same on a light page and a dark one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

FIGURES = Path(__file__).resolve().parent.parent / "assets" / "figures"

INK, PAPER, GRID = "#262b33", "#fbfbf9", "#dcdcd6"
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442",
)  # fmt: skip
COLORS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)


def use_house_style() -> None:
    """Make the house style matplotlib's default in this process."""
    mpl.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "figure.dpi": 110,
            "figure.facecolor": PAPER,
            "savefig.facecolor": PAPER,
            "figure.constrained_layout.use": True,
            "axes.facecolor": PAPER,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "axes.titlecolor": INK,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.prop_cycle": mpl.cycler(color=COLORS),
            "grid.color": GRID,
            "grid.linewidth": 0.8,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "font.size": 10,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "image.cmap": "cividis",
        }
    )


def figure(name: str):
    """A drawn figure from `assets/figures`, as something a notebook displays.

    A PNG of two pixels a point: JupyterLab shows no SVG in a notebook that has not been run yet.
    """
    from IPython.display import Image

    path = FIGURES / f"{name}.png"
    if not path.is_file():
        raise FileNotFoundError(f"There is no figure {path}: `make figures` draws them all.")
    return Image(filename=str(path), retina=True)


def smooth(values: Sequence[float], width: int) -> np.ndarray:
    """The mean of the last `width` values (fewer at the start), at every place."""
    total = np.cumsum(np.insert(np.asarray(values, dtype=float), 0, 0.0))
    ends = np.arange(1, len(total))
    starts = np.maximum(0, ends - width)
    return (total[ends] - total[starts]) / (ends - starts)


def loss_curves(
    curves: Mapping[str, Sequence[float] | Mapping[int, float]],
    *,
    ax: Axes | None = None,
    width: int = 1,
    unit: str = "nats a token",
) -> Axes:
    """Losses against steps. A sequence has one loss a step; a mapping has losses at some steps."""
    ax = ax or plt.subplots()[1]
    for label, losses in curves.items():
        if isinstance(losses, Mapping):
            ax.plot(list(losses), list(losses.values()), "o-", markersize=3.5, label=label)
        else:
            ax.plot(smooth(losses, width), label=label)
    ax.set(xlabel="step", ylabel=f"loss ({unit})")
    if len(curves) > 1:
        ax.legend()
    return ax


def bars(values: Mapping[str, float], *, ax: Axes | None = None, unit: str = "", digits: int = 1) -> Axes:
    """Horizontal bars, the first on top, each with its number written at its end."""
    ax = ax or plt.subplots(figsize=(6.4, 0.5 + 0.42 * len(values)))[1]
    colors = [COLORS[i % len(COLORS)] for i in range(len(values))]
    drawn = ax.barh(list(values), list(values.values()), color=colors, height=0.62)
    ax.bar_label(drawn, fmt=f"%.{digits}f", padding=4, color=INK)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.margins(x=0.12)
    ax.set(xlabel=unit)
    return ax


def surprise(pieces: Sequence[str], nats: Sequence[float], *, columns: int = 110, most: float = 6.0) -> Axes:
    """A text, token by token, each on a ground that is the darker the less it was expected.

    `nats` are the tokens' losses; from `most` on, the ground is at its darkest. Lines longer than `columns`
    characters go on in the next one. A line's end is shown, because it was predicted like everything else.
    """
    lines, grounds = [""], []  # grounds: line, column and loss of each character
    for piece, loss in zip(pieces, nats, strict=True):
        for character in piece:
            if len(lines[-1]) == columns:
                lines.append("")
            grounds.append((len(lines) - 1, len(lines[-1]), min(loss, most)))
            lines[-1] += "⏎" if character == "\n" else character
            if character == "\n":
                lines.append("")
    # A character of DejaVu Sans Mono is 0.602 sizes wide, and in print a whole number of pixels.
    across = 7 / mpl.rcParams["figure.dpi"]  # inches
    size, down, rows = 72 * across / 0.602, 2.4 * across, len(lines)
    width, height = across * columns + 0.2, down * rows + 0.75
    figure = plt.figure(figsize=(width, height))
    figure.set_layout_engine("none")
    ax = figure.add_axes((0.1 / width, 0.7 / height, across * columns / width, down * rows / height))
    ax.set(xlim=(0, columns), ylim=(rows, 0))
    ax.axis("off")
    shades = mpl.colors.ListedColormap(mpl.colormaps["YlOrBr"](np.linspace(0, 0.62)))
    boxes = [[(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1)] for y, x, _ in grounds]
    drawn = mpl.collections.PolyCollection(boxes, cmap=shades, array=[loss for *_, loss in grounds], lw=0)
    drawn.set_clim(0, most)
    ax.add_collection(drawn)
    font = {"family": "DejaVu Sans Mono", "size": size, "va": "center", "parse_math": False}
    for y, line in enumerate(lines):
        ax.text(0, y + 0.5, line, **font)
    bar = figure.add_axes((0.3, 0.46 / height, 0.4, 0.09 / height))
    figure.colorbar(drawn, cax=bar, orientation="horizontal").set_label("nats: how unexpected it was", size=8)
    bar.tick_params(labelsize=8)
    return ax


def matrix(values, *, ax: Axes | None = None, title: str = "", signed: bool = False) -> Axes:
    """A matrix as an image; `signed` centres the colours on 0."""
    values = np.asarray(values)
    ax = ax or plt.subplots(figsize=(4, 3.4))[1]
    limit = np.abs(values).max()
    limits = {"cmap": "PuOr", "vmin": -limit, "vmax": limit} if signed else {}
    image = ax.imshow(values, interpolation="nearest", **limits)
    ax.grid(False)
    ax.set(title=title)
    ax.figure.colorbar(image, ax=ax, shrink=0.85)
    return ax

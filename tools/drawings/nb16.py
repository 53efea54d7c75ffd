"""The drawings of notebook 16."""

from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from course.plots import BLUE, GREEN, GRID, INK, ORANGE, PURPLE, RED
from drawings.shapes import arrow, box, canvas

SOFT = "#7a8290"


def plan() -> Figure:
    """From seconds to tokens, what each factor is taken from, and what follows from the tokens."""
    figure, ax = canvas(10.6, 2.95)
    for x, name, color in ((0.95, "seconds", ORANGE), (3.35, "FLOPs", BLUE), (5.75, "tokens", BLUE)):
        box(ax, x, 1.75, name, color=color, width=1.25)
    ax.text(0.95, 1.27, "you decide", ha="center", fontsize=9, color=SOFT)
    for x, label in ((2.15, "× peak × MFU"), (4.55, "÷ FLOPs a token")):
        arrow(ax, (x - 0.54, 1.75), (x + 0.54, 1.75))
        ax.text(x, 2.1, label, ha="center", va="bottom", fontsize=9.5, color=INK)
    sources = (
        (2.15, "peak: a table\nMFU: measured,\nbefore anything else"),
        (4.55, "6 N + 12 L H D T:\nthe model's shape alone"),
    )
    for x, text in sources:
        ax.text(x, 0.7, text, ha="center", va="top", fontsize=9, color=GREEN)
        arrow(ax, (x, 0.76), (x, 1.63), color=GREEN, dashed=True)
    for y, name, divisor in (
        (2.6, "steps", "÷ tokens a batch, B T"),
        (1.75, "passes", "÷ tokens of the corpus"),
        (0.9, "tokens a parameter", "÷ parameters"),
    ):
        box(ax, 9.45, y, name, color=PURPLE, width=2.0, height=0.5)
        arrow(ax, (6.42, 1.75 + 0.1 * (y - 1.75)), (8.4, y), color=PURPLE)
        ax.text(9.45, y - 0.3, divisor, ha="center", va="top", fontsize=8.5, color=SOFT)
    return figure


def _lane(ax: Axes, y: float, name: str, right: float) -> None:
    ax.add_patch(Rectangle((1.25, y - 0.3), right - 1.25, 0.6, facecolor=GRID, alpha=0.45, lw=0))
    ax.text(1.1, y, name, ha="right", va="center", fontsize=10, color=INK)


def _block(ax: Axes, x: float, y: float, width: float, text: str, color: str) -> None:
    ax.add_patch(Rectangle((x, y - 0.24), width, 0.48, facecolor=f"{color}33", edgecolor=color, lw=1.3))
    ax.text(x + width / 2, y, text, ha="center", va="center", fontsize=9, color=INK)


def data() -> Figure:
    """The way of a batch, and when each of its parts happens."""
    figure, ax = canvas(10.6, 4.5)
    stations = (
        (1.0, "token file", "on the disk, mapped"),
        (3.2, "windows", "(B, T + 1), uint16"),
        (5.4, "pinned memory", "int64: the GPU reads\nit by itself"),
        (7.7, "GPU memory", "ids and targets, (B, T)"),
        (9.75, "step", "loss, gradients,\nupdate"),
    )
    for x, name, below in stations:
        box(ax, x, 4.0, name, color=ORANGE if x < 6 else BLUE, width=1.6)
        ax.text(x, 3.62, below, ha="center", va="top", fontsize=8.5, color=SOFT)
    for (a, *_), (b, *_) in pairwise(stations):
        arrow(ax, (a + 0.83, 4.0), (b - 0.83, 4.0))
    right = 10.5
    for y, name in ((2.25, "CPU"), (1.35, "queue"), (0.45, "GPU")):
        _lane(ax, y, name, right)
    for i in range(4):
        start = 1.35 + 0.95 * i if i < 3 else 6.35
        _block(ax, start, 2.25, 0.3, f"{i}", ORANGE)
        _block(ax, start + 0.32, 2.25, 0.58, "queue", PURPLE)
    ax.text(5.28, 2.25, "waits: the queue is full", ha="center", va="center", fontsize=9, color=SOFT)
    _block(ax, 8.95, 2.25, 0.3, "4", ORANGE)
    _block(ax, 9.27, 2.25, 0.58, "queue", PURPLE)
    for start, end, text in (
        (2.3, 3.9, "1"),
        (3.95, 6.3, "1, 2"),
        (6.35, 8.9, "2, 3"),
        (8.95, right, "3, 4"),
    ):
        _block(
            ax,
            start,
            1.35,
            end - start,
            f"step {text} waiting" if len(text) == 1 else f"steps {text}",
            PURPLE,
        )
    for i, start in enumerate((1.75, 4.3, 6.85, 9.4)):
        width = min(2.5, right - start)
        _block(ax, start, 0.45, width, f"step {i}", GREEN)
    return figure


def cut() -> Figure:
    """A run, its checkpoints, the cut, and what is done again."""
    figure, ax = canvas(10.6, 2.75)
    left, unit = 1.35, 0.77

    def at(step: float) -> float:
        return left + unit * step

    for y, name in ((1.95, "first\nprocess"), (0.45, "second\nprocess")):
        ax.text(1.1, y, name, ha="right", va="center", fontsize=10, color=INK)
    ax.add_patch(Rectangle((at(0), 1.75), unit * 7.1, 0.4, facecolor=f"{BLUE}33", edgecolor=BLUE, lw=1.3))
    ax.add_patch(Rectangle((at(6), 1.75), unit * 1.1, 0.4, facecolor=f"{RED}44", edgecolor=RED, lw=1.3))
    ax.add_patch(Rectangle((at(6), 0.25), unit * 1.1, 0.4, facecolor=f"{RED}44", edgecolor=RED, lw=1.3))
    ax.add_patch(Rectangle((at(7.1), 0.25), unit * 4.6, 0.4, facecolor=f"{BLUE}33", edgecolor=BLUE, lw=1.3))
    for step in (2, 4, 6):
        ax.plot([at(step)] * 2, [1.65, 2.25], color=GREEN, lw=2.2)
    for step in (8, 10, 11.7):
        ax.plot([at(step)] * 2, [0.15, 0.75], color=GREEN, lw=2.2)
    ax.text(at(2), 2.4, "checkpoint", ha="center", fontsize=9, color=GREEN)
    ax.plot([at(7.1)] * 2, [1.57, 2.5], color=RED, lw=1.6, ls="--")
    ax.text(at(7.2), 2.4, "the power is cut", fontsize=9.5, color=RED, va="center")
    ax.text(at(6.55), 1.95, "lost", ha="center", va="center", fontsize=9, color=INK)
    ax.text(at(6.55), 0.45, "again", ha="center", va="center", fontsize=9, color=INK)
    arrow(ax, (at(6), 1.6), (at(6), 0.8), color=GREEN)
    saved = "weights, the optimizer's memory,\nthe step's number, the recipe"
    ax.text(at(5.85), 1.2, saved, ha="right", va="center", fontsize=9, color=GREEN)
    arrow(ax, (at(6.55), 1.6), (at(6.55), 0.8), color=RED, dashed=True)
    ax.text(at(6.72), 1.2, "the same losses,\nto the last digit", va="center", fontsize=9, color=RED)
    return figure


DRAWINGS = {"16_plan": plan, "16_data": data, "16_cut": cut}

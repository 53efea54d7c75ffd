"""The drawings of notebook 14."""

from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from course.plots import BLUE, GREEN, GRID, INK, ORANGE, PAPER, PURPLE, RED
from drawings.shapes import arrow, box, canvas

MEMORY = "#7a8290"
ROWS = ("embedding", "linear", "layernorm", "attention", "gelu", "add", "cross_entropy")


def _text(ax: Axes, x: float, y: float, text: str, size: float = 9.5, color: str = INK, **more) -> None:
    ax.text(x, y, text, **{"fontsize": size, "color": color, "ha": "center", "va": "center", **more})


def _band(ax: Axes, x: float, y: float, width: float, height: float, color: str) -> None:
    ax.add_patch(Rectangle((x, y), width, height, facecolor=f"{color}18", edgecolor="none"))


def engine() -> Figure:
    """A model that asks, and the tables that it may ask."""
    figure, ax = canvas(10.6, 4.3)

    def table(x: float, y: float, name: str, color: str, full: bool) -> None:
        width, height = 3.3, 3.3
        ax.add_patch(Rectangle((x, y), width, height, facecolor=PAPER, edgecolor=color, lw=1.6))
        ax.add_patch(Rectangle((x, y + height - 0.42), width, 0.42, facecolor=f"{color}44", edgecolor=color))
        _text(ax, x + 0.12, y + height - 0.21, f"engine {name}", 10.5, ha="left")
        for i, row in enumerate(ROWS if full else ()):
            at = y + height - 0.42 - (i + 0.5) * 0.41
            _text(ax, x + 0.12, at, row, 9.5, ha="left")
            for place, part in ((1.83, "forward"), (2.72, "backward")):
                _text(ax, x + place, at, part, 8, color)
            ax.plot((x, x + width), (at - 0.205, at - 0.205), color=GRID, lw=0.8)

    table(4.1, 0.75, "torch", BLUE, False)
    table(3.75, 0.4, "cuda", ORANGE, True)
    box(ax, 1.15, 3.0, "Transformer\nautograd calls backward", width=2.2, height=0.8, color=GREEN, size=9)
    box(ax, 1.15, 1.3, "ManualTransformer\ncalls it itself", width=2.2, height=0.8, color=GREEN, size=9)
    _text(ax, 1.15, 0.3, "the models: no arithmetic", 9.5, GREEN)
    arrow(ax, (2.3, 2.9), (3.7, 2.35), "asks", color=GREEN, offset=(0.05, 0.2))
    arrow(ax, (2.3, 1.4), (3.7, 2.1), "", color=GREEN)
    y = 0.4 + 3.3 - 0.42 - 2.5 * 0.41
    ax.add_patch(Rectangle((3.75, y - 0.205), 3.3, 0.41, facecolor=f"{ORANGE}33", edgecolor="none"))
    arrow(ax, (7.1, y), (7.75, y), color=ORANGE)
    for at, name, color in ((2.95, "norms.py", INK), (1.55, "norms.cu", ORANGE)):
        ax.add_patch(Rectangle((7.85, at - 0.5), 2.65, 1.0, facecolor=f"{color}10", edgecolor=color, lw=1.2))
        _text(ax, 7.97, at + 0.3, name, 10, ha="left")
    _text(ax, 7.97, 2.83, "checks, allocates, launches", 8.5, ha="left")
    _text(ax, 7.97, 1.5, 'extern "C" __global__ void', 8, ha="left", family="monospace")
    _text(ax, 7.97, 1.27, "layernorm_backward(…)", 8, ha="left", family="monospace")
    arrow(ax, (9.2, 2.42), (9.2, 2.08), color=ORANGE)
    _text(ax, 9.2, 0.72, "on a GPU: NVRTC\nwithout one: the emulator", 9, MEMORY)
    return figure


def step() -> Figure:
    """A block's launches, forward and backward, with what each is for."""
    figure, ax = canvas(11.2, 4.7)
    names = (
        ("norm", "layernorm_forward", GREEN),
        ("q, k, v", "linear_forward", BLUE),
        ("attention", "flash_forward", PURPLE),
        ("output", "linear_forward", BLUE),
        ("add, norm", "layernorm_forward", GREEN),
        ("up, GELU", "linear_forward", BLUE),
        ("down", "linear_forward", BLUE),
    )
    back = (
        "layernorm_backward\nsum_gradients",
        "linear_backward",
        "flash_dq\nflash_dkv",
        "linear_backward",
        "layernorm_backward\nsum_gradients",
        "linear_backward",
        "linear_backward",
    )
    xs = 1.45 + 1.42 * np.arange(7)
    _band(ax, 0.6, 2.55, 10.55, 1.35, BLUE)
    _band(ax, 0.6, 0.75, 10.55, 1.35, RED)
    _text(ax, 0.35, 3.2, "forward", 10.5, BLUE, rotation=90)
    _text(ax, 0.35, 1.4, "backward", 10.5, RED, rotation=90)
    for x, (title, launch, color), gradient in zip(xs, names, back, strict=True):
        _text(ax, x, 4.1, title, 10.5)
        box(ax, x, 3.2, launch.replace("_", "_\n"), width=1.2, height=0.85, color=color, size=8.5)
        text = "\n".join(line.replace("_back", "_\nback") for line in gradient.split("\n"))
        box(ax, x, 1.42, text, width=1.2, height=0.85, color=color, size=8.5)
        arrow(ax, (x, 2.75), (x, 1.88), color=MEMORY, dashed=True)
    _text(ax, xs[0] + 0.13, 2.32, "saved", 8.5, MEMORY, ha="left")
    for a, b in pairwise(xs):
        arrow(ax, (a + 0.61, 3.2), (b - 0.61, 3.2), color=BLUE)
        arrow(ax, (b - 0.61, 1.42), (a + 0.61, 1.42), color=RED)
    words = (
        (0.62, 0.45, "7 launches forward,", BLUE),
        (2.4, 0.45, "10 backward, and one more for each product that is summed in parts.", RED),
        (0.62, 0.1, "Around the blocks: embeddings, a norm, the loss.", INK),
        (5.3, 0.1, "At the end: adamw, 1 launch.", ORANGE),
    )
    for x, y, text, color in words:
        _text(ax, x, y, text, 9.5, color, ha="left")
    return figure


def attention() -> Figure:
    """Composed: p stands in memory. Fused: a tile of it stands in shared memory."""
    figure, ax = canvas(10.8, 4.5)
    for left, width, title in ((0, 6.5, "composed: three launches"), (6.9, 3.9, "fused: one launch")):
        _text(ax, left, 4.3, title, 11.5, ha="left")
        _band(ax, left, 2.3, width, 1.75, MEMORY)
        _band(ax, left, 0.2, width, 1.25, GREEN)
        _text(ax, left + 0.1, 3.88, "memory", 9, MEMORY, ha="left")
        _text(ax, left + 0.1, 0.38, "registers and shared memory", 9, GREEN, ha="left")

    def array(x: float, name: str, color: str, width: float = 0.3, height: float = 1.0) -> None:
        corner = (x - width / 2, 3.0 - height / 2)
        ax.add_patch(Rectangle(corner, width, height, facecolor=f"{color}33", edgecolor=color, lw=1.3))
        _text(ax, x, 3.0, name, 10)

    for x, name in ((0.75, "q"), (1.2, "k")):
        array(x, name, BLUE)
    array(2.75, "s", RED, 1.0)
    array(4.2, "p", RED, 1.0)
    array(5.15, "v", BLUE)
    array(6.1, "y", ORANGE)
    _text(ax, 3.45, 3.72, "T × T for each head", 9, RED)
    for x, name in ((1.6, "product"), (3.45, "softmax"), (5.2, "product")):
        box(ax, x, 1.0, name, width=1.15, height=0.5, color=GREEN)
    for a, b in ((0.75, 1.35), (1.2, 1.6), (2.65, 3.2), (4.25, 4.9), (5.15, 5.2)):
        arrow(ax, (a, 2.45), (b, 1.29), color=BLUE)
    for a, b in ((1.85, 2.5), (3.7, 4.0), (5.5, 6.05)):
        arrow(ax, (a, 1.29), (b, 2.45), color=RED)

    for x, name in ((7.4, "q"), (7.85, "k"), (8.3, "v")):
        array(x, name, BLUE)
        arrow(ax, (x, 2.45), (x + 0.45, 1.29), color=BLUE)
    array(9.75, "y", ORANGE)
    array(10.3, "", ORANGE, 0.1)
    _text(ax, 10.3, 3.68, "lse", 9, ORANGE)
    box(ax, 8.75, 1.0, "one tile of s, of p", width=2.3, height=0.5, color=GREEN)
    arrow(ax, (9.3, 1.29), (9.75, 2.45), color=RED)
    arrow(ax, (9.6, 1.29), (10.28, 2.45), color=RED)
    return figure


def graph() -> Figure:
    """Launches one by one, and a recording played back: host and GPU against time."""
    figure, ax = canvas(10.6, 4.0)
    for top, title in ((3.75, "launched one by one"), (1.7, "recorded once, replayed as a graph")):
        _text(ax, 0, top, title, 11, ha="left")
        for y, name, color in ((top - 0.5, "host", BLUE), (top - 1.05, "GPU", GREEN)):
            _text(ax, 0.55, y, name, 10, color, ha="right")
            _band(ax, 0.7, y - 0.22, 9.7, 0.44, color)
    for i in range(9):
        x = 0.75 + 1.02 * i
        box(ax, x + 0.46, 3.25, "launch", width=0.92, height=0.34, color=BLUE, size=8)
        width = (0.3, 0.42, 0.34, 0.5, 0.26)[i % 5]
        ax.add_patch(Rectangle((x + 0.92, 2.53), width, 0.34, facecolor=f"{GREEN}88", edgecolor=GREEN))
        arrow(ax, (x + 0.92, 3.06), (x + 0.94, 2.88), color=MEMORY)
    _text(ax, 4.45, 2.2, "the gaps: the GPU waits for the next launch", 9, RED, ha="left")
    arrow(ax, (4.4, 2.22), (3.55, 2.62), color=RED)
    box(ax, 1.21, 1.2, "replay", width=0.92, height=0.34, color=BLUE, size=8)
    box(ax, 2.3, 1.2, "adamw", width=0.92, height=0.34, color=ORANGE, size=8)
    x = 1.72
    for i in range(9):
        width = (0.3, 0.42, 0.34, 0.5, 0.26)[i % 5]
        ax.add_patch(Rectangle((x, 0.48), width, 0.34, facecolor=f"{GREEN}88", edgecolor=GREEN))
        x += width + 0.03
    ax.add_patch(Rectangle((x, 0.48), 0.4, 0.34, facecolor=f"{ORANGE}88", edgecolor=ORANGE))
    arrow(ax, (1.67, 1.01), (1.74, 0.83), color=MEMORY)
    arrow(ax, (0.7, 0.1), (10.4, 0.1), color=INK)
    _text(ax, 10.2, 0.3, "time", 9)
    return figure


def bisect() -> Figure:
    """The path from a loss that differs to a line."""
    figure, ax = canvas(11.0, 5.6)

    def ask(x: float, y: float, text: str, width: float = 2.35) -> None:
        box(ax, x, y, text, width=width, height=0.78, color=BLUE, size=9.5)

    def found(x: float, y: float, text: str, color: str = ORANGE, width: float = 2.35) -> None:
        box(ax, x, y, text, width=width, height=0.62, color=color, size=9.5)

    box(ax, 1.3, 5.0, "the losses differ", width=2.35, height=0.62, color=RED, size=10.5)
    ask(1.3, 3.7, "by more than\ntwo peers differ?")
    found(1.3, 2.45, "noise: leave it", GREEN)
    arrow(ax, (1.3, 4.68), (1.3, 4.1))
    arrow(ax, (1.3, 3.3), (1.3, 2.77), "no", offset=(0.22, 0))
    ask(4.25, 5.0, "at step 0, too,\nor from step 1 on?")
    arrow(ax, (2.5, 3.85), (3.05, 4.8), "yes", offset=(-0.15, 0.1))
    found(4.25, 3.85, "step 0: a forward", width=2.1)
    found(4.25, 3.0, "step 1: a backward", width=2.1)
    arrow(ax, (4.25, 4.6), (4.25, 4.17))
    ask(4.25, 1.75, "exchange half of the\noperations: still wrong?")
    arrow(ax, (4.25, 2.68), (4.25, 2.15))
    found(4.25, 0.55, "the operation")
    arrow(ax, (4.25, 1.35), (4.25, 0.87), "log₂ n times", offset=(0.62, 0))
    ask(7.3, 0.55, "judge every call\non its own inputs")
    arrow(ax, (5.45, 0.55), (6.1, 0.55))
    found(7.3, 1.8, "the function,\nthe result")
    arrow(ax, (7.3, 0.95), (7.3, 1.48))
    for y, text in (
        (3.0, "which elements?"),
        (4.0, "which shapes?"),
        (5.0, "what does the\nemulator say?"),
    ):
        ask(7.3, y, text, 1.9)
    arrow(ax, (7.3, 2.12), (7.3, 2.6))
    for y, text, color in (
        (3.0, "a term, a factor", PURPLE),
        (4.0, "an index, a tail", PURPLE),
        (5.0, "a race, no such place", PURPLE),
    ):
        found(9.85, y, text, color, 2.0)
        arrow(ax, (8.26, y), (8.82, y))
    for y in (3.4, 4.4):
        arrow(ax, (7.3, y), (7.3, y + 0.2))
    found(9.85, 1.8, "the line", RED, 2.0)
    found(9.85, 0.55, "a test that\nwould have found it", GREEN, 2.0)
    outline = Rectangle((8.74, 2.56), 2.22, 2.88, facecolor="none", edgecolor=PURPLE, lw=1, ls="--")
    ax.add_patch(outline)
    arrow(ax, (9.85, 2.56), (9.85, 2.12))
    arrow(ax, (9.85, 1.48), (9.85, 0.87))
    return figure


def patterns() -> Figure:
    """Eight arrays of errors, and what made them."""
    figure, ax = canvas(11.0, 5.3)
    rows, columns, cell = 10, 16, 0.145
    rng = np.random.default_rng(3)
    by_row = rng.uniform(0.15, 1, rows)
    everywhere = rng.uniform(0.2, 1, (rows, columns))
    j, i = np.meshgrid(np.arange(columns), np.arange(rows))
    kinds = (
        (np.broadcast_to(by_row[:, None], (rows, columns)), "one number a row", "a missing term"),
        (everywhere, "everywhere,\nthe same factor", "a scale, a mean for a sum"),
        (everywhere * (j == columns - 1), "the last column", "a tail: < for <="),
        (everywhere * (i >= rows - 2), "the last rows", "a grid rounded down"),
        (everywhere * (j % 4 == 3), "every 4th, 8th, 32nd", "lanes of a vector, of a warp"),
        (everywhere * ((j // 4 == 2) & (i // 4 == 1)), "a tile", "read or written elsewhere"),
        (everywhere * (rng.random((rows, columns)) < 0.13), "others in every run", "a race, uninitialised"),
        (np.ones((rows, columns)) * (i * columns + j >= 96), "from one place on", "never written"),
    )
    for k, (values, what, why) in enumerate(kinds):
        x, y = 0.15 + 2.75 * (k % 4), 4.95 - 2.65 * (k // 4)
        for a in range(rows):
            for b in range(columns):
                shade = f"{round(255 * min(1.0, values[a, b])):02x}"
                face = f"{RED}{shade}"
                corner = (x + b * cell, y - (a + 1) * cell)
                ax.add_patch(Rectangle(corner, cell, cell, facecolor=face, edgecolor=GRID, lw=0.5))
        ax.add_patch(
            Rectangle((x, y - rows * cell), columns * cell, rows * cell, facecolor="none", edgecolor=INK)
        )
        _text(ax, x + columns * cell / 2, y - rows * cell - 0.28, what.replace("\n", " "), 9.5)
        _text(ax, x + columns * cell / 2, y - rows * cell - 0.54, why, 9.5, RED)
    return figure


DRAWINGS = {
    "14_engine": engine,
    "14_step": step,
    "14_attention": attention,
    "14_graph": graph,
    "14_bisect": bisect,
    "14_patterns": patterns,
}

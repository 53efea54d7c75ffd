"""The drawings of notebook 08."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from course.plots import BLUE, GREEN, INK, ORANGE, PURPLE, RED
from drawings.shapes import arrow, box, canvas

MEMORY = "#7a8290"


def _lane(ax: Axes, x: float, y: float, width: float, height: float, name: str, color: str) -> None:
    """A level of the memory hierarchy as a wide pale band."""
    ax.add_patch(Rectangle((x, y), width, height, facecolor=f"{color}18", edgecolor="none"))
    ax.text(x + 0.1, y + height - 0.17, name, fontsize=9, color=color, va="center")


def passes() -> Figure:
    """What moves between memory and registers: three kernels, and one."""
    figure, ax = canvas(10.4, 4.4)
    for left, width, title in ((0, 6.9, "three kernels: 5 transfers"), (7.3, 3.1, "one kernel: 2 transfers")):
        ax.text(left, 4.2, title, fontsize=11.5, color=INK, va="center")
        _lane(ax, left, 2.65, width, 1.25, "memory (HBM)", MEMORY)
        _lane(ax, left, 0.25, width, 1.25, "", GREEN)
        ax.text(left + 0.1, 0.42, "registers of a program", fontsize=9, color=GREEN, va="center")

    def down(x: float, to: float) -> None:
        arrow(ax, (x, 2.85), (to, 1.33), color=BLUE)

    def up(x: float, to: float) -> None:
        arrow(ax, (x, 1.33), (to, 2.85), color=RED)

    arrays = ((0.75, "x", BLUE), (3.55, "x_hat", ORANGE), (6.2, "y", RED))
    for x, name, color in arrays:
        box(ax, x, 3.13, name, width=1.05, color=color)
    steps = ((1.0, "Σ x²\n-> rstd"), (2.85, "x · rstd"), (5.1, "x_hat · w"))
    for x, name in steps:
        box(ax, x, 1.0, name, width=1.35, height=0.62, color=GREEN)
    down(0.7, 0.8)
    down(1.15, 2.55)
    up(3.05, 3.4)
    down(3.8, 4.8)
    up(5.35, 6.1)
    for x, y, name, color in (
        (0.52, 2.1, "1", BLUE),
        (2.05, 2.1, "2", BLUE),
        (3.42, 2.1, "3", RED),
        (4.48, 2.1, "4", BLUE),
        (5.96, 2.1, "5", RED),
    ):
        ax.text(x, y, name, fontsize=11, color=color, ha="center", va="center")

    box(ax, 8.05, 3.13, "x", width=1.05)
    box(ax, 9.65, 3.13, "y", width=1.05, color=RED)
    box(ax, 8.85, 1.0, "Σ x² -> rstd,\nx · rstd · w", width=2.2, height=0.62, color=GREEN)
    down(8.05, 8.45)
    up(9.25, 9.65)
    ax.text(8.0, 2.1, "1", fontsize=11, color=BLUE, ha="center", va="center")
    ax.text(9.7, 2.1, "2", fontsize=11, color=RED, ha="center", va="center")
    return figure


def backward() -> Figure:
    """The backward's data flow for one row."""
    figure, ax = canvas(10.4, 4.6)
    _lane(ax, 0, 0.15, 1.7, 4.3, "memory", MEMORY)
    _lane(ax, 1.95, 0.15, 6.5, 4.3, "registers of one program, one row", GREEN)
    _lane(ax, 8.7, 0.15, 1.7, 4.3, "memory", MEMORY)
    inputs = ((3.65, "dy", BLUE), (2.75, "w", PURPLE), (1.85, "x", BLUE), (0.95, "rstd", ORANGE))
    for y, name, color in inputs:
        box(ax, 0.85, y, name, width=1.0, color=color)
    g = box(ax, 3.0, 3.2, "g = w dy", width=1.4, color=GREEN)
    x_hat = box(ax, 3.0, 1.4, "x_hat = x rstd", width=1.6, color=GREEN)
    mean = box(ax, 5.0, 2.3, "mean(g x_hat)\none number", width=1.5, height=0.7, color=RED)
    out = box(ax, 7.25, 2.3, "rstd (g - x_hat · mean)", width=2.2, color=GREEN)
    dw = box(ax, 7.25, 0.75, "dw += dy x_hat", width=1.8, color=GREEN)
    for start, end in (
        ((1.35, 3.65), (2.3, 3.3)),
        ((1.35, 2.75), (2.3, 3.1)),
        ((1.35, 1.85), (2.2, 1.5)),
        ((1.35, 0.95), (2.2, 1.3)),
        ((g[0] + 0.45, g[1] - 0.28), (mean[0] - 0.6, mean[1] + 0.35)),
        ((x_hat[0] + 0.45, x_hat[1] + 0.28), (mean[0] - 0.6, mean[1] - 0.35)),
        ((mean[0] + 0.75, mean[1]), (out[0] - 1.1, out[1])),
    ):
        arrow(ax, start, end)
    arrow(ax, (g[0] + 0.7, g[1]), (out[0] - 0.3, out[1] + 0.28), bend=-0.18)
    arrow(ax, (x_hat[0] + 0.8, x_hat[1]), (out[0] - 0.3, out[1] - 0.28), bend=0.14)
    arrow(ax, (x_hat[0] + 0.5, x_hat[1] - 0.28), (dw[0] - 0.9, dw[1] + 0.08), bend=0.1)
    ax.text(5.3, 0.45, "dy", fontsize=10, color=BLUE, ha="right", va="center")
    arrow(ax, (5.36, 0.45), (dw[0] - 0.9, dw[1] - 0.12), color=BLUE)
    box(ax, 9.55, 2.3, "dx", width=1.0, color=RED)
    box(ax, 9.55, 0.75, "partial", width=1.0, color=RED)
    arrow(ax, (8.35, 2.3), (9.05, 2.3), color=RED)
    arrow(ax, (8.15, 0.75), (9.05, 0.75), color=RED, dashed=True)
    ax.text(9.55, 0.32, "once, at the end", fontsize=8.5, color=RED, ha="center", va="center")
    return figure


def two_stages() -> Figure:
    """Rows to programs, programs to partial sums, partial sums to dw."""
    figure, ax = canvas(10.4, 4.3)
    colors = (BLUE, ORANGE, GREEN)
    cell, columns = 0.3, 8
    ax.text(0.1, 4.1, "dy · x_hat   (N, C), never stored", fontsize=10.5, color=INK, va="center")
    for row in range(11):
        for column in range(columns):
            corner = (0.5 + column * cell, 3.55 - row * cell)
            face = f"{colors[row % 3]}55"
            ax.add_patch(Rectangle(corner, cell, cell, facecolor=face, edgecolor="white", lw=1))
        ax.text(0.4, 3.7 - row * cell, str(row), fontsize=8, ha="right", va="center", color=INK)
    ax.text(4.55, 4.1, "stage one: P = 3 programs", fontsize=10.5, color=INK, ha="center", va="center")
    for p, color in enumerate(colors):
        y = 3.3 - 1.15 * p
        box(ax, 4.55, y, f"program {p}\nsum in registers", width=1.6, height=0.66, color=color, size=9)
        for row in range(p, 11, 3):
            arrow(ax, (0.5 + columns * cell + 0.03, 3.7 - row * cell), (3.74, y), color=f"{color}99")
        arrow(ax, (5.36, y), (6.0, 2.45 - cell * p), color=color)
        for column in range(columns):
            corner = (6.05 + column * cell, 2.3 - p * cell)
            ax.add_patch(Rectangle(corner, cell, cell, facecolor=f"{color}aa", edgecolor="white", lw=1))
    ax.text(7.25, 2.85, "partial   (P, C)", fontsize=10.5, color=INK, ha="center", va="center")
    ax.text(6.4, 4.1, "stage two: columns to programs", fontsize=10.5, color=INK, va="center")
    for k in range(2):
        x = 6.05 + (4 * k + 2) * cell
        corner = (6.05 + 4 * k * cell, 1.7)
        ax.add_patch(Rectangle(corner, 4 * cell, 3 * cell, facecolor="none", edgecolor=PURPLE, lw=1.6))
        arrow(ax, (x, 1.64), (x, 0.9), color=PURPLE)
    for column in range(columns):
        corner = (6.05 + column * cell, 0.55)
        ax.add_patch(Rectangle(corner, cell, cell, facecolor=f"{PURPLE}aa", edgecolor="white", lw=1))
    ax.text(7.25, 0.33, "dw   (C)", fontsize=10.5, color=INK, ha="center", va="center")
    ax.text(8.75, 1.27, "in an order that\nonly P decides", fontsize=9, color=PURPLE, va="center")
    return figure


def residual() -> Figure:
    """The addition and the norm apart, and as one kernel, forward and backward."""
    figure, ax = canvas(9.0, 4.5)

    def panel(x: float, y: float, title: str, kernels) -> None:
        ax.text(x, y + 1.62, title, fontsize=10.5, color=INK, va="center")
        for kx, name, reads, writes in kernels:
            width = 2.0
            box(ax, kx, y + 0.6, name, width=width, height=0.5, color=GREEN, size=9.5)
            for names, color, sign in ((reads, BLUE, 1), (writes, RED, -1)):
                for i, array in enumerate(names):
                    ax_x = kx + (i - (len(names) - 1) / 2) * 0.6
                    edge, far = y + 0.6 + 0.26 * sign, y + 0.6 + 0.55 * sign
                    ends = ((ax_x, far), (ax_x, edge)) if sign > 0 else ((ax_x, edge), (ax_x, far))
                    arrow(ax, *ends, color=color)
                    ax.text(ax_x, far + 0.13 * sign, array, fontsize=9, color=color, ha="center", va="center")

    panel(0.1, 2.55, "forward, apart: 5 transfers", (
        (1.2, "add", ("x", "res"), ("h",)), (3.9, "norm", ("h",), ("y",))))  # fmt: skip
    panel(6.0, 2.55, "forward, fused: 4", ((7.3, "add_norm", ("x", "res"), ("h", "y")),))
    panel(0.1, 0.15, "backward, apart: 6 transfers", (
        (1.2, "norm backward", ("dy", "h"), ("dx'",)), (3.9, "add", ("dx'", "dh"), ("dx",))))  # fmt: skip
    panel(6.0, 0.15, "backward, fused: 4", ((7.3, "add_norm backward", ("dy", "dh", "h"), ("dx",)),))
    return figure


DRAWINGS = {
    "08_passes": passes,
    "08_backward": backward,
    "08_two_stages": two_stages,
    "08_residual": residual,
}

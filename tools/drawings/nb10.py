"""The drawings of notebook 10."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Arc, Circle, Rectangle

from course.plots import BLUE, GREEN, GRID, INK, ORANGE, PURPLE, RED
from drawings.shapes import arrow, box, canvas

MEMORY = "#7a8290"


def _lane(ax: Axes, x: float, y: float, width: float, height: float, color: str) -> None:
    """A level of the memory hierarchy as a wide pale band."""
    ax.add_patch(Rectangle((x, y), width, height, facecolor=f"{color}18", edgecolor="none"))


def swiglu() -> Figure:
    """What moves between memory and registers: three operations, and one."""
    figure, ax = canvas(10.6, 4.4)
    for left, width, title in (
        (0, 7.2, "three operations: 8 transfers"),
        (7.6, 3.0, "one kernel: 3 transfers"),
    ):
        ax.text(left, 4.2, title, fontsize=11.5, color=INK, va="center")
        _lane(ax, left, 2.65, width, 1.25, MEMORY)
        _lane(ax, left, 0.25, width, 1.25, GREEN)
        ax.text(left + 0.1, 3.73, "memory", fontsize=9, color=MEMORY, va="center")
        ax.text(left + 0.1, 0.42, "registers", fontsize=9, color=GREEN, va="center")

    def down(x: float, to: float) -> None:
        arrow(ax, (x, 2.86), (to, 1.33), color=BLUE)

    def up(x: float, to: float) -> None:
        arrow(ax, (x, 1.33), (to, 2.86), color=RED)

    arrays = (
        (0.8, "gate", BLUE),
        (2.3, "s", ORANGE),
        (4.15, "a", ORANGE),
        (5.15, "up", BLUE),
        (6.5, "y", RED),
    )
    for x, name, color in arrays:
        box(ax, x, 3.14, name, width=0.85, color=color)
    for x, name in ((1.2, "σ(gate)"), (3.1, "gate · s"), (5.4, "a · up")):
        box(ax, x, 1.0, name, width=1.3, height=0.6, color=GREEN)
    down(0.7, 0.95)
    up(1.45, 2.15)
    down(1.1, 2.7)
    down(2.45, 3.05)
    up(3.45, 4.0)
    down(4.3, 5.0)
    down(5.2, 5.35)
    up(5.8, 6.4)
    box(ax, 8.15, 3.14, "gate", width=0.8)
    box(ax, 9.1, 3.14, "up", width=0.8)
    box(ax, 10.05, 3.14, "y", width=0.8, color=RED)
    box(ax, 9.1, 1.0, "gate · σ(gate) · up", width=2.0, height=0.6, color=GREEN)
    down(8.15, 8.5)
    down(9.1, 9.1)
    up(9.7, 10.05)
    return figure


def rope() -> Figure:
    """Where the pairs stand in a head, and what the kernel does to one of them in either direction."""
    figure, ax = canvas(10.4, 3.9)
    cell, colors = 0.62, (BLUE, ORANGE, GREEN, PURPLE)
    ax.text(0.1, 3.7, "one head, D = 8: four pairs", fontsize=11, color=INK, va="center")
    for i in range(8):
        corner = (0.1 + i * cell, 2.1)
        face = f"{colors[i % 4]}44"
        ax.add_patch(Rectangle(corner, cell, cell, facecolor=face, edgecolor="white", lw=1.5))
        ax.text(
            corner[0] + cell / 2, 2.1 + cell / 2, str(i), ha="center", va="center", fontsize=10, color=INK
        )
    for i, color in enumerate(colors):
        a, b = 0.1 + (i + 0.5) * cell, 0.1 + (i + 4.5) * cell
        arrow(ax, (a, 2.78), (b, 2.78), color=color, bend=-0.22 - 0.05 * i)
    ax.text(0.1, 1.6, r"pair i turns by $t\,\theta^{-2i/D}$: the first", fontsize=10, color=INK, va="center")
    ax.text(0.1, 1.3, "fast, the last hardly at all", fontsize=10, color=INK, va="center")
    for x, title, angle, color in ((6.45, "forward: by φ", 50, BLUE), (9.0, "backward: by -φ", -50, RED)):
        centre = np.array((x, 1.6))
        ax.text(x, 3.7, title, fontsize=11, color=INK, ha="center", va="center")
        ax.add_patch(Circle(centre, 1.15, facecolor="none", edgecolor=GRID, lw=1.4))
        start = 20 if angle > 0 else 70
        ends = []
        for degrees, shade in ((start, MEMORY), (start + angle, color)):
            end = centre + 1.15 * np.array((np.cos(np.radians(degrees)), np.sin(np.radians(degrees))))
            arrow(ax, tuple(centre), tuple(end), color=shade)
            ends.append((centre + 1.38 * (end - centre) / 1.15, shade))
        names = ("x", "y") if angle > 0 else ("dy", "dx")
        for (place, shade), name in zip(ends, names, strict=True):
            ax.text(*place, name, fontsize=11, color=shade, ha="center", va="center")
        first, last = sorted((start, start + angle))
        ax.add_patch(Arc(tuple(centre), 1.0, 1.0, theta1=first, theta2=last, color=INK, lw=1.3))
        middle = np.radians((first + last) / 2)
        at = centre + 0.68 * np.array((np.cos(middle), np.sin(middle)))
        ax.text(*at, "φ" if angle > 0 else "-φ", fontsize=10, color=INK, ha="center", va="center")
    return figure


def loss() -> Figure:
    """Rows of x in chunks; one chunk's logits at a time; dx row by row, dW as a sum."""
    figure, ax = canvas(10.6, 4.7)
    rows, height = 4, 0.75
    top = 4.05

    def stack(x: float, width: float, color: str, name: str, now: int) -> None:
        for i in range(rows):
            y = top - (i + 1) * height
            face = f"{color}77" if i == now else f"{color}22" if i < now else "none"
            patch = Rectangle((x, y), width, height, facecolor=face, edgecolor=color, lw=1.2)
            ax.add_patch(patch)
        ax.text(x + width / 2, top + 0.22, name, fontsize=10.5, color=INK, ha="center", va="center")

    now = 1
    y = top - (now + 0.5) * height
    stack(0.3, 0.8, BLUE, "x  (N, C)", now)
    stack(9.5, 0.8, RED, "dx  (N, C)", now)
    ax.add_patch(
        Rectangle(
            (3.0, top - rows * height), 3.5, rows * height, facecolor="none", edgecolor=GRID, lw=1.2, ls="--"
        )
    )
    ax.text(4.75, top + 0.22, "logits  (N, V): never", fontsize=10.5, color=MEMORY, ha="center", va="center")
    patch = Rectangle((3.0, y - height / 2), 3.5, height, facecolor=f"{ORANGE}55", edgecolor=ORANGE, lw=1.5)
    ax.add_patch(patch)
    ax.text(4.75, y + 0.13, "logits of a chunk  (R, V)", fontsize=10, color=INK, ha="center", va="center")
    ax.text(4.75, y - 0.16, "then dlogits, in their place", fontsize=10, color=INK, ha="center", va="center")
    arrow(ax, (1.1, y), (2.95, y), "1  · Wᵀ", color=BLUE, size=10, offset=(0, 0.17))
    arrow(ax, (6.5, y), (9.45, y), "3  · W", color=RED, size=10, offset=(0, 0.17))
    box(ax, 4.75, 0.62, "2  losses of R rows", width=2.2, height=0.5, color=ORANGE)
    arrow(ax, (4.75, y - height / 2), (4.75, 0.88), color=ORANGE)
    box(ax, 8.0, 0.62, "dW  (V, C)", width=1.6, height=0.5, color=PURPLE)
    arrow(ax, (6.2, y - height / 2), (7.35, 0.88), color=PURPLE)
    ax.text(7.25, 1.62, "4  + dlogitsᵀ x", fontsize=10, color=PURPLE, ha="left", va="center")
    ax.text(0.7, 0.62, "the next chunk\nuses the same memory", fontsize=9, color=INK, ha="left", va="center")
    return figure


def table() -> Figure:
    """Programs, the rows of the table, and the tensors that they point into."""
    figure, ax = canvas(10.4, 4.2)
    cell = 0.5
    entries = (
        (0, "w₀", 0, 256, BLUE),
        (1, "w₀", 1, 44, BLUE),
        (2, "w₁", 0, 256, ORANGE),
        (3, "w₁", 1, 84, ORANGE),
        (4, "w₂", 0, 5, GREEN),
    )
    for x, name in (
        (0.8, "programs"),
        (3.75, "the table, (programs, 3)"),
        (8.4, "weights, anywhere in memory"),
    ):
        ax.text(x, 4.0, name, fontsize=10.5, color=INK, ha="center", va="center")
    for column, name in enumerate(("w", "g", "n")):
        ax.text(2.55 + 1.2 * column, 3.62, name, fontsize=9.5, color=INK, ha="center", va="center")
    bars = {"w₀": (3.05, 300), "w₁": (1.75, 340), "w₂": (0.55, 5)}
    length = lambda n: max(0.009 * n, 0.12)
    for name, color in (("w₀", BLUE), ("w₁", ORANGE), ("w₂", GREEN)):
        y, n = bars[name]
        ax.add_patch(Rectangle((6.6, y), length(n), 0.42, facecolor=f"{color}33", edgecolor=color, lw=1.3))
        ax.text(
            6.6 + length(n) + 0.15, y + 0.21, f"{name}, {n} numbers", fontsize=9.5, color=INK, va="center"
        )
        if n > 256:
            ax.plot((6.6 + length(256),) * 2, (y, y + 0.42), color=color, lw=1.3)
    for k, name, piece, n, color in entries:
        y = 3.15 - 0.62 * k
        box(ax, 0.8, y, f"program {k}", width=1.25, height=0.42, color=PURPLE, size=9)
        arrow(ax, (1.43, y), (1.92, y), color=PURPLE)
        texts = (f"&{name}", f"&{name.replace('w', 'g')}", str(n))
        for column, text in enumerate(texts):
            text = f"{text} + 1024" if piece and column < 2 else text
            corner = (1.95 + 1.2 * column, y - cell / 2 + 0.02)
            ax.add_patch(
                Rectangle(corner, 1.2, cell - 0.04, facecolor=f"{color}22", edgecolor="white", lw=1.5)
            )
            ax.text(corner[0] + 0.6, y, text, fontsize=9, color=INK, ha="center", va="center")
        bottom = bars[name][0]
        at = (6.6 + length(256 + n / 2), bottom - 0.02) if piece else (6.58, bottom + 0.21)
        arrow(ax, (5.57, y), at, color=color)
    return figure


DRAWINGS = {"10_swiglu": swiglu, "10_rope": rope, "10_loss": loss, "10_table": table}

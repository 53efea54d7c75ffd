"""What the drawings share: a blank canvas, labelled boxes, arrows between them, and matrices as grids."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from course.plots import BLUE, GRID, INK


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty drawing `width` by `height` units large, one unit an inch, y upwards."""
    figure, ax = plt.subplots(figsize=(width, height))
    ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    ax.axis("off")
    return figure, ax


def box(
    ax: Axes,
    x: float,
    y: float,
    text: str,
    *,
    width: float = 1.3,
    height: float = 0.55,
    color: str = BLUE,
    size: float = 10,
) -> tuple[float, float]:
    """A rounded box centred on (x, y); -> its centre."""
    style = "round,pad=0,rounding_size=0.09"
    corner = (x - width / 2, y - height / 2)
    ax.add_patch(
        FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=f"{color}22", edgecolor=color, lw=1.4)
    )
    ax.text(x, y, text, ha="center", va="center", fontsize=size, color=INK)
    return x, y


def arrow(
    ax: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    text: str = "",
    *,
    color: str = INK,
    bend: float = 0.0,
    dashed: bool = False,
    offset: tuple[float, float] = (0, 0.13),
    size: float = 9,
) -> None:
    """An arrow from start to end, with a label beside its middle."""
    ax.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=12,
            lw=1.3,
            color=color,
            linestyle="--" if dashed else "-",
            connectionstyle=f"arc3,rad={bend}",
            shrinkA=0,
            shrinkB=0,
        )
    )
    if text:
        x, y = (np.asarray(start) + np.asarray(end)) / 2 + np.asarray(offset)
        ax.text(x, y, text, ha="center", va="center", fontsize=size, color=color)


def grid(
    ax: Axes,
    x: float,
    y: float,
    rows: int,
    columns: int,
    *,
    cell: float = 0.25,
    color: str = BLUE,
    filled=lambda i, j: True,
    label: str = "",
    size: float = 10,
) -> None:
    """A matrix as a grid of cells, its upper left corner at (x, y), its label below."""
    for i in range(rows):
        for j in range(columns):
            face = f"{color}66" if filled(i, j) else "#ffffff00"
            ax.add_patch(
                Rectangle(
                    (x + j * cell, y - (i + 1) * cell),
                    cell,
                    cell,
                    facecolor=face,
                    edgecolor=GRID,
                    lw=0.8,
                )
            )
    ax.add_patch(
        Rectangle(
            (x, y - rows * cell),
            columns * cell,
            rows * cell,
            facecolor="none",
            edgecolor=color,
            lw=1.4,
        )
    )
    if label:
        below = y - rows * cell - 0.18
        ax.text(x + columns * cell / 2, below, label, ha="center", va="center", fontsize=size)

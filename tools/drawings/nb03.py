"""The drawings of notebook 03."""

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from course.plots import BLUE, GREEN, INK, ORANGE, PURPLE, RED
from drawings.shapes import arrow, box, canvas


def tape() -> Figure:
    """loss = Σ x ⊙ tanh(x W): the forward pass leaves nodes behind, the backward pass walks them."""
    figure, ax = canvas(9.8, 4.6)
    top, bottom = 3.55, 1.15
    ax.text(0.1, 4.4, "forward: values, left to right", color=BLUE, fontsize=11)
    ax.text(0.1, 0.05, "backward: gradients, right to left", color=RED, fontsize=11)
    box(ax, 0.75, top, "x", width=0.9, color=ORANGE)
    box(ax, 0.75, 2.85, "W", width=0.9, color=ORANGE)
    steps = (
        (2.8, "u = x W", "Mm\nsaved: x, W"),
        (4.8, "t = tanh(u)", "Tanh\nsaved: t"),
        (6.8, "y = x ⊙ t", "Mul\nsaved: x, t"),
        (8.8, "loss = Σ y", "Sum\nsaved: a shape"),
    )
    for x, value, node in steps:
        box(ax, x, top, value, width=1.4)
        box(ax, x, bottom, node, width=1.4, height=0.75, color=GREEN, size=9.5)
        arrow(ax, (x, top - 0.28), (x, bottom + 0.38), color=GREEN, dashed=True)
    ax.text(8.9, 2.4, "grad_fn", fontsize=9.5, color=GREEN, va="center")
    arrow(ax, (1.2, top), (2.1, top), color=BLUE)
    arrow(ax, (1.2, 2.9), (2.1, top - 0.2), color=BLUE)
    for x in (2.8, 4.8, 6.8):
        arrow(ax, (x + 0.7, top), (x + 1.3, top), color=BLUE)
        arrow(ax, (x + 1.3, bottom), (x + 0.7, bottom), color=RED)
    arrow(ax, (0.9, top + 0.28), (6.6, top + 0.28), color=BLUE, bend=-0.1)
    box(ax, 0.75, 1.85, "W.grad", width=0.9, color=ORANGE)
    box(ax, 0.75, bottom, "x.grad", width=0.9, color=ORANGE)
    arrow(ax, (2.1, bottom), (1.2, bottom), color=RED)
    arrow(ax, (2.1, bottom + 0.2), (1.2, 1.8), color=RED)
    arrow(ax, (6.6, bottom - 0.38), (0.9, bottom - 0.28), color=RED, bend=-0.1)
    ax.text(0.45, 0.62, "both add", fontsize=9.5, color=RED, ha="center", va="center")
    return figure


def pair_to_op() -> Figure:
    """How `bind` makes a custom op of rmsnorm's pair."""
    figure, ax = canvas(10.2, 4.6)
    ax.text(0.2, 4.35, "the pair", fontsize=11.5, color=BLUE)
    box(ax, 1.35, 3.7, "rmsnorm_forward\n(x, weight, eps)", width=2.3, height=0.8)
    box(ax, 1.35, 2.2, "y,  saved =\n(x, weight, rstd)", width=2.3, height=0.8)
    box(ax, 1.35, 0.6, "rmsnorm_backward\n(dy, saved)", width=2.3, height=0.8)
    arrow(ax, (1.35, 3.28), (1.35, 2.63))
    arrow(ax, (1.35, 1.78), (1.35, 1.03))

    ax.text(3.35, 3.3, "the recipe of saved", fontsize=11.5, color=PURPLE)
    rows = (("x", "input 0"), ("weight", "input 1"), ("rstd", "new: output 1"))
    for i, (item, source) in enumerate(rows):
        y = 2.85 - 0.65 * i
        box(ax, 3.8, y, item, width=0.9, height=0.48)
        box(ax, 5.55, y, source, width=1.5, height=0.48, color=PURPLE)
        arrow(ax, (4.25, y), (4.8, y), color=PURPLE)
        arrow(ax, (2.5, 2.2), (3.35, y), color=BLUE)
        arrow(ax, (6.3, y), (7.05, 2.2 + 0.18 * (1 - i)), color=PURPLE)

    ax.text(7.05, 4.35, "the custom op", fontsize=11.5, color=GREEN)
    box(ax, 8.5, 3.7, "forward op -> [y, rstd]", width=2.9, height=0.6, color=GREEN)
    box(ax, 8.5, 2.2, "save_for_backward\n(x, weight, rstd)", width=2.9, height=0.8, color=GREEN)
    box(ax, 8.5, 0.6, "backward op -> [dx, dweight]", width=2.9, height=0.6, color=GREEN)
    arrow(ax, (8.5, 3.38), (8.5, 2.63))
    arrow(ax, (8.5, 1.78), (8.5, 0.93))
    arrow(ax, (2.5, 3.7), (7.05, 3.7), "on data: the op.  without data: its fake", color=INK)
    arrow(ax, (2.5, 0.6), (7.05, 0.6), "the same, with saved put together again", color=INK)
    return figure


def timeline() -> Figure:
    """One step in the three ways: who calls the kernels. Widths are not to scale."""
    figure, ax = canvas(10.2, 4.3)
    kernels = (0.62, 0.3, 0.42, 0.6, 0.3, 0.5)

    def block(x: float, y: float, width: float, color: str, height: float = 0.48) -> float:
        corner = (x, y - height / 2)
        ax.add_patch(Rectangle(corner, width, height, facecolor=f"{color}55", edgecolor=color))
        return x + width

    def run(x: float, y: float, widths, *callers) -> float:
        for width in widths:
            for color, size in callers:
                x = block(x, y, size, color)
            x = block(x, y, width, BLUE)
        return x

    rows = ((3.3, "by hand"), (2.2, "autograd"), (1.1, "compiled"))
    for y, name in rows:
        ax.text(0.1, y, name, fontsize=11, va="center", color=INK)
    python, node, cpp = (ORANGE, 0.13), (GREEN, 0.07), (PURPLE, 0.09)
    middle = run(1.3, 3.3, kernels, python)
    run(middle + 0.12, 3.3, kernels[::-1], python)
    middle = run(1.3, 2.2, kernels, python, node)
    run(middle + 0.12, 2.2, kernels[::-1], cpp)
    middle = run(block(1.3, 1.1, 0.2, ORANGE), 1.1, (1.0, 1.1))
    run(block(middle + 0.12, 1.1, 0.12, PURPLE), 1.1, (1.05, 1.15))
    legend = (
        (1.3, ORANGE, "Python calls"),
        (3.1, GREEN, "a node is built"),
        (5.1, PURPLE, "C++ walks the graph"),
        (7.6, BLUE, "a kernel runs"),
    )
    for x, color, label in legend:
        block(x, 4.05, 0.2, color, height=0.2)
        ax.text(x + 0.3, 4.05, label, fontsize=9.5, va="center", color=INK)
    arrow(ax, (1.3, 0.45), (9.9, 0.45), color=INK)
    ax.text(5.6, 0.22, "time of one step (a sketch, not to scale)", fontsize=9.5, ha="center", va="center")
    return figure


DRAWINGS = {"03_tape": tape, "03_pair_to_op": pair_to_op, "03_timeline": timeline}

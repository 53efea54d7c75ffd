"""The drawings of notebook 03."""

from matplotlib.figure import Figure

from course.plots import BLUE, GREEN, GRID, INK, ORANGE, PURPLE, RED, SKY
from drawings.shapes import arrow, box, canvas


def tape() -> Figure:
    """loss = Σ x ⊙ tanh(x W): the forward pass leaves nodes behind, the backward pass walks them."""
    figure, ax = canvas(9.6, 4.1)
    top, bottom = 3.1, 1.0
    ax.text(0.1, 3.85, "forward: values, left to right", color=BLUE, fontsize=11)
    ax.text(0.1, 0.1, "backward: gradients, right to left", color=RED, fontsize=11)
    box(ax, 0.75, top, "x", width=0.8, color=ORANGE)
    box(ax, 0.75, 2.25, "W", width=0.8, color=ORANGE)
    steps = ((2.7, "u = x W", "Mm"), (4.7, "t = tanh(u)", "Tanh"), (6.7, "y = x ⊙ t", "Mul"))
    steps += ((8.7, "loss = Σ y", "Sum"),)
    saved = {"Mm": "saved: x, W", "Tanh": "saved: t", "Mul": "saved: x, t", "Sum": "saved: a shape"}
    for x, value, node in steps:
        box(ax, x, top, value)
        box(ax, x, bottom, node, color=GREEN)
        ax.text(x, bottom - 0.42, saved[node], ha="center", va="center", fontsize=8.5, color=GREEN)
        arrow(ax, (x, top - 0.3), (x, bottom + 0.3), color=GREEN, dashed=True)
    ax.text(8.82, 2.0, "grad_fn", fontsize=9, color=GREEN, va="center")
    arrow(ax, (1.15, top), (2.05, top), color=BLUE)
    arrow(ax, (1.15, 2.3), (2.05, top - 0.2), color=BLUE)
    for x in (2.7, 4.7, 6.7):
        arrow(ax, (x + 0.65, top), (x + 1.35, top), color=BLUE)
        arrow(ax, (x + 1.35, bottom), (x + 0.65, bottom), color=RED)
    arrow(ax, (0.85, top + 0.28), (6.4, top + 0.28), color=BLUE, bend=-0.13)
    box(ax, 0.75, bottom, "x.grad", width=0.9, color=ORANGE)
    box(ax, 0.75, 1.65, "W.grad", width=0.9, color=ORANGE)
    arrow(ax, (2.05, bottom), (1.2, bottom), color=RED)
    arrow(ax, (2.05, bottom + 0.15), (1.2, 1.6), color=RED)
    arrow(ax, (6.3, bottom - 0.28), (0.85, bottom - 0.28), color=RED, bend=-0.1)
    ax.text(1.45, 0.62, "+", fontsize=13, color=RED, ha="center", va="center")
    return figure


def pair_to_op() -> Figure:
    """How `bind` makes a custom op of rmsnorm's pair."""
    figure, ax = canvas(10.2, 4.6)
    ax.text(0.1, 4.35, "the pair", fontsize=11, color=BLUE)
    box(ax, 1.35, 3.7, "rmsnorm_forward\n(x, weight, eps)", width=2.3, height=0.8)
    box(ax, 1.35, 2.3, "y,  saved =\n(x, weight, rstd)", width=2.3, height=0.8)
    box(ax, 1.35, 0.8, "rmsnorm_backward\n(dy, saved)", width=2.3, height=0.8)
    arrow(ax, (1.35, 3.28), (1.35, 2.73))
    arrow(ax, (1.35, 1.88), (1.35, 1.23))

    ax.text(3.35, 4.35, "the recipe: where is each item of saved?", fontsize=11, color=PURPLE)
    rows = (("x", "input 0"), ("weight", "input 1"), ("rstd", "new: output 1"))
    for i, (item, source) in enumerate(rows):
        y = 3.0 - 0.7 * i
        box(ax, 3.8, y, item, width=0.9, height=0.5)
        box(ax, 5.5, y, source, width=1.5, height=0.5, color=PURPLE)
        arrow(ax, (4.25, y), (4.75, y), color=PURPLE)
        arrow(ax, (2.5, 2.3), (3.35, y), color=GRID)

    ax.text(7.0, 4.35, "the custom op", fontsize=11, color=GREEN)
    box(ax, 8.5, 3.7, "forward op -> [y, rstd]", width=2.9, height=0.6, color=GREEN)
    box(ax, 8.5, 2.3, "save_for_backward\n(x, weight, rstd)", width=2.9, height=0.8, color=GREEN)
    box(ax, 8.5, 0.8, "backward op -> [dx, dweight]", width=2.9, height=0.6, color=GREEN)
    arrow(ax, (8.5, 3.38), (8.5, 2.73))
    arrow(ax, (8.5, 1.88), (8.5, 1.13))
    arrow(ax, (6.25, 2.3), (7.05, 2.3), color=PURPLE)
    arrow(ax, (2.5, 3.7), (7.05, 3.7), "runs on data, and without data as the fake", color=INK)
    arrow(ax, (2.5, 0.8), (7.05, 0.8), "runs inside", color=INK)
    return figure


def timeline() -> Figure:
    """One step in the three ways: who calls the kernels. Widths are not to scale."""
    figure, ax = canvas(10.2, 5.0)
    kernels = (0.75, 0.4, 0.55, 0.75, 0.4, 0.7)

    def lane(y: float, name: str, callers, blocks) -> None:
        ax.text(0.05, y + 0.28, name, fontsize=11, va="center", color=INK)
        ax.text(1.35, y + 0.5, "callers", fontsize=8.5, ha="right", va="center", color=INK)
        ax.text(1.35, y - 0.02, "kernels", fontsize=8.5, ha="right", va="center", color=INK)
        for x, width, color in callers:
            box(ax, x + width / 2, y + 0.5, "", width=width, height=0.3, color=color)
        for x, width in blocks:
            box(ax, x + width / 2, y - 0.02, "", width=width, height=0.36, color=BLUE)

    def run(x: float, widths, color: str, node: float = 0.0):
        """Kernels one after the other, each with its caller above."""
        callers, blocks = [], []
        for width in widths:
            callers.append((x, 0.16, color))
            if node:
                callers.append((x + 0.18, node, GREEN))
            blocks.append((x, width))
            x += width + 0.06 + node
        return callers, blocks, x

    forward, first, x = run(1.5, kernels, ORANGE)
    back, second, _ = run(x, kernels[::-1], ORANGE)
    lane(3.75, "by hand", forward + back, first + second)
    forward, first, x = run(1.5, kernels, ORANGE, node=0.09)
    back, second, _ = run(x, kernels[::-1], SKY)
    lane(2.25, "autograd", forward + back, first + second)
    fused = ((1.5, 1.05), (2.61, 1.25), (3.92, 1.1), (5.08, 1.2))
    lane(0.75, "compiled", ((1.5, 0.2, ORANGE), (3.92, 0.2, SKY)), fused)
    for x, color, label in (
        (1.5, ORANGE, "a line of Python"),
        (3.7, GREEN, "a node is built"),
        (5.7, SKY, "C++ walks the nodes"),
        (8.05, BLUE, "a kernel runs"),
    ):
        box(ax, x + 0.1, 4.75, "", width=0.2, height=0.2, color=color)
        ax.text(x + 0.3, 4.75, label, fontsize=9, va="center", color=INK)
    arrow(ax, (1.5, 0.2), (9.9, 0.2), "time (not to scale)", color=INK, offset=(0, -0.16))
    return figure


DRAWINGS = {"03_tape": tape, "03_pair_to_op": pair_to_op, "03_timeline": timeline}

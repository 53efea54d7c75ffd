"""The drawings of notebook 06: a step of training, the polar factor, number formats, a checkpoint."""

from itertools import pairwise

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from course.optim import orthogonalize
from course.plots import BLUE, COLORS, GREEN, INK, ORANGE, PURPLE, RED
from drawings.shapes import arrow, box, canvas


def _text(ax: Axes, x: float, y: float, text: str, size: float = 10, **more) -> None:
    ax.text(x, y, text, ha=more.pop("ha", "center"), va="center", fontsize=size, **more)


def step() -> Figure:
    """One step of training, with the section in which each part is explained."""
    figure, ax = canvas(10.6, 4.35)
    top, bottom = 3.3, 1.35
    row = (
        (0.85, "batch\nof this step", "6", ORANGE),
        (2.75, "pieces", "4", ORANGE),
        (4.65, "loss\nin 16 bits", "5", BLUE),
        (6.6, "gradients\nof loss × scale", "5", BLUE),
        (8.75, "sum, ÷ scale\nclip", "4", BLUE),
    )
    for x, text, section, color in row:
        box(ax, x, top, text, width=1.45 if x < 8 else 1.6, height=0.75, color=color)
        _text(ax, x, top + 0.55, section, 10.5, color=color, fontweight="bold")
    for (a, *_), (b, *_) in pairwise(row):
        arrow(ax, (a + 0.75, top), (b - (0.75 if b < 8 else 0.82), top))
    box(ax, 8.75, bottom, "optimizer\nAdamW, Muon", width=1.6, height=0.75, color=GREEN)
    box(ax, 6.6, bottom, "weights\nin 32 bits", width=1.45, height=0.75, color=GREEN)
    box(ax, 8.75, 0.3, "memory: m, v", width=1.6, height=0.42, color=GREEN)
    box(ax, 4.65, bottom, "log, samples\nvalidation", width=1.45, height=0.75, color=PURPLE)
    box(ax, 2.75, bottom, "checkpoint", width=1.45, height=0.75, color=PURPLE)
    box(ax, 0.85, bottom, "step + 1", width=1.45, height=0.75, color=ORANGE)
    for x, y, section, color in (
        (9.8, bottom - 0.15, "1, 2", GREEN),
        (6.6, bottom - 0.55, "5", GREEN),
        (4.65, bottom - 0.55, "7, 8", PURPLE),
        (2.75, bottom - 0.55, "6", PURPLE),
    ):
        _text(ax, x, y, section, 10.5, color=color, fontweight="bold")
    arrow(ax, (8.75, top - 0.38), (8.75, bottom + 0.38))
    arrow(ax, (9.95, 2.32), (9.4, bottom + 0.4), color=GREEN)
    _text(ax, 10.05, 2.52, "learning rate\nof this step", 9.5, color=GREEN)
    _text(ax, 10.05, 2.83, "3", 10.5, color=GREEN, fontweight="bold")
    arrow(ax, (7.94, bottom), (7.34, bottom))
    arrow(ax, (8.75, bottom - 0.38), (8.75, 0.52), color=GREEN)
    arrow(ax, (8.6, 0.52), (8.6, bottom - 0.38), color=GREEN)
    arrow(ax, (6.35, bottom + 0.38), (4.9, top - 0.38), "rounded", color=GREEN, offset=(0.42, 0.12))
    for a, b in ((6.6, 4.65), (4.65, 2.75), (2.75, 0.85)):
        arrow(ax, (a - 0.73, bottom), (b + 0.73, bottom))
    arrow(ax, (0.85, bottom + 0.38), (0.85, top - 0.38))
    return figure


def polar() -> Figure:
    """A gradient maps the unit circle to an ellipse; Newton and Schulz's steps make it round."""
    figure, ax = canvas(10.6, 2.75)
    angle = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    marks = np.stack([np.cos(np.arange(8) * np.pi / 4 + 0.2), np.sin(np.arange(8) * np.pi / 4 + 0.2)])
    rotate = [np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in (0.6, -0.5)]
    gradient = rotate[0] @ np.diag([1.0, 0.06]) @ rotate[1].T
    matrices = [("all inputs", np.eye(2)), ("gradient, ÷ its norm", gradient / np.linalg.norm(gradient))]
    for k in (1, 2, 5):
        x = orthogonalize(torch.from_numpy(gradient), steps=k).numpy()
        matrices.append((f"after {k} step{'s' * (k > 1)}", x))
    for i, (name, matrix) in enumerate(matrices):
        x, y = 1.05 + 2.12 * i, 1.5
        shape, points = 0.78 * matrix @ circle, 0.78 * matrix @ marks
        color = INK if i == 0 else RED if i == 1 else BLUE
        ax.plot(x + 0.78 * circle[0], y + 0.78 * circle[1], color=INK, lw=0.7, ls=":")
        ax.fill(x + shape[0], y + shape[1], facecolor=f"{color}18", edgecolor=color, lw=1.6)
        for j in range(8):
            ax.plot(x + points[0, j], y + points[1, j], "o", color=COLORS[j % 6], markersize=5)
        _text(ax, x, 2.6, name, 10.5, color=color)
        s = np.linalg.svd(matrix, compute_uv=False)
        _text(ax, x, 0.25, f"singular values\n{s[0]:.2f}, {s[1]:.2f}", 9.5, color=color)
        if i:
            arrow(ax, (x - 1.19, y), (x - 0.95, y))
    return figure


def formats() -> Figure:
    """The bits of three formats, one cell a bit, and the ranges they span."""
    figure, ax = canvas(10.6, 4.1)
    rows = (("float32", 8, 23), ("bfloat16", 8, 7), ("float16", 5, 10))
    cell = 0.262
    for i, (name, exponent, fraction) in enumerate(rows):
        y, x = 3.35 - 0.62 * i, 1.15
        _text(ax, 0.1, y + 0.14, name, 11, ha="left")
        for kind, count, color in (("", 1, INK), ("e", exponent, ORANGE), ("f", fraction, BLUE)):
            for _ in range(count):
                ax.add_patch(Rectangle((x, y), cell, 0.28, facecolor=f"{color}44", edgecolor=color, lw=0.8))
                x += cell
            if kind:
                _text(ax, x - count * cell / 2, y - 0.13, str(count), 9.5, color=color)
    parts = ((1.28, "sign", INK), (2.4, "exponent: range", ORANGE), (5.4, "fraction: precision", BLUE))
    for x, label, color in parts:
        _text(ax, x, 3.85, label, 10, color=color)

    def place(log2: float) -> float:
        return 1.15 + (log2 + 150) / 280 * 9.2

    spans = (
        ("float32", -149, -126, 128, GREEN),
        ("bfloat16", -133, -126, 128, PURPLE),
        ("float16", -24, -14, 16, RED),
    )
    for i, (name, smallest, normal, largest, color) in enumerate(spans):
        y = 1.45 - 0.36 * i
        _text(ax, 0.1, y, name, 11, ha="left")
        for start, end, alpha in ((normal, largest, 1.0), (smallest, normal, 0.35)):
            ends = [place(start), place(end)]
            ax.plot(ends, [y, y], color=color, lw=7, alpha=alpha, solid_capstyle="butt")
    for log2 in (-149, -126, -24, 0, 16, 128):
        ax.plot([place(log2)] * 2, [0.45, 1.62], color=INK, lw=0.6, ls=":")
        _text(ax, place(log2), 0.28, f"$2^{{{log2}}}$", 10.5)
    _text(ax, place(-75), 0.02, "pale: subnormal numbers, which lose digits one by one", 9.5)
    return figure


def checkpoint() -> Figure:
    """How a checkpoint gets to the disk, and what is there if the process is killed meanwhile."""
    figure, ax = canvas(10.6, 3.9)
    columns = (
        (1.3, "before", ("step_00000040", "step_00000060"), None, "step_00000060"),
        (4.0, "1. written", ("step_00000040", "step_00000060"), "part_…", "step_00000060"),
        (6.7, "2. renamed", ("step_00000040", "step_00000060", "step_00000080"), None, "step_00000060"),
        (9.4, "3. pointed to, rotated", ("step_00000060", "step_00000080"), None, "step_00000080"),
    )
    for x, title, folders, part, latest in columns:
        _text(ax, x, 3.7, title, 11, color=BLUE)
        for folder in folders:
            number = int(folder[-2:])
            y = 3.1 - 0.5 * (number - 40) / 20
            box(ax, x, y, folder, width=1.75, height=0.4, color=GREEN, size=9.5)
        if part:
            box(ax, x, 2.1, part, width=1.75, height=0.4, color=ORANGE, size=9.5)
        box(ax, x, 1.35, f"latest: {latest[-2:]}", width=1.75, height=0.4, color=PURPLE, size=9.5)
    for x in (2.65, 5.35, 8.05):
        arrow(ax, (x - 0.38, 2.6), (x + 0.38, 2.6))
    _text(ax, 0.35, 0.9, "killed here, a run ...", 9.5, color=RED, ha="left")
    for x, text in (
        (1.3, "goes on from 60"),
        (4.0, "part_… is swept away,\ngoes on from 60"),
        (6.7, "goes on from 80:\nthe newest whole one"),
        (9.4, "goes on from 80"),
    ):
        _text(ax, x, 0.42, text, 9.5, color=RED)
    return figure


DRAWINGS = {"06_step": step, "06_polar": polar, "06_formats": formats, "06_checkpoint": checkpoint}

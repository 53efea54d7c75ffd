"""The figures of notebook 07: where bytes live, which program owns which elements, what a softmax moves."""

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from course.plots import BLUE, GREEN, GRID, INK, ORANGE, RED, SKY
from drawings.shapes import arrow, box, canvas

# NVIDIA, H100 Tensor Core GPU Architecture, 2022; SXM5: 132 SMs, 50 MB of L2, 80 GB at 3.35 TB/s.
SMS, REGISTERS_KIB, L1_KIB, SHARED_KIB, L2_MB, HBM_GB, HBM_TB_S = 132, 256, 256, 228, 50, 80, 3.35


def hierarchy() -> Figure:
    """One SM beside the rest of an H100: each level larger and farther than the one before."""
    figure, ax = canvas(8.6, 4.3)
    ax.add_patch(Rectangle((0.2, 0.35), 3.9, 3.75, facecolor=f"{SKY}22", edgecolor=SKY, lw=1.3))
    ax.text(0.35, 3.82, f"an SM, one of {SMS}", fontsize=10, va="center", color=INK)
    box(ax, 1.15, 3.2, "warps of 32\nthreads", width=1.5, height=0.7, color=INK)
    box(ax, 3.1, 3.2, "tensor cores", width=1.5, height=0.7, color=INK)
    box(ax, 2.12, 2.15, f"registers: {REGISTERS_KIB} KiB", width=3.5, height=0.6, color=GREEN)
    l1 = f"L1: {L1_KIB} KiB, of which up\nto {SHARED_KIB} KiB are shared memory"
    box(ax, 2.12, 1.05, l1, width=3.5, height=0.6, color=BLUE)
    arrow(ax, (1.15, 2.47), (1.15, 2.83))
    arrow(ax, (3.1, 2.47), (3.1, 2.83))
    arrow(ax, (2.12, 1.37), (2.12, 1.83))
    box(ax, 5.35, 1.05, f"L2: {L2_MB} MB\nfor all SMs", width=1.5, height=1.0, color=ORANGE)
    box(ax, 7.55, 1.05, f"HBM: {HBM_GB} GB", width=1.5, height=2.0, color=RED)
    arrow(ax, (4.58, 1.05), (3.92, 1.05))
    arrow(ax, (6.78, 1.05), (6.12, 1.05))
    ax.text(6.45, 1.25, f"{HBM_TB_S}\nTB/s", ha="center", fontsize=9, color=INK)
    registers, shared = SMS * REGISTERS_KIB / 1024, SMS * SHARED_KIB / 1024
    words = (
        f"All registers together are {registers:.0f} MiB,\nall shared memory {shared:.0f} MiB.\n"
        "A tensor that matters fits in neither:\nit lies in HBM, and comes and goes in pieces."
    )
    ax.text(4.6, 3.2, words, fontsize=10, va="center", color=INK, linespacing=1.5)
    return figure


def grid() -> Figure:
    """A vector of 22 elements, programs of 8: who owns what, and the two elements that are not there."""
    figure, ax = canvas(8.6, 2.3)
    n, block, size = 22, 8, 0.33
    colors = (BLUE, ORANGE, GREEN)
    for i in range(24):
        x = 0.35 + i * size
        inside = i < n
        color = colors[i // block]
        style = (
            {"facecolor": f"{color}44", "edgecolor": color}
            if inside
            else {"facecolor": "none", "edgecolor": RED}
        )
        ax.add_patch(Rectangle((x, 1.05), size - 0.04, 0.42, lw=1.2, ls="-" if inside else "--", **style))
        ax.text(
            x + size / 2 - 0.02,
            1.26,
            str(i),
            ha="center",
            va="center",
            fontsize=8,
            color=INK if inside else RED,
        )
    for program in range(3):
        middle = 0.35 + (program + 0.5) * block * size
        ax.text(middle, 1.95, f"program {program}", ha="center", fontsize=10, color=colors[program])
        ax.text(middle, 1.68, f"at = {program} × 8 + [0 … 7]", ha="center", fontsize=9, color=INK)
    ax.text(
        0.35, 0.55, "n = 22, BLOCK = 8: three programs, and the last one has a mask", fontsize=10, color=INK
    )
    ax.text(0.35 + 24 * size, 0.55, "at < n is false", ha="right", fontsize=10, color=RED)
    return figure


def softmax() -> Figure:
    """What five separate operations move between HBM and the chip for a softmax, and what one kernel does."""
    figure, ax = canvas(8.6, 3.3)
    steps = (("max", 1, 0), ("x - max", 1, 1), ("exp", 1, 1), ("sum", 1, 0), ("e / sum", 1, 1))
    ax.text(0.2, 3.0, "five operations: 5 reads and 3 writes of the matrix", fontsize=10, color=INK)
    ax.text(0.2, 2.62, "HBM", fontsize=9, color=RED, va="center")
    ax.plot([0.75, 6.1], [2.62, 2.62], color=RED, lw=3)
    for i, (name, reads, writes) in enumerate(steps):
        x = 1.25 + i * 1.1
        box(ax, x, 1.5, name, width=0.95, height=0.5, color=BLUE, size=9)
        if reads:
            arrow(ax, (x - 0.15, 2.58), (x - 0.15, 1.77), color=INK)
        if writes:
            arrow(ax, (x + 0.15, 1.77), (x + 0.15, 2.58), color=ORANGE)
    ax.text(6.75, 3.0, "one kernel: 1 and 1", fontsize=10, color=INK)
    ax.plot([6.75, 8.4], [2.62, 2.62], color=RED, lw=3)
    box(ax, 7.58, 1.5, "a row\nin registers", width=1.3, height=0.7, color=GREEN, size=9)
    arrow(ax, (7.4, 2.58), (7.4, 1.87), color=INK)
    arrow(ax, (7.76, 1.87), (7.76, 2.58), color=ORANGE)
    ax.plot([6.4, 6.4], [0.9, 3.1], color=GRID, lw=1)
    ax.text(
        0.2,
        0.55,
        "black: read from HBM, orange: written to it. The time is that of the arrows.",
        fontsize=10,
        color=INK,
    )
    return figure


DRAWINGS = {"07_hierarchy": hierarchy, "07_grid": grid, "07_softmax": softmax}

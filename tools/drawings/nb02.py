"""The drawings of notebook 02: Jacobians, rotations, masks, grouped heads, a block both ways."""

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

from course.plots import BLUE, GREEN, GRID, ORANGE, PURPLE, RED, SKY
from drawings.shapes import arrow, box, canvas


def _text(ax: Axes, x: float, y: float, text: str, size: float = 10, **more) -> None:
    ax.text(x, y, text, ha=more.pop("ha", "center"), va="center", fontsize=size, **more)


# --- Jacobians --------------------------------------------------------------------------


def _cells(ax: Axes, x: float, y: float, colors: np.ndarray, cell: float, line: str) -> None:
    """Coloured squares, `(rows, columns, 4)`, upper left corner at (x, y)."""
    rows, columns = colors.shape[:2]
    right, bottom = x + columns * cell, y - rows * cell
    limits = ax.axis()
    ax.imshow(colors, extent=(x, right, bottom, y), interpolation="nearest", zorder=1)
    ax.axis(limits)
    across = [((x, right, np.nan), (y - i * cell,) * 3) for i in range(rows + 1)]
    down = [((x + j * cell,) * 3, (y, bottom, np.nan)) for j in range(columns + 1)]
    xs, ys = (np.concatenate(part) for part in zip(*across, *down, strict=True))
    ax.plot(xs, ys, color=line, lw=0.8, zorder=2)


def _numbers(ax: Axes, x: float, y: float, values: np.ndarray, limit: float, label: str) -> None:
    """A matrix with its numbers, orange above 0, purple below; upper left corner at (x, y)."""
    cell = 0.44
    rows, columns = values.shape
    shades = plt.get_cmap("PuOr_r")(0.5 + 0.38 * np.clip(values / limit, -1, 1))
    _cells(ax, x, y, shades, cell, "white")
    for i, j in np.ndindex(rows, columns):
        number = f"{values[i, j]:.2f}".replace("-0.00", "0").replace("0.00", "0")
        number = number.replace("1.00", "1").replace("0.", ".").replace("-", "\N{MINUS SIGN}")
        _text(ax, x + (j + 0.5) * cell, y - (i + 0.5) * cell, number, 8, zorder=3)
    _text(ax, x + columns * cell / 2, y - rows * cell - 0.22, label)


def _sum_of_matrices(parts: list[tuple[str, np.ndarray, str]], limit: float, note: str) -> Figure:
    """Matrices in a row with a sign before each, and a line of text below."""
    gaps = [0.5 if sign else 0.0 for sign, _, _ in parts]
    widths = [values.shape[1] * 0.44 + (0.15 if values.shape[1] > 1 else 0.6) for _, values, _ in parts]
    width = sum(gaps) + sum(widths) + 0.2
    figure, ax = canvas(width, 2.9)
    x = 0.1
    for (sign, values, label), gap, wide in zip(parts, gaps, widths, strict=True):
        _text(ax, x + gap / 2 - 0.05, 1.82, sign, 15)
        _numbers(ax, x + gap, 2.7, values, limit, label)
        x += gap + wide
    _text(ax, width / 2, 0.25, note, 9.5)
    return figure


def softmax_jacobian() -> Figure:
    """diag(y) - y yᵀ for one row of four probabilities."""
    y = np.array([0.5, 0.3, 0.15, 0.05])
    parts = [
        ("", y[:, None], "y"),
        ("", np.diag(y), "diag(y)"),
        ("\N{MINUS SIGN}", np.outer(y, y), r"y y$^\top$"),
        ("=", np.diag(y) - np.outer(y, y), "J"),
    ]
    return _sum_of_matrices(parts, 0.5, "row i, column j: how probability i moves when score j is raised")


def layernorm_jacobian() -> Figure:
    """I - 11ᵀ/C - x̂x̂ᵀ/C for one row of four numbers."""
    x = np.array([1.5, 0.2, -0.4, -1.3])
    x_hat = (x - x.mean()) / x.std()
    C = len(x)
    ones, outer = np.ones((C, C)) / C, np.outer(x_hat, x_hat) / C
    parts = [
        ("", np.eye(C), "directly"),
        ("\N{MINUS SIGN}", ones, r"through $\mu$: 1/C"),
        ("\N{MINUS SIGN}", outer, r"through r: $\hat{x}\,\hat{x}^\top$/C"),
        ("=", np.eye(C) - ones - outer, r"$\partial \hat{x}_i / \partial x_j$, divided by r"),
    ]
    note = r"a product with what is left removes the directions (1, 1, 1, 1) and $\hat{x}$"
    return _sum_of_matrices(parts, 1.0, note)


# --- Positions --------------------------------------------------------------------------


def rope() -> Figure:
    """Which features form a pair, and how each pair turns as the position grows."""
    D, colors = 8, (BLUE, ORANGE, GREEN, PURPLE)
    figure, ax = canvas(8.4, 4.3)
    left, cell = 2.2, 0.5
    for d in range(D):
        color = colors[d % (D // 2)]
        corner = (left + d * cell, 3.6)
        ax.add_patch(Rectangle(corner, cell, 0.42, facecolor=f"{color}55", edgecolor=color, lw=1.2))
        _text(ax, corner[0] + cell / 2, 3.81, f"$x_{d}$", 10.5)
    _text(ax, left - 0.15, 3.81, "one head, D = 8", 10, ha="right")
    for i, color in enumerate(colors):
        x, y, radius = 1.15 + 2.05 * i, 1.45, 0.72
        for d in (i, i + D // 2):
            start = (left + (d + 0.5) * cell, 3.58)
            ax.plot([start[0], x], [start[1], y + radius + 0.56], color=color, lw=0.9, alpha=0.7)
        ax.add_patch(Circle((x, y), radius, facecolor="none", edgecolor=GRID, lw=1.2))
        angle = 10_000.0 ** (-2 * i / D)
        for t in (3, 2, 1, 0):
            turn = 0.35 + t * angle
            end = (x + radius * np.cos(turn), y + radius * np.sin(turn))
            ax.plot([x, end[0]], [y, end[1]], color=color, lw=2.2, alpha=1 - 0.24 * t)
            ax.plot(*end, "o", color=color, markersize=5, alpha=1 - 0.24 * t)
            if i == 0:
                far = (x + 1.4 * radius * np.cos(turn), y + 1.26 * radius * np.sin(turn))
                _text(ax, *far, f"t = {t}", 8)
        _text(ax, x, y + radius + 0.42, f"pair ($x_{i}$, $x_{i + D // 2}$)", 9.5)
        _text(ax, x, 0.42, f"{angle:g} rad a position", 9)
    _text(ax, 4.2, 0.05, "the same vector at positions 0, 1, 2, 3, fading", 9.5)
    return figure


# --- Attention --------------------------------------------------------------------------


def masks() -> Figure:
    """Which keys (columns) a query (row) sees."""
    S, cell = 8, 0.21
    figure, ax = canvas(9.0, 2.85)

    blue, sink = (np.array(to_rgba(f"{color}66")) for color in (BLUE, RED))
    kinds = [
        (S, None, "causal"),
        (S, 3, "window = 3"),
        (S, None, "with a sink"),
        (3, None, "T = 3, S = 8"),
    ]
    for n, (rows, window, label) in enumerate(kinds):
        x, top = 0.55 + 2.2 * n, 2.45
        distance = np.arange(S - rows, S)[:, None] - np.arange(S)
        seen = (distance >= 0) & (distance < (window or S))
        _cells(ax, x, top, seen[..., None] * blue, cell, GRID)
        if "sink" in label:
            _cells(ax, x + (S + 0.4) * cell, top, np.broadcast_to(sink, (S, 1, 4)), cell, GRID)
            _text(ax, x + (S + 0.9) * cell, top + 0.13, "$s_h$", 9.5, color=RED)
        _text(ax, x + S * cell / 2, top - S * cell - 0.25, label, 10)
    _text(ax, 0.36, 2.45 - S * cell / 2, "queries", 9, rotation=90)
    _text(ax, 0.55 + S * cell / 2, 2.6, "keys", 9)
    _text(ax, 0.55 + 6.6 + S * cell / 2, 1.45, "the last 3 positions", 9)
    return figure


def _tile(ax: Axes, x: float, y: float, width: float, height: float, color: str, text: str) -> None:
    corner = (x - width / 2, y - height / 2)
    ax.add_patch(Rectangle(corner, width, height, facecolor=f"{color}33", edgecolor=color, lw=1.3))
    _text(ax, x, y, text, 9.5)


def attention_shapes() -> Figure:
    """Four query heads over two key-value heads, with the shapes, and the gradient's way back."""
    figure, ax = canvas(9.2, 5.0)
    heads, groups = (4.0, 3.1, 2.2, 1.3), (3.55, 1.75)
    q_x, k_x, p_x, v_x, o_x = 0.75, 2.5, 4.4, 6.3, 8.2
    for h, y in enumerate(heads):
        key = groups[h // 2]
        _tile(ax, q_x, y, 0.55, 0.7, BLUE, f"$q_{h}$")
        _tile(ax, p_x, y, 0.7, 0.7, PURPLE, f"$P_{h}$")
        _tile(ax, o_x, y, 0.55, 0.7, SKY, f"$o_{h}$")
        ax.plot([q_x + 0.3, p_x - 0.38], [y, y], color=BLUE, lw=1.0, alpha=0.55)
        ax.plot([p_x + 0.38, o_x - 0.3], [y, y], color=PURPLE, lw=1.0, alpha=0.55)
        arrow(ax, (k_x + 0.3, key), (p_x - 0.38, y + 0.12 * (-1) ** h), color=ORANGE)
        arrow(ax, (v_x + 0.3, key), (o_x - 0.3, y + 0.12 * (-1) ** h), color=GREEN)
    for j, y in enumerate(groups):
        for x, color, name in ((k_x, ORANGE, "k"), (v_x, GREEN, "v")):
            ax.add_patch(Rectangle((x - 0.28, y - 0.35), 0.56, 0.7, facecolor="white", zorder=2))
            tile = Rectangle(
                (x - 0.28, y - 0.35),
                0.56,
                0.7,
                facecolor=f"{color}33",
                edgecolor=color,
                lw=1.3,
                zorder=3,
            )
            ax.add_patch(tile)
            _text(ax, x, y, f"${name}_{j}$", 9.5, zorder=4)
    for x, name, shape in (
        (q_x, "queries", "(B, T, H, D)"),
        (k_x, "keys", "(B, S, H_kv, D)"),
        (p_x, "probabilities", "(B, H, T, S)"),
        (v_x, "values", "(B, S, H_kv, D)"),
        (o_x, "outputs", "(B, T, H, D)"),
    ):
        _text(ax, x, 4.84, name, 10)
        _text(ax, x, 4.57, shape, 9, family="monospace")
    _text(ax, 4.45, 0.62, "forward: each key-value head is read by G = H / H_kv = 2 query heads", 10)
    _text(
        ax,
        4.45,
        0.28,
        r"backward: d$k_0$ and d$v_0$ are the sums of what heads 0 and 1 send back",
        10,
        color=RED,
    )
    return figure


# --- The block --------------------------------------------------------------------------


def block() -> Figure:
    """The residual stream through one block, and the gradient's way back along the same lines."""
    figure, ax = canvas(9.2, 5.7)

    copies, adds, boxes = (1.0, 4.9), (4.2, 8.1), ((1.95, 3.25), (5.85, 7.15))

    def way(stream: float, below: float, color: str, forward: bool) -> None:
        def flow(start, end):
            arrow(ax, *((start, end) if forward else (end, start)), color=color)

        def wire(*points):
            ax.plot(*zip(*points, strict=True), color=color, lw=1.3)

        stops = (0.02, copies[0], adds[0], copies[1], adds[1], 9.18)
        for a, b in pairwise(stops):
            flow((a + 0.13, stream), (b - 0.13, stream))
        for copy, add, (norm, branch), name in zip(copies, adds, boxes, ("attention", "mlp"), strict=True):
            box(ax, norm, below, "norm", width=1.02, height=0.46, color=color)
            box(ax, branch, below, name, width=1.02, height=0.46, color=color)
            flow((norm + 0.51, below), (branch - 0.51, below))
            near, far = (copy, norm - 0.51), (add, branch + 0.51)  # x of the circle, x of the box
            leaving, entering = (near, far) if forward else (far, near)
            wire((leaving[0], stream - 0.13), (leaving[0], below))
            arrow(ax, (leaving[0], below), (leaving[1], below), color=color)
            wire((entering[1], below), (entering[0], below), (entering[0], stream - 0.3))
            arrow(ax, (entering[0], stream - 0.32), (entering[0], stream - 0.12), color=color)
            for x, plus in ((leaving[0], False), (entering[0], True)):
                rim = Circle((x, stream), 0.13, facecolor="white", edgecolor=color, lw=1.4, zorder=3)
                ax.add_patch(rim)
                if plus:
                    _text(ax, x, stream - 0.005, "+", 12, color=color, zorder=4)
                else:
                    ax.plot(x, stream, "o", color=color, markersize=5, zorder=4)

    _text(ax, 0.1, 5.45, "forward", 11, ha="left", color=BLUE)
    way(4.75, 3.65, BLUE, True)
    _text(ax, 0.35, 4.95, "x", 11)
    _text(ax, 8.8, 4.95, "x", 11)
    _text(ax, 1.0, 5.08, "copied", 9)
    _text(ax, 4.2, 5.08, "added", 9)
    _text(ax, 4.9, 5.08, "copied", 9)
    _text(ax, 8.1, 5.08, "added", 9)
    ax.plot([0.1, 9.1], [3.08, 3.08], color=GRID, lw=1)
    _text(ax, 0.1, 2.75, "backward", 11, ha="left", color=RED)
    way(2.0, 0.9, RED, False)
    _text(ax, 0.35, 2.22, "dx", 11)
    _text(ax, 8.8, 2.22, "dx", 11)
    _text(ax, 1.0, 2.35, "summed", 9)
    _text(ax, 4.15, 2.35, "copied", 9)
    _text(ax, 4.95, 2.35, "summed", 9)
    _text(ax, 8.1, 2.35, "copied", 9)
    _text(ax, 4.6, 0.3, "every box: its backward, fed with what its forward saved", 9.5)
    return figure


DRAWINGS = {
    "02_softmax_jacobian": softmax_jacobian,
    "02_layernorm_jacobian": layernorm_jacobian,
    "02_rope": rope,
    "02_masks": masks,
    "02_attention_shapes": attention_shapes,
    "02_block": block,
}

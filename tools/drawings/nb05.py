"""The drawings of notebook 05: both blocks, widths, shared heads, the cache, windows, the residual stream."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon, Rectangle

from course.plots import BLUE, GREEN, GRID, INK, ORANGE, PURPLE, RED
from drawings.shapes import arrow, box, canvas


def _text(ax: Axes, x: float, y: float, text: str, size: float = 10, **more) -> None:
    ax.text(x, y, text, ha=more.pop("ha", "center"), va="center", fontsize=size, **more)


def _tile(ax: Axes, x: float, y: float, width: float, height: float, color: str, text: str = "") -> None:
    """A rectangle with its lower left corner at (x, y)."""
    ax.add_patch(Rectangle((x, y), width, height, facecolor=f"{color}33", edgecolor=color, lw=1.2))
    _text(ax, x + width / 2, y + height / 2, text, 9.5)


# --- The block --------------------------------------------------------------------------


def blocks() -> Figure:
    """The classic block and the modern one, bottom to top, what changed in colour."""
    figure, ax = canvas(9.0, 6.6)
    columns = {
        1.75: ("classic (GPT-2, 2019)", INK, "embedding + position", ("LayerNorm",) * 2),
        6.6: ("modern (Llama, 2023)", BLUE, "embedding", ("RMSNorm",) * 2),
    }
    for x, (title, color, first, norms) in columns.items():
        modern = color == BLUE
        _text(ax, x + 0.1, 6.4, title, 12, color=color)
        ax.plot([x - 1.35, x - 1.35], [0.95, 5.95], color=INK, lw=1.3)
        arrow(ax, (x - 1.35, 5.8), (x - 1.35, 6.15))
        _text(ax, x - 1.35, 0.15, "tokens", 9.5)
        arrow(ax, (x - 1.35, 0.3), (x - 1.35, 0.5))
        box(ax, x - 0.55, 0.74, first, width=2.2, height=0.42, color=INK if modern else GREEN)
        branch = ("attention", "MLP: SwiGLU" if modern else "MLP: GELU")
        for base, norm, inner in zip((1.25, 3.75), norms, branch, strict=True):
            attention = inner == "attention"
            changed = GREEN if attention else ORANGE
            height = 0.95 if attention else 0.75
            ax.plot([x - 1.35, x + 0.1], [base, base], color=INK, lw=1.3)
            arrow(ax, (x + 0.1, base), (x + 0.1, base + 0.22))
            box(ax, x + 0.1, base + 0.43, norm, width=2.15, height=0.42, color=PURPLE)
            arrow(ax, (x + 0.1, base + 0.64), (x + 0.1, base + 0.86))
            note = {
                (True, True): "attention\nRoPE on q and k\nfew k, v heads; sink",
                (True, False): "attention\na k and v head\nfor every q head",
                (False, True): "SwiGLU\nno biases, F = 8C/3",
                (False, False): "GELU\nbiases, F = 4C",
            }[attention, modern]
            box(ax, x + 0.1, base + 0.86 + height / 2, note, width=2.15, height=height, color=changed)
            top = base + 0.86 + height
            ax.plot([x + 0.1, x + 0.1], [top, top + 0.25], color=INK, lw=1.3)
            arrow(ax, (x + 0.1, top + 0.25), (x - 1.22, top + 0.25))
            rim = Circle((x - 1.35, top + 0.25), 0.13, facecolor="white", edgecolor=INK, lw=1.3, zorder=3)
            ax.add_patch(rim)
            _text(ax, x - 1.35, top + 0.245, "+", 12, zorder=4)
    for y, what, color in (
        (0.74, "3. position", GREEN),
        (1.68, "2. norm", PURPLE),
        (2.58, "3. position   5. heads", GREEN),
        (4.98, "4. gate", ORANGE),
    ):
        _text(ax, 4.1, y, what.replace("   ", "\n"), 9.5, color=color)
    return figure


# --- The feed-forward layer -------------------------------------------------------------


def widths() -> Figure:
    """GELU's two matrices and SwiGLU's three, drawn to scale: the same area."""
    figure, ax = canvas(9.5, 2.35)
    C, gap = 0.5, 0.16
    kinds = (
        (0.35, 4, ("up", r"down$^\top$"), BLUE, "GELU", r"$2 \cdot 4C \cdot C = 8\,C^2$"),
        (
            4.85,
            8 / 3,
            ("gate", "up", r"down$^\top$"),
            ORANGE,
            "SwiGLU",
            r"$3 \cdot \frac{8}{3}C \cdot C = 8\,C^2$",
        ),
    )
    for x, ratio, names, color, title, area in kinds:
        F = ratio * C
        for i, name in enumerate(names):
            _tile(ax, x + i * (F + gap), 0.8, F, C, color, name)
        middle = x + (len(names) * F + (len(names) - 1) * gap) / 2
        _text(ax, middle, 2.1, title, 11.5, color=color)
        _text(ax, x + F / 2, 1.52, "F = 4C" if ratio == 4 else "F = 8C/3", 10)
        _text(ax, x - 0.17, 0.8 + C / 2, "C", 10)
        _text(ax, middle, 0.38, area, 11)
    return figure


# --- Heads and the cache ----------------------------------------------------------------


def heads() -> Figure:
    """Eight query heads over eight, two, or one key-value head."""
    figure, ax = canvas(9.2, 3.3)
    H, cell = 8, 0.3
    for n, (shared, title, source) in enumerate(
        (
            (8, "multi-head", "$H_{kv} = H$"),
            (2, "grouped-query", "$1 < H_{kv} < H$"),
            (1, "multi-query", "$H_{kv} = 1$"),
        )
    ):
        left = 0.75 + 2.95 * n
        middle = left + H * cell / 2
        _text(ax, middle, 3.1, title, 11.5)
        _text(ax, middle, 2.8, source, 10)
        for h in range(H):
            _tile(ax, left + h * cell, 1.95, cell * 0.82, 0.5, BLUE)
        step = H * cell / shared
        for j in range(shared):
            x = left + (j + 0.5) * step - 0.09 * cell
            _tile(ax, x - cell * 0.41, 0.95, cell * 0.82, 0.36, ORANGE)
            _tile(ax, x - cell * 0.41, 0.55, cell * 0.82, 0.36, GREEN)
            for h in range(j * H // shared, (j + 1) * H // shared):
                ax.plot([left + (h + 0.41) * cell, x], [1.93, 1.33], color=INK, lw=0.9, alpha=0.6)
        share = {8: "cache: all of it", 2: "cache: a quarter", 1: "cache: an eighth"}[shared]
        _text(ax, middle, 0.25, share, 10, color=RED)
    for y, name in ((2.2, "q"), (1.13, "k"), (0.73, "v")):
        _text(ax, 0.5, y, name, 11)
    return figure


def cache() -> Figure:
    """One decoding step: one new column is computed, all older keys and values are read."""
    figure, ax = canvas(9.2, 4.0)
    cell, T, layers = 0.42, 10, 3
    left = 2.0
    words = ["Once", "there", "was", "a", "fox", "who", "lost", "her", "red", "hat"]
    for t in range(T):
        new = t == T - 1
        _text(ax, left + (t + 0.5) * cell, 0.42, words[t], 8.5, rotation=45, color=RED if new else INK)
    for i in range(layers):
        base = 0.95 + 0.95 * i
        _text(ax, left - 0.55, base + 0.36, f"layer {i}", 9.5, ha="right")
        for row, (name, color) in enumerate((("v", GREEN), ("k", ORANGE))):
            y = base + 0.38 * row
            _text(ax, left - 0.2, y + 0.17, name, 10)
            for t in range(T):
                new = t == T - 1
                ax.add_patch(
                    Rectangle(
                        (left + t * cell, y),
                        cell * 0.9,
                        0.34,
                        facecolor=f"{RED if new else color}{'66' if new else '33'}",
                        edgecolor=RED if new else color,
                        lw=1.1,
                    )
                )
    right = left + T * cell
    _text(ax, left + (T - 1) * cell / 2, 3.82, "kept from earlier steps, read again", 10)
    _text(ax, right + 0.15, 3.82, "new", 10, color=RED, ha="left")
    arrow(ax, (right + 0.3, 3.68), (right - 0.1, 3.55), color=RED)
    lines = (
        ("a column of one layer:", INK),
        (r"2 $H_{kv}$ D numbers", INK),
        ("all columns, all layers:", INK),
        (r"2 L $H_{kv}$ D T numbers", RED),
        ("with a window w:", INK),
        ("min(T, w) columns stay", INK),
    )
    for n, (line, color) in enumerate(lines):
        _text(ax, right + 0.55, 2.95 - 0.3 * n - 0.14 * (n // 2), line, 10, ha="left", color=color)
    return figure


def reach() -> Figure:
    """Three layers with a window of 3: the last position is reached by 7 tokens."""
    figure, ax = canvas(8.6, 3.5)
    T, window, layers = 10, 3, 3
    xs, ys = 1.7 + 0.66 * np.arange(T), 0.45 + 0.9 * np.arange(layers + 1)
    seen = {T - 1}
    levels = [seen]
    for _ in range(layers):
        seen = {s for t in seen for s in range(max(0, t - window + 1), t + 1)}
        levels.append(seen)
    levels.reverse()
    for i in range(layers):
        for t in range(T):
            for s in range(max(0, t - window + 1), t + 1):
                used = t in levels[i + 1]
                ax.plot(
                    [xs[s], xs[t]],
                    [ys[i], ys[i + 1]],
                    color=BLUE if used else GRID,
                    lw=1.4 if used else 0.8,
                    zorder=2 if used else 1,
                )
    for i, level in enumerate(levels):
        for t in range(T):
            on = t in level
            color = BLUE if on else GRID
            ax.plot(
                xs[t], ys[i], "o", markersize=11, markerfacecolor="white", markeredgecolor=color, zorder=3
            )
            if on:
                ax.plot(xs[t], ys[i], "o", markersize=6, color=BLUE, zorder=4)
        _text(ax, 1.35, ys[i], "tokens" if i == 0 else f"after layer {i - 1}", 9.5, ha="right")
        _text(ax, xs[-1] + 0.3, ys[i], str(len(level)), 10, color=BLUE, ha="left")
    return figure


# --- The residual stream ----------------------------------------------------------------


def stream() -> Figure:
    """Independent branches add their variances: the stream widens, unless each is made smaller."""
    figure, ax = canvas(9.0, 4.2)
    branches, left, right = 8, 1.5, 8.0
    for middle, first, gain, color, label in (
        (3.05, 0.16, 1.0, RED, "no factor"),
        (0.95, 0.16, 1 / np.sqrt(branches), BLUE, r"factor $1/\sqrt{2L}$"),
    ):
        b = 0.27
        x = np.linspace(left, right, branches + 1)
        half = np.sqrt(first**2 + np.arange(branches + 1) * (gain * b) ** 2)
        up = list(zip(x, middle + half, strict=True))
        down = list(zip(x[::-1], middle - half[::-1], strict=True))
        ax.add_patch(Polygon(up + down, closed=True, facecolor=f"{color}22", edgecolor=color, lw=1.3))
        for j in range(branches):
            at = (x[j] + x[j + 1]) / 2
            size = b * gain
            start = middle - half[-1] - 0.28
            edge = middle - np.sqrt(first**2 + (j + 0.5) * (gain * b) ** 2)
            ax.plot([at], [start], "o", markersize=3 + 26 * size, color=ORANGE, alpha=0.75)
            arrow(ax, (at, start + 0.04 + 0.18 * size + 0.05), (at, edge + 0.02), color=ORANGE)
        _text(ax, left - 0.12, middle, "$x_0$", 11, ha="right")
        _text(ax, right + 0.12, middle, "$x_{2L}$", 11, ha="left")
        _text(ax, 0.55, middle + 0.42, label, 10, color=color)
    _text(ax, 4.75, 4.15, "height: standard deviation of the stream;  dots: the branches that are added", 10)
    return figure


DRAWINGS = {
    "05_blocks": blocks,
    "05_widths": widths,
    "05_heads": heads,
    "05_cache": cache,
    "05_reach": reach,
    "05_stream": stream,
}

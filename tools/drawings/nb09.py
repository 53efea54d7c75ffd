"""The figures of notebook 09: where arrays live, the online update, tiles, the two backward walks, heads."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle

from course.plots import BLUE, GREEN, GRID, INK, ORANGE, PURPLE, RED, SKY
from drawings.shapes import arrow, box, canvas

FAINT = "#7d828a"


def _text(ax: Axes, x: float, y: float, text: str, size: float = 10, **more) -> None:
    more = {"ha": "center", "va": "center", "color": INK} | more
    ax.text(x, y, text, fontsize=size, **more)


def _block(
    ax: Axes, x: float, y: float, width: float, height: float, color: str, text="", size: float = 10, **more
) -> None:
    """A rectangle with its upper left corner at (x, y) and a text in its middle."""
    style = {"facecolor": f"{color}33", "edgecolor": color, "lw": 1.3} | more
    ax.add_patch(Rectangle((x, y - height), width, height, **style))
    _text(ax, x + width / 2, y - height / 2, text, size)


def _tall(ax: Axes, x: float, y: float, name: str, color: str, size: float = 1.3) -> None:
    """An array (T, D): tall and narrow."""
    _block(ax, x, y, 0.34, size, color, name)


# --- where arrays live ------------------------------------------------------------------


def memory() -> Figure:
    """Plain attention writes (T, T) to HBM and reads it back; the fused kernel only ever holds a tile."""
    figure, ax = canvas(10.2, 4.5)
    for x, width, title in ((0.1, 5.3, "in steps"), (5.7, 4.4, "in one kernel")):
        _text(ax, x, 4.3, title, 11, ha="left", weight="bold")
        ax.add_patch(Rectangle((x, 1.95), width, 2.1, facecolor=f"{RED}0d", edgecolor=RED, lw=1.2))
        ax.add_patch(Rectangle((x, 0.15), width, 1.25, facecolor=f"{GREEN}0d", edgecolor=GREEN, lw=1.2))
        _text(ax, x + 0.1, 2.09, "HBM", 9, ha="left", color=RED)
        _text(ax, x + 0.1, 0.29, "on the chip", 9, ha="left", color=GREEN)
    for x, name, color in ((0.3, "Q", BLUE), (0.74, "K", ORANGE), (4.4, "V", PURPLE), (4.84, "O", SKY)):
        _tall(ax, x, 3.85, name, color)
    _block(ax, 1.4, 3.85, 1.3, 1.3, FAINT, "Z\n(T, T)")
    _block(ax, 2.9, 3.85, 1.3, 1.3, FAINT, "P\n(T, T)")
    for x, name in ((1.1, r"$QK^\top$"), (2.2, "mask"), (3.25, "softmax"), (4.6, r"$PV$")):
        box(ax, x, 0.9, name, width=0.9, height=0.5, color=GREEN, size=9)
    lines = (
        ((0.5, 2.5), (0.9, 1.17), INK), ((0.92, 2.5), (1.1, 1.17), INK), ((1.32, 1.17), (1.55, 2.5), RED),
        ((1.85, 2.5), (2.05, 1.17), RED), ((2.3, 1.17), (2.2, 2.5), RED), ((2.52, 2.5), (3.05, 1.17), RED),
        ((3.35, 1.17), (3.4, 2.5), RED), ((3.9, 2.5), (4.4, 1.17), RED), ((4.57, 2.5), (4.6, 1.17), INK),
        ((4.78, 1.17), (5.0, 2.5), INK),
    )  # fmt: skip
    for start, end, color in lines:
        arrow(ax, start, end, color=color)
    for x, name, color in ((6.0, "Q", BLUE), (7.0, "K", ORANGE), (7.5, "V", PURPLE), (8.9, "O", SKY)):
        _tall(ax, x, 3.85, name, color)
    _block(ax, 9.5, 3.85, 0.12, 1.3, SKY)
    _text(ax, 9.86, 3.2, "lse", 10)
    for x in (6.0, 8.9):
        ax.add_patch(Rectangle((x, 3.2), 0.34, 0.3, facecolor=INK, alpha=0.35, lw=0))
    for x in (7.0, 7.5):
        ax.add_patch(Rectangle((x, 2.85), 0.34, 0.3, facecolor=INK, alpha=0.35, lw=0))
    ax.add_patch(Rectangle((9.5, 3.2), 0.12, 0.3, facecolor=INK, alpha=0.35, lw=0))
    box(ax, 7.85, 0.9, "a tile of Z and P,\nm, l and the output so far", width=2.9, height=0.62, color=GREEN)
    for start, end in (
        ((6.17, 2.5), (6.8, 1.23)), ((7.17, 2.5), (7.35, 1.23)), ((7.67, 2.5), (7.75, 1.23)),
        ((8.5, 1.23), (9.05, 2.5)), ((8.9, 1.23), (9.55, 2.5)),
    ):  # fmt: skip
        arrow(ax, start, end)
    _text(ax, 5.4, 4.3, "red: a (T, T) array, six times", 9.5, color=RED, ha="right")
    _text(ax, 10.1, 4.3, "tiles of (T, D) arrays", 9.5, ha="right")
    return figure


# --- the online update ------------------------------------------------------------------


def online() -> Figure:
    """One row: the state of the keys so far, the next tile, and how they become the next state."""
    figure, ax = canvas(9.6, 3.5)
    cell, y = 0.36, 3.2
    for j in range(15):
        color = BLUE if j < 8 else ORANGE if j < 12 else GRID
        _block(ax, 0.3 + j * cell, y, cell - 0.04, 0.34, color)
    _text(ax, 0.3 + 4 * cell, y + 0.15, "scores of one query, met so far", 9, color=BLUE)
    _text(ax, 0.3 + 10 * cell, y + 0.15, "this tile", 9, color=ORANGE)
    _text(ax, 0.3 + 13.5 * cell, y + 0.15, "to come", 9, color=FAINT)
    for x, color, names in (
        (1.75, BLUE, (r"$m$", r"$\ell$", r"$a$")),
        (4.0, ORANGE, (r"$\max_j z_j$", r"$\sum_j e^{z_j - m^\prime}$", r"$\sum_j e^{z_j - m^\prime} v_j$")),
    ):
        for k, name in enumerate(names):
            box(
                ax,
                x,
                2.2 - 0.72 * k,
                name,
                width=1.15 if color == BLUE else 1.75,
                height=0.52,
                color=color,
                size=11,
            )
    for k, rule in enumerate(
        (r"$m^\prime = \max(m,\ \max_j z_j)$", r"$\ell^\prime = \alpha\,\ell + \sum_j e^{z_j - m^\prime}$",
         r"$a^\prime = \alpha\, a + \sum_j e^{z_j - m^\prime} v_j$")
    ):  # fmt: skip
        arrow(ax, (4.92, 2.2 - 0.72 * k), (5.5, 2.2 - 0.72 * k))
        box(ax, 7.25, 2.2 - 0.72 * k, rule, width=3.4, height=0.52, color=GREEN, size=12)
        if k:
            arrow(ax, (2.36, 2.2 - 0.72 * k), (3.08, 2.2 - 0.72 * k), color=RED)
            _text(ax, 2.72, 2.35 - 0.72 * k, r"$\times\,\alpha$", 10, color=RED)
    words = "1 while the maximum stands, less when it grows.   At the end  $o = a / \\ell$"
    _text(ax, 4.8, 0.15, rf"$\alpha = e^{{m - m^\prime}}$: {words}", 10.5)
    return figure


# --- tiles ------------------------------------------------------------------------------


def tiles() -> Figure:
    """A causal score matrix in tiles, numbered in the order in which each program visits them."""
    figure, ax = canvas(8.8, 4.5)
    n, size, left, top = 5, 0.72, 1.35, 4.0
    for i in range(n):
        for j in range(n):
            x, y = left + j * size, top - i * size
            if j > i:
                ax.add_patch(
                    Rectangle((x, y - size), size, size, facecolor="none", edgecolor=GRID, lw=1, ls="--")
                )
                continue
            color = ORANGE if i == j else BLUE
            _block(ax, x, y, size, size, color)
            if i == j:
                corners = [(x, y), (x + size, y), (x + size, y - size)]
                ax.add_patch(Polygon(corners, facecolor="white", alpha=0.75, lw=0))
                ax.plot([x, x + size], [y, y - size], color=ORANGE, lw=1.2)
            _text(ax, x + 0.2, y - size + 0.2, str(j + 1), 10)
        middle = top - (i + 0.5) * size
        _text(ax, left - 0.12, middle, f"program {i}", 9, ha="right")
    _text(ax, left + n * size / 2, top + 0.2, "tiles of keys", 10)
    arrow(ax, (left, 0.22), (left + n * size, 0.22), color=FAINT)
    _text(ax, left + n * size / 2, 0.05, "each program walks from left to right", 9, color=FAINT)
    right = left + n * size + 0.5
    rows = (
        (BLUE, "wholly below the diagonal:\neverything is seen, no mask", {}),
        (ORANGE, "on the diagonal: with a mask,\none tile for each program", {}),
        (
            GRID,
            "wholly above: never visited,\nnothing loaded, nothing computed",
            {"facecolor": "none", "ls": "--"},
        ),
    )
    for k, (color, words, style) in enumerate(rows):
        _block(ax, right, 3.7 - 1.05 * k, 0.5, 0.5, color, **style)
        _text(ax, right + 0.68, 3.45 - 1.05 * k, words, 10, ha="left")
    _text(ax, right, 0.62, "numbers: the order of a program's visits", 9, ha="left", color=FAINT)
    return figure


# --- the backward -----------------------------------------------------------------------


def backward() -> Figure:
    """Two score matrices: one kernel owns a row of tiles, the other a column."""
    figure, ax = canvas(11.4, 4.3)
    n, size, top = 5, 0.52, 3.35
    for left, own_row, title, sums in (
        (1.2, True, "_dq_kernel: a program owns queries", "walks over keys, and adds up one tile of dQ"),
        (
            7.7,
            False,
            "_dkv_kernel: a program owns keys",
            "walks over queries, and adds up one tile each of dK and dV",
        ),
    ):
        own = 3 if own_row else 1
        for i in range(n):
            for j in range(i + 1):
                mine = i == own if own_row else j == own
                x, y = left + j * size, top - i * size
                _block(
                    ax,
                    x,
                    y,
                    size,
                    size,
                    GREEN if mine else GRID,
                    lw=1.3 if mine else 0.9,
                    zorder=2 if mine else 1,
                )
        middle = (own + 0.5) * size
        if own_row:
            arrow(ax, (left + 0.1, top - middle), (left + (own + 1) * size - 0.1, top - middle), color=GREEN)
            _block(ax, left - 0.75, top - own * size, 0.6, size, BLUE, "Q, dO")
            _text(ax, left + n * size + 0.1, top - middle, "dQ", 11, color=RED, ha="left")
            for j in range(own + 1):
                _block(ax, left + j * size + 0.03, top + 0.42, size - 0.06, 0.32, ORANGE, "K, V", 8.5)
        else:
            arrow(
                ax,
                (left + middle, top - own * size - 0.1),
                (left + middle, top - n * size + 0.1),
                color=GREEN,
            )
            _block(ax, left + own * size - 0.04, top + 0.42, size + 0.08, 0.32, ORANGE, "K, V")
            _text(ax, left + middle, top - n * size - 0.18, "dK, dV", 11, color=RED)
            for i in range(own, n):
                _block(ax, left - 0.75, top - i * size - 0.03, 0.6, size - 0.06, BLUE, "Q, dO")
        _text(ax, left - 0.75, 4.15, title, 10.5, ha="left", weight="bold")
        _text(ax, left - 0.75, 0.12, sums, 9.5, ha="left", color=FAINT)
    for k, line in enumerate(
        (r"$P = e^{Z - \mathrm{lse}}$", r"$dP = dO\,V^\top$", r"$dZ = P \circ (dP - \delta)$")
    ):
        _text(ax, 4.75, 2.15 - 0.42 * k, line, 11, ha="left")
    _text(ax, 4.75, 2.6, "in each tile", 9.5, ha="left", color=FAINT)
    return figure


# --- grouped heads ----------------------------------------------------------------------


def heads() -> Figure:
    """Eight query heads on two heads of keys and values: who loads what, and who sums what."""
    figure, ax = canvas(9.4, 2.9)
    H, G = 8, 4
    for h in range(H):
        x = 1.6 + 0.95 * h
        color = BLUE if h < G else PURPLE
        _block(ax, x, 2.6, 0.7, 0.5, color, f"q {h}")
        target = 1.6 + 0.95 * (G * (h // G) + (G - 1) / 2) + 0.35
        arrow(ax, (target + (x + 0.35 - target) * 0.22, 1.12), (x + 0.35, 2.06), color=color)
    for j in range(H // G):
        middle = 1.6 + 0.95 * (G * j + (G - 1) / 2) + 0.35
        _block(ax, middle - 0.7, 1.1, 1.4, 0.5, ORANGE, f"k {j}, v {j}")
    _text(ax, 0.1, 2.35, "query heads", 10, ha="left")
    _text(ax, 0.1, 0.85, "head h // G", 10, ha="left")
    words = "Forward, four query heads load the same tiles. Backward, the keys' program sums over the four."
    _text(ax, 0.1, 0.25, words, 9.5, ha="left", color=FAINT)
    return figure


DRAWINGS = {
    "09_memory": memory,
    "09_online": online,
    "09_tiles": tiles,
    "09_backward": backward,
    "09_heads": heads,
}

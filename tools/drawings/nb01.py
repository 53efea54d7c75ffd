"""The drawings of notebook 01: matrix product, contract, broadcasting, embedding, the MLP."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from course.plots import BLUE, GREEN, INK, ORANGE, PURPLE, RED
from drawings.shapes import arrow, box, canvas, grid


def _text(ax: Axes, x: float, y: float, text: str, size: float = 10, **more) -> None:
    ax.text(x, y, text, ha=more.pop("ha", "center"), va="center", fontsize=size, **more)


def matmul() -> Figure:
    """Y = XW and its two gradients; the coloured entries are those that meet in one entry."""
    figure, ax = canvas(8.9, 4.65)
    N, K, M, c = 3, 2, 4, 0.3

    def product(y, left, right, result, words):
        x = 0.45
        for (rows, columns, color, filled, label), sign in zip(
            (left, right, result), ("", "@", "="), strict=True
        ):
            if sign:
                _text(ax, x + 0.4, y - 0.6, sign, 15)
                x += 0.8
            top = y - 0.6 + rows * c / 2
            grid(ax, x, top, rows, columns, cell=c, color=color, filled=filled, label=label)
            x += columns * c
        _text(ax, 5.8, y - 0.6, words, 10, ha="left")

    def row(i):
        return lambda a, b: a == i

    def column(j):
        return lambda a, b: b == j

    def one(i, j):
        return lambda a, b: (a, b) == (i, j)

    product(
        4.6,
        (N, K, BLUE, row(1), "X  (N, K)"),
        (K, M, GREEN, column(3), "W  (K, M)"),
        (N, M, ORANGE, one(1, 3), "Y  (N, M)"),
        "forward: a row of X meets\na column of W, over K",
    )
    product(
        3.05,
        (N, M, ORANGE, row(1), "dY  (N, M)"),
        (M, K, GREEN, column(0), r"W$^\top$  (M, K)"),
        (N, K, BLUE, one(1, 0), "dX  (N, K)"),
        "X[1, 0] was used in row 1 of Y,\nwith row 0 of W: sum over M",
    )
    product(
        1.35,
        (K, N, BLUE, row(0), r"X$^\top$  (K, N)"),
        (N, M, ORANGE, column(3), "dY  (N, M)"),
        (K, M, GREEN, one(0, 3), "dW  (K, M)"),
        "W[0, 3] was used in column 3 of Y,\nwith column 0 of X: sum over N",
    )
    return figure


def contract() -> Figure:
    """An operation: forward above, backward below, saved in between."""
    figure, ax = canvas(7.6, 3.0)
    forward = box(ax, 3.8, 2.45, "forward", width=2.0, height=0.7, color=BLUE, size=12)
    backward = box(ax, 3.8, 0.6, "backward", width=2.0, height=0.7, color=ORANGE, size=12)
    fx, fy = forward
    _, by = backward
    arrow(ax, (0.7, fy), (fx - 1.0, fy), "inputs  x, w", offset=(0, 0.17), size=11)
    arrow(ax, (fx + 1.0, fy), (6.9, fy), "y", offset=(0, 0.17), size=11)
    arrow(ax, (6.9, by), (fx + 1.0, by), "dy", offset=(0, 0.17), size=11)
    arrow(ax, (fx - 1.0, by), (0.7, by), "gradients  dx, dw", offset=(0, 0.17), size=11)
    arrow(ax, (fx, fy - 0.35), (fx, by + 0.35), color=PURPLE)
    _text(ax, fx + 0.15, (fy + by) / 2, "saved: what backward needs, no more", 10.5, ha="left")
    _text(ax, 0.7, fy - 0.25, "(N, K), (K, M)", 9, ha="left", color="#6a6f78")
    _text(ax, 0.7, by - 0.25, "(N, K), (K, M)", 9, ha="left", color="#6a6f78")
    _text(ax, 6.9, fy - 0.25, "(N, M)", 9, ha="right", color="#6a6f78")
    _text(ax, 6.9, by - 0.25, "(N, M)", 9, ha="right", color="#6a6f78")
    return figure


def broadcast() -> Figure:
    """Adding a bias: its row is repeated forward, and the rows are summed backward."""
    figure, ax = canvas(8.6, 3.9)
    c = 0.3

    def at(x, y, rows, color, label="", chosen=None):
        filled = (lambda i, j: j == chosen) if chosen is not None else (lambda i, j: True)
        grid(ax, x, y, rows, 3, cell=c, color=color, filled=filled, label=label)

    _text(ax, 0.1, 3.72, "forward repeats", 11, ha="left", weight="bold")
    at(0.2, 2.65 + c / 2, 1, GREEN, "b  (3)", 1)
    arrow(ax, (1.25, 2.65), (2.15, 2.65), "repeat", offset=(0, 0.15))
    at(2.3, 3.25, 4, GREEN, "b, four times", 1)
    _text(ax, 3.5, 2.65, "+", 15)
    at(3.8, 3.25, 4, BLUE, "A  (4, 3)")
    _text(ax, 5.0, 2.65, "=", 15)
    at(5.3, 3.25, 4, ORANGE, "Y  (4, 3)", 1)
    _text(ax, 6.45, 2.65, "one entry of b is in\nfour entries of Y", 9.5, ha="left")

    _text(ax, 0.1, 1.58, "backward sums", 11, ha="left", weight="bold")
    at(5.3, 1.35, 4, ORANGE, "dY  (4, 3)", 1)
    _text(ax, 5.0, 0.75, "=", 15)
    at(3.8, 1.35, 4, BLUE, "dA")
    _text(ax, 3.5, 0.75, "=", 15)
    at(2.3, 1.35, 4, GREEN, "d of each copy", 1)
    arrow(ax, (2.2, 0.75), (1.25, 0.75), "sum", offset=(0, 0.15))
    at(0.2, 0.75 + c / 2, 1, GREEN, "db  (3)", 1)
    _text(ax, 6.45, 0.75, "so their four gradients\nadd up in its gradient", 9.5, ha="left")
    return figure


def embedding() -> Figure:
    """Looking up rows forward, adding rows back into the table backward."""
    figure, ax = canvas(9.3, 2.75)
    c, colors = 0.3, (PURPLE, ORANGE, GREEN, BLUE, RED)

    def table(x, label):
        for v, color in enumerate(colors):
            grid(ax, x, 1.9 - v * c, 1, 3, cell=c, color=color)
            _text(ax, x - 0.15, 1.9 - (v + 0.5) * c, str(v), 9, color="#6a6f78")
        _text(ax, x + 1.5 * c, 1.9 - 5 * c - 0.2, label)

    def looked_up(x, label, ids, side):
        for n, v in enumerate(ids):
            grid(ax, x, 1.6 - n * c, 1, 3, cell=c, color=colors[v])
            place = x + (3 * c + 0.15 if side == "right" else -0.15)
            _text(ax, place, 1.6 - (n + 0.5) * c, str(v), 9, color="#6a6f78")
        _text(ax, x + 1.5 * c, 1.6 - 3 * c - 0.2, label)

    ids = (3, 0, 3)
    _text(ax, 0.1, 2.5, "forward: look up ids 3, 0, 3", 11, ha="left", weight="bold")
    table(0.4, "weight  (5, 3)")
    looked_up(2.8, "y  (3, 3)", ids, "right")
    _text(ax, 4.75, 2.5, "backward: row 3 gets two gradients", 11, ha="left", weight="bold")
    looked_up(5.0, "dy  (3, 3)", ids, "left")
    for v, color in enumerate(colors):
        used = v in ids
        grid(ax, 7.3, 1.9 - v * c, 1, 3, cell=c, color=color, filled=lambda i, j, u=used: u)
        words = {0: "= dy[1]", 3: "= dy[0] + dy[2]"}.get(v, "0")
        _text(ax, 8.28, 1.9 - (v + 0.5) * c, words, 9, ha="left")
    _text(ax, 7.3 + 1.5 * c, 1.9 - 5 * c - 0.2, "dweight  (5, 3)")
    for n, v in enumerate(ids):
        row_v, row_n = 1.9 - (v + 0.5) * c, 1.6 - (n + 0.5) * c
        arrow(ax, (0.4 + 3 * c + 0.05, row_v), (2.75, row_n), color=colors[v])
        arrow(ax, (5.0 + 3 * c + 0.05, row_n), (7.22, row_v), color=colors[v])
    return figure


def mlp() -> Figure:
    """The character model: forward to the right, saved downwards, backward to the left."""
    figure, ax = canvas(11.4, 4.3)
    names = ("embedding", "linear", "tanh", "linear", "cross_entropy")
    parameters = ("embedding.weight\n(V, C)", "hidden.weight, .bias\n(d_hidden, T C)", "",
                  "head.weight, .bias\n(V, d_hidden)", "")  # fmt: skip
    saved = ("ids", "x, weight", "h", "h, weight", "logits, targets,\nlog-sum-exp")
    edges = ("ids\n(B, T)", "x\n(B, T C)", "u\n(B, d_hidden)", "h\n(B, d_hidden)", "logits\n(B, V)")
    xs = [1.6 + 2.05 * i for i in range(5)]
    top, bottom, half = 2.95, 0.95, 0.55
    for i, (x, name) in enumerate(zip(xs, names, strict=True)):
        wide = 2 * half + (0.3 if i == 4 else 0)
        box(ax, x, top, name, width=wide, height=0.6, color=BLUE, size=9.5)
        box(ax, x, bottom, f"{name}\nbackward", width=wide, height=0.6, color=ORANGE, size=9)
        arrow(ax, (x, top - 0.3), (x, bottom + 0.3), color=PURPLE)
        _text(ax, x + 0.08, (top + bottom) / 2, saved[i], 9, ha="left", color=INK)
        if parameters[i]:
            _text(ax, x, top + 0.95, parameters[i], 9)
            arrow(ax, (x, top + 0.72), (x, top + 0.3))
            arrow(ax, (x, bottom - 0.3), (x, bottom - 0.62))
            _text(ax, x, bottom - 0.78, "dweight, dbias" if i else "dweight", 9)
    for i, label in enumerate(edges):
        start = xs[i - 1] + half if i else 0.35
        end = xs[i] - half - (0.15 if i == 4 else 0)
        arrow(ax, (start, top), (end, top))
        first, second = label.split("\n")
        _text(ax, (start + end) / 2, top + 0.17, first, 9.5)
        _text(ax, (start + end) / 2, top - 0.42, second, 8.5, color="#6a6f78")
        if i:
            arrow(ax, (end, bottom), (start, bottom))
            _text(ax, (start + end) / 2, bottom + 0.17, f"d{first}", 9.5)
    arrow(ax, (xs[-1] + 0.7, top), (xs[-1] + 1.25, top), "loss", offset=(0.02, 0.17), size=9.5)
    arrow(ax, (xs[-1] + 1.25, bottom), (xs[-1] + 0.7, bottom), "1", offset=(0.02, 0.17), size=9.5)
    _text(ax, 0.35, (top + bottom) / 2, "saved:", 9.5, ha="left", color=PURPLE)
    return figure


DRAWINGS = {
    "01_matmul": matmul,
    "01_contract": contract,
    "01_broadcast": broadcast,
    "01_embedding": embedding,
    "01_mlp": mlp,
}

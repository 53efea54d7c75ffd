"""The figures of notebook 12: threads, the memory that they touch, how they talk, how they are emulated."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from course.plots import BLUE, COLORS, GREEN, GRID, INK, ORANGE, PURPLE, RED, SKY
from drawings.shapes import arrow, box, canvas


def _cell(ax: Axes, x, y, width, height, color=GRID, text="", *, fill="", size=8, dashed=False) -> None:
    face = f"{color}{fill}" if fill else "none"
    style = {"facecolor": face, "edgecolor": color, "lw": 1.1, "ls": "--" if dashed else "-"}
    ax.add_patch(Rectangle((x, y), width, height, **style))
    if text:
        ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size, color=INK)


def grid() -> Figure:
    """1,000 elements: 4 blocks of 256 threads, a block of 8 warps, a warp of 32 lanes."""
    figure, ax = canvas(8.6, 3.6)
    left, width = 1.35, 7.0
    rows = (("grid", 2.85, 4), ("block 2", 1.75, 8), ("warp 3", 0.65, 32))
    for (name, y, n), color in zip(rows, (BLUE, ORANGE, GREEN)):
        ax.text(0.1, y + 0.22, name, fontsize=10, va="center", color=color)
        for i in range(n):
            x = left + i * width / n
            text = {4: f"block {i}", 8: f"warp {i}", 32: f"{i}" if i < 10 or i % 2 == 1 else ""}[n]
            chosen = (n, i) in ((4, 2), (8, 3), (32, 5))
            size = 6.5 if n == 32 else 9
            _cell(ax, x, y, width / n - 0.03, 0.44, color, text, fill="66" if chosen else "1c", size=size)
    for upper, lower, i, n in ((2.85, 2.19, 2, 4), (1.75, 1.09, 3, 8)):
        for side in (0, 1):
            start = left + (i + side) * width / n - (0.03 if side else 0)
            ax.plot([start, left + side * (width - 0.03)], [upper - 0.02, lower + 0.02], color=GRID, lw=1)
    for y, words in (
        (2.85, "gridDim.x = 4"),
        (1.75, "blockDim.x = 256"),
        (0.65, "32 threads, an instruction together"),
    ):
        ax.text(left, y - 0.16, words, fontsize=8.5, va="center", color=INK)
    formula = "lane 5 of warp 3 of block 2:   threadIdx.x = 3 × 32 + 5 = 101   i = 2 × 256 + 101 = 613"
    ax.text(0.1, 0.12, formula, fontsize=10, va="center", color=INK)
    return figure


# Sectors are drawn as they lie in memory: 4 to a line of 128 bytes, 8 numbers of 4 bytes in each.
PATTERNS = (
    ("x[i]", lambda lane: lane, GREEN),
    ("x[i + 1]", lambda lane: lane + 1, BLUE),
    ("x[2 * i]", lambda lane: 2 * lane, ORANGE),
    ("x[8 * i]", lambda lane: 8 * lane, RED),
)


def warp() -> Figure:
    """The 32 addresses of a warp in memory, for four patterns; the fourth does not fit and goes on."""
    figure, ax = canvas(8.6, 4.1)
    size, left, shown = 0.094, 1.2, 72
    for k, (name, element, color) in enumerate(PATTERNS):
        y = 3.1 - k * 0.92
        wanted = {element(lane) for lane in range(32)}
        fetched = {e // 8 for e in wanted}
        ax.text(0.1, y + 0.15, name, fontsize=10, va="center", color=color, family="monospace")
        for sector in range(shown // 8):
            _cell(ax, left + sector * 8 * size, y, 8 * size, 0.3, GRID)
            if sector in fetched:
                _cell(
                    ax, left + sector * 8 * size + 0.012, y + 0.012, 8 * size - 0.024, 0.276, color, fill="30"
                )
        for e in wanted:
            if e < shown:
                face = {"facecolor": color, "edgecolor": "none"}
                ax.add_patch(Rectangle((left + e * size + 0.012, y + 0.06), size - 0.024, 0.18, **face))
        for line in range(0, shown // 32 + 1):
            ax.plot([left + line * 32 * size] * 2, [y - 0.07, y + 0.37], color=INK, lw=1.3)
        n = len(fetched)
        words = f"{n} sectors, {n * 32} bytes for 128 that are wanted"
        ax.text(left, y - 0.2, words, fontsize=9, va="center", color=INK)
        if max(wanted) >= shown:
            ax.text(left + shown * size + 0.08, y + 0.15, "… to line 7", fontsize=9, va="center", color=INK)
    ax.annotate("", (left, 3.62), (left + 32 * size, 3.62), arrowprops={"arrowstyle": "<->", "color": INK})
    ax.text(left + 16 * size, 3.78, "a line: 128 bytes, 4 sectors of 32", fontsize=9, ha="center", color=INK)
    return figure


def tree() -> Figure:
    """16 parts become one in four rounds, with a barrier after each."""
    figure, ax = canvas(8.6, 3.9)
    n, step, left, top = 16, 0.44, 1.35, 3.35
    rows = [n >> k for k in range(5)]
    for k, alive in enumerate(rows):
        y = top - 0.72 * k
        ax.text(0.1, y, "part" if k == 0 else f"half = {n >> k}", fontsize=9.5, va="center", color=INK)
        for t in range(n):
            x = left + t * step
            color = BLUE if t < alive else GRID
            _cell(ax, x, y - 0.14, step - 0.08, 0.28, color, str(t), fill="38" if t < alive else "", size=8)
        if k:
            for t in range(alive):
                for source in (t, t + alive):
                    begin = (left + source * step + 0.18, y + 0.72 - 0.15)
                    end = (left + t * step + 0.18, y + 0.15)
                    color = BLUE if source == t else ORANGE
                    ax.plot(*zip(begin, end), color=color, lw=1.1, alpha=0.9)
        if k < 4:
            ax.plot([left, left + n * step - 0.08], [y - 0.24] * 2, color=RED, lw=1.1, ls=(0, (4, 3)))
    ax.text(0.1, top - 0.24, "__syncthreads()", fontsize=8.5, va="center", color=RED)
    words = "each round: thread t < half adds part[t + half] to part[t]; the others wait at the barrier"
    ax.text(0.1, 0.1, words, fontsize=9.5, va="center", color=INK)
    return figure


def shuffle() -> Figure:
    """A butterfly over 8 lanes: three steps, and each lane has the sum of all."""
    figure, ax = canvas(8.6, 3.5)
    n, step, left, top = 8, 0.86, 1.55, 3.15
    values = list(range(n))
    for k in range(4):
        y, apart = top - 0.85 * k, n >> (k + 1)
        ax.text(0.1, y, "v" if k == 0 else f"xor {n >> k}", fontsize=9.5, va="center", color=INK)
        for lane in range(n):
            x = left + lane * step
            _cell(
                ax,
                x,
                y - 0.17,
                0.6,
                0.34,
                COLORS[lane % 4] if k < 3 else GREEN,
                str(values[lane]),
                fill="40",
                size=9,
            )
            if k == 0:
                ax.text(x + 0.3, y + 0.26, f"lane {lane}", fontsize=8, ha="center", color=INK)
            if k < 3:
                for source in (lane, lane ^ apart):
                    begin = (left + source * step + 0.3, y - 0.19)
                    end = (x + 0.3, y - 0.85 + 0.19)
                    color = GRID if source == lane else COLORS[source % 4]
                    ax.plot(*zip(begin, end), color=color, lw=1.4)
        values = [values[lane] + values[lane ^ apart] for lane in range(n)] if k < 3 else values
    words = "8 lanes of 32: in each step a lane adds the v of the lane whose number differs in one bit"
    ax.text(0.1, 0.1, words, fontsize=9.5, va="center", color=INK)
    return figure


def banks() -> Figure:
    """Tiles of 8 × 8 words over 8 banks: a column is one bank; with a column of padding it is all of them."""
    figure, ax = canvas(8.6, 3.6)
    cell, bank_colors = 0.3, (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, "#8c8c86", "#b8a600")
    for left, width, title in ((0.4, 8, "tile[8][8]"), (4.7, 9, "tile[8][9]")):
        ax.text(left, 3.35, title, fontsize=10, va="center", color=INK, family="monospace")
        for row in range(8):
            for column in range(width):
                bank = (row * width + column) % 8
                x, y = left + column * cell, 2.85 - row * cell
                padding = column == 8
                _cell(
                    ax,
                    x,
                    y,
                    cell - 0.02,
                    cell - 0.02,
                    bank_colors[bank],
                    str(bank),
                    fill="" if padding else "38",
                    size=7.5,
                    dashed=padding,
                )
        outline = {"facecolor": "none", "edgecolor": INK, "lw": 2}
        ax.add_patch(
            Rectangle(
                (left + 2 * cell - 0.02, 2.85 - 7 * cell - 0.02), cell + 0.02, 8 * cell + 0.02, **outline
            )
        )
    ax.text(
        2.95,
        1.75,
        "column 2:\n8 words\nof bank 2,\n8 turns",
        fontsize=9.5,
        va="center",
        color=INK,
        linespacing=1.4,
    )
    ax.text(7.55, 1.75, "column 2:\n8 banks,\n1 turn", fontsize=9.5, va="center", color=INK, linespacing=1.4)
    words = "drawn with 8 banks instead of 32; the number in a word is its bank; dashed: padding"
    ax.text(0.4, 0.3, words, fontsize=9.5, va="center", color=INK)
    return figure


def rows() -> Figure:
    """Which elements of a matrix a warp touches in one instruction: a thread, a warp, a block a row."""
    figure, ax = canvas(8.6, 3.3)
    size, columns, height = 0.155, 16, 8
    for k, (name, words) in enumerate((
        ("a thread a row", "8 rows, 8 sectors:\na thread goes its way alone"),
        ("a warp a row", "a row for each warp:\n5 shuffles at the end"),
        ("a block a row", "all warps at one row:\nshuffles, then shared memory"),
    )):  # fmt: skip
        left, top = 0.15 + k * 2.9, 2.55
        ax.text(left, 2.95, name, fontsize=10.5, va="center", color=INK)
        for row in range(height):
            for column in range(columns):
                if k == 0:
                    warp, touched = 0, column == 0
                elif k == 1:
                    warp, touched = row, row < 4 and column < 8
                else:
                    warp, touched = column // 8, row == 0
                x, y = left + column * size, top - row * size
                _cell(ax, x, y, size, size, GRID)
                if touched:
                    color = (BLUE, ORANGE, GREEN, RED)[warp % 4]
                    ax.add_patch(
                        Rectangle(
                            (x + 0.015, y + 0.015),
                            size - 0.03,
                            size - 0.03,
                            facecolor=color,
                            edgecolor="none",
                        )
                    )
        ax.text(left, 0.98, words, fontsize=9.5, va="center", color=INK, linespacing=1.4)
    ax.text(
        0.15,
        0.32,
        "what is touched at the same moment, a colour a warp (drawn with warps of 8)",
        fontsize=9.5,
        va="center",
        color=INK,
    )
    return figure


def emulator() -> Figure:
    """One after the other: fibers run to the barrier, then all go on; every access is looked at."""
    figure, ax = canvas(8.6, 3.4)
    left, step, names = 1.25, 0.8, ("thread 0", "thread 1", "thread 2", "thread 3")
    for t, name in enumerate(names):
        y = 2.85 - 0.42 * t
        ax.text(0.1, y, name, fontsize=9.5, va="center", color=INK)
        ax.plot([left, left + 8 * step], [y, y], color=GRID, lw=1)
        for phase in (0, 1):
            turn = left + (phase * 4 + t) * step
            _cell(
                ax,
                turn,
                y - 0.13,
                step - 0.05,
                0.26,
                (BLUE, GREEN)[phase],
                "before" if phase == 0 else "behind",
                fill="40",
                size=8,
            )
            for access in (0.12, 0.62):
                ax.plot(turn + access, y + 0.17, "v", color=ORANGE, markersize=4)
    barrier = left + 4 * step - 0.025
    ax.plot([barrier] * 2, [1.35, 3.1], color=RED, lw=1.4, ls=(0, (4, 3)))
    ax.text(barrier, 3.2, "__syncthreads()", fontsize=9, ha="center", color=RED)
    ax.text(
        7.75, 2.22, "a CPU core,\none block\nat a time", fontsize=9, va="center", color=INK, linespacing=1.4
    )
    for k, (title, words, color) in enumerate((
        ("whose is the address?", "argument, shared array,\nor nobody: out of bounds", RED),
        ("was it written?", "shared memory starts\nwithout values", ORANGE),
        ("who else was there?", "another since the barrier,\nand one wrote: a race", PURPLE),
        ("do all come?", "some wait at a barrier,\nsome have returned", BLUE),
    )):  # fmt: skip
        box(ax, 1.1 + 2.13 * k, 0.62, f"{title}\n{words}", width=2.03, height=0.86, color=color, size=7.8)
    arrow(ax, (left + 0.12, 1.42), (left + 0.12, 1.08), color=ORANGE)
    return figure


DRAWINGS = {
    "12_grid": grid, "12_warp": warp, "12_tree": tree, "12_banks": banks, "12_shuffle": shuffle,
    "12_rows": rows, "12_emulator": emulator,
}  # fmt: skip

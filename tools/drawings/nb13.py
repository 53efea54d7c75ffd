"""The drawings of notebook 13: what a warp asks for, the tiles of each rung, banks, time lines, tensor cores.

Everywhere A is blue, B orange and C green; red is what one thread, or one warp, has to do with it.
"""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from course.plots import BLUE, GREEN, GRID, INK, ORANGE, PURPLE, RED, SKY
from drawings.shapes import arrow, box, canvas

FAINT = "#7d828a"


def _text(ax: Axes, x: float, y: float, text: str, size: float = 10, **more) -> None:
    ax.text(x, y, text, fontsize=size, **({"ha": "center", "va": "center", "color": INK} | more))


def _area(ax: Axes, x: float, y: float, width: float, height: float, color: str, alpha="33", **more) -> None:
    """A rectangle with its upper left corner at (x, y)."""
    style = {"facecolor": f"{color}{alpha}", "edgecolor": color, "lw": 1.3} | more
    ax.add_patch(Rectangle((x, y - height), width, height, **style))


def _cells(ax: Axes, x: float, y: float, rows: int, columns: int, cell: float, color: str, marked=()) -> None:
    """A matrix as cells, some of them marked."""
    for i in range(rows):
        for j in range(columns):
            face = f"{color}cc" if (i, j) in marked else f"{color}1c"
            corner = (x + j * cell, y - (i + 1) * cell)
            ax.add_patch(Rectangle(corner, cell, cell, facecolor=face, edgecolor="white", lw=0.8))


# --- rungs 1 and 2 ----------------------------------------------------------------------


def warp() -> Figure:
    """One request of a warp of eight, in A, B and C: along a column, or along a row."""
    figure, ax = canvas(10.2, 4.7)
    cell, n = 0.19, 8
    panels = (
        (0.5, "rung 1: the threads of a warp are rows", [(i, 3) for i in range(n)], [(3, 2)], 2),
        (5.7, "rung 2: the threads of a warp are columns", [(2, 3)], [(3, j) for j in range(n)], 3),
    )
    for left, title, of_a, of_b, kind in panels:
        _text(ax, left - 0.3, 4.55, title, 11, ha="left", weight="bold")
        of_c = [(i, 2) for i in range(n)] if kind == 2 else [(2, j) for j in range(n)]
        right = left + 2.1
        for name, x, y, marked, color in (
            ("A", left, 2.0, of_a, BLUE), ("B", right, 4.0, of_b, ORANGE), ("C", right, 2.0, of_c, GREEN)
        ):  # fmt: skip
            _cells(ax, x, y, n, n, cell, color, marked)
            for row in {i for i, _ in marked}:  # the line of memory that the request touches
                _area(ax, x - 0.03, y - row * cell, n * cell + 0.06, cell, RED, "00", lw=1.1)
            n_lines = len({i for i, _ in marked})
            _text(ax, x + n * cell / 2, y + 0.14, f"{name}: {n_lines} line{'s' * (n_lines > 1)}", 9.5)
        arrow(ax, (left + 0.02, 0.3), (left + n * cell, 0.3), color=FAINT)
        _text(ax, left + 0.75, 0.12, "k, as memory lies", 9, color=FAINT)
        arrow(ax, (left + 1.92, 3.98), (left + 1.92, 2.5), color=FAINT)
        _text(ax, left + 1.77, 3.25, "k", 9, color=FAINT)
    _text(
        ax,
        0.2,
        3.5,
        "what eight threads\nask for at one k;\nin red the lines of\nmemory it lies in",
        9,
        ha="left",
        color=FAINT,
    )
    return figure


# --- rung 3 -----------------------------------------------------------------------------


def shared() -> Figure:
    """A block's strips of A and B, the tiles of the moment, and how often each number is used."""
    figure, ax = canvas(10.2, 4.7)
    _area(ax, 0.3, 2.1, 1.9, 1.9, BLUE, "0d")
    _area(ax, 2.5, 4.3, 1.9, 1.9, ORANGE, "0d")
    _area(ax, 2.5, 2.1, 1.9, 1.9, GREEN, "0d")
    _area(ax, 0.3, 1.45, 1.9, 0.48, BLUE, "33", lw=0)
    _area(ax, 3.15, 4.3, 0.48, 1.9, ORANGE, "33", lw=0)
    _area(ax, 1.08, 1.45, 0.48, 0.48, BLUE, "cc")
    _area(ax, 3.15, 3.52, 0.48, 0.48, ORANGE, "cc")
    _area(ax, 3.15, 1.45, 0.48, 0.48, GREEN, "cc")
    for x, y, name in ((0.5, 1.9, "A"), (2.7, 4.1, "B"), (2.7, 1.9, "C")):
        _text(ax, x, y, name, 12)
    arrow(ax, (1.6, 1.21), (2.18, 1.21), color=INK)
    arrow(ax, (3.39, 3.0), (3.39, 2.43), color=INK)
    _text(ax, 1.25, 0.05, "along K, a tile at a time", 9, color=FAINT)
    _area(ax, 5.2, 4.3, 4.8, 4.1, SKY, "12")
    _text(ax, 5.35, 4.13, "the SM that runs this block", 9.5, ha="left", color=FAINT)
    _area(ax, 5.45, 3.85, 4.3, 1.5, PURPLE, "14")
    _text(ax, 5.6, 3.68, "shared memory", 9.5, ha="left", color=PURPLE)
    cell = 0.17
    _cells(ax, 5.95, 3.5, 6, 6, cell, BLUE, [(2, j) for j in range(6)])
    _cells(ax, 8.2, 3.5, 6, 6, cell, ORANGE, [(i, 3) for i in range(6)])
    _text(ax, 5.78, 3.0, "As", 10)
    _text(ax, 8.03, 3.0, "Bs", 10)
    arrow(ax, (1.55, 1.5), (5.93, 3.15), color=BLUE, bend=-0.12)
    arrow(ax, (3.65, 3.4), (8.18, 3.45), color=ORANGE, bend=-0.24)
    box(ax, 7.6, 1.35, "32 x 32 threads, each with one sum", width=3.6, height=0.5, color=GREEN)
    arrow(ax, (6.45, 2.42), (7.0, 1.64), color=RED)
    arrow(ax, (8.75, 2.42), (8.2, 1.64), color=RED)
    _text(ax, 6.05, 1.95, "a row", 9, color=RED)
    _text(ax, 9.05, 1.95, "a column", 9, color=RED)
    _text(ax, 7.6, 0.72, "each fetches 1 + 1 numbers a tile, and reads 32 + 32:", 9.5)
    _text(ax, 7.6, 0.45, "what comes from memory once is used 32 times", 9.5)
    return figure


# --- rungs 4 and 5 ----------------------------------------------------------------------


def registers() -> Figure:
    """What a thread reads for one k, and the sums it adds to, for three shapes of its tile."""
    figure, ax = canvas(10.2, 4.0)
    cell = 0.2
    panels = (
        (0.5, 1, 1, "rung 3: 1 x 1", "2 numbers, 1 multiply-add"),
        (3.5, 8, 1, "rung 4: 8 x 1", "9 numbers, 8 multiply-adds"),
        (6.9, 8, 8, "rungs 5 and 6: 8 x 8", "16 numbers, 64 multiply-adds"),
    )
    for left, rows, columns, title, below in panels:
        _text(ax, left - 0.2, 3.8, title, 11, ha="left", weight="bold")
        x, y = left + 0.6, 2.75
        _area(ax, x - 0.07, y + 0.07, 8 * cell + 0.14, 8 * cell + 0.14, GREEN, "00", lw=0.8, ls=":")
        _cells(ax, left, y, rows, 1, cell, BLUE, [(i, 0) for i in range(rows)])
        _cells(ax, x, y + 0.55, 1, columns, cell, ORANGE, [(0, j) for j in range(columns)])
        _cells(ax, x, y, rows, columns, cell, GREEN, [(i, j) for i in range(rows) for j in range(columns)])
        _text(ax, left + 0.1, y - rows * cell - 0.18, "a", 10)
        _text(ax, x + columns * cell + 0.15, y + 0.45, "b", 10)
        _text(ax, left + 1.1, 0.72, below, 10)
    _text(ax, 5.1, 0.3, "blue and orange: read from shared memory into registers at every k; "
          "green: sums, in registers from beginning to end", 9.5, color=FAINT)  # fmt: skip
    return figure


def banks() -> Figure:
    """64 words of shared memory over 32 banks: what eight lanes ask for in rung 5, and in rung 6."""
    figure, ax = canvas(10.2, 3.9)
    cell = 0.27
    panels = (
        (3.25, "rung 5: lane l begins at word 8 l", 8, "two words in each of 16 banks: 2 clocks"),
        (1.35, "rung 6: lane l begins at word 4 l", 4, "one word in each of 32 banks: 1 clock"),
    )
    colors = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, FAINT, "#b8a000")
    for y, title, stride, verdict in panels:
        _text(ax, 0.3, y + 0.28, title, 10.5, ha="left", weight="bold")
        _text(ax, 0.95 + 32 * cell, y + 0.28, verdict, 9.5, ha="right", color=RED if stride == 8 else GREEN)
        for word in range(64):
            lane, inside = divmod(word, stride)
            mine = lane < 8 and inside < 4
            x, top = 0.95 + word % 32 * cell, y - word // 32 * cell
            face = f"{colors[lane]}bb" if mine else "#ffffff00"
            ax.add_patch(Rectangle((x, top - cell), cell, cell, facecolor=face, edgecolor=GRID, lw=0.9))
            if mine and inside == 0:
                _text(ax, x + 2 * cell, top - cell / 2, f"lane {lane}", 8)
        for row in range(2):
            _text(ax, 0.85, y - (row + 0.5) * cell, f"words {32 * row}-", 8, ha="right", color=FAINT)
    for bank in range(0, 32, 4):
        _text(ax, 0.95 + (bank + 0.5) * cell, 0.62, str(bank), 8.5, color=FAINT)
    _text(ax, 0.85, 0.62, "bank", 8.5, ha="right", color=FAINT)
    _text(ax, 5.3, 0.25, "loads of 16 bytes go eight lanes at a time; a column of the picture is a bank, "
          "and gives one word a clock", 9, color=FAINT)  # fmt: skip
    return figure


# --- rung 7 -----------------------------------------------------------------------------


def pipeline() -> Figure:
    """Tiles of block, warp and thread; and who works when, without and with copies that run ahead."""
    figure, ax = canvas(10.2, 6.0)
    side = 0.95  # of a warp's tile in the block; it is drawn twice as large, and a thread's again
    panels = (
        (0.3, 4 * side, "block: 128 x 256"),
        (5.0, 2 * side, "warp: 64 x 64"),
        (7.8, 2 * side, "thread: 16 x 8"),
    )
    for x, width, title in panels:
        _text(ax, x + width / 2, 5.85, title, 10.5, weight="bold")
        _area(ax, x, 5.65, width, 2 * side, GREEN, "0d")
    for i in range(2):
        for j in range(4):
            color, alpha = (RED, "44") if (i, j) == (0, 2) else (GREEN, "00")
            _area(ax, 0.3 + side * j, 5.65 - side * i, side, side, color, alpha, lw=1)
            _text(ax, 0.3 + side * (j + 0.5), 5.65 - side * (i + 0.5), f"warp {4 * i + j}", 9)
    group = 2 * side / 16  # of 4 x 4 elements
    for i in range(16):
        for j in range(16):
            mine = (i % 4, j % 8) == (1, 3)
            face = f"{RED}cc" if mine else f"{GREEN}{'30' if (i // 4 + j // 8) % 2 else '14'}"
            corner = (5.0 + j * group, 5.65 - (i + 1) * group)
            ax.add_patch(Rectangle(corner, group, group, facecolor=face, edgecolor="white", lw=0.5))
            if mine:  # 4 x 2 groups, drawn side by side
                for row in range(4):
                    for column in range(4):
                        x = 7.8 + (j // 8 * 4 + column) * 2 * side / 8
                        y = 5.65 - (i // 4 * 4 + row + 1) * 2 * side / 16
                        its = Rectangle((x, y), 2 * side / 8, 2 * side / 16)
                        its.set(facecolor=f"{RED}99", edgecolor="white", lw=0.5)
                        ax.add_patch(its)
    arrow(ax, (4.2, 4.7), (4.9, 4.7), color=FAINT)
    arrow(ax, (7.0, 4.7), (7.7, 4.7), color=FAINT)
    _text(ax, 5.95, 3.58, "red: one thread's 4 x 2 groups of 4 x 4", 9, color=FAINT)

    def bar(x: float, y: float, width: float, text: str, color: str) -> None:
        _area(ax, x, y, width - 0.03, 0.3, color, "55", lw=1)
        _text(ax, x + width / 2, y - 0.15, text, 8)

    _text(ax, 0.1, 3.13, "rung 6", 10.5, ha="left", weight="bold")
    for y, name in ((2.9, "copy"), (2.55, "multiply"), (1.75, "copy"), (1.0, "multiply")):
        _text(ax, 1.05, y - 0.15, name, 9, ha="right", color=FAINT)
    for i in range(4):
        bar(1.2 + 2.1 * i, 2.9, 1.2, f"tile {i}", BLUE)
        bar(2.4 + 2.1 * i, 2.55, 0.9, f"tile {i}", GREEN)
    _text(ax, 0.1, 1.98, "rung 7", 10.5, ha="left", weight="bold")
    for i in range(8):
        begins = 1.2 + 0.05 * i if i < 2 else 2.4 + 0.9 * (i - 2)  # with the product of the tile two before
        bar(begins, 1.75 - 0.35 * (i % 2), 1.2, f"tile {i}", BLUE)
        bar(2.4 + 0.9 * i, 1.0, 0.9, f"tile {i}", GREEN)
    arrow(ax, (1.2, 0.45), (9.9, 0.45), color=FAINT)
    _text(ax, 5.4, 0.27, "time", 9, color=FAINT)
    return figure


# --- rung 8 -----------------------------------------------------------------------------


def fragments() -> Figure:
    """Which lane holds which element of A, B and D of mma.sync m16n8k16; a colour is a register."""
    figure, ax = canvas(10.2, 5.4)
    cell = 0.27
    colors = (BLUE, ORANGE, GREEN, PURPLE)
    places = (
        ("A (16, 16): 4 registers", 0.3, 16, 16, lambda i, j: (i % 8 * 4 + j % 8 // 2, i // 8 + j // 8 * 2)),
        ("B (16, 8): 2 registers", 5.0, 16, 8, lambda i, j: (j * 4 + i % 8 // 2, i // 8)),
        ("D (16, 8): 2 x 2 floats", 7.7, 16, 8, lambda i, j: (i % 8 * 4 + j // 2, i // 8)),
    )
    for title, x, rows, columns, place in places:
        _text(ax, x, 5.1, title, 10.5, ha="left", weight="bold")
        for i in range(rows):
            for j in range(columns):
                lane, register = place(i, j)
                alpha = "bb" if lane == 5 else "2e"
                corner = (x + j * cell, 4.85 - (i + 1) * cell)
                ax.add_patch(
                    Rectangle(
                        corner, cell, cell, facecolor=f"{colors[register]}{alpha}", edgecolor="white", lw=0.8
                    )
                )
                _text(ax, x + (j + 0.5) * cell, 4.85 - (i + 0.5) * cell, str(lane), 6.5)
    below = "a number is the lane that holds the element, a colour its register; dark: all that lane 5 holds"
    _text(ax, 5.1, 0.2, below, 9.5, color=FAINT)
    return figure


def swizzle() -> Figure:
    """Eight rows of eight chunks, as they come and swizzled, with one chunk of every row marked."""
    figure, ax = canvas(10.2, 3.9)
    cell = 0.36
    panels = (
        (0.9, "as they come", lambda r, c: c, "one group of banks, 8 clocks", RED),
        (5.9, "chunk c of row r lies at c xor r", lambda r, c: c ^ r, "eight groups, 1 clock", GREEN),
    )
    for x, title, place, verdict, color in panels:
        _text(ax, x, 3.7, title, 10.5, ha="left", weight="bold")
        for r in range(8):
            _text(ax, x - 0.12, 3.42 - (r + 0.5) * cell, f"row {r}", 8.5, ha="right", color=FAINT)
            for c in range(8):
                j = place(r, c)
                face = f"{ORANGE}cc" if c == 3 else f"{ORANGE}1f"
                ax.add_patch(
                    Rectangle(
                        (x + j * cell, 3.42 - (r + 1) * cell), cell, cell, facecolor=face, edgecolor="white"
                    )
                )
                _text(ax, x + (j + 0.5) * cell, 3.42 - (r + 0.5) * cell, str(c), 8.5)
        _text(ax, x + 4 * cell, 0.36, "places in the row: groups of 4 banks", 8.5, color=FAINT)
        _text(ax, x + 4 * cell, 0.12, f"chunk 3 of eight rows: {verdict}", 9, color=color)
    return figure


# --- rung 9 -----------------------------------------------------------------------------


def hopper() -> Figure:
    """Who does what in rung 9, and when."""
    figure, ax = canvas(10.2, 6.2)
    _area(ax, 0.2, 6.0, 9.8, 3.0, SKY, "10")
    _text(ax, 0.35, 5.83, "an SM", 9.5, ha="left", color=FAINT)
    box(ax, 1.35, 5.2, "producer\nissues copies", width=1.7, height=0.75, color=PURPLE, size=9.5)
    box(ax, 1.35, 3.7, "TMA\ncopies tiles", width=1.7, height=0.75, color=BLUE, size=9.5)
    arrow(ax, (1.35, 4.8), (1.35, 4.1), color=PURPLE)
    _text(ax, 4.75, 3.17, "stages in shared memory", 9.5, color=FAINT)
    for i in range(4):
        y = 5.55 - 0.58 * i
        _area(ax, 3.55, y, 0.95, 0.45, BLUE, "44")
        _area(ax, 4.55, y, 1.4, 0.45, ORANGE, "44")
        _text(ax, 4.02, y - 0.23, "A 128 x 64", 8)
        _text(ax, 5.25, y - 0.23, "B 64 x 256", 8)
    box(
        ax,
        8.3,
        5.2,
        "consumer 1: rows 0 to 63\nwgmma; sums in registers",
        width=2.9,
        height=0.75,
        color=GREEN,
        size=9.5,
    )
    box(
        ax,
        8.3,
        3.7,
        "consumer 2: rows 64 to 127\nwgmma; sums in registers",
        width=2.9,
        height=0.75,
        color=GREEN,
        size=9.5,
    )
    arrow(ax, (2.22, 3.7), (3.5, 3.9), color=BLUE)
    _text(ax, 2.85, 3.55, "full, by bytes", 9, color=BLUE)
    arrow(ax, (6.0, 4.7), (6.8, 5.2), color=GREEN)
    arrow(ax, (6.0, 4.3), (6.8, 3.7), color=GREEN)
    arrow(ax, (6.95, 5.62), (2.25, 5.4), color=RED, bend=0.12, dashed=True)
    _text(ax, 2.75, 5.72, "empty", 9, color=RED)
    _text(ax, 8.4, 4.45, "the cluster's other block\nfetches half of each B", 8.5, color=FAINT)

    colors = (BLUE, ORANGE, PURPLE, SKY)

    def bar(x: float, y: float, width: float, stage: int, text: str) -> None:
        _area(ax, x, y, width - 0.03, 0.32, colors[stage % 4], "66", lw=1)
        _text(ax, x + width / 2, y - 0.16, text, 8)

    for y, name in ((2.5, "TMA"), (2.0, "consumer 1"), (1.5, "consumer 2")):
        _text(ax, 1.35, y - 0.16, name, 9.5, ha="right")
    for i in range(8):
        begins = 1.95 + 0.94 * i
        bar(begins, 2.0, 0.94, i, f"multiplies {i}")
        bar(begins + 0.12, 1.5, 0.94, i, f"multiplies {i}")
        emptied = 1.95 + 0.94 * (i - 3) + 0.14  # when both have multiplied what was in the stage before
        bar(1.55 + 0.35 * i if i < 4 else emptied, 2.5, 0.35, i, str(i))
    arrow(ax, (1.5, 0.85), (9.8, 0.85), color=FAINT)
    _text(ax, 5.6, 0.65, "time", 9, color=FAINT)
    below = "a colour is a stage: tile 4 is copied into the first when both consumers have multiplied tile 0"
    _text(ax, 5.1, 0.25, below, 9.5, color=FAINT)
    return figure


DRAWINGS = {
    "13_warp": warp,
    "13_shared": shared,
    "13_registers": registers,
    "13_banks": banks,
    "13_pipeline": pipeline,
    "13_fragments": fragments,
    "13_swizzle": swizzle,
    "13_hopper": hopper,
}

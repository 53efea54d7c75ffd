"""The drawings of notebook 00: the map, the spine, how text is made, how an exercise goes."""

import torch

from course import checkpoint
from course.data import DATA_DIR
from course.manual import ManualTransformer
from course.model import as_tensors
from course.plots import BLUE, GREEN, INK, ORANGE, PURPLE, RED
from drawings.shapes import arrow, box, canvas

MUTED = "#6b717b"

PARTS = (
    (
        "I  by hand",
        "any laptop",
        BLUE,
        (
            "00 Start here",
            "01 Tensors and backprop",
            "02 Backprop through\na transformer",
            "03 PyTorch autograd",
            "04 BPE tokenization",
            "05 The modern block",
            "06 The training loop",
        ),
    ),
    (
        "II  Triton",
        "a GPU, or the interpreter",
        GREEN,
        (
            "07 Triton and the GPU",
            "08 Fused RMSNorm",
            "09 FlashAttention-2",
            "10 Fused MLP and loss",
            "11 Training without\nPyTorch",
        ),
    ),
    (
        "III  CUDA C++",
        "a GPU, or the emulator",
        RED,
        (
            "12 First CUDA kernels",
            "13 The matmul ladder",
            "14 Training with\nCUDA kernels",
            "15 Fast inference",
        ),
    ),
    (
        "IV  full runs",
        "small on a laptop",
        PURPLE,
        (
            "16 A full training run",
            "17 Comparing runs",
            "18 More than one GPU",
        ),
    ),
)
NOTEBOOKS = DATA_DIR.parent / "notebooks"


def _sheet(width: float, height: float):
    """A canvas whose axes fill it: what is 9.6 units wide fits a notebook's column."""
    figure, ax = canvas(width, height)
    figure.set_size_inches(0.88 * width, 0.88 * height)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1)
    return figure, ax


def _dashed(ax) -> None:
    """Redraw the last box as something that does not exist yet."""
    patch = ax.patches[-1]
    patch.set(linestyle=(0, (4, 2.5)), facecolor="#ffffff", linewidth=1.1)
    ax.texts[-1].set_color(MUTED)


def the_map():
    """The 19 notebooks in their four parts; dashed ones are planned."""
    figure, ax = _sheet(9.6, 5.0)
    width, step, top = 2.16, 0.58, 4.03
    for column, (title, where, color, names) in enumerate(PARTS):
        x = 1.2 + 2.4 * column
        ax.text(x, top + 0.68, title, ha="center", fontsize=13, color=color)
        ax.text(x, top + 0.42, where, ha="center", fontsize=9, color=MUTED)
        for row, name in enumerate(names):
            box(ax, x, top - step * row, name, width=width, height=0.47, color=color, size=9.5)
            if not list(NOTEBOOKS.glob(f"{name[:2]}_*.ipynb")):
                _dashed(ax)
        if column < len(PARTS) - 1:
            _next_part(ax, x, top - step * (len(names) - 1), x + 2.4, top)
    box(ax, 7.75, 0.95, "", width=0.42, height=0.24, color=BLUE)
    ax.text(8.08, 0.95, "here now", va="center", fontsize=9.5)
    box(ax, 7.75, 0.58, "", width=0.42, height=0.24, color=BLUE)
    _dashed(ax)
    ax.text(8.08, 0.58, "planned", va="center", fontsize=9.5)
    return figure


def _next_part(ax, x1: float, y1: float, x2: float, y2: float) -> None:
    """From the last notebook of a part to the first of the next, between the columns."""
    middle = (x1 + x2) / 2
    ax.plot([x1 + 1.08, middle, middle], [y1, y1, y2], color=MUTED, lw=1.1, solid_capstyle="round")
    arrow(ax, (middle, y2), (x2 - 1.08, y2), color=MUTED)


def the_spine():
    """One model on top, one contract in the middle, four engines below."""
    figure, ax = _sheet(9.6, 4.6)
    x = 5.75
    for y, title, text in (
        (4.02, "one model", "written once by hand,\nonce for autograd"),
        (2.45, "one contract", "every operation is\na pair of functions"),
        (0.72, "four engines", "modules full of\nsuch pairs"),
    ):
        ax.text(0.1, y + 0.16, title, fontsize=13, va="bottom")
        ax.text(0.1, y + 0.06, text, fontsize=9.5, color=MUTED, va="top")
    box(ax, x - 1.75, 4.02, "ManualTransformer\nbackward pass by hand", width=2.6, height=0.72)
    box(ax, x + 1.75, 4.02, "Transformer\nnn.Module, autograd", width=2.6, height=0.72)
    ax.text(x, 4.02, "same\nweights", ha="center", va="center", fontsize=9, color=MUTED)
    box(ax, x, 2.45, "", width=6.3, height=1.05, color=ORANGE)
    for y, text in (
        (2.66, "gelu_forward(x)        →  y, saved"),
        (2.24, "gelu_backward(dy, saved)  →  dx   "),
    ):
        ax.text(x, y, text, ha="center", va="center", fontsize=11.5, family="monospace")
    for dx in (-1.75, 1.75):
        arrow(ax, (x + dx, 3.64), (x + dx, 3.0), color=INK)
    engines = (
        ("reference", "plain arithmetic\nthe ground truth", BLUE),
        ("torch", "PyTorch's fused\noperations", ORANGE),
        ("triton", "in Triton\nnotebooks 07–11", GREEN),
        ("cuda", "in CUDA C++\nnotebooks 12–15", RED),
    )
    for i, (name, text, color) in enumerate(engines):
        center = x + (i - 1.5) * 1.92
        box(ax, center, 0.72, f"{name}\n\n", width=1.76, height=1.0, color=color, size=11)
        ax.text(center, 0.58, text, ha="center", va="center", fontsize=9, color=MUTED)
        arrow(ax, (x + (i - 1.5) * 1.55, 1.9), (center, 1.24))
    return figure


def the_loop():
    """Text, ids, model, probabilities, the next token, and round again."""
    figure, ax = _sheet(9.6, 3.5)
    text, y = "The old", 2.35
    config, weights, tokenizer = checkpoint.load(checkpoint.SHIPPED)
    model = ManualTransformer(config, as_tensors(weights, dtype=torch.float64))
    ids = tokenizer.encode(text)
    likeliest = torch.softmax(model.logits(torch.from_numpy(ids[None]))[0, -1], -1).topk(5)
    bars = [
        (tokenizer.decode([i]).replace(" ", "␣"), p)
        for i, p in zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    ]
    left, gap = 0.15, 0.04
    right = left
    for token in ids:
        shown = tokenizer.decode([token]).replace(" ", "␣")
        width = 0.3 + 0.14 * len(shown)
        for height, label, color in ((y + 0.3, shown, BLUE), (y - 0.3, str(token), GREEN)):
            x = right + width / 2
            box(ax, x, height, "", width=width - gap, height=0.4, color=color)
            family = "monospace" if color == BLUE else None
            ax.text(x, height, label, ha="center", va="center", fontsize=10.5, family=family)
        right += width
    middle = (left + right) / 2
    ax.text(middle, y + 0.72, "text", ha="center", fontsize=11)
    ax.text(middle, y - 0.74, "ids  (T)", ha="center", fontsize=10, color=MUTED)
    box(ax, 3.1, y, "transformer", width=1.5, height=1.15, color=ORANGE, size=11)
    arrow(ax, (right + 0.06, y - 0.3), (2.32, y - 0.1))
    arrow(ax, (3.88, y), (4.6, y), "logits\n(V)", offset=(0, 0.32))
    box(ax, 5.2, y, "softmax", width=1.1, height=0.6, color=PURPLE, size=11)
    arrow(ax, (5.78, y), (6.2, y))
    for i, (token, p) in enumerate(bars):
        height = y + 0.56 - 0.28 * i
        ax.text(7.02, height, token, ha="right", va="center", fontsize=10, family="monospace")
        length = 0.85 * p / bars[0][1]
        ax.barh(height, length, left=7.1, height=0.19, color=GREEN if i == 0 else BLUE)
    ax.text(7.1, y + 0.86, "probabilities  (V)", ha="center", fontsize=10, color=MUTED)
    box(ax, 9.0, y, bars[0][0], width=0.85, height=0.45, color=GREEN, size=11)
    arrow(ax, (8.03, y), (8.53, y), "choose")
    ax.plot([9.0, 9.0, middle], [y - 0.26, 0.55, 0.55], color=GREEN, lw=1.6)
    arrow(ax, (middle, 0.55), (middle, 1.4), color=GREEN)
    label = "put it at the end of the text, and go round again"
    ax.text(5.1, 0.68, label, ha="center", fontsize=10.5, color=GREEN)
    ax.set_aspect("equal")
    ax.set(xlim=(0, 9.6), ylim=(0.3, 3.5))
    return figure


def the_cycle():
    """An exercise: the stub, the check, its words, and the way back."""
    figure, ax = _sheet(9.6, 2.3)
    y = 1.5
    box(ax, 1.1, y, "the stub\nwith ...", width=1.6, height=0.85, color=BLUE, size=11)
    box(ax, 4.0, y, 'check("00.1", softmax)', width=2.5, height=0.85, color=ORANGE, size=11)
    box(ax, 8.2, y, "solved", width=1.6, height=0.85, color=GREEN, size=11)
    arrow(ax, (1.94, y), (2.71, y), "you write", offset=(0, 0.15))
    arrow(ax, (5.29, y), (7.36, y), "nothing is wrong with it")
    words = "not right yet: which shape, which factor, which axis"
    ax.plot([4.0, 4.0, 1.1], [y - 0.47, 0.45, 0.45], color=RED, lw=1.4)
    arrow(ax, (1.1, 0.45), (1.1, y - 0.46), color=RED)
    ax.text(4.15, 0.45, words, va="center", fontsize=10, color=RED)
    return figure


DRAWINGS = {
    "00_map": the_map,
    "00_spine": the_spine,
    "00_loop": the_loop,
    "00_cycle": the_cycle,
}

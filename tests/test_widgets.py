"""What learners move: after each move the right thing is on the screen."""

import html
import re
from itertools import pairwise

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import pytest

from course.tokenizer import BPETokenizer
from course.widgets import merge_stepper, merges_of, plot_chips, readable

TEXT = "the cat sat on the mat & the <b>other</b> cat's 🐸 hat\n"
TOKENIZER = BPETokenizer.train([TEXT * 3], 281)


def parts(widget) -> list[str]:
    """The chips of a stepper, as they read."""
    return re.findall(r'">([^<]*)<br>', widget.children[2].value)


def test_the_slider_shows_the_tokens_after_so_many_merges():
    widget = merge_stepper(TOKENIZER, "the cat")
    field, buttons, page = widget.children
    slider = buttons.children[2]
    assert parts(widget) == list("the·cat")
    assert "7 tokens for 7 bytes" in page.value
    for n in (1, 5, slider.max):
        slider.value = n
        small = TOKENIZER.truncated(257 + n)
        assert parts(widget) == [readable(small.tokens[i]) for i in small.encode(field.value)]
    left, right = (html.escape(readable(part)) for part in TOKENIZER.merges[n - 1])
    assert f"merge {n}: <b>{left}</b> + <b>{right}</b>" in page.value
    field.value = "mat mat"
    assert "".join(parts(widget)) == "mat·mat"


def test_the_buttons_stop_at_every_merge_of_the_text_and_at_no_other():
    widget = merge_stepper(TOKENIZER, "the cat")
    back, on, slider = widget.children[1].children
    stops, looks = [], [parts(widget)]
    while slider.value < slider.max:
        on.click()
        stops.append(slider.value)
        looks.append(parts(widget))
    if stops[-1] not in merges_of(TOKENIZER, "the cat"):  # nothing more happens up to the end
        assert looks.pop() == looks[-1]
        stops.pop()
    assert stops == merges_of(TOKENIZER, "the cat")
    assert all(a != b for a, b in pairwise(looks))
    lengths = [len(TOKENIZER.truncated(257 + n).encode("the cat")) for n in range(slider.max + 1)]
    changes = [n for n, (before, after) in enumerate(pairwise(lengths), 1) if after < before]
    assert stops == changes
    while slider.value:
        back.click()
    assert parts(widget) == list("the·cat")


def test_what_is_typed_is_shown_and_not_run():
    widget = merge_stepper(TOKENIZER, "<script>alert(1)</script> & <|endoftext|>")
    assert "<script>" not in widget.children[2].value
    assert "".join(parts(widget)) == "&lt;script&gt;alert(1)&lt;/script&gt;·&amp;·&lt;|endoftext|&gt;"
    widget.children[0].value = ""
    assert parts(widget) == []
    assert "0 tokens for 0 bytes" in widget.children[2].value
    widget.children[0].value = "\ud800"  # half of a pair of surrogates, as a browser may send it
    assert parts(widget)


@pytest.mark.parametrize(
    ("token", "text"),
    [(b" the", "·the"), (b"\n", "⏎"), (b"\xf0\x9f", "f0 9f"), ("é".encode(), "é"), (b"\x00", "00")],
)
def test_every_token_is_readable(token, text):
    assert readable(token) == text


def test_the_static_picture_has_a_box_for_every_token():
    ax = plot_chips(TOKENIZER, TEXT, sizes=(257, 270, 281))
    counts = [len(TOKENIZER.truncated(size).encode(TEXT)) for size in (257, 270, 281)]
    rows = [round(box.get_y() + 0.36) for box in ax.patches]
    assert [rows.count(row) for row in range(3)] == counts
    labels = [text.get_text() for text in ax.texts]
    assert [f"{size} tokens: {n}" in labels for size, n in zip((257, 270, 281), counts, strict=True)] == [
        True
    ] * 3
    assert "🐸" not in "".join(labels)  # no font of matplotlib's has it
    plt.close("all")

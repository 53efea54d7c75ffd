"""The pictures of tokens: that they show what the tokenizer does, at every merge, for any text."""

import re
from html import unescape
from itertools import pairwise

import matplotlib.pyplot as plt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course import data
from course.tokenizer import END_OF_TEXT, BPETokenizer, CharTokenizer
from course.widgets import chips, merge_stepper, plot_chips

TOKENIZER = BPETokenizer.train([data.split("tales")[0][:40_000]], 700)
LINE = "the old woman & the <b>old</b> wolf"
MERGES = len(TOKENIZER.merges)


@pytest.fixture
def figures():
    yield
    plt.close("all")


def parts(widget):
    """Its text field, slider, two buttons and picture."""
    field, row, picture = widget.children
    return field, *row.children, picture


def drawn(html: str) -> list[tuple[str, int]]:
    """What is written on each chip, and its id."""
    pairs = re.findall(r'monospace">(.*?)</span><br><small[^>]*>(\d+)</small>', html, re.DOTALL)
    return [(unescape(token), int(i)) for token, i in pairs]


def ids_at(n: int, text: str) -> list[int]:
    return TOKENIZER.truncated(256 + n + 1).encode(text).tolist()


def test_the_slider_shows_the_text_as_it_is_after_so_many_merges():
    _, slider, _, _, picture = parts(merge_stepper(TOKENIZER, LINE))
    assert [token for token, _ in drawn(picture.value)] == list(LINE.replace(" ", "·"))
    for n in range(MERGES + 1):
        slider.value = n
        expected = [(TOKENIZER.tokens[i].decode().replace(" ", "·"), i) for i in ids_at(n, LINE)]
        assert drawn(picture.value) == expected
        ratio = len(LINE) / len(expected)
        counts = f", {len(expected)} tokens for {len(LINE)} bytes: {ratio:.1f} bytes a token"
        assert counts in picture.value
    assert len(expected) < len(LINE) - 10


def test_the_last_merge_is_written_out_and_outlined():
    _, slider, _, _, picture = parts(merge_stepper(TOKENIZER, "the hen"))
    slider.value = TOKENIZER.merges.index((b"h", b"e")) + 1
    assert "'he' = 'h' + 'e'</code>, 2 × in this text" in picture.value
    assert picture.value.count("outline:") == 2
    slider.value = next(n for n in range(MERGES, 0, -1) if 255 + n not in ids_at(n, "the hen"))
    assert "not in this text" in picture.value and "outline:" not in picture.value


def test_the_buttons_go_to_every_merge_that_changes_the_text_and_to_no_other():
    _, slider, back, forward, _ = parts(merge_stepper(TOKENIZER, LINE))
    changes = [n for n in range(1, MERGES + 1) if ids_at(n, LINE) != ids_at(n - 1, LINE)]
    assert len(changes) > 5
    seen = []
    while not forward.disabled:
        forward.click()
        seen.append(slider.value)
    assert seen == changes
    slider.value = MERGES
    seen = []
    while not back.disabled:
        back.click()
        seen.append(slider.value)
    assert seen == [n for n in [0, *changes] if n != MERGES][::-1]


words = st.sampled_from(
    ["the", " old", "aaaa", "é", "🙂", "日本", "\n", "\t", "\x00", " ", "<b>", END_OF_TEXT]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(words | st.text(max_size=6), max_size=12).map("".join), st.integers(0, MERGES))
def test_any_text_has_as_many_chips_as_the_tokenizer_of_that_size_gives_tokens(text, n):
    field, slider, _, _, picture = parts(merge_stepper(TOKENIZER, LINE))
    field.value, slider.value = text, n
    count = len(ids_at(n, text))
    assert len(drawn(picture.value)) == count
    assert re.search(rf"\b{n} merges?, {count} tokens? for ", picture.value)


def test_what_a_learner_types_is_shown_and_never_run():
    field, slider, _, _, picture = parts(merge_stepper(TOKENIZER, LINE))
    for text in ("<script>alert(1)</script>", "&amp; & &lt;", "\"quoted\" and 'so'"):
        field.value = text
        for slider.value in (0, MERGES):
            assert "".join(token for token, _ in drawn(picture.value)) == text.replace(" ", "·")
            assert "<script" not in picture.value
    slider.value = 1
    tokenizer = BPETokenizer.train(["<<<<<<"], 258)
    _, slider, _, _, picture = parts(merge_stepper(tokenizer, "<<"))
    slider.value = 1
    assert "'&lt;&lt;' = '&lt;' + '&lt;'" in picture.value


def test_no_text_has_no_chips():
    field, slider, back, forward, picture = parts(merge_stepper(TOKENIZER, LINE))
    field.value = ""
    assert drawn(picture.value) == []
    assert "0 merges, 0 tokens for 0 bytes" in picture.value
    assert back.disabled and forward.disabled
    forward.click()
    back.click()
    assert slider.value == 0
    slider.value = 5
    back.click()
    assert slider.value == 0


def test_parts_of_characters_are_shown_as_hex_and_what_is_invisible_as_a_sign():
    assert [token for token, _ in drawn(chips(TOKENIZER, "🙂").data)] == [r"\xf0", r"\x9f", r"\x99", r"\x82"]
    assert "".join(t for t, _ in drawn(chips(TOKENIZER, "a b\n\tc\x00").data)) == r"a·b⏎\tc\x00"
    assert drawn(chips(TOKENIZER, END_OF_TEXT).data) == [(END_OF_TEXT, TOKENIZER.end_of_text)]


def test_chips_show_either_tokenizer():
    tokenizer = CharTokenizer.from_text("abné ")
    html = chips(tokenizer, "né a").data
    assert drawn(html) == [(c.replace(" ", "·"), i) for c, i in zip("né a", tokenizer.encode("né a"))]
    assert "4 tokens for 5 bytes: 1.2 bytes a token" in html


def test_neighbours_never_have_the_same_colour():
    for text in (LINE, "aaaaaaaa", "abababab" * 9):
        colors = re.findall(r"background:(#\w+)", chips(TOKENIZER, text).data)
        assert len(colors) > 1
        assert all(one != other for one, other in pairwise(colors))


def test_the_plot_has_a_box_for_each_token_as_wide_as_its_bytes(figures):
    text, sizes = "the old woman, naïve 🙂", [257, 300, 700]
    ax = plot_chips(TOKENIZER, text, sizes)
    for y, size in enumerate(sizes):
        tokenizer = TOKENIZER.truncated(size)
        row = [box for box in ax.patches if abs(box.get_y() + box.get_height() / 2 - y) < 0.1]
        expected = [len(tokenizer.decode_bytes([i])) for i in tokenizer.encode(text)]
        assert [box.get_width() for box in row] == expected
        assert [box.get_x() for box in row] == [sum(expected[:i]) for i in range(len(expected))]
    assert len(ax.texts) == len(ax.patches)
    labels = [label.get_text() for label in ax.texts]
    assert labels[: len(text.encode())][-4:] == ["f0", "9f", "99", "82"]
    assert "·old" in labels


def test_the_plot_writes_every_character_in_a_font_that_has_it(figures, recwarn):
    tokenizer = BPETokenizer.train(["日本🙂é\t" * 9], 257 + 9)
    ax = plot_chips(tokenizer, "日本🙂é\t\n", [266], ax=plt.subplots()[1])
    ax.figure.canvas.draw()
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
    assert "".join(label.get_text() for label in ax.texts) == "e697a5e69cac" + "f09f9982" + "é" + "09" + "⏎"


def test_dollars_in_a_plot_are_no_formula(figures):
    tokenizer = BPETokenizer.train(["$+$"], 259)
    ax = plot_chips(tokenizer, "$+$", [259])
    ax.figure.canvas.draw()
    (label,) = ax.texts
    assert label.get_text() == "$+$" and not label.get_parse_math()


def test_the_letters_fit_their_boxes(figures):
    ax = plot_chips(TOKENIZER, LINE + " and 🙂 so they all did", [257, 400, 700])
    ax.figure.canvas.draw()
    for box, label in zip(ax.patches, ax.texts):
        assert label.get_window_extent().width <= box.get_window_extent().width


def test_an_empty_plot_and_a_size_that_does_not_exist(figures):
    assert not plot_chips(TOKENIZER, "", [300]).patches
    with pytest.raises(ValueError, match="keeps all bytes"):
        plot_chips(TOKENIZER, "the", [256])

"""Texts, their split, tokens and batches."""

import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from course import data
from course.tokenizer import END_OF_TEXT, CharTokenizer

# The corpus that ships


@pytest.fixture(scope="module")
def stories():
    return data.stories(data.load_text("tales"))


def test_tales_is_large_enough_and_plain(stories):
    text = data.load_text("tales")
    assert len(text.encode()) >= 300_000 and len(stories) >= 350
    assert re.fullmatch(r"[A-Za-z0-9 \n.,!?'\":;-]*", text.replace(END_OF_TEXT, ""))
    assert all(80 <= len(story.split()) <= 200 for story in stories)
    assert 0.4 <= sum('"' in story for story in stories) / len(stories) <= 0.7
    assert all(story.count('"') % 2 == 0 for story in stories)


def test_tales_are_written_not_filled_in(stories):
    """No 8-word sequence in more than 3 % of the stories, and hardly any in two."""
    where = defaultdict(set)
    for i, story in enumerate(stories):
        words = re.findall(r"[a-z']+", story.lower())
        for j in range(len(words) - 7):
            where[tuple(words[j : j + 8])].add(i)
    assert max(map(len, where.values())) <= 0.03 * len(stories)
    assert sum(len(places) > 1 for places in where.values()) < 10
    openings = Counter(" ".join(story.split()[:3]) for story in stories)
    assert max(openings.values()) <= 5


def test_tales_split_is_by_story_and_fixed(stories):
    training, validation = map(data.stories, data.split("tales"))
    assert len(training) + len(validation) == len(stories)
    assert validation == stories[9::10]
    assert not set(training) & set(validation)


def test_other_texts_hold_out_their_last_tenth(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_DATA_DIR", str(tmp_path))
    (tmp_path / "wizard_of_oz.txt").write_text("abcdefghij" * 10, encoding="utf-8")
    training, validation = data.split("wizard_of_oz")
    assert len(training) == 90 and validation == "abcdefghij"


def test_a_text_that_is_not_there_says_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(data, "DATA_DIR", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"get it from Project Gutenberg.*COURSE_DATA_DIR"):
        data.load_text("wizard_of_oz")


def test_unknown_dataset():
    with pytest.raises(ValueError, match="Unknown dataset 'imdb': choose one of tales"):
        data.load_text("imdb")


# Characters as tokens


@given(st.text())
def test_tokenizer_round_trip(text):
    tokenizer = CharTokenizer.from_text(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) == 0 or ids.max() < tokenizer.vocab_size


def test_end_of_text_is_one_token():
    tokenizer = CharTokenizer("ab")
    ids = tokenizer.encode(f"a{END_OF_TEXT}b")
    assert ids.tolist() == [1, tokenizer.end_of_text, 2]
    assert CharTokenizer.from_text(f"a{END_OF_TEXT}b").vocab_size == 3


def test_a_character_or_id_it_never_saw_is_named():
    tokenizer = CharTokenizer("ab")
    with pytest.raises(ValueError, match=r"'\?' is not in this tokenizer's alphabet of 2 characters"):
        tokenizer.encode("ab?")
    with pytest.raises(ValueError, match="Token id 3 is outside the vocabulary of 3"):
        tokenizer.decode([1, 3])
    with pytest.raises(ValueError, match="Token id -1"):
        tokenizer.decode([-1])


# Batches


def test_targets_are_the_ids_one_further_on():
    tokens = np.arange(100)
    ids, targets = data.Batches(tokens, 4, 7).at(0)
    assert ids.shape == targets.shape == (4, 7)
    assert (targets == ids + 1).all()


def test_batches_depend_on_seed_and_step_alone():
    tokens = np.arange(1000)
    a, b = (data.Batches(tokens, 4, 7, seed=1) for _ in range(2))
    a.at(0)
    assert (a.at(5)[0] == b.at(5)[0]).all()
    assert (a.at(5)[0] != a.at(6)[0]).any()
    assert (a.at(5)[0] != data.Batches(tokens, 4, 7, seed=2).at(5)[0]).any()


def test_every_window_can_be_drawn():
    batches = data.Batches(np.arange(5), 64, 3)
    assert {tuple(row) for row in batches.at(0)[0]} == {(0, 1, 2), (1, 2, 3)}


def test_in_order_covers_the_text_once():
    tokens = np.arange(23)
    targets = np.concatenate([t.reshape(-1) for _, t in data.in_order(tokens, 2, 4)])
    assert targets.tolist() == list(range(1, 21))


def test_a_text_shorter_than_a_window_is_refused():
    with pytest.raises(ValueError, match="A text of 8 tokens has no window of 9"):
        data.Batches(np.arange(8), 1, 8)
    with pytest.raises(ValueError, match="has no window"):
        next(data.in_order(np.arange(8), 1, 8))

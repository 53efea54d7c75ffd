"""Byte-pair encoding: against tiktoken and Hugging Face, against an obvious trainer, and its files."""

import json
import os
import time
from collections import Counter

import numpy as np
import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from course.__main__ import main
from course.tokenizer import END_OF_TEXT, BPETokenizer, CharTokenizer, bpe_training
from course.tokenizer.analysis import analyse, recommend
from course.tokenizer.bpe_training import count_pretokens
from course.tokenizer.pretokens import CHARACTERS, PATTERNS, blocks, visible

TEXT = (
    "The cat sat on the mat, and the other cat's hat was 12345 feet away. aaaa aaaaaaaa banana bananas!\n"
    "    def the_cat(self):\n\t\treturn self.hat  # the cat's hat …  \r\n\r\n"
    "Grüße, naïve Übung; 🙂🙂👍🏽 日本語の日本語 don't DON'T we'll we're 'tis  \n\n\n ((()))// ==\n"
) * 3
SIZE = 380
TRAINED = {pattern: BPETokenizer.train([TEXT], SIZE, pattern) for pattern in PATTERNS}
PEERS = {pattern: tokenizer.to_tiktoken() for pattern, tokenizer in TRAINED.items()}

# Characters that Python's Unicode has not assigned may be letters to one library and nothing to the other.
characters = st.characters(exclude_categories=("Cn", "Cs"))
words = st.sampled_from(
    ["the cat", "'s", "'LL", "123", " ", "  ", "\n", "\r\n", "\t", "\x00", "\x1f", "\x85", "\u2028", "\xa0"]
    + [
        "🙂",
        "👍🏽",
        "é",
        "e\u0301",
        "ſ",
        "\ud83d",
        "\ude42",
        "!!",
        "/",
        "=",
        "aaaa",
        "日本",
        END_OF_TEXT,
        "<|endof",
    ]
)
texts = st.lists(words | st.text(characters, max_size=8), max_size=20).map("".join)
patterns = st.sampled_from(list(PATTERNS))


def slowly(texts, size, pattern):
    """Training as one would explain it: count all pairs, merge the most frequent, begin again."""
    tokens = [bytes([byte]) for byte in CHARACTERS]
    order = {token: i for i, token in enumerate(tokens)}
    words = [
        ([bytes([byte]) for byte in word], n)
        for word, n in count_pretokens(texts, pattern, [END_OF_TEXT]).items()
    ]
    while len(tokens) < size:
        pairs = Counter()
        for parts, n in words:
            for pair in zip(parts, parts[1:]):  # noqa: RUF007
                pairs[pair] += n
        if not pairs:
            return tokens
        left, right = min(pairs, key=lambda pair: (-pairs[pair], order[pair[0]], order[pair[1]]))
        order[left + right] = len(tokens)
        tokens.append(left + right)
        for parts, _ in words:
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == (left, right):
                    parts[i : i + 2] = [left + right]
                i += 1
    return tokens


@settings(max_examples=300, deadline=None)
@given(patterns, texts)
def test_encodes_as_tiktoken_with_the_same_merges(pattern, text):
    ours, peer = TRAINED[pattern], PEERS[pattern]
    assert ours.encode(text).tolist() == peer.encode(text, allowed_special="all")
    assert ours.encode(text, (), ()).tolist() == peer.encode(text, disallowed_special=())


@settings(max_examples=200, deadline=None)
@given(patterns, texts)
def test_a_text_comes_back(pattern, text):
    tokenizer = TRAINED[pattern]
    read = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert tokenizer.decode(tokenizer.encode(text)) == read


@given(st.binary(max_size=200))
def test_any_bytes_come_back(content):
    tokenizer = TRAINED["gpt4"]
    assert tokenizer.decode_bytes(tokenizer._encode_pretoken(content)) == content


@settings(max_examples=200, deadline=None)
@given(st.text("ab ban", min_size=1, max_size=300))
def test_both_ways_to_merge_agree(text):
    tokenizer = TRAINED["gpt4"]
    assert tokenizer._merge(text.encode()) == tokenizer._merge_long(text.encode())


@settings(max_examples=60, deadline=None)
@given(patterns, st.lists(st.text("aab n\n'é", max_size=40), max_size=5))
def test_training_equals_the_obvious_way(pattern, texts):
    expected = slowly(texts, 280, pattern)
    assert BPETokenizer.train(texts, len(expected) + 1, pattern).tokens == expected


def test_training_is_the_same_each_time_and_in_the_same_order_for_smaller_sizes():
    assert BPETokenizer.train(iter([TEXT]), SIZE).fingerprint == TRAINED["gpt4"].fingerprint
    assert BPETokenizer.train([TEXT], 300).tokens == TRAINED["gpt4"].truncated(300).tokens
    assert BPETokenizer.train([TEXT], 300).fingerprint != TRAINED["gpt4"].fingerprint


def test_several_processes_count_as_one_does(monkeypatch):
    monkeypatch.setattr(bpe_training, "BATCH", 100)  # many batches of this little text
    documents = [TEXT, f"a{END_OF_TEXT}b", "", TEXT[:77], "\ud800 x"]
    one = count_pretokens(documents, "gpt4", [END_OF_TEXT])
    several = count_pretokens(documents, "gpt4", [END_OF_TEXT], processes=2)
    assert several == one
    assert list(several) == list(one)
    with pytest.raises(ValueError, match="processes = 0: expected"):
        count_pretokens(documents, "gpt4", processes=0)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_merges_equal_hugging_face(pattern):
    peer = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(PATTERNS[pattern]), "isolated")
    by_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    peer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, by_bytes])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=SIZE - 1, initial_alphabet=by_bytes.alphabet(), show_progress=False
    )
    peer.train_from_iterator([TEXT], trainer)
    merges = [[visible(left), visible(right)] for left, right in TRAINED[pattern].merges]
    assert [list(merge) for merge in json.loads(peer.to_str())["model"]["merges"]] == merges


@pytest.mark.parametrize("pattern", PATTERNS)
def test_hugging_face_reads_the_export(pattern, tmp_path):
    TRAINED[pattern].to_hugging_face(tmp_path / "tokenizer.json")
    peer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = TEXT + END_OF_TEXT + "more bananas"
    ids = TRAINED[pattern].encode(text).tolist()
    assert peer.encode(text).ids == ids
    assert peer.decode(ids, skip_special_tokens=False) == text


def test_the_end_of_text_is_one_token_as_with_characters():
    tokenizer = TRAINED["gpt4"]
    text = f"cat{END_OF_TEXT}hat"
    assert (tokenizer.encode(text) == tokenizer.end_of_text).sum() == 1
    assert (CharTokenizer.from_text(text).encode(text) == 0).sum() == 1
    assert tokenizer.encode(text).dtype == np.int64
    assert tokenizer.end_of_text == SIZE - 1 == tokenizer.vocab_size - 1
    assert not any(b"|" in token and len(token) > 1 for token in tokenizer.tokens)
    with pytest.raises(ValueError, match=r"<\|endoftext\|>.*not allowed"):
        tokenizer.encode(text, allowed_special=())
    as_text = tokenizer.encode(text, allowed_special=(), disallowed_special=())
    assert tokenizer.end_of_text not in as_text
    assert tokenizer.decode(as_text) == text
    with pytest.raises(ValueError, match="none of the special tokens"):
        tokenizer.encode(text, allowed_special={"<|other|>"})


def test_of_special_tokens_that_overlap_the_longest_is_meant():
    tokenizer = BPETokenizer(TRAINED["gpt4"].tokens, special_tokens=("<a>", "<a><b>"))
    assert tokenizer.encode("<a><b><a>").tolist() == [SIZE, SIZE - 1]
    with pytest.raises(ValueError, match="has no"):
        _ = tokenizer.end_of_text


@settings(max_examples=200, deadline=None)
@given(patterns, texts, st.lists(st.integers(0, 60), max_size=6))
def test_a_stream_is_encoded_as_the_whole(pattern, text, cuts):
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    chunks = [text[a:b] for a, b in zip(bounds, bounds[1:])]  # noqa: RUF007
    arrays = list(TRAINED[pattern].encode_stream(chunks))
    assert [i for ids in arrays for i in ids.tolist()] == TRAINED[pattern].encode(text).tolist()


def test_a_stream_is_not_held_back():
    assert list(blocks(["the cat", " sat", " on\n"])) == ["the", " cat", " sat on", "\n"]


def test_a_megabyte_of_one_letter_takes_bounded_time():
    tokenizer = TRAINED["gpt2"]
    start = time.perf_counter()
    ids = tokenizer.encode("a" * 1_000_000)
    assert time.perf_counter() - start < 20  # quadratic would be hours; on a quiet machine, a second
    assert tokenizer.decode(ids) == "a" * 1_000_000


def test_saved_and_loaded_it_is_the_same(tmp_path):
    file = tmp_path / "new" / "tokenizer.json"
    tokenizer = BPETokenizer.train([TEXT], 300, "gpt2", (END_OF_TEXT, "<|user|>"))
    tokenizer.save(file)
    again = BPETokenizer.load(file)
    assert again.fingerprint == tokenizer.fingerprint
    assert (again.pattern, again.tokens, again.special_tokens) == (
        tokenizer.pattern,
        tokenizer.tokens,
        tokenizer.special_tokens,
    )
    assert "Ġthe" in file.read_text(encoding="utf-8")
    assert list(file.parent.iterdir()) == [file]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "tokenizer.json"
    TRAINED["gpt4"].save(file)
    before = file.read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        TRAINED["gpt2"].save(file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_broken_and_foreign_files_are_named(tmp_path):
    file = tmp_path / "tokenizer.json"
    TRAINED["gpt4"].save(file)
    content = file.read_text(encoding="utf-8")

    def refused(text, match):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=match):
            BPETokenizer.load(file)

    refused(content[: len(content) // 2], "not JSON")
    refused("[]", "not written by")
    TRAINED["gpt4"].to_hugging_face(file)
    refused(file.read_text(encoding="utf-8"), "not written by")
    for key, value in (
        ("tokens", ["a"]),
        ("tokens", None),
        ("pattern", "gpt9"),
        ("special_tokens", {END_OF_TEXT: 3}),
        ("special_tokens", {END_OF_TEXT: SIZE}),  # another number: only the fingerprint knows
    ):
        refused(json.dumps(json.loads(content) | {key: value}), "damaged")
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not JSON"):
        BPETokenizer.load(file)
    with pytest.raises(FileNotFoundError):
        BPETokenizer.load(tmp_path / "none.json")


def test_bad_requests_are_refused_in_words():
    with pytest.raises(ValueError, match="ask for 257 or more"):
        BPETokenizer.train([TEXT], 256)
    with pytest.raises(ValueError, match="smaller vocabulary"):
        BPETokenizer.train(["banana"], 1000)
    with pytest.raises(ValueError, match="choose one of gpt2"):
        BPETokenizer.train([TEXT], 300, pattern="gpt9")
    with pytest.raises(ValueError, match="without spaces"):
        BPETokenizer.train([TEXT], 300, special_tokens=("end of text",))
    with pytest.raises(ValueError, match=f"id {SIZE} is not in"):
        TRAINED["gpt4"].decode([SIZE])
    with pytest.raises(ValueError, match="not 10"):
        TRAINED["gpt4"].truncated(10)
    with pytest.raises(ValueError, match="choose one of gpt2"):
        BPETokenizer.from_tiktoken("gpt9")


def test_half_a_character_is_shown_as_such():
    ids = BPETokenizer.train([], 257).encode("é")
    assert TRAINED["gpt4"].decode(ids[:1]) == "\ufffd"


def test_a_tokenizer_comes_back_from_tiktoken(monkeypatch):
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: PEERS["gpt2"])
    again = BPETokenizer.from_tiktoken("gpt2")
    assert again.fingerprint == TRAINED["gpt2"].fingerprint
    assert again.merges == TRAINED["gpt2"].merges


@pytest.fixture(scope="module")
def gpt2() -> BPETokenizer:
    if "TIKTOKEN_CACHE_DIR" not in os.environ:
        pytest.skip("GPT-2's merges are a download")
    try:
        return BPETokenizer.from_tiktoken("gpt2")
    except ConnectionError as error:
        pytest.skip(str(error))


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_with_gpt2s_merges_it_is_gpt2s(gpt2, text):
    theirs = tiktoken.get_encoding("gpt2")
    assert gpt2.encode(text).tolist() == theirs.encode(text, allowed_special="all")


def test_offline_it_says_so(monkeypatch):
    def offline(name):
        raise OSError("no route to host")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    with pytest.raises(ConnectionError, match="connect to the internet"):
        BPETokenizer.from_tiktoken("gpt2")


def test_the_analysis_weighs_compression_against_cost():
    rows = analyse(TEXT * 30, TEXT, [300, 270, 350], d_model=64, n_layer=2)
    assert [row.vocab_size for row in rows] == [270, 300, 350]
    assert rows[0].bytes_per_token < rows[1].bytes_per_token < rows[2].bytes_per_token
    assert rows[1].embedding_parameters == 300 * 64
    assert rows[1].flops_per_byte == pytest.approx(6 * (12 * 2 * 64**2 + 300 * 64) / rows[1].bytes_per_token)
    assert recommend(rows) in rows


def test_the_analysis_of_sizes_without_merges_and_models_without_width():
    (row,) = analyse(TEXT, TEXT, [257], d_model=64, n_layer=2)
    assert row.rare_share == 0
    with pytest.raises(ValueError, match="d_model = 0: expected"):
        analyse(TEXT, TEXT, [270], d_model=0, n_layer=2)
    with pytest.raises(ValueError, match="There is no text to measure compression on"):
        analyse("", "", [257], d_model=64, n_layer=2)


def test_the_command_line_trains_encodes_and_analyses(tmp_path, capsys):
    text, tokenizer, ids = (tmp_path / name for name in ("text.txt", "tokenizer.json", "ids.npy"))
    text.write_text(TEXT * 5, encoding="utf-8", newline="")
    assert main(["tokenize", "train", str(text), "--vocab-size", "300", "--output", str(tokenizer)]) == 0
    assert main(["tokenize", "encode", str(tokenizer), str(text), "--output", str(ids)]) == 0
    assert np.load(ids).tolist() == BPETokenizer.load(tokenizer).encode(TEXT * 5).tolist()
    assert f"{len(np.load(ids)):,} tokens" in capsys.readouterr().out
    assert main(["tokenize", "analyze", str(text), "--sizes", "270", "300"]) == 0
    assert "Recommended" in capsys.readouterr().out
    text.write_bytes(b"caf\xe9")
    assert main(["tokenize", "encode", str(tokenizer), str(text), "--output", str(ids)]) == 1
    assert "not UTF-8" in capsys.readouterr().err
    assert set(tmp_path.iterdir()) == {ids, text, tokenizer}

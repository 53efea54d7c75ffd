"""Texts, their split, tokens and batches."""

import errno
import hashlib
import os
import re
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from course import __main__ as command_line
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
    monkeypatch.setattr(data.registry, "DATA_DIR", tmp_path)
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


def test_prompts_are_padded_on_the_left():
    ids, mask = data.left_pad([[1, 2, 3], [4]], pad=9)
    assert ids.tolist() == [[1, 2, 3], [9, 9, 4]] and ids.dtype == np.int64
    assert mask.tolist() == [[True] * 3, [False, False, True]]
    with pytest.raises(ValueError, match="at least one token each"):
        data.left_pad([[1], []], pad=9)


# Token files


class Numbers:
    """A tokenizer whose only words are numbers: as large a vocabulary as one likes."""

    end_of_text = 0

    def __init__(self, vocab_size):
        self.vocab_size, self.fingerprint = vocab_size, f"{vocab_size:064x}"

    def encode(self, text):
        return np.array([int(word) for word in text.split()], dtype=np.int64)


@pytest.mark.parametrize("vocab_size, dtype", [(2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_token_files_give_back_what_was_written(tmp_path, vocab_size, dtype):
    written = data.write_tokens(
        tmp_path / "a.tokens", ["1 2", f"{vocab_size - 1}"], Numbers(vocab_size), progress=False
    )
    assert written.tokens.tolist() == [1, 2, 0, vocab_size - 1, 0]
    assert written.tokens.dtype == dtype and isinstance(written.tokens, np.memmap)
    assert written.vocab_size == vocab_size and written.text_bytes == 3 + len(str(vocab_size - 1))
    assert not written.tokens.flags.writeable
    assert [path.name for path in tmp_path.iterdir()] == ["a.tokens"]


def test_batches_over_a_mapped_file_are_those_in_memory(tmp_path):
    words = " ".join(map(str, range(1, 500)))
    tokens = data.write_tokens(tmp_path / "a.tokens", [words], Numbers(500), progress=False).tokens
    for ours, plain in zip(
        [data.Batches(tokens, 4, 7).at(3), *data.in_order(tokens, 4, 7)],
        [data.Batches(np.array(tokens), 4, 7).at(3), *data.in_order(np.arange(1, 501) % 500, 4, 7)],
        strict=True,
    ):
        assert ours[0].dtype == ours[1].dtype == np.int64
        assert (ours[0] == plain[0]).all() and (ours[1] == plain[1]).all()


def test_unfit_token_files_are_refused(tmp_path):
    path = tmp_path / "a.tokens"
    data.write_tokens(path, ["1 2 3"], Numbers(10), progress=False)
    with pytest.raises(ValueError, match=r"another tokenizer \(vocabulary 10, this one's is 11\)"):
        data.open_tokens(path, Numbers(11))
    whole = path.read_bytes()
    for bad in (whole[:-1], whole + b"x"):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"has 13[57] bytes, expected 136: it was cut short"):
            data.open_tokens(path)
    for bad in (b"", whole[:50], b"x" * 500):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="is not a file of tokens"):
            data.open_tokens(path)
    path.write_bytes(whole[:8] + b"\x02" + whole[9:])
    with pytest.raises(ValueError, match="format version 2, expected 1"):
        data.open_tokens(path)


def test_nothing_is_left_of_an_interrupted_preparation(tmp_path):
    def documents():
        yield "1 " * 2**20
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        data.write_tokens(tmp_path / "a.tokens", documents(), Numbers(10), progress=False)
    with pytest.raises(ValueError, match="no documents"):
        data.write_tokens(tmp_path / "a.tokens", [], Numbers(10), progress=False)
    with pytest.raises(ValueError, match="Token id 10 is outside the vocabulary of 10"):
        data.write_tokens(tmp_path / "a.tokens", ["10"], Numbers(10), progress=False)
    assert not list(tmp_path.iterdir())


def test_a_preparation_that_is_killed_leaves_nothing_that_is_taken_for_whole(tmp_path):
    program = """
import os, sys
from course import data
from course.tokenizer import CharTokenizer
def documents():
    yield "a" * 2**20
    os.kill(os.getpid(), 9)
data.write_tokens(sys.argv[1], documents(), CharTokenizer("a"), progress=False)
"""
    path = tmp_path / "a.tokens"
    assert subprocess.run([sys.executable, "-c", program, path]).returncode == -9
    assert not path.exists()


def test_a_full_disk_is_said_in_words(tmp_path):
    def documents():
        yield "1"
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"The disk is full, so that a.tokens was not written: free some"):
        data.write_tokens(tmp_path / "a.tokens", documents(), Numbers(10), progress=False)
    assert not list(tmp_path.iterdir())


def test_only_a_little_of_the_text_is_held():
    """While documents are read, those before have been encoded already."""
    encoded = []

    class Watching(Numbers):
        def encode(self, text):
            encoded.append(len(text))
            return np.array([1])

    def documents():
        for i in range(20):
            assert i - len(encoded) <= 4
            yield "1" * 2**18

    from course.data.token_files import CHARACTERS_AT_ONCE, _encoder
    from course.tokenizer.pretokens import batches

    for portion in batches(documents(), CHARACTERS_AT_ONCE):
        list(_encoder(Watching(10))(portion))
    assert len(encoded) == 20


def test_tales_prepared(tmp_path):
    training, validation = data.split("tales")
    tokenizer = CharTokenizer.from_text(training + validation)
    files = data.token_split("tales", tokenizer, tmp_path, progress=False)
    for text, file in zip((training, validation), files, strict=True):
        assert (file.tokens == tokenizer.encode(text)).all()
        assert file.text_bytes == len(text.replace(END_OF_TEXT, "").encode())
        assert file.fingerprint == data.fingerprint(tokenizer)
    before = files[0].path.stat().st_mtime_ns
    data.prepare("tales", tokenizer, tmp_path, progress=False)
    assert files[0].path.stat().st_mtime_ns == before  # used as it is
    files[0].path.write_bytes(files[0].path.read_bytes()[:-1])
    (again, _) = data.token_split("tales", tokenizer, tmp_path, progress=False)
    assert (again.tokens == tokenizer.encode(training)).all()  # cut short, so made anew


def test_fingerprints_tell_vocabularies_apart():
    a, b = CharTokenizer("ab"), CharTokenizer("abc")
    assert data.fingerprint(a) == data.fingerprint(CharTokenizer("ba")) != data.fingerprint(b)


# Python's own source


def test_python_source_is_divided_by_package(tmp_path, monkeypatch):
    from course.data import python_source

    monkeypatch.setattr(python_source, "roots", lambda: [tmp_path])
    contents = {}
    for package in ("asyncio", "json", "yaml", "xml"):
        (tmp_path / package).mkdir()
        for name in ("b", "a"):
            contents[package, name] = f"# {package} {name}\n"
            (tmp_path / package / f"{name}.py").write_text(contents[package, name])
    (tmp_path / "json/copy.py").write_text(contents["asyncio", "a"])
    (tmp_path / "xml/empty.py").touch()
    (tmp_path / "xml/latin.py").write_bytes(b"# \xe9")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages/other.py").write_text("# has a root of its own")
    training, validation = (list(data.documents("python_source", part)) for part in data.PARTS)
    assert validation == [contents[p, n] for p in ("asyncio", "yaml") for n in ("a", "b")]
    assert training == [contents[p, n] for p in ("json", "xml") for n in ("a", "b")]


def test_a_sample_is_spread_over_the_training_part(tmp_path, monkeypatch):
    from course.data import python_source

    monkeypatch.setattr(python_source, "roots", lambda: [tmp_path])
    texts = [f"# {i:07}\n" for i in range(12)]  # 10 bytes each
    for i, text in enumerate(texts):
        (tmp_path / f"p{i:02}").mkdir()
        (tmp_path / f"p{i:02}/a.py").write_text(text)
    training = [text for i, text in enumerate(texts) if not python_source.is_held_out(f"p{i:02}")]
    assert list(data.sample("python_source", 10**6)) == training
    assert list(data.sample("python_source", 10 * len(training) // 2)) == training[::2]
    assert list(data.sample("python_source", 1)) == training[:1]


# Fetching


@pytest.fixture
def server(tmp_path, monkeypatch):
    """An HTTP server on this machine: `server.content` is what it has, `server.sent` how much it sends."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(0)

        def do_GET(self):
            if self.path.startswith("/api/"):  # the Hub's client asks for more than files
                return self.send_error(404)
            self.answer(None)

        def answer(self, sent):
            content, start = self.server.content, 0
            if asked := self.headers.get("Range"):
                start = int(re.search(r"\d+", asked).group())
            self.server.asked.append((self.command, start))
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("ETag", f'"{self.server.checksum or hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()
            self.wfile.write(content[start : self.server.sent if sent is None else 0])
            if self.command == "GET" and self.server.hangs:
                self.server.hangs.wait(60)
            self.close_connection = True

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.sent, server.checksum, server.asked = b"", None, None, []
    server.hangs = None  # an event that it waits for before it ends an answer
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(data.registry, "DATA_DIR", tmp_path)
    monkeypatch.delenv("COURSE_DATA_DIR", raising=False)
    yield server
    server.shutdown()
    server.server_close()


def entry(monkeypatch, **known):
    """A dataset `x` of one file."""
    file = data.registry.File("x.txt", **known)
    monkeypatch.setitem(data.DATASETS, "x", data.Dataset("", "the source", "", "", (file,)))


def test_fetch(server, tmp_path, monkeypatch):
    server.content = b"abc" * 1000
    entry(monkeypatch, url=server.url, size=3000, sha256=hashlib.sha256(server.content).hexdigest())
    assert data.find("x") is None
    assert data.fetch("x") == tmp_path / "x.txt" == data.find("x")
    assert data.load_text("x") == "abc" * 1000
    data.fetch("x")
    assert len(server.asked) == 1  # what is here is not fetched again
    (tmp_path / "x.txt").write_bytes(b"abd" * 1000)
    with pytest.raises(ValueError, match=r"x.txt is not the text .* `python -m course data fetch x`"):
        data.load_text("x")
    data.fetch("x")
    assert data.load_text("x") == "abc" * 1000
    (tmp_path / "x.txt").write_bytes(b"abc")
    with pytest.raises(ValueError, match="has 3 bytes, expected 3,000: it was cut short"):
        data.load_text("x")


def test_what_is_cut_short_or_other_is_not_kept(server, tmp_path, monkeypatch):
    server.content, server.sent = b"abc" * 1000, 1000
    entry(monkeypatch, url=server.url, sha256=hashlib.sha256(server.content).hexdigest())
    with pytest.raises(OSError, match=r"could not be fetched .*: check the connection and run .* fetch x"):
        data.fetch("x")
    server.content, server.sent = b"abd" * 1000, None
    with pytest.raises(ValueError, match=r"x.txt has the checksum .* instead of .* thrown away: run"):
        data.fetch("x")
    entry(monkeypatch, url=server.url, size=5)
    with pytest.raises(ValueError, match="has 3,000 bytes instead of 5"):
        data.fetch("x")
    assert not list(tmp_path.iterdir())


def test_offline_is_said_in_one_line(server, tmp_path, monkeypatch, capsys):
    server.shutdown()
    server.server_close()
    entry(monkeypatch, url=server.url)
    assert command_line.main(["data", "fetch", "x"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "check the connection" in said and str(tmp_path / "x.txt") in said
    assert not list(tmp_path.iterdir())


def test_too_little_space_is_noticed_before(server, monkeypatch):
    entry(monkeypatch, url=server.url, size=10**18)
    with pytest.raises(OSError, match=r"needs 1000000000.0 GB .* free some space"):
        data.fetch("x")
    assert not server.asked


def test_of_a_gutenberg_page_the_book_is_kept(server, monkeypatch):
    book = "*** START OF THE BOOK ***\nDorothy lived\n*** END OF THE BOOK ***\n"
    server.content = f"\ufeffLicence\n{book}More licence\n".replace("\n", "\r\n").encode()
    entry(monkeypatch, url=server.url, gutenberg=True, mentions="Dorothy")
    data.fetch("x")
    assert data.load_text("x") == book
    data.find("x").unlink()
    server.content = b"Too many requests"
    with pytest.raises(ValueError, match="does not mention Dorothy"):
        data.fetch("x")
    assert data.find("x") is None


@pytest.fixture
def hub(server, monkeypatch):
    """The server as the Hugging Face Hub, with a file of 2.5 MB that is read 0.25 MB at a time."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 250_000)  # what arrives of a larger one is dropped
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.content = bytes(range(97, 122)) * 100_000
    entry(monkeypatch, hub=("a/b", "0" * 40, "x.txt"), size=2_500_000)
    return server


def asked_from(server) -> list[int]:
    """From which bytes on the file was asked for, since the last look."""
    starts = [start for command, start in server.asked if command == "GET"]
    server.asked.clear()
    return starts


def test_a_broken_download_from_the_hub_goes_on_where_it_broke_off(hub, tmp_path):
    hub.sent = 1_000_000
    with pytest.raises(OSError, match=r"could not be fetched .*: check the connection and run .* fetch x"):
        data.fetch("x")
    assert data.find("x") is None
    assert asked_from(hub)[:2] == [0, 1_000_000]  # the client itself tries again, and gets nothing more
    hub.sent = None
    data.fetch("x")
    assert asked_from(hub) == [1_000_000]
    assert data.find("x").read_bytes() == hub.content
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


def test_a_download_from_the_hub_that_is_killed_goes_on_where_it_was(hub, tmp_path):
    program = """
import sys
from huggingface_hub import constants
from course import data
constants.DOWNLOAD_CHUNK_SIZE = 250_000
file = data.registry.File("x.txt", hub=("a/b", "0" * 40, "x.txt"), size=2_500_000)
data.DATASETS["x"] = data.Dataset("", "", "", "", (file,))
data.fetch("x", sys.argv[1])
"""
    hub.sent, hub.hangs = 1_000_000, threading.Event()
    environment = os.environ | {"HF_ENDPOINT": hub.url}
    fetching = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], env=environment, stderr=subprocess.DEVNULL
    )
    for _ in range(3000):
        if sum(path.stat().st_size for path in tmp_path.iterdir()) == 1_000_000:
            break
        hub.hangs.wait(0.01)
    fetching.kill()
    fetching.wait()
    hub.hangs.set()
    assert asked_from(hub) == [0] and data.find("x") is None
    hub.sent = None
    data.fetch("x")
    assert asked_from(hub) == [1_000_000]
    assert data.find("x").read_bytes() == hub.content
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


def test_a_download_from_the_hub_that_is_not_what_it_should_be_is_thrown_away(hub, tmp_path):
    hub.checksum = "0" * 64
    with pytest.raises(ValueError, match="has the checksum"):
        data.fetch("x")
    assert not list(tmp_path.iterdir())

    hub.checksum, hub.sent = None, 1_000_000
    with pytest.raises(OSError, match="check the connection"):
        data.fetch("x")
    (part,) = tmp_path.iterdir()
    part.write_bytes(b"?" * 1_000_000)  # the disk has damaged it
    hub.sent = None
    with pytest.raises(ValueError, match="has the checksum"):
        data.fetch("x")
    data.fetch("x")
    assert data.find("x").read_bytes() == hub.content


def test_what_came_of_another_version_is_not_gone_on_from(hub, tmp_path):
    hub.sent = 1_000_000
    with pytest.raises(OSError, match="check the connection"):
        data.fetch("x")
    hub.content, hub.sent = hub.content[::-1], None
    asked_from(hub)
    data.fetch("x")
    assert asked_from(hub) == [0] and data.find("x").read_bytes() == hub.content


# The command line


def test_list_names_every_dataset(capsys):
    assert command_line.main(["data", "list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in data.DATASETS)


def test_prepare_from_the_command_line(tmp_path, capsys):
    assert command_line.main(["data", "prepare", "tales", "--folder", str(tmp_path)]) == 0
    assert "training: 337,413 tokens" in capsys.readouterr().out
    assert len(list(tmp_path.glob("*.tokens"))) == 2


def test_a_large_text_asks_for_a_tokenizer(capsys):
    assert command_line.main(["data", "prepare", "python_source"]) == 1
    assert "name a tokenizer with --tokenizer" in capsys.readouterr().err


def test_a_data_folder_that_is_none_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(data.registry, "DATA_DIR", tmp_path)
    monkeypatch.setenv("COURSE_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"nowhere, which is not a folder"):
        data.load_text("wizard_of_oz")


def test_files_that_cannot_be_opened_are_said_in_words(tmp_path, capsys):
    for bad, said in ((tmp_path, "is a directory"), (tmp_path / "none", "no such file or directory")):
        assert command_line.main(["data", "prepare", "tales", "--tokenizer", str(bad)]) == 1
        assert capsys.readouterr().err == f"error: {bad}: {said}.\n"


def test_the_registry_is_complete():
    assert set(data.DATASETS) == {
        *("tales", "wizard_of_oz", "tiny_shakespeare", "tinystories"),
        *("openwebtext", "fineweb_edu", "python_source"),
    }
    for dataset in data.DATASETS.values():
        assert dataset.about and dataset.source and dataset.licence and dataset.size and dataset.held_out
    shakespeare = data.DATASETS["tiny_shakespeare"].files[0].sha256
    assert shakespeare == "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def test_parquet_is_read_row_by_row(tmp_path, monkeypatch):
    import pyarrow
    from pyarrow import parquet

    monkeypatch.setenv("COURSE_DATA_DIR", str(tmp_path))
    rows = [f"page {i}" for i in range(1000)]
    path = tmp_path / "fineweb_edu/000_00000.parquet"
    path.parent.mkdir()
    parquet.write_table(pyarrow.table({"text": rows}), path)
    training, validation = (list(data.documents("fineweb_edu", part)) for part in data.PARTS)
    assert validation == [rows[499], rows[999]] and len(training) == 998
    with pytest.raises(ValueError, match="too large to be loaded whole"):
        data.load_text("fineweb_edu")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"not a whole Parquet file: it was cut short"):
        list(data.documents("fineweb_edu", "training"))


def test_importing_data_is_light():
    heavy = "{'pooch', 'huggingface_hub', 'pyarrow'}"
    program = f"import sys, course.data; print({heavy} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.strip() == "set()"


def test_the_longest_copied_run_of_words():
    source = f"the old man sat down\nand the old woman did not{END_OF_TEXT}sit"
    for text, copied in (
        ("and then the old woman sat down", "the old woman"),
        ("he sat  down and\nthe old goat", "sat down and the old"),
        ("then other people came", ""),
        ("man sat down and the old woman did not", "man sat down and the old woman did not"),
        ("woman did not sit", "woman did not sit"),
        ("he man", "man"),
        ("", ""),
    ):
        assert data.longest_copy(text, source) == copied

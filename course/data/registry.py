"""Which texts there are: where each comes from, what its licence is, and what of it is held out."""

import os
from dataclasses import dataclass
from pathlib import Path

DATA_DIR = Path(__file__).resolve().parents[2] / "data"
PARTS = ("training", "validation")


@dataclass(frozen=True)
class File:
    """One file of a dataset. What is known of it in advance is checked, and cannot change unnoticed."""

    name: str  # below a data folder
    url: str = ""
    hub: tuple[str, str, str] | None = None  # on the Hugging Face Hub: repository, revision, path
    size: int | None = None  # bytes
    sha256: str | None = None
    gutenberg: bool = False  # a page of Project Gutenberg, of which the book alone is kept
    mentions: str = ""  # a word without which it is another text


@dataclass(frozen=True)
class Dataset:
    """Files, their source and licence, and how they are divided into training and validation.

    Held out is every n-th document (`every`), or the last file (`last_file`), or else the last tenth of
    the characters. (`python_source` has no files of its own and goes by package.)
    """

    about: str
    source: str
    licence: str
    size: str  # of the text or the download, in words
    files: tuple[File, ...] = ()
    every: int | None = None
    last_file: bool = False

    @property
    def held_out(self) -> str:
        if not self.files:
            return "one package in 20"
        if self.every:
            return f"every {self.every:,}th document"
        return "a file of its own" if self.last_file else "the last tenth"


def address(file: File) -> str:
    """Where a file can be had."""
    if not file.hub:
        return file.url
    repository, revision, path = file.hub
    return f"https://huggingface.co/datasets/{repository}/resolve/{revision}/{path}"


TINYSTORIES = ("roneneldan/TinyStories", "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64")
OPENWEBTEXT = ("Skylion007/openwebtext", "79d93d786212f7344586290adb811d4ae6a1762c")
FINEWEB_EDU = ("HuggingFaceFW/fineweb-edu", "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9")

DATASETS = {
    "tales": Dataset(
        about="447 very short stories in plain words",
        source="it ships with the course, in data/",
        licence="CC0 1.0",
        size="0.4 MB",
        files=(File("tales.txt"),),
        every=10,
    ),
    "wizard_of_oz": Dataset(
        about="The Wonderful Wizard of Oz, by L. Frank Baum",
        source="Project Gutenberg, https://www.gutenberg.org/ebooks/55",
        licence="public domain in the USA",
        size="0.2 MB",
        # Gutenberg mends its texts now and then: no checksum.
        files=(
            File(
                "wizard_of_oz.txt",
                "https://www.gutenberg.org/cache/epub/55/pg55.txt",
                gutenberg=True,
                mentions="Dorothy",
            ),
        ),
    ),
    "tiny_shakespeare": Dataset(
        about="Shakespeare's plays, one after the other",
        source="https://github.com/karpathy/char-rnn/blob/master/data/tinyshakespeare/input.txt",
        licence="public domain",
        size="1.1 MB",
        files=(
            File(
                "tiny_shakespeare.txt",
                "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
                size=1_115_394,
                sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            ),
        ),
    ),
    "tinystories": Dataset(
        about="2.7 million stories in a small child's words, by GPT-4 (Eldan and Li, 2023)",
        source=f"https://huggingface.co/datasets/{TINYSTORIES[0]}",
        licence="CDLA-Sharing 1.0",
        size="2.3 GB",
        files=(
            File(
                "tinystories/TinyStoriesV2-GPT4-train.txt",
                hub=(*TINYSTORIES, "TinyStoriesV2-GPT4-train.txt"),
                size=2_227_753_162,
            ),
            File(
                "tinystories/TinyStoriesV2-GPT4-valid.txt",
                hub=(*TINYSTORIES, "TinyStoriesV2-GPT4-valid.txt"),
                size=22_502_601,
            ),
        ),
        last_file=True,
    ),
    "openwebtext": Dataset(
        about="8 million web pages, GPT-2's data rebuilt (Gokaslan and Cohen, 2019)",
        source=f"https://huggingface.co/datasets/{OPENWEBTEXT[0]}",
        licence="CC0 1.0 (the collection)",
        size="about 24 GB",
        files=tuple(
            File(f"openwebtext/{shard}", hub=(*OPENWEBTEXT, f"plain_text/{shard}"))
            for shard in (f"train-{i:05}-of-00080.parquet" for i in range(80))
        ),
        every=2000,
    ),
    "fineweb_edu": Dataset(
        about="educational web pages, the first of 14 files of the 10-billion-token sample",
        source=f"https://huggingface.co/datasets/{FINEWEB_EDU[0]}",
        licence="ODC-By 1.0",
        size="about 2.1 GB",
        files=(File("fineweb_edu/000_00000.parquet", hub=(*FINEWEB_EDU, "sample/10BT/000_00000.parquet")),),
        every=500,
    ),
    "python_source": Dataset(
        about="every Python file of the standard library and of the installed packages",
        source="it is on every machine that runs Python",
        licence="each package's own",
        size="what is installed",
    ),
}


def get(name: str) -> Dataset:
    """The entry of a name. Raises `ValueError`, with the names there are, for an unknown one."""
    if name not in DATASETS:
        raise ValueError(f"Unknown dataset {name!r}: choose one of {', '.join(DATASETS)}.")
    return DATASETS[name]


def folders() -> list[Path]:
    """Where files are looked for: the folder that `COURSE_DATA_DIR` names, if it is set, then `DATA_DIR`."""
    own = os.environ.get("COURSE_DATA_DIR")
    return [Path(own), DATA_DIR] if own else [DATA_DIR]


def not_a_folder() -> str:
    """What is wrong with the folder that `COURSE_DATA_DIR` names, to be put into brackets, if anything is."""
    own = os.environ.get("COURSE_DATA_DIR")
    return f" (now it names {own}, which is not a folder)" if own and not Path(own).is_dir() else ""

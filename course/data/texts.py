"""From a dataset's name to its text: the file, its documents, its two parts."""

import hashlib
import math
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from course.data import python_source, registry
from course.data.registry import PARTS, File
from course.tokenizer import END_OF_TEXT

BLOCK = 2**20  # characters read at once from a file that is too large to be read whole


def locate(file: File) -> Path | None:
    """Where a file of a dataset lies on this machine, or None."""
    return next((path for folder in registry.folders() if (path := folder / file.name).is_file()), None)


def find(name: str) -> Path | None:
    """The file of a dataset on this machine, or the folder of its several files; None if one is missing.

    Raises `ValueError` for an unknown name.
    """
    files = registry.get(name).files
    if not files:
        return python_source.roots()[0]
    paths = [locate(file) for file in files]
    if None in paths:
        return None
    return paths[0] if len(paths) == 1 else paths[0].parent


def paths(name: str) -> list[Path]:
    """All files of a dataset. Raises `FileNotFoundError` that says how to get them, and `ValueError` for
    a file whose size is wrong."""
    dataset = registry.get(name)
    found = [locate(file) for file in dataset.files]
    if None in found:
        missing = dataset.files[found.index(None)].name
        raise FileNotFoundError(
            f"{missing} is not on this machine: run `python -m course data fetch {name}`, or get it from "
            f"{dataset.source}, and put it under that name into {registry.DATA_DIR} or into a folder that "
            f"the variable COURSE_DATA_DIR names{registry.not_a_folder()}."
        )
    for file, path in zip(dataset.files, found, strict=True):
        if file.size not in (None, size := path.stat().st_size):
            raise ValueError(
                f"{path} has {size:,} bytes, expected {file.size:,}: it was cut short or is another text; "
                f"delete it and run `python -m course data fetch {name}`."
            )
    return found


def fits_in_memory(name: str) -> bool:
    """Whether a dataset is one text, small enough for `load_text`."""
    files = registry.get(name).files
    return len(files) == 1 and files[0].name.endswith(".txt")


def load_text(name: str) -> str:
    """The whole text of a small dataset.

    Raises `FileNotFoundError` that says where to get it and where to put it, and `ValueError` for a text
    that is not the one that the course's numbers are from, or for a dataset too large for this.
    """
    dataset = registry.get(name)
    if not fits_in_memory(name):
        raise ValueError(
            f"{name} is too large to be loaded whole: go through its documents with "
            f'`data.documents("{name}", "training")`, or through its tokens with `data.token_split`.'
        )
    (path,), (file,) = paths(name), dataset.files
    content = path.read_bytes()
    if file.sha256 not in (None, hashlib.sha256(content).hexdigest()):
        raise ValueError(
            f"{path} is not the text that it should be (its checksum differs): delete it and run "
            f"`python -m course data fetch {name}`."
        )
    return content.decode("utf-8").replace("\r\n", "\n")


def stories(text: str) -> list[str]:
    """The documents between `END_OF_TEXT` marks, without surrounding white space."""
    return [story.strip() for story in text.split(END_OF_TEXT) if story.strip()]


def split(name: str) -> tuple[str, str]:
    """The training and the validation text of a small dataset, always divided in the same way."""
    text = load_text(name)
    if registry.get(name).every is None:
        cut = len(text) * 9 // 10
        return text[:cut], text[cut:]
    training, validation = ("".join(d + END_OF_TEXT for d in documents(name, part)) for part in PARTS)
    return training, validation


def documents(name: str, part: str) -> Iterator[str]:
    """The documents of one part ("training" or "validation"), one after the other, always in this order.

    A book that is divided in the middle is one document in each part. Only a little of a large dataset is
    in memory at any time. Raises as `load_text` does, at once.
    """
    if part not in PARTS:
        raise ValueError(f"Unknown part {part!r}: choose training or validation.")
    dataset, held_out = registry.get(name), part == "validation"
    if not dataset.files:
        return python_source.documents(part)
    found = paths(name)
    if dataset.last_file:
        return chain.from_iterable(map(_read, found[-1:] if held_out else found[:-1]))
    if every := dataset.every:
        numbered = enumerate(chain.from_iterable(map(_read, found)))
        return (document for i, document in numbered if (i % every == every - 1) == held_out)
    return iter([split(name)[held_out]])


def sample(name: str, n_bytes: int) -> Iterator[str]:
    """Documents spread evenly over the training part, about `n_bytes` together: what to train a tokenizer on.

    The first documents would not do where neighbours resemble each other, as the files of a package do. All
    documents, if there are fewer bytes. Raises as `documents` does.
    """
    every = max(1, math.ceil(expected_bytes(name, "training") / n_bytes))
    return islice(documents(name, "training"), 0, None, every)


def expected_bytes(name: str, part: str) -> int:
    """About how many bytes of text a part has, without reading it: for a progress bar."""
    dataset, held_out = registry.get(name), part == "validation"
    if not dataset.files:
        return python_source.size(part)
    sizes = [_text_size(path) for path in paths(name)]
    if dataset.last_file:
        return sum(sizes[-1:] if held_out else sizes[:-1])
    share = 1 / (dataset.every or 10)
    return round(sum(sizes) * (share if held_out else 1 - share))


def _read(path: Path) -> Iterator[str]:
    return _rows(path) if path.suffix == ".parquet" else _between_marks(path)


def _between_marks(path: Path) -> Iterator[str]:
    """The documents of a text file that is read block by block."""
    with open(path, encoding="utf-8") as file:
        rest = ""
        while block := file.read(BLOCK):
            *whole, rest = (rest + block).split(END_OF_TEXT)
            yield from (document for piece in whole if (document := piece.strip()))
        if document := rest.strip():
            yield document


def _rows(path: Path) -> Iterator[str]:
    """The column `text` of a Parquet file, some rows at a time."""
    with _parquet(path) as file:
        for batch in file.iter_batches(batch_size=256, columns=["text"]):
            yield from (text for text in batch.column("text").to_pylist() if text)


def _text_size(path: Path) -> int:
    if path.suffix != ".parquet":
        return path.stat().st_size
    with _parquet(path) as file:
        column = file.schema_arrow.get_field_index("text")
        groups = (file.metadata.row_group(i) for i in range(file.metadata.num_row_groups))
        return sum(group.column(column).total_uncompressed_size for group in groups)


def _parquet(path: Path):
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path)
    except ArrowInvalid as error:  # its table of contents stands at the end
        raise ValueError(
            f"{path} is not a whole Parquet file: it was cut short; delete it and fetch it again."
        ) from error

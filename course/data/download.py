"""Fetching texts: nothing appears under its name before it is whole and what it should be."""

import os
import shutil
from pathlib import Path

from course.atomic import disk_full_in_words, replacing
from course.data import registry, texts
from course.data.registry import File


def fetch(name: str, folder: Path | None = None) -> Path | None:
    """Get what is missing of a dataset, into the course's `data/` unless another folder is given.

    -> what `find` gives. An interrupted fetch goes on with what is missing; within a file of the Hugging
    Face Hub, from the byte where it broke off. Nothing is written into the folder that `COURSE_DATA_DIR`
    names, unless it is the one given: it may be someone else's. Raises `ValueError` for an unknown name or
    a text that is not what it should be, and `OSError` if the source cannot be reached or the disk is full.
    """
    for file in registry.get(name).files:
        if (there := texts.locate(file)) and _fault(file, there) is None:
            continue
        path = Path(folder or registry.DATA_DIR) / file.name
        if file.hub:
            _from_hub(name, file, path)
        elif file.url:
            _from_web(name, file, path)
        else:
            raise FileNotFoundError(f"{file.name} is missing or was changed: {_SHIPS}")
    return texts.find(name)


_SHIPS = "it ships with the course, in data/: get it back with `git checkout data`."


def _from_web(name: str, file: File, path: Path) -> None:
    """A small file, through pooch."""
    import pooch
    import requests

    with replacing(path) as temporary:
        _check_space(file, path)
        try:
            pooch.HTTPDownloader(progressbar=True, timeout=30)(file.url, str(temporary), None)
        except requests.RequestException as error:
            raise OSError(_unreachable(name, file.url, path, error)) from error
        if file.gutenberg:
            text = _book(temporary.read_text(encoding="utf-8-sig", errors="replace"))
            temporary.write_text(text, encoding="utf-8", newline="\n")
        _check(name, file, temporary)


def _from_hub(name: str, file: File, path: Path) -> None:
    """A file of the Hugging Face Hub. What has come of it stands in a hidden file beside `path`, from which
    the next call goes on.

    The Hub's `hf_hub_download` deletes what has come when a call fails (its temporary files have random
    names), so this calls the function beneath it, which can go on.
    """
    import huggingface_hub as hub
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.file_download import http_get

    repository, revision, inside = file.hub
    with disk_full_in_words(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            address = hub.hf_hub_url(repository, inside, revision=revision, repo_type="dataset")
            metadata = hub.get_hf_file_metadata(address)
            checksum = metadata.etag if len(metadata.etag or "") == 64 else None  # of a large file, SHA-256
            part = path.with_name(f".{path.name}.{(metadata.etag or '')[:16]}.part")  # of this content alone
            come = part.stat().st_size if part.exists() else 0
            _check_space(file, path, come)
            if metadata.size is None or come < metadata.size:
                with part.open("ab") as output:
                    http_get(
                        metadata.location,
                        output,
                        resume_size=come,
                        headers={"Accept-Encoding": "identity"},  # compressed, a byte has another number
                        expected_size=metadata.size,
                        displayed_filename=path.name,
                    )
        except (HTTPError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk's, not the connection's
                raise
            raise OSError(_unreachable(name, registry.address(file), path, error)) from error
        try:
            _check(name, file, part, checksum)
        except ValueError:
            part.unlink()
            raise
        os.replace(part, path)


def _check_space(file: File, path: Path, come: int = 0) -> None:
    free = shutil.disk_usage(path.parent).free
    if file.size and free < file.size - come:
        raise OSError(
            f"{file.name} needs {file.size / 1e9:.1f} GB and {path.parent} has {free / 1e9:.1f} GB left: "
            "free some space, or choose a folder on a larger disk with --folder."
        )


def _check(name: str, file: File, path: Path, checksum: str | None = None) -> None:
    """Raise `ValueError` unless this is the file."""
    if fault := _fault(file, path, checksum):
        raise ValueError(
            f"What came for {file.name} {fault}, and was thrown away: run `python -m course data fetch "
            f"{name}` again; if that does not help, the source has changed: see {registry.get(name).source}."
        )


def _fault(file: File, path: Path, checksum: str | None = None) -> str | None:
    """What is wrong with a file, as a verb phrase."""
    size = path.stat().st_size
    if file.size not in (None, size):
        return f"has {size:,} bytes instead of {file.size:,}"
    if expected := file.sha256 or checksum:
        import pooch

        if (found := pooch.file_hash(str(path))) != expected:
            return f"has the checksum {found[:12]}… instead of {expected[:12]}…"
    if file.mentions and file.mentions not in path.read_text(encoding="utf-8", errors="replace"):
        return f"does not mention {file.mentions}"
    return None


def _book(page: str) -> str:
    """A book of Project Gutenberg, without what stands before its first line and after its last."""
    start, end = page.find("*** START OF"), page.find("*** END OF")
    if not 0 <= start < end:
        return ""  # an error page, say
    return page[start : page.find("\n", end) + 1 or None]


def _unreachable(name: str, address: str, path: Path, error: Exception) -> str:
    reason = type(error).__name__
    return (
        f"{address} could not be fetched ({reason}): check the connection and run `python -m course data "
        f"fetch {name}` again, or get the file on another machine and put it at {path}."
    )

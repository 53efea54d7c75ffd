"""Files that are there whole or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, to write to. It takes the place of `path` if all went well, and is
    deleted if not. Raises `OSError` that says what to do when the disk is full."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with disk_full_in_words(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def disk_full_in_words(path: Path) -> Iterator[None]:
    """The system's error when nothing fits on the disk of `path` any more says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"The disk is full, so that {path.name} was not written: free some space on the disk of "
            f"{path.parent} and start again, or choose a folder on a larger disk."
        ) from error

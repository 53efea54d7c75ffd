"""What was compiled is kept on disk, under a name made of everything that it was compiled from.

The folder is `$COURSE_CACHE_DIR`, or `~/.cache/tensors-to-tensor-cores/cuda`; one that cannot be written is
replaced, for this process, by a temporary one. An entry never changes, so nothing has to be invalidated:
another source, header, option or compiler makes another name.
"""

import functools
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

_DIGEST = 32  # bytes of SHA-256 at the end of every file: machine code is loaded just as well with them


class CompileError(RuntimeError):
    """A source is not CUDA C++. The message has the source's line and what the compiler says of it."""


def compiled(parts: Iterable[str | bytes], suffix: str, compile: Callable[[], bytes]) -> Path:
    """The file with what `compile()` returned for these parts, now or in an earlier process.

    Its last 32 bytes are a checksum. A file that was cut off is compiled anew. Two processes at once both
    compile, and either's file is right.
    """
    name = hashlib.sha256()
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        name.update(b"%d:" % len(part) + part)
    path = folder() / (name.hexdigest()[:32] + suffix)
    if content(path) is None:
        code = compile()
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
            file.write(code + hashlib.sha256(code).digest())
        os.replace(file.name, path)  # all at once: nobody ever reads a half
    return path


def content(path: Path) -> bytes | None:
    """What was compiled, without its checksum; None if it is not there, or not whole."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    code = data[:-_DIGEST]
    return code if code and hashlib.sha256(code).digest() == data[-_DIGEST:] else None


def folder() -> Path:
    """Where entries lie; made if it is not there."""
    named = os.environ.get("COURSE_CACHE_DIR")
    path = Path(named) if named else Path.home() / ".cache" / "tensors-to-tensor-cores" / "cuda"
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError:
        return Path(_temporary().name)
    return path


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="tensors-to-tensor-cores-")  # removed when Python ends


def headers(source: str, folders: Iterable[Path]) -> dict[str, str]:
    """The text of every `#include "x.cuh"` that lies in one of the folders, and of what these include."""
    found: dict[str, str] = {}
    folders, waiting = list(folders), [source]
    while waiting:
        for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', waiting.pop(), flags=re.MULTILINE):
            path = next((f / name for f in folders if (f / name).is_file()), None)
            if path is not None and name not in found:
                found[name] = path.read_text(encoding="utf-8")
                waiting.append(found[name])
    return found

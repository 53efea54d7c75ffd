"""The dataset that is already there: the Python files of this machine's standard library and packages."""

import hashlib
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path


def roots() -> list[Path]:
    """The standard library's folder and those of installed packages, each once."""
    paths = sysconfig.get_paths()
    return list(dict.fromkeys(Path(paths[key]).resolve() for key in ("stdlib", "purelib", "platlib")))


def files(root: Path) -> list[tuple[str, Path]]:
    """(package, file) of every Python file below a folder, in the order of their paths."""
    found = []
    for path in root.rglob("*.py"):
        inside = path.relative_to(root)
        # Packages may be installed inside the standard library's folder: they have a root of their own.
        if inside.parts[0] not in ("site-packages", "dist-packages") and path.is_file():
            found.append((inside.as_posix(), inside.parts[0].removesuffix(".py"), path))
    return [(package, path) for _, package, path in sorted(found)]


def is_held_out(package: str) -> bool:
    """One package in 20, chosen by its name alone: whatever else is installed, it stays held out.

    Files of one package resemble each other, so that a split by file would flatter the model. The 4 was
    chosen because it holds out packages of a usual kind (`asyncio`, `unittest`, `yaml`) and no giant.
    """
    return zlib.crc32(package.encode()) % 20 == 4


def size(part: str) -> int:
    """Bytes of the files of a part. Its documents are a little less: copies are left out."""
    held_out = part == "validation"
    return sum(
        path.stat().st_size
        for root in roots()
        for package, path in files(root)
        if is_held_out(package) == held_out
    )


def documents(part: str) -> Iterator[str]:
    """The files of a part, one document each, in a fixed order.

    Left out are files that are empty, that are not UTF-8, or whose very text came before, in either part:
    packages carry copies of others, and what is trained on must not be held out as well.
    """
    return (text for _, text in with_packages(part))


def with_packages(part: str) -> Iterator[tuple[str, str]]:
    """(package, text) of each document."""
    held_out = part == "validation"
    seen = set()
    for root in roots():
        for package, path in files(root):
            content = path.read_bytes()
            digest = hashlib.sha256(content).digest()
            if digest in seen:
                continue
            seen.add(digest)
            try:
                text = content.decode("utf-8-sig").replace("\r\n", "\n")
            except UnicodeDecodeError:
                continue
            if text.strip() and is_held_out(package) == held_out:
                yield package, text

"""From a dataset's name to its tokens, once for each tokenizer."""

from pathlib import Path

from course.data import registry, texts
from course.data.token_files import TokenFile, fingerprint, open_tokens, write_tokens


def prepare(
    name: str, tokenizer, folder: Path | None = None, *, again: bool = False, progress: bool = True
) -> tuple[Path, Path]:
    """The token files of both parts, below `data/tokens/` unless another folder is given.

    What is there whole and of this tokenizer is used as it is, unless `again` (after packages were
    installed, `python_source` is another text). Raises as `data.documents` and `data.write_tokens` do.
    """
    registry.get(name)
    folder = Path(folder) if folder else registry.DATA_DIR / "tokens"
    paths = []
    for part in registry.PARTS:
        path = folder / f"{name}-{fingerprint(tokenizer)[:12]}-{part}.tokens"
        if again or not _is_whole(path, tokenizer):
            documents, size = texts.documents(name, part), texts.expected_bytes(name, part)
            write_tokens(path, documents, tokenizer, expected_bytes=size, progress=progress)
        paths.append(path)
    return tuple(paths)


def token_split(
    name: str, tokenizer, folder: Path | None = None, *, progress: bool = True
) -> tuple[TokenFile, TokenFile]:
    """The training and the validation part of a dataset of any size, prepared first if need be."""
    training, validation = prepare(name, tokenizer, folder, progress=progress)
    return open_tokens(training, tokenizer), open_tokens(validation, tokenizer)


def _is_whole(path: Path, tokenizer) -> bool:
    try:
        open_tokens(path, tokenizer)
    except (FileNotFoundError, ValueError):
        return False
    return True

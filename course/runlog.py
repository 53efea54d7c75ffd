"""A run's log: one JSON object a line and event, which any tool can read and a resumed run goes on with.

Every line has `event` and `step`, the number of optimizer steps done when it happened. Lines
`step`, `evaluation` and `sample` hold results and no times: two runs that do the same write the same bytes.
"""

import json
from pathlib import Path
from typing import IO

from course.atomic import replacing


class RunLog:
    """Appends events to a file; each `write` ends on the disk's side of the process."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.file: IO[str] = self.path.open("a", encoding="utf-8")

    def write(self, event: dict) -> None:
        """Append an event; a process that is killed meanwhile leaves a part of one line at most."""
        self.file.write(_line(event))
        self.file.flush()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_) -> None:
        self.file.close()


def _line(event: dict) -> str:
    return json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n"


def read(path: str | Path, event: str | None = None) -> list[dict]:
    """The events of a log, or those of one kind.

    The last line may have been cut by a kill; it is left out. Raises `ValueError`, with the number of the
    line, for any other that is not JSON.
    """
    events = []
    text = Path(path).read_text(encoding="utf-8")
    lines = text.split("\n")
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last line break is cut
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            raise ValueError(f"{path}: line {number} is not JSON: was the file edited?") from None
    return [e for e in events if event in (None, e["event"])]


def rewind(path: str | Path, step: int) -> None:
    """Drop the events after `step` steps: the resumed run will write them again.

    The shorter log is written whole under another name and moved into place.
    """
    path = Path(path)
    if not path.is_file():
        return
    kept = [event for event in read(path) if event["step"] <= step]
    with replacing(path) as temporary:
        temporary.write_text("".join(map(_line, kept)), encoding="utf-8")

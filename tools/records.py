"""What the recorders share: the name of the machine, and a JSON file that is whole or not there."""

import json
import platform
from pathlib import Path

import numpy as np

from course.atomic import replacing
from course.training import History


def processor() -> str:
    """The name of this machine's processor, as far as it tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def curves(history: History, compared: int) -> dict:
    """What a record keeps of a run: the first `compared` losses, the means of each 50, validation, time."""
    losses = np.array(history.losses)
    ends = range(50, len(losses) + 1, 50)
    return {
        "losses": [round(loss, 6) for loss in losses[:compared]],
        "smoothed": {str(s): round(float(losses[s - 50 : s].mean()), 4) for s in ends},
        "validation": {str(s): round(loss, 4) for s, loss in history.validation.items()},
        "seconds": round(history.seconds, 2),
    }


def write(path: Path, record: dict, indent: int | None = None) -> None:
    """Put a record at `path`, in one line or indented, in the place of what was there."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(record, indent=indent) + "\n")

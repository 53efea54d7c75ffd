"""Train characters of Shakespeare by the preset, and by two plainer recipes beside it, and record the curves.

    python tools/record_shakespeare.py     (with a GPU: two minutes; COURSE_DATA_DIR or data/ has the text)

Writes assets/runs/char_shakespeare.jsonl, the whole log of the preset's run, and char_shakespeare.json, the
validation losses of all three against the seconds of training. The runs themselves stay in runs/; those that
are there already are not trained again.
"""

import datetime
import shutil
from pathlib import Path

import records

from course import runlog
from course.training import Recipe, Trainer
from course.training.listeners import Progress

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "assets" / "runs"

ADAMW = {"optimizer.name": "adamw", "optimizer.weight_decay": 0.1}
# nanoGPT's settings for this text (config/train_shakespeare_char.py), but for its dropout of 0.2
CLASSIC = {
    **ADAMW,
    "optimizer.lr": 1e-3,
    "optimizer.clip": 1.0,
    "schedule.shape": "cosine",
    "schedule.warmup": 100,
    "schedule.decay": 1.0,
    "schedule.floor": 0.1,
    "model.norm": "layer",
    "model.mlp": "gelu",
    "model.position": "learned",
    "steps": 5000,
    "evaluate_every": 250,
    "checkpoint_every": 5000,
    "sample.every": 0,
}
RUNS = {"muon": {}, "adamw": {"optimizer.lr": 0.003, **ADAMW}, "classic": CLASSIC}


def train(name: str) -> Path:
    """The folder of a finished run."""
    folder = ROOT / "runs" / f"char-shakespeare-{name}"
    if not (folder / "recipe.yaml").exists():
        Trainer(Recipe.preset("char-shakespeare", **RUNS[name]), folder, listeners=(Progress(),)).run()
    return folder


def curve(log: Path) -> list[list[float]]:
    """[step, seconds of training, validation loss] at every evaluation."""
    points, seconds = [], 0.0
    for event in runlog.read(log):
        if event["event"] == "speed":
            seconds = event["seconds"]
        elif event["event"] == "evaluation":
            points.append([event["step"], seconds, round(event["loss"], 4)])
    return points


def main() -> None:
    record = {"date": datetime.date.today().isoformat(), "runs": {}}
    for name, changes in RUNS.items():
        log = train(name) / "log.jsonl"
        start, last_speed = runlog.read(log, "start")[0], runlog.read(log, "speed")[-1]
        record["machine"] = start["machine"]
        record["runs"][name] = {
            "changes": changes,
            "parameters": start["parameters"],
            "compiled_in_seconds": runlog.read(log, "compiled")[0]["seconds"],
            "ms_per_step": last_speed["ms_per_step"],
            "mfu": last_speed["mfu"],
            "validation": curve(log),
        }
        print(name, min(record["runs"][name]["validation"], key=lambda point: point[2]))
    shutil.copy(train("muon") / "log.jsonl", ASSETS / "char_shakespeare.jsonl")
    records.write(ASSETS / "char_shakespeare.json", record, indent=1)


if __name__ == "__main__":
    main()

"""Train the same models on two engines, and record that they learn the same.

    python tools/record_engines.py     (with a GPU: two minutes)        -> assets/runs/engines.json

The preset `tales`, by the trainer, with several seeds: their losses say how large noise is. And the first
steps of nanoGPT's 124M model on the bytes of Python's standard library, with one seed, also in float32: there
the engines see the same batches from the same weights, and what differs is where 16 bits are rounded.
"""

import datetime
import itertools
import statistics
import tempfile
from pathlib import Path

import benchmark_training
import numpy as np
import records

from course import device, runlog
from course.data import python_source
from course.training import Recipe, Trainer

OUTPUT = Path(__file__).resolve().parent.parent / "assets" / "runs" / "engines.json"
ENGINES = ("torch", "triton")
SEEDS = range(3)
STEPS, BATCH_SIZE = 150, 8


def tales(engine: str, seed: int) -> list[list[float]]:
    """[step, validation loss] of a run of the preset."""
    with tempfile.TemporaryDirectory() as folder:
        changes = {"engine": engine, "seed": seed, "compile": False, "sample.every": 0}
        Trainer(Recipe.preset("tales", **changes), Path(folder) / "run").run()
        events = runlog.read(Path(folder) / "run" / "log.jsonl", "evaluation")
    return [[event["step"], round(event["loss"], 4)] for event in events]


def first_steps(engine: str, precision: str, tokens: np.ndarray) -> list[float]:
    """The training loss of each of the first steps."""
    changes = {
        "engine": engine,
        "precision": precision,
        "compile": False,
        "steps": STEPS,
        "optimizer.lr": 6e-4,
        "schedule.warmup": 20,
    }
    step = benchmark_training.step_of(changes, BATCH_SIZE, tokens)
    return [round(step(i).loss.item(), 4) for i in range(STEPS)]


def main() -> None:
    record = {"machine": device.describe(), "date": datetime.date.today().isoformat(), "tales": {}}
    for engine in ENGINES:
        record["tales"][engine] = [tales(engine, seed) for seed in SEEDS]
        last = [curve[-1][1] for curve in record["tales"][engine]]
        print(f"tales, {engine}: {last}, mean {statistics.mean(last):.4f}", flush=True)
    text = "".join(itertools.islice(python_source.documents("training"), 400)).encode()
    tokens = np.frombuffer(text, np.uint8).astype(np.uint16)
    record["gpt2"] = {"batch_size": BATCH_SIZE, "tokens": len(tokens), "losses": {}}
    for engine, precision in (("torch", "float32"), *((engine, "bfloat16") for engine in ENGINES)):
        losses = first_steps(engine, precision, tokens)
        record["gpt2"]["losses"][f"{engine}, {precision}"] = losses
        print(f"gpt2, {engine}, {precision}: last ten {statistics.mean(losses[-10:]):.4f}", flush=True)
    records.write(OUTPUT, record)


if __name__ == "__main__":
    main()

"""Train the preset python-75m on one large GPU and record the whole run, in stages.

    python tools/record_full_run.py prepare     a tokenizer and token files, of the Python on this machine
    python tools/record_full_run.py measure     the yardsticks of its held-out part (a minute, on the CPU)
    python tools/record_full_run.py compare     a step on the Triton engine, and in PyTorch alone
    python tools/record_full_run.py train       until the process kills itself, at CUT of its steps
    python tools/record_full_run.py train       from the last checkpoint to the end: some ten minutes in all
    python tools/record_full_run.py evaluate    -> assets/runs/full_run.json

Every stage leaves a JSON file in `--folder`; the last one puts them together. `train` predicts its own time
first, from what `compare` measured.
"""

import argparse
import collections
import datetime
import gc
import itertools
import json
import os
import platform
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import benchmark_training
import full_run_evaluation
import records
import torch

from course import data, device, flops, profiling, runlog
from course.data import Batches, python_source
from course.model import Transformer
from course.run_folder import RunFolder
from course.tokenizer import BPETokenizer
from course.training import Recipe, Trainer
from course.training.listeners import Progress
from course.training.step import Step

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "assets" / "runs" / "full_run.json"
CUT = 0.62  # of the steps: between two checkpoints, in the stretch where the learning rate falls already
WAYS = {
    "triton": {"engine": "triton"},
    "torch, compiled": {"engine": "torch", "compile": True},
}


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The preset, with the tokenizer that `prepare` left and what the command line changes."""
    changes = dict(change.split("=", 1) for change in arguments.set)
    recipe = Recipe.preset(arguments.preset).changed(changes)
    return recipe.changed({"tokenizer": str(arguments.folder / "tokenizer.json"), "vocab_size": None})


def prepare(arguments: argparse.Namespace) -> dict:
    """The tokenizer, both token files, and what they were made of."""
    recipe = Recipe.preset(arguments.preset)
    started = time.perf_counter()
    documents = data.sample(recipe.data, recipe.tokenizer_bytes)
    tokenizer = BPETokenizer.train(documents, recipe.vocab_size, processes=os.cpu_count())
    tokenizer.save(arguments.folder / "tokenizer.json")
    seconds = {"tokenizer": round(time.perf_counter() - started, 1)}
    started = time.perf_counter()
    parts = data.token_split(recipe.data, tokenizer, progress=False)
    seconds["token files"] = round(time.perf_counter() - started, 1)
    record = {"python": platform.python_version(), "cores": os.cpu_count(), "seconds": seconds}
    for name, part in zip(data.PARTS, parts, strict=True):
        documents = int((part.tokens[:] == tokenizer.end_of_text).sum())
        record[name] = {"documents": documents, "bytes": part.text_bytes, "tokens": len(part.tokens)}
    return record | (packages() if recipe.data == "python_source" else {})


def packages() -> dict:
    """[name, bytes of its files] of the largest packages that are read, and of those held out."""
    sizes = collections.Counter()
    for root in python_source.roots():
        for package, path in python_source.files(root):
            sizes[package] += path.stat().st_size
    read, held_out = [], []
    for item in sizes.most_common():
        (held_out if python_source.is_held_out(item[0]) else read).append(item)
    return {"packages": len(sizes), "largest": read[:12], "held_out": held_out}


def measure(arguments: argparse.Namespace) -> dict:
    """What models without a network make of the held-out text."""
    recipe = recipe_of(arguments)
    return full_run_evaluation.yards(recipe, BPETokenizer.load(recipe.tokenizer))


class Same:
    """Batches that are all the same one, and lie in the GPU's memory already."""

    def __init__(self, batch: tuple):
        self.batch = batch

    def at(self, step: int) -> tuple:
        return self.batch


def compare(arguments: argparse.Namespace) -> dict:
    """Both ways of computing the same step, in turns; what the data cost; how busy the GPU is.

    One way is on the GPU at a time: with a large batch its memory has no room for both.
    """
    recipe = recipe_of(arguments)
    tokenizer = BPETokenizer.load(recipe.tokenizer)
    tokens = data.token_split(recipe.data, tokenizer)[0].tokens
    config = recipe.model_of(tokenizer.vocab_size)
    rows, times, found, waits = {way: {} for way in WAYS}, {way: [] for way in WAYS}, {}, None
    for turn, (way, changes) in itertools.product(range(2), WAYS.items()):
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before, started = torch.cuda.memory_allocated(), time.perf_counter()
        changed = recipe.changed(changes)
        batches = Batches(tokens, recipe.batch_size, config.context_length, to=device.put)
        step = Step(changed, Transformer(config, changed.engine, device=device.DEVICE), batches)
        for i in range(3):
            step(i)
        device.synchronize()
        if turn == 0:
            peak = torch.cuda.max_memory_allocated() - before  # weights and the optimizer's memory included
            rows[way] |= {"ready_in_seconds": round(time.perf_counter() - started, 1)}
            rows[way] |= {"peak_mib": round(peak / 2**20)}
        times[way] += benchmark_training.milliseconds(step, 3, 25)[5:]
        if turn == 1:
            waits = waits or waiting(step)
            found[way] = kinds(step)  # the last to be asked: it gives up the step's CUDA graph
        del step
    size, peak = recipe.batch_size * config.context_length, flops.peak(torch.cuda.get_device_name())
    for way, row in rows.items():
        ms = statistics.median(times[way])
        rate = 1e3 * size / ms
        mfu = flops.utilization(config, rate, peak)
        row |= {"ms": round(ms, 3), "tokens_per_second": round(rate), "mfu": mfu and round(mfu, 4)}
        print(way, row, flush=True)
    return {"ways": rows, "data": waits, "kernels": found}


def waiting(step: Step) -> dict:
    """What the data cost a step: their milliseconds on the CPU alone, and a step's with and without them."""
    batches, at = step.batches, []
    for i in range(30):
        started = time.perf_counter()
        batches.at(i)
        at.append(1e3 * (time.perf_counter() - started))
    device.synchronize()
    times = {"from the file": [], "one batch again and again": []}
    same = Same(batches.at(0))
    for turn in range(4):
        for name, source in zip(times, (batches, same), strict=True):
            step.batches = source
            times[name] += benchmark_training.milliseconds(step, 10 * turn, 10)[1:]
    step.batches = batches
    record = {"batch_ms": round(statistics.median(at), 3)}
    return record | {name: round(statistics.median(ms), 3) for name, ms in times.items()}


def kinds(step: Step) -> dict:
    """Milliseconds of a step's kernels by kind, and their sum: how long the GPU was busy."""
    step.replayed, step.replay = False, None  # kernel by kernel
    found = profiling.kernels_of(lambda: step(0), runs=3)
    record = {kind: round(ms, 3) for kind, ms in profiling.by_kind(found, "milliseconds").items()}
    return record | {"sum": round(sum(kernel.milliseconds for kernel in found), 3)}


class Clock:
    """A listener: the time of day of every event but steps, in a file beside the run."""

    def __init__(self, path: Path):
        self.path = path

    def __call__(self, event: dict) -> None:
        if event["event"] in ("start", "speed", "evaluation", "sample", "checkpoint"):
            line = {"at": round(time.time(), 2), "event": event["event"], "step": event["step"]}
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")


def power_cut(step: int) -> Callable[[dict], None]:
    """A listener that kills its process once it hears of a step, as nothing can be caught or tidied up."""

    def listener(event: dict) -> None:
        if event["event"] == "speed" and event["step"] >= step:
            os.kill(os.getpid(), signal.SIGKILL)

    return listener


def measured(folder: Path) -> dict:
    """What `compare` measured of the step that is going to be trained with."""
    return json.loads((folder / "compare.json").read_text())["ways"]["triton"]


def fitted(arguments: argparse.Namespace, recipe: Recipe) -> Recipe:
    """The recipe with as many hundreds of steps as fit into `--seconds`, by what `compare` measured."""
    row = measured(arguments.folder)
    hundreds = int(arguments.seconds * 1e3 / row["ms"]) // 100
    return recipe.changed({"steps": 100 * hundreds})


def plan(arguments: argparse.Namespace, recipe: Recipe) -> dict:
    """What the run will take, by what `compare` measured: written down before it begins."""
    row = measured(arguments.folder)
    config = recipe.model_of(BPETokenizer.load(recipe.tokenizer).vocab_size)
    tokens = recipe.steps * recipe.batch_size * config.context_length
    return {
        "parameters": config.n_parameters(),
        "flops_per_token": flops.per_token(config),
        "tokens": tokens,
        "flops": tokens * flops.per_token(config),
        "mfu": row["mfu"],
        "seconds": round(tokens / row["tokens_per_second"], 1),
    }


def train(arguments: argparse.Namespace) -> dict:
    """The run, or what is left of it after the power cut."""
    folder, recipe = arguments.folder, recipe_of(arguments)
    run, listeners = RunFolder(folder / "run"), [Progress(), Clock(folder / "clock.jsonl")]
    if run.recipe.exists():
        snapshot_step = run.restore()[0].step
        steps = runlog.read(run.log, "step")
        records.write(folder / "lost.json", [e for e in steps if e["step"] > snapshot_step])
        trainer = Trainer.resume(run.path, listeners=tuple(listeners))
    else:
        recipe = fitted(arguments, recipe) if arguments.seconds else recipe
        records.write(folder / "plan.json", plan(arguments, recipe))
        listeners.append(power_cut(round(CUT * recipe.steps)))
        trainer = Trainer(recipe, run.path, listeners=tuple(listeners))
    trainer.run()
    return {"peak_mib": round(torch.cuda.max_memory_allocated() / 2**20)}


def interruption(folder: Path) -> dict:
    """Where the run was cut and went on, and whether the steps that were done twice gave the same."""
    lost = json.loads((folder / "lost.json").read_text())
    steps = {e["step"]: e for e in runlog.read(folder / "run" / "log.jsonl", "step")}
    same = [e == steps[e["step"]] for e in lost]
    largest = max(abs(e["loss"] - steps[e["step"]]["loss"]) for e in lost)
    first = lost[0]["step"] - 1
    return {"cut_after": lost[-1]["step"], "from": first, "same": sum(same), "largest_difference": largest}


def real(folder: Path) -> dict:
    """Where the seconds of the run went, but for the time between the cut and going on."""
    lines = [json.loads(line) for line in (folder / "clock.jsonl").read_text().splitlines()]
    spent = collections.Counter()
    for before, after in itertools.pairwise(lines):
        if after["event"] != "start":
            spent[after["event"]] += after["at"] - before["at"]
    record = {name: round(spent[name], 1) for name in ("speed", "evaluation", "sample", "checkpoint")}
    return record | {"training": runlog.read(folder / "run" / "log.jsonl", "speed")[-1]["seconds"]}


def thinned(log: Path, tokens_a_step: int, width: int = 50) -> dict:
    """The log without most of its steps: the means of every `width`, and all else that is told of a step."""
    steps = runlog.read(log, "step")
    groups = [steps[i : i + width] for i in range(0, len(steps) - width + 1, width)]
    speeds = [e["tokens_per_second"] for e in runlog.read(log, "speed")]
    return {
        "start": runlog.read(log, "start")[0],
        "tokens_a_step": tokens_a_step,
        "loss": [[g[-1]["step"], round(statistics.mean(e["loss"] for e in g), 4)] for g in groups],
        "lr": [[g[-1]["step"], g[-1]["lr"]] for g in groups[:: max(1, len(groups) // 40)]],
        "validation": [
            [e["step"], round(e["loss"], 4), round(e["bits_per_byte"], 4)]
            for e in runlog.read(log, "evaluation")
        ],
        "samples": [[e["step"], e["text"]] for e in runlog.read(log, "sample")],
        "tokens_per_second": {"median": round(statistics.median(speeds)), "lowest": min(speeds)},
    }


def evaluate(arguments: argparse.Namespace) -> dict:
    """What the model has learned; and `--output`, everything that the notebook tells of the run."""
    folder = arguments.folder
    stages = ("prepare", "measure", "compare", "plan", "train")
    read = {stage: json.loads((folder / f"{stage}.json").read_text()) for stage in stages}
    recipe = Recipe.load(folder / "run" / "recipe.yaml")
    recipe = recipe.changed({"tokenizer": "bpe", "vocab_size": Recipe.preset(arguments.preset).vocab_size})
    tokens_a_step = recipe.batch_size * recipe.model.context_length
    record = {
        "machine": device.describe(),
        "date": datetime.date.today().isoformat(),
        "recipe": recipe.to_dict(),
        "corpus": read["prepare"],
        "yardsticks": read["measure"],
        "compare": read["compare"],
        "plan": read["plan"],
        "real": real(folder) | read["train"],
        "interruption": interruption(folder),
        "log": thinned(folder / "run" / "log.jsonl", tokens_a_step),
        "evaluation": full_run_evaluation.whole(folder / "run"),
    }
    records.write(arguments.output, record)
    print(f"{arguments.output}: {arguments.output.stat().st_size:,} bytes")
    return record["evaluation"]


STAGES = {"prepare": prepare, "measure": measure, "compare": compare, "train": train, "evaluate": evaluate}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--preset", default="python-75m")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "full")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--seconds", type=float, help="of training, in place of the preset's steps")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="of the recipe")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    record = STAGES[arguments.stage](arguments)
    records.write(arguments.folder / f"{arguments.stage}.json", record, indent=1)
    print(json.dumps(record, indent=1)[:3000])


if __name__ == "__main__":
    main()

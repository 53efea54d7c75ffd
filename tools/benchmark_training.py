"""Time whole training steps of nanoGPT's 124M model on each engine, in one process on one GPU.

    python tools/benchmark_training.py        -> assets/benchmarks/training_step.json

A step is the trainer's own (`course.training.step.Step`): random windows of a token stream, loss, gradients,
clipping, AdamW, in bfloat16 with float32 weights. Beside the engines stands what a PyTorch user would write,
the torch engine compiled with PyTorch's fused AdamW. The ways take turns, so that a GPU that slows down does
so for all of them; a time is the median of the steps.
"""

import argparse
import datetime
import gc
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import records
import torch

from course import device, flops
from course.config import preset
from course.data import Batches
from course.model import Transformer
from course.training import Recipe
from course.training.step import Step

OUTPUT = Path(__file__).resolve().parent.parent / "assets" / "benchmarks" / "training_step.json"

GPT2 = preset("gpt2", vocab_size=50_304, bias=False)  # nanoGPT's
TOKENS = np.random.default_rng(0).integers(0, GPT2.vocab_size, 2**20, dtype=np.uint16)
WAYS = {
    "triton": {"engine": "triton", "compile": False},
    "torch, compiled, torch.optim.AdamW(fused)": {"engine": "torch", "compile": True},
    "torch, compiled": {"engine": "torch", "compile": True},
    "torch": {"engine": "torch", "compile": False},
    "triton, compiled": {"engine": "triton", "compile": True},
}
DEFAULT = [way for way in WAYS if way != "triton, compiled"]  # it takes minutes to compile, and gains nothing


def step_of(changes: dict, batch_size: int, tokens: np.ndarray = TOKENS) -> Step:
    """The trainer's step for this model, with some fields of its recipe changed."""
    shape = {name: getattr(GPT2, name) for name in ("context_length", "n_layer", "n_head", "d_model")}
    shape |= {name: getattr(GPT2, name) for name in ("norm", "mlp", "position", "bias", "tie_embeddings")}
    fields = {f"model.{name}": value for name, value in shape.items()} | {"precision": "bfloat16"}
    recipe = Recipe().changed({**fields, "batch_size": batch_size, **changes})
    batches = Batches(tokens, batch_size, GPT2.context_length, to=device.put)
    return Step(recipe, Transformer(GPT2, recipe.engine, device=device.DEVICE), batches)


class Fused:
    """PyTorch's own AdamW, with the interface of `course.optim`."""

    def __init__(self, weights: dict):
        self.weights = weights
        self.adamw = torch.optim.AdamW(weights.values(), fused=True)

    def step(self, gradients: dict, factor: torch.Tensor | None = None) -> None:
        if factor is not None:
            torch._foreach_mul_(list(gradients.values()), factor)
        for name, w in self.weights.items():
            w.grad = gradients[name]
        self.adamw.step()


def milliseconds(step: Callable[[int], object], first: int, n: int) -> list[float]:
    """Of each of n steps, from its first kernel to the next step's first."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(n + 1)]
    events[0].record()
    for i in range(n):
        step(first + i)
        events[i + 1].record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) for a, b in itertools.pairwise(events)]


def peak_mib(step: Callable[[int], object]) -> float:
    """What one step needs beyond weights and the optimizer's memory."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(0)
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20)


def measure(ways: list[str], batch_size: int, turns: int) -> list[dict]:
    """A row for each way that fits into the GPU's memory."""
    steps, peaks, times = {}, {}, {way: [] for way in ways}
    for way in ways:
        started = time.perf_counter()
        try:
            step = step_of(WAYS[way], batch_size)
            if "torch.optim" in way:
                step.optimizer = Fused(step.weights)
            for i in range(3):
                step(i)
            peaks[way] = peak_mib(step)
        except torch.OutOfMemoryError:
            print(f"{way}: {batch_size} sequences do not fit into this GPU's memory", flush=True)
            continue
        steps[way] = step
        print(f"{way}: ready after {time.perf_counter() - started:.0f} s", flush=True)
    for turn in range(turns):
        for way, step in steps.items():
            times[way] += milliseconds(step, 10 * turn, 10)[1:]
    tokens, peak = batch_size * GPT2.context_length, flops.peak(torch.cuda.get_device_name())
    rows = []
    for way in steps:
        ms = statistics.median(times[way])
        mfu = flops.utilization(GPT2, 1e3 * tokens / ms, peak)
        row = {"way": way, "batch_size": batch_size, "ms": round(ms, 3)}
        row |= {"tokens_per_second": round(1e3 * tokens / ms), "mfu": mfu and round(mfu, 4)}
        rows.append(row | {"peak_mib": peaks[way]})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=DEFAULT, choices=WAYS)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    if device.DEVICE.type != "cuda":
        parser.error("these times are a GPU's, and PyTorch sees none here")
    rows = []
    for batch_size in arguments.batch_sizes:
        rows += measure(arguments.ways, batch_size, arguments.turns)
        gc.collect()
    record = {
        "machine": device.describe(),
        "date": datetime.date.today().isoformat(),
        "n_parameters": GPT2.n_parameters(),
        "context_length": GPT2.context_length,
        "rows": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    records.write(arguments.output, record, indent=1)


if __name__ == "__main__":
    main()

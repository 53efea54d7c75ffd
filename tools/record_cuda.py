"""Train the character model on PyTorch and on the CUDA kernels from the same weights, and record both.

    python tools/record_cuda.py     (with a GPU and wizard_of_oz: a minute)    -> assets/runs/cuda_wizard.json

A third run is on an engine with a bug: LayerNorm's backward pass without the mean of g. Its curve is what
notebook 14 asks the reader to tell from the others. And the time of a step is taken, launched and as one CUDA
graph, on both engines; the ways take turns.
"""

import argparse
import datetime
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import record_run
import records
import torch

import kernels
from course import data, device, optim, training
from course.config import ModelConfig, preset
from course.exercises.planted import plant
from course.initial import initial_weights
from course.manual import ManualTransformer
from course.model import Transformer, as_tensors
from course.tokenizer import CharTokenizer

OUTPUT = Path(__file__).resolve().parent.parent / "assets" / "runs" / "cuda_wizard.json"
DATASET = "wizard_of_oz"
RECIPE = record_run.RECIPE | {"steps": 2000}
COMPARED = 200  # steps whose losses must be equal
BUG = "norms.cu", "- mean_g - ", "- "


def optimizer(model, engine: str) -> optim.AdamW:
    return optim.AdamW(
        model.weights,
        RECIPE["lr"],
        tuple(RECIPE["betas"]),
        weight_decay=RECIPE["weight_decay"],
        one_kernel=engine if engine == "cuda" else None,
    )


def run(model, engine: str, tokens: np.ndarray, validation: np.ndarray, steps: int) -> dict:
    """One run of the recipe, as the record has it."""
    config = model.config
    history = training.train(
        model,
        optimizer(model, engine),
        data.Batches(tokens, RECIPE["batch_size"], config.context_length, seed=1, to=device.put),
        steps,
        schedule=lambda step: training.warmup_cosine(step, RECIPE["steps"], RECIPE["warmup"]),
        max_norm=RECIPE["clip"],
        validation=validation,
        every=min(100, steps),
    )
    return records.curves(history, COMPARED)


def step_on(engine: str, config: ModelConfig, batch: tuple, graph: bool) -> Callable[[], None]:
    """A training step on a batch that is on the GPU: loss, gradients, AdamW."""
    model = Transformer(config, engine, device=device.DEVICE)
    update = optimizer(model, engine)
    if not graph:
        return lambda: update.step(model.loss_and_gradients(*batch)[1])
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        model.loss_and_gradients(*batch)
    torch.cuda.current_stream().wait_stream(aside)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        _, gradients = model.loss_and_gradients(*batch)

    def step() -> None:
        recorded.replay()
        update.step(gradients)  # its corrections change with every step: they cannot be recorded

    return step


def milliseconds(steps: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Of each way, the median time of a step over groups of 50."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for group in range(12):
        for name, step in steps.items():
            device.synchronize()
            start = time.perf_counter()
            for _ in range(50):
                step()
            device.synchronize()
            if group:  # the first one warms up
                times[name].append((time.perf_counter() - start) / 50 * 1e3)
    return {name: round(statistics.median(found), 3) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=RECIPE["steps"], help="fewer, for a trial")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()

    tokenizer = CharTokenizer.from_text(data.load_text(DATASET))
    tokens, validation = (tokenizer.encode(text) for text in data.split(DATASET))
    config = preset("char", vocab_size=tokenizer.vocab_size)
    first = initial_weights(config, seed=0)
    runs = {}
    for name in ("torch", "cuda", "cuda, with a bug"):
        if name in kernels.ENGINES:
            model = Transformer(config, name, weights=first, device=device.DEVICE)
        else:
            model = ManualTransformer(config, as_tensors(first, device.DEVICE))
            model.ops = plant(*BUG)
        runs[name] = run(model, name.split(",")[0], tokens, validation, arguments.steps)
        print(f"{name}: {runs[name]['validation']}, {runs[name]['seconds']} s", flush=True)

    pairs = zip(runs["torch"]["losses"], runs["cuda"]["losses"], strict=True)
    record = {
        "machine": device.describe(),
        "date": datetime.date.today().isoformat(),
        "dataset": DATASET,
        "config": vars(config),
        "n_parameters": config.n_parameters(),
        "recipe": RECIPE,
        "runs": runs,
        "largest_difference": round(max(abs(a - b) for a, b in pairs), 6),
    }
    if device.DEVICE.type == "cuda":
        ids = np.random.default_rng(0).integers(config.vocab_size, size=(2, RECIPE["batch_size"], 64))
        batch = tuple(device.put(ids))
        ways = {
            engine + ", graph" * graph: step_on(engine, config, batch, graph)
            for graph in (False, True)
            for engine in ("torch", "cuda")
        }
        record["ms_per_step"] = milliseconds(ways)
        print(record["ms_per_step"])
    records.write(arguments.output, record, indent=1)
    print(f"{arguments.output}: largest difference of the first losses {record['largest_difference']}")


if __name__ == "__main__":
    main()

"""Time a training step by hand, by autograd, and compiled, on the same model in one process.

    python tools/benchmark_manual.py        -> its rows in assets/benchmarks/manual_step.json

Each side runs the same operations of the same engine and the same optimizer. The sides take turns, so that
a machine that speeds up or slows down does so for all of them; a time is the median of its turns. Rows of
other devices that are in the file already stay there.
"""

import argparse
import datetime
import json
import statistics
import time
from pathlib import Path

import torch

from course import device, optim
from course.config import preset
from course.initial import initial_weights
from course.manual import ManualTransformer
from course.model import Transformer, as_tensors

OUTPUT = Path(__file__).resolve().parent.parent / "assets" / "benchmarks" / "manual_step.json"

SMALL = ("char, 0.8M", preset("char"), 16, torch.float32)
# Without the sink: PyTorch's autograd has no fused attention for it, and would look slower than it is.
MODERN = preset("modern", attention_sink=False)
MODERN_SMALL = preset(
    "modern", vocab_size=512, n_layer=4, d_model=192, context_length=256, attention_sink=False
)
CASES = device.pick(
    cpu=[SMALL, ("modern, 2M", MODERN_SMALL, 4, torch.float32)],
    gpu=[
        SMALL,
        ("modern, 27M", MODERN, 16, torch.bfloat16),
        ("gpt2, 124M", preset("gpt2", vocab_size=50_304), 8, torch.bfloat16),
    ],
)


def measure(label, config, batch_size, dtype, engine, turns: int, compiled: bool) -> dict:
    first = initial_weights(config)
    ids = torch.randint(config.vocab_size, (batch_size, config.context_length + 1), device=device.DEVICE)
    ids, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def step_of(model):
        optimizer = optim.AdamW(model.weights, 1e-4)
        return lambda: optimizer.step(model.loss_and_gradients(ids, targets)[1])

    def module():
        return Transformer(config, engine, weights=first, device=device.DEVICE, dtype=dtype)

    manual = ManualTransformer(config, as_tensors(first, device.DEVICE, dtype), engine)
    steps = {"manual": step_of(manual), "autograd": step_of(module())}
    if compiled:
        fast = module()
        fast.loss = torch.compile(fast.loss)
        steps["compiled"] = step_of(fast)
    peaks = {side: peak_mib(step) for side, step in steps.items()}
    per_turn = 5
    times: dict[str, list[float]] = {side: [] for side in steps}
    for _ in range(turns):
        for side, step in steps.items():
            device.synchronize()
            started = time.perf_counter()
            for _ in range(per_turn):
                step()
            device.synchronize()
            times[side].append((time.perf_counter() - started) / per_turn * 1000)
    ms = {side: statistics.median(values) for side, values in times.items()}
    row = {
        "device": device.DEVICE.type,
        "machine": device.describe(),
        "date": datetime.date.today().isoformat(),
        "model": label,
        "engine": engine,
        "dtype": str(dtype).removeprefix("torch."),
        "batch_size": batch_size,
        "context_length": config.context_length,
        "n_parameters": config.n_parameters(),
    }
    for side in ("manual", "autograd", "compiled"):
        row[f"{side}_ms"] = round(ms[side], 4) if side in ms else None
        row[f"{side}_peak_mib"] = peaks.get(side)
    row["ratio"] = round(ms["manual"] / ms["autograd"], 4)
    return row


def peak_mib(step) -> float | None:
    """The memory that one step needs beyond what stood before it, on a GPU."""
    for _ in range(3):
        step()
    if device.DEVICE.type == "cpu":
        return None
    device.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    device.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=device.pick(cpu=15, gpu=40))
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    rows = []
    for case in CASES:
        for engine in ("torch", "reference"):
            row = measure(*case, engine, arguments.turns, compiled=engine == "torch")
            rows.append(row)
            print(
                {k: row[k] for k in ("model", "engine", "manual_ms", "autograd_ms", "compiled_ms", "ratio")}
            )
    kept = json.loads(OUTPUT.read_text())["rows"] if OUTPUT.exists() else []
    kept = [row for row in kept if row["device"] != device.DEVICE.type]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({"rows": kept + rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

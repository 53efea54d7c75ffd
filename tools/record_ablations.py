"""Train the modern block and eleven neighbours of it on `tales`, several seeds each, and record what differs.

    python tools/record_ablations.py            -> assets/runs/ablations.json

Every variant changes one choice of the modern block (the last one changes four). A seed fixes the first
weights and the order of the batches, so that two variants with the same seed read the same text in the same
order: what is compared is the difference within a seed. Beside the losses, the models tell how their loss
depends on the position, up to four times the trained length, and where their attention goes.
"""

import argparse
import dataclasses
import datetime
import math
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import records
import torch
from torch.nn.functional import cross_entropy

from course import data, device
from course.config import ModelConfig
from course.initial import initial_weights, rope_tables
from course.manual import ManualTransformer
from course.model import Transformer
from course.optim import AdamW
from course.tokenizer import CharTokenizer
from course.training import train, warmup_cosine

OUTPUT = Path(__file__).resolve().parent.parent / "assets" / "runs" / "ablations.json"
RECIPE = {
    "batch_size": 16,
    "steps": 500,
    "lr": 8e-3,
    "warmup": 50,
    "schedule": "cosine to a tenth",
    "betas": [0.9, 0.99],
    "weight_decay": 0.1,
    "clip": 1.0,
    "dtype": "float32",
}
SIZES = {"context_length": 64, "n_layer": 4, "n_head": 4, "d_model": 48}
VARIANTS: dict[str, dict] = {
    "modern": {},
    "LayerNorm": {"norm": "layer"},
    "learned positions": {"position": "learned"},
    "GELU": {"mlp": "gelu"},
    "biases": {"bias": True},
    "2 key-value heads": {"n_kv_head": 2},
    "1 key-value head": {"n_kv_head": 1},
    "attention sinks": {"attention_sink": True},
    "window of 16": {"sliding_window": 16},
    "tied embeddings": {"tie_embeddings": True},
    "unscaled init": {},
    "classic": {"norm": "layer", "position": "learned", "mlp": "gelu", "bias": True},
}
EVALUATE_EVERY = 125
RATES = (4e-3, 1.6e-2, 3.2e-2)  # also tried, with seed 0, on the first and the last variant
LONGER = 4  # times the trained length, for the loss by position
POSITIONS = 8  # of them share one number in the record


def first_weights(config: ModelConfig, name: str, seed: int) -> dict[str, np.ndarray]:
    """The course's initial weights; for "unscaled init" without the factor 1/√(2 n_layer)."""
    weights = initial_weights(config, seed)
    if name == "unscaled init":
        for key in weights:
            if key.endswith(("attention.o.weight", "mlp.down.weight")):
                weights[key] = weights[key] * math.sqrt(2 * config.n_layer)
    return weights


def loss_by_position(model: Transformer, tokens: np.ndarray, length: int, squeeze: int = 1) -> list[float]:
    """The validation loss at each stretch of `POSITIONS` positions of windows `length` tokens long.

    `squeeze` divides the positions that RoPE sees (position interpolation, Chen et al., 2023).
    """
    config = model.config
    if config.position == "rope":  # the tables are all that ties these weights to a length
        config = dataclasses.replace(config, context_length=length)
        model = Transformer(config, weights=model.weights)
        tables = rope_tables(length, config.d_head, config.rope_theta)
        if squeeze > 1:
            frequencies = config.rope_theta ** (-np.arange(0, config.d_head, 2) / config.d_head)
            angles = np.outer(np.arange(length) / squeeze, frequencies)
            tables = np.cos(angles), np.sin(angles)
        model.cos, model.sin = (torch.from_numpy(table).float() for table in tables)
    total, count = torch.zeros(length), 0
    for ids, targets in data.in_order(tokens, 32, length, to=torch.as_tensor):
        logits = model.logits(ids)
        total += cross_entropy(logits.transpose(1, 2), targets, reduction="none").sum(0)
        count += len(ids)
    return [round(x, 4) for x in (total / count).unflatten(0, (-1, POSITIONS)).mean(1).tolist()]


def where_attention_goes(model: Transformer, tokens: np.ndarray) -> dict[str, list[list[float]]]:
    """For each layer and head: the mean probability of the first key and of the sink, second half."""
    T = model.config.context_length
    manual = ManualTransformer(model.config, {name: w.detach() for name, w in model.weights.items()})
    starts = np.arange(0, len(tokens) - T, T)[:64]
    _, saved = manual.forward(torch.as_tensor(tokens[starts[:, None] + np.arange(T)]))
    result: dict[str, list[list[float]]] = {"first_key": [], "sink": []}
    for _, attention, *_ in saved[1]:
        *_, p, p_sink, _ = attention[5]
        late = slice(T // 2, None)
        result["first_key"].append([round(x, 4) for x in p[:, :, late, 0].mean((0, 2)).tolist()])
        if p_sink is not None:
            result["sink"].append([round(x, 4) for x in p_sink[:, :, late].mean((0, 2, 3)).tolist()])
    return result


def run(task: tuple[str, int, float]) -> dict:
    """Train one variant with one seed and one rate on one thread; -> what is recorded of it."""
    name, seed, lr = task
    torch.set_num_threads(1)
    train_text, validation_text = data.split("tales")
    tokenizer = CharTokenizer.from_text(train_text + validation_text)
    validation = tokenizer.encode(validation_text)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, **SIZES, **VARIANTS[name])
    model = Transformer(config, weights=first_weights(config, name, seed))
    steps, T = RECIPE["steps"], config.context_length
    history = train(
        model,
        AdamW(model.weights, lr, tuple(RECIPE["betas"]), weight_decay=RECIPE["weight_decay"]),
        data.Batches(
            tokenizer.encode(train_text), RECIPE["batch_size"], T, seed=1000 + seed, to=torch.as_tensor
        ),
        steps,
        schedule=partial(warmup_cosine, steps=steps, warmup=RECIPE["warmup"]),
        max_norm=RECIPE["clip"],
        validation=validation,
        every=EVALUATE_EVERY,
    )
    record = {
        "name": name,
        "lr": lr,
        "n_parameters": config.n_parameters(),
        "validation": {str(step): round(loss, 4) for step, loss in history.validation.items()},
        "ms_a_step": round(1e3 * history.seconds / steps, 2),
    }
    if name in ("modern", "learned positions", "window of 16"):
        length = T if config.position == "learned" else LONGER * T
        record["by_position"] = {name: loss_by_position(model, validation, length)}
    if name == "modern":
        squeezed = loss_by_position(model, validation, LONGER * T, squeeze=LONGER)
        record["by_position"]["modern, positions squeezed"] = squeezed
    if name in ("modern", "attention sinks"):
        record["attention"] = where_attention_goes(model, validation)
    print(
        f"{name}, seed {seed}, rate {lr}: {record['validation'][str(steps)]} {record['ms_a_step']} ms",
        flush=True,
    )
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()

    started = time.perf_counter()
    tasks = [(name, seed, RECIPE["lr"]) for seed in range(arguments.seeds) for name in VARIANTS]
    tasks += [(name, 0, rate) for name in ("modern", "classic") for rate in RATES]
    with ProcessPoolExecutor(arguments.processes) as pool:
        runs = list(pool.map(run, tasks))

    variants, rates, by_position, attention = {}, {}, {}, {}
    for name, changes in VARIANTS.items():
        of_name = [record for record in runs if record["name"] == name]
        own = [record for record in of_name if record["lr"] == RECIPE["lr"]]
        variants[name] = {
            "changes": changes,
            "n_parameters": own[0]["n_parameters"],
            "validation": {step: [r["validation"][step] for r in own] for step in own[0]["validation"]},
            "ms_a_step": [r["ms_a_step"] for r in own],
        }
        for label in own[0].get("by_position", {}):
            by_position[label] = [r["by_position"][label] for r in own]
        if len(of_name) > len(own):
            tried = sorted([own[0], *(r for r in of_name if r["lr"] != RECIPE["lr"])], key=lambda r: r["lr"])
            rates[name] = {str(r["lr"]): r["validation"][str(RECIPE["steps"])] for r in tried}
        if "attention" in own[0]:
            attention[name] = [r["attention"] for r in own]
    record = {
        "machine": f"{records.processor()}, {arguments.processes} runs at a time, one thread each",
        "versions": device.describe().split(", ")[-1],
        "date": datetime.date.today().isoformat(),
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "dataset": "tales, one token a character",
        "sizes": SIZES,
        "recipe": RECIPE,
        "seeds": list(range(arguments.seeds)),
        "variants": variants,
        "rates_of_seed_0": rates,
        "positions_a_number": POSITIONS,
        "by_position": by_position,
        "attention": attention,
    }
    records.write(arguments.output, record)
    print(f"{arguments.output}: {record['minutes']} minutes")


if __name__ == "__main__":
    main()

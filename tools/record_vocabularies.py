"""Train one small model on `tales` with vocabularies of several sizes, and record bits a byte.

    python tools/record_vocabularies.py            -> assets/runs/vocabularies.json
    … --steps 1350 --seeds 1 --rates --output assets/runs/vocabularies_longer.json

Characters, bytes without any merge, and byte-pair encoding of the training part; the smaller vocabularies are
the first merges of the largest. The model's blocks are the same everywhere, and so is the text: a step reads
the same number of windows, each of about the same number of bytes, so that a window has fewer tokens where
tokens are longer. A loss in nats a token says nothing across vocabularies; bits a byte do. The second file
tells what becomes of it when the same text is read three times as often.
"""

import argparse
import datetime
import math
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import records
import torch

from course import data, device, flops
from course.config import ModelConfig
from course.model import Transformer
from course.optim import AdamW
from course.tokenizer import BPETokenizer, CharTokenizer
from course.tokenizer.analysis import RARE
from course.training import train, warmup_cosine
from course.training.corpus import bits_per_byte

OUTPUT = Path(__file__).resolve().parent.parent / "assets" / "runs" / "vocabularies.json"
DATASET = "tales"
SIZES = {"n_layer": 3, "n_head": 4, "d_model": 96, "tie_embeddings": True}
RECIPE = {
    "batch_size": 16,
    "bytes_a_window": 256,
    "lr": 4e-3,
    "warmup": 50,
    "schedule": "cosine to a tenth",
    "betas": [0.9, 0.99],
    "weight_decay": 0.1,
    "clip": 1.0,
    "dtype": "float32",
}
MERGED = (257, 512, 1024, 2048, 4096)  # 257: the bytes, and the mark between documents
VOCABULARIES = {"characters": None, "bytes": 257} | {f"BPE {size}": size for size in MERGED[1:]}
STEPS, EVALUATE_EVERY = 450, 90
RATES = (2e-3, 8e-3)  # also tried, on these two
RATES_FOR = ("bytes", "BPE 2048")


def tokenizers() -> dict[str, CharTokenizer | BPETokenizer]:
    """The tokenizer of each vocabulary; merges are learned once, from the training part."""
    largest = BPETokenizer.train(data.documents(DATASET, "training"), max(MERGED))
    return {
        name: largest.truncated(size) if size else CharTokenizer.from_text(data.load_text(DATASET))
        for name, size in VOCABULARIES.items()
    }


def rare_shares(tokens: np.ndarray, vocab_size: int) -> tuple[float, float | None]:
    """The share of tokens that the training text has fewer than `RARE` times: of all, and of the merged."""
    rare = np.bincount(tokens, minlength=vocab_size) < RARE
    merged = rare[256:-1]  # the mark between documents is the last
    return round(float(rare.mean()), 4), round(float(merged.mean()), 4) if len(merged) else None


def run(task: tuple[str, int, float, int]) -> dict:
    """Train with a vocabulary, a seed and a rate for some steps on one thread; -> what is recorded of it."""
    name, seed, lr, steps = task
    torch.set_num_threads(1)
    tokenizer = tokenizers()[name]
    with tempfile.TemporaryDirectory() as folder:
        training, validation = data.token_split(DATASET, tokenizer, Path(folder), progress=False)
        window = RECIPE["bytes_a_window"] * len(training.tokens) / training.text_bytes
        config = ModelConfig(tokenizer.vocab_size, context_length=round(window), **SIZES)
        model = Transformer(config, seed=seed)
        history = train(
            model,
            AdamW(model.weights, lr, tuple(RECIPE["betas"]), weight_decay=RECIPE["weight_decay"]),
            data.Batches(
                training.tokens,
                RECIPE["batch_size"],
                config.context_length,
                seed=1000 + seed,
                to=torch.as_tensor,
            ),
            steps,
            schedule=partial(warmup_cosine, steps=steps, warmup=RECIPE["warmup"]),
            max_norm=RECIPE["clip"],
            validation=validation.tokens,
            every=EVALUATE_EVERY,
        )
        bytes_a_token = validation.text_bytes / len(validation.tokens)
        rare, rare_merged = rare_shares(training.tokens, tokenizer.vocab_size)
        bits = {step: bits_per_byte(loss, validation) for step, loss in history.validation.items()}
        training_bits = bits_per_byte(float(np.mean(history.losses[-50:])), training)
    embedding = math.prod(config.parameter_shapes()["embedding.weight"])
    record = {
        "name": name,
        "lr": lr,
        "vocab_size": config.vocab_size,
        "bytes_a_token": round(bytes_a_token, 4),
        "rare_share": rare,
        "rare_share_of_merged": rare_merged,
        "context_length": config.context_length,
        "embedding_parameters": embedding,
        "other_parameters": config.n_parameters() - embedding,
        "training_flops_a_byte": round(flops.per_token(config) / bytes_a_token),
        "nats_a_token": round(history.validation[steps], 4),
        "bits_a_byte": {str(step): round(value, 4) for step, value in bits.items()},
        "training_bits_a_byte": round(training_bits, 4),
        "seconds": round(history.seconds, 1),
    }
    print(
        f"{name}, seed {seed}, rate {lr}: {record['bits_a_byte'][str(steps)]} bits a byte, "
        f"{record['seconds']} s",
        flush=True,
    )
    return record


BY_SEED = ("bits_a_byte", "nats_a_token", "training_bits_a_byte", "seconds")


def of_seeds(runs: list[dict]) -> dict:
    """The records of a run with several seeds as one: what a seed changes stands in lists."""
    fixed = {key: value for key, value in runs[0].items() if key not in ("name", "lr", *BY_SEED)}
    bits = {step: [r["bits_a_byte"][step] for r in runs] for step in runs[0]["bits_a_byte"]}
    return fixed | {"bits_a_byte": bits} | {key: [r[key] for r in runs] for key in BY_SEED[1:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rates", type=float, nargs="*", default=RATES, help="tried too, with seed 0")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()

    started = time.perf_counter()
    lr, steps = RECIPE["lr"], arguments.steps
    tasks = [(name, 0, rate, steps) for name in RATES_FOR for rate in arguments.rates]
    tasks += [(name, seed, lr, steps) for name in VOCABULARIES for seed in range(arguments.seeds)]
    with ProcessPoolExecutor(arguments.processes) as pool:
        runs = list(pool.map(run, tasks))

    vocabularies, rates = {}, {}
    for name in VOCABULARIES:
        own = [record for record in runs if record["name"] == name and record["lr"] == lr]
        vocabularies[name] = of_seeds(own)
        if name in RATES_FOR and arguments.rates:
            others = [record for record in runs if record["name"] == name and record["lr"] != lr]
            tried = sorted([own[0], *others], key=lambda r: r["lr"])
            rates[name] = {str(r["lr"]): r["bits_a_byte"][str(steps)] for r in tried}
    record = {
        "machine": f"{records.processor()}, {arguments.processes} runs at a time, one thread each",
        "versions": device.describe().split(", ")[-1],
        "date": datetime.date.today().isoformat(),
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "dataset": DATASET,
        "sizes": SIZES,
        "recipe": RECIPE | {"steps": steps},
        "rare": RARE,
        "seeds": list(range(arguments.seeds)),
        "vocabularies": vocabularies,
        "rates_of_seed_0": rates,
    }
    records.write(arguments.output, record)
    print(f"{arguments.output}: {record['minutes']} minutes")


if __name__ == "__main__":
    main()

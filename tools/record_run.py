"""Train the character model by hand and by autograd from the same weights, and record both curves.

    python tools/record_run.py wizard_of_oz            -> assets/runs/wizard_of_oz.json

The hand-written model runs on the `reference` engine: its derivations, with no autograd anywhere. The sample
is from the weights of the step with the lowest validation loss.
"""

import argparse
import datetime
from pathlib import Path

import records

from course import data, device, optim, training
from course.config import ModelConfig, preset
from course.inference import generate
from course.initial import initial_weights
from course.manual import ManualTransformer
from course.model import Transformer, as_tensors
from course.tokenizer import CharTokenizer

ASSETS = Path(__file__).resolve().parent.parent / "assets"
RECIPE = {
    "batch_size": 16,
    "steps": 5000,
    "lr": 3e-3,
    "warmup": 100,
    "schedule": "cosine to a tenth",
    "betas": [0.9, 0.99],
    "weight_decay": 0.1,
    "clip": 1.0,
    "dtype": "float32",
}
COMPARED = 200  # steps whose losses must be equal, by hand and by autograd


class Best:
    """Remembers the weights of the lowest validation loss while a run reports its progress."""

    def __init__(self, model, label: str):
        self.model, self.label, self.loss, self.weights = model, label, float("inf"), {}

    def __call__(self, step: int, history: training.History) -> None:
        loss = history.validation[step]
        print(f"{self.label} step {step}: validation {loss:.4f}, {history.seconds:.1f} s", flush=True)
        if loss < self.loss:
            weights = self.model.weights
            self.loss = loss
            self.weights = {name: w.detach().cpu().numpy() for name, w in weights.items()}


def run(model, label: str, config: ModelConfig, tokens, validation) -> tuple[dict, Best]:
    steps, best = RECIPE["steps"], Best(model, label)
    history = training.train(
        model,
        optim.AdamW(model.weights, RECIPE["lr"], tuple(RECIPE["betas"]), weight_decay=RECIPE["weight_decay"]),
        data.Batches(tokens, RECIPE["batch_size"], config.context_length, seed=1, to=device.put),
        steps,
        schedule=lambda step: training.warmup_cosine(step, steps, RECIPE["warmup"]),
        max_norm=RECIPE["clip"],
        validation=validation,
        every=250,
        report=best,
    )
    return records.curves(history, COMPARED), best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", choices=list(data.DATASETS))
    parser.add_argument("--output", type=Path, default=ASSETS, help="instead of assets/")
    arguments = parser.parse_args()
    name = arguments.dataset

    tokenizer = CharTokenizer.from_text(data.load_text(name))
    tokens, validation = (tokenizer.encode(text) for text in data.split(name))
    config = preset("char", vocab_size=tokenizer.vocab_size)
    first = initial_weights(config, seed=0)

    manual = ManualTransformer(config, as_tensors(first, device.DEVICE), engine="reference")
    by_hand, best = run(manual, "by hand", config, tokens, validation)
    autograd = Transformer(config, engine="torch", weights=first, device=device.DEVICE)
    by_autograd, _ = run(autograd, "autograd", config, tokens, validation)

    pairs = zip(by_hand["losses"], by_autograd["losses"], strict=True)
    difference = max(abs(a - b) for a, b in pairs)
    model = ManualTransformer(config, as_tensors(best.weights, device.DEVICE), engine="reference")
    record = {
        "machine": device.describe(),
        "date": datetime.date.today().isoformat(),
        "dataset": name,
        "config": vars(config),
        "n_parameters": config.n_parameters(),
        "recipe": RECIPE,
        "engines": {"manual": "reference", "autograd": "torch"},
        "manual": by_hand,
        "autograd": by_autograd,
        "largest_difference": round(difference, 6),
        "sample": generate(model, tokenizer, "The ", 400, temperature=0.7, seed=1),
    }
    path = arguments.output / "runs" / f"{name}.json"
    records.write(path, record, indent=1)
    print(f"{path}: best validation {best.loss:.4f}, largest difference {difference:.2e}")
    print(record["sample"])


if __name__ == "__main__":
    main()

"""Train the small model that comes with the course, and write it and its card into assets/models/.

    python tools/record_small_model.py             (a GPU: a minute; two CPU cores: a quarter of an hour)

The recipe is the preset `shipped`. The run stays in runs/shipped; one that is there already is not trained
again. Its checkpoint with the lowest validation loss is rounded to bfloat16 and written to tales.safetensors.
tales.json is the model's card: how it was trained, how good the rounded model is, what it writes, and how
much of that stands in the stories that it has read.
"""

import argparse
import datetime
import hashlib
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import records
import torch

from course import checkpoint, data, device, inference, run_folder, runlog
from course.model import Transformer
from course.training import Recipe, Trainer, evaluate
from course.training.corpus import bits_per_byte
from course.training.listeners import Progress

ROOT = Path(__file__).resolve().parent.parent
STORIES = 40  # that it writes, to measure how much it copies
TEMPERATURE = 0.7
# One of these is stored with what the model writes after it, likeliest token by likeliest token.
OPENINGS = ("The old man", "One morning", "The goat", "Every evening", "The boy", "Her grandmother", "It was")
N_GREEDY = 60


def export(folder: Path, path: Path) -> None:
    """The best weights of a run, in bfloat16, with their tokenizer, as one file."""
    config, weights, tokenizer = run_folder.load(folder)
    rounded = {name: torch.from_numpy(w).bfloat16() for name, w in weights.items()}
    checkpoint.save(path, config, rounded, tokenizer)


def history(folder: Path) -> dict:
    """Of a run's log: on what, how long, and which step was the best."""
    log = folder / "log.jsonl"
    start = runlog.read(log, "start")[0]
    evaluations = runlog.read(log, "evaluation")
    return {
        "machine": start["machine"],
        "precision": start["precision"],
        "steps": start["steps"],
        "best_step": min(evaluations, key=lambda event: event["loss"])["step"],
        "seconds": round(runlog.read(log, "speed")[-1]["seconds"], 1),
        "training_tokens": start["training_tokens"],
    }


def quality(model, tokenizer) -> dict:
    """How well a model predicts both parts of the stories, token by token."""
    parts = {}
    for part, file in zip(data.PARTS, data.token_split("tales", tokenizer), strict=True):
        loss = evaluate(model, file.tokens)
        parts[part] = {
            "loss": round(loss, 4),
            "perplexity": round(math.exp(loss), 2),
            "bits_per_byte": round(bits_per_byte(loss, file), 4),
        }
    return parts


def copying(texts: list[str], source: str) -> dict:
    """Of the longest run of words that each text has from `source`: the mean length, and the longest."""
    copied = [data.longest_copy(text, source) for text in texts]
    lengths = [len(run.split()) for run in copied]
    return {
        "texts": len(texts),
        "mean_words": round(float(np.mean(lengths)), 1),
        "most_words": max(lengths),
        "longest": max(copied, key=lambda run: len(run.split())),
    }


def surest_opening(model, tokenizer) -> dict:
    """How the model goes on, at temperature 0, with the opening after which the likeliest token always leads
    clearly: a text that no rounding changes. `margin` is the least by which its logit leads."""
    openings = {opening: _margin(model, tokenizer, opening) for opening in OPENINGS}
    prompt = max(openings, key=openings.get)
    text = inference.generate(model, tokenizer, prompt, N_GREEDY, temperature=0)
    return {"prompt": prompt, "tokens": N_GREEDY, "text": text, "margin": round(openings[prompt], 4)}


def _margin(model, tokenizer, prompt: str) -> float:
    leads = []

    def watched(ids: torch.Tensor) -> torch.Tensor:
        logits = model.logits(ids)
        first, second = logits[0, -1].topk(2).values.tolist()
        leads.append(first - second)
        return logits

    watching = SimpleNamespace(config=model.config, weights=model.weights, logits=watched)
    inference.generate(watching, tokenizer, prompt, N_GREEDY, temperature=0)
    return min(leads)


def card(path: Path, folder: Path) -> dict:
    """What there is to know of the model in `path`, measured on the file itself."""
    model, tokenizer = inference.open_model(path)
    told = [
        inference.generate(model, tokenizer, "", 400, temperature=TEMPERATURE, seed=seed)
        for seed in range(STORIES)
    ]
    on_cpu = Transformer(model.config, weights=model.weights)
    training, validation = data.split("tales")
    read, held_out = data.stories(training), data.stories(validation)
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "parameters": model.config.n_parameters(),
        "licence": "MIT, like the course; it has read nothing but data/tales.txt, which is CC0",
        "date": datetime.date.today().isoformat(),
        "data": f"tales: {len(read)} stories to learn from, {len(held_out)} held out",
        "training": history(folder),
        "quality": quality(model, tokenizer),
        "copies": {
            "what": "the longest run of words that also stands in the stories it learned from",
            "of_its_stories": copying(told, training),
            "of_the_held_out_stories": copying(held_out, training),
            "temperature": TEMPERATURE,
        },
        "greedy": surest_opening(on_cpu, tokenizer),
        "samples": told[:3],
        "recipe": Recipe.load(folder / "recipe.yaml").to_dict(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=checkpoint.SHIPPED.parent, help="instead of assets")
    arguments = parser.parse_args()
    folder, path = ROOT / "runs/shipped", arguments.output / checkpoint.SHIPPED.name
    if not (folder / "recipe.yaml").exists():
        Trainer(Recipe.preset("shipped"), folder, listeners=(Progress(),)).run()
    export(folder, path)
    about = card(path, folder)
    records.write(path.with_suffix(".json"), about, indent=1)
    print(f"{device.describe()}: {path}, {about['bytes']:,} bytes")
    for name in ("parameters", "training", "quality", "copies", "greedy"):
        print(name, about[name])
    print(*about["samples"], sep="\n\n")


if __name__ == "__main__":
    main()

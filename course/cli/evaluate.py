"""`python -m course evaluate`: how well a model predicts a text that was held out."""

import argparse
import json
from pathlib import Path

from course import data, inference, run_folder
from course.training import Recipe, evaluate, perplexity
from course.training.corpus import bits_per_byte


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="the folder of a run, or a file of weights")
    parser.add_argument("--which", choices=("best", "latest"), default="best", help="of a run's checkpoints")
    parser.add_argument("--data", help="which text (default: that of the run, or tales)")
    parser.add_argument("--tokens", type=int, help="of the text at most (default: all)")
    parser.add_argument("--batch-size", type=int, default=16, help="windows at once (default: 16)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    for name in ("tokens", "batch_size"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: expected a whole number of at least 1.")
    model, tokenizer = inference.open_model(arguments.model, arguments.which)
    recipe = run_folder.RunFolder(arguments.model).recipe
    name = arguments.data or (Recipe.load(recipe).data if recipe.is_file() else "tales")
    _, file = data.token_split(name, tokenizer)
    tokens = file.tokens[: arguments.tokens]
    loss = evaluate(model, tokens, arguments.batch_size)
    result = {
        "data": name,
        "tokens": len(tokens),
        "loss": loss,
        "perplexity": perplexity(loss),
        "bits_per_byte": bits_per_byte(loss, file),
    }
    if arguments.json:
        print(json.dumps(result))
    else:
        print(
            f"{len(tokens):,} held-out tokens of {name}, in windows of {model.config.context_length}: loss "
            f"{loss:.4f}, perplexity {result['perplexity']:.2f}, {result['bits_per_byte']:.3f} bits a byte"
        )
    return 0

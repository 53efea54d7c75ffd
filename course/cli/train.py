"""`python -m course train`: a run from a recipe, or a run that goes on."""

import argparse
from pathlib import Path

import yaml

from course.training import Recipe, Trainer
from course.training.listeners import Progress, WeightsAndBiases
from course.training.recipe import field_names, presets


def configure(parser: argparse.ArgumentParser) -> None:
    parser.allow_abbrev = False
    parser.usage = (
        "python -m course train (--preset NAME | --recipe FILE | --resume FOLDER) [--out FOLDER] "
        "[--FIELD VALUE ...]"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--preset", help=f"a recipe that ships: {', '.join(presets())}")
    source.add_argument("--recipe", type=Path, metavar="FILE", help="a recipe of yours, in YAML")
    source.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with the run in this folder")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="of the run (default: runs/ and the name)")
    parser.add_argument("--show", action="store_true", help="print the recipe that this is, and do nothing")
    fields = parser.add_argument_group("fields of the recipe, each with its value as YAML writes it")
    for name, about in field_names().items():
        fields.add_argument(f"--{name}", metavar="VALUE", help=about, default=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    given = vars(arguments)
    changes = {name: _value(given[name]) for name in field_names() if name in given}
    if arguments.resume and arguments.out:
        raise ValueError("--out is for a new run: one that goes on stays in its folder.")
    if arguments.resume:
        folder = arguments.resume
        recipe = Recipe.load(folder / "recipe.yaml").changed(changes) if arguments.show else None
    else:
        folder = arguments.out or Path("runs") / (arguments.preset or arguments.recipe.stem)
        recipe = Recipe.preset(arguments.preset) if arguments.preset else Recipe.load(arguments.recipe)
        recipe = recipe.changed(changes)
    if arguments.show:
        print(recipe.to_yaml(), end="")
        return 0
    return _train(Trainer(recipe, folder) if recipe else Trainer.resume(folder, changes), folder)


def _train(trainer: Trainer, folder: Path) -> int:
    if trainer.done >= trainer.recipe.steps:
        print(f"{folder} has all its {trainer.done:,} steps: --steps {2 * trainer.done} would go on.")
        return 0
    listeners = [Progress()]
    if project := trainer.recipe.wandb:
        listeners.append(WeightsAndBiases(project, folder.resolve().name, trainer.recipe.to_dict()))
    trainer.listeners.extend(listeners)
    try:
        trainer.run()
    except KeyboardInterrupt:
        print(f"Stopped after {trainer.done:,} steps: `python -m course train --resume {folder}` goes on.")
        return 130
    finally:
        for listener in listeners:
            listener.close()
    print(f"Best validation loss {trainer.best_loss:.4f}. Try `python -m course chat {folder}`.")
    return 0


def _value(text: str):
    """Numbers and words stay text, which the recipe reads; YAML reads lists and null."""
    return yaml.safe_load(text) if text == "null" or text.startswith("[") else text

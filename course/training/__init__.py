"""Training: the loop in one function, `train`; a whole run, from a recipe into a folder, `Trainer`."""

from course.training.loop import History, evaluate, perplexity, token_losses, train
from course.training.recipe import Recipe
from course.training.schedule import factor, warmup_cosine
from course.training.trainer import Trainer

__all__ = [
    "train",
    "evaluate",
    "perplexity",
    "token_losses",
    "History",
    "factor",
    "warmup_cosine",
    "Recipe",
    "Trainer",
]

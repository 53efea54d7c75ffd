"""Training: the loop in one function (`train`), and what a recorded run needs besides."""

from course.training.loop import History, evaluate, train
from course.training.schedule import factor, warmup_cosine

__all__ = ["train", "evaluate", "History", "warmup_cosine", "factor"]

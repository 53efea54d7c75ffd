"""A run's folder."""

from pathlib import Path

import numpy as np

from course import checkpoint
from course.config import ModelConfig


def load(path: str | Path, which: str = "best") -> tuple[ModelConfig, dict[str, np.ndarray], object]:
    """Config, weights and tokenizer of one file of weights."""
    config, weights, tokenizer = checkpoint.load(path)
    if tokenizer is None:
        raise ValueError(f"{path} was saved without its tokenizer: nothing can be read or written with it.")
    return config, weights, tokenizer

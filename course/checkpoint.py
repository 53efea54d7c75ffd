"""A model on disk: its weights as safetensors, its config and tokenizer in the same file's header."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from course.config import ModelConfig
from course.tokenizer import BPETokenizer, CharTokenizer

Tokenizer = CharTokenizer | BPETokenizer


def save(path: str | Path, config: ModelConfig, weights: dict, tokenizer: Tokenizer | None = None) -> None:
    """Write a checkpoint whole or not at all. `weights` are arrays or tensors by name."""
    config.check_weights(weights)
    header = {"config": json.dumps(dataclasses.asdict(config))}
    if isinstance(tokenizer, CharTokenizer):
        header["alphabet"] = json.dumps(tokenizer.tokens[1:])
    elif tokenizer is not None:
        header["tokenizer"] = json.dumps(tokenizer.to_dict())
    arrays = {name: _to_numpy(weight) for name, weight in weights.items()}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        save_file(arrays, temporary, metadata=header)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | Path) -> tuple[ModelConfig, dict[str, np.ndarray], Tokenizer | None]:
    """-> config, weights by name, tokenizer (None if it was saved without one).

    Raises `FileNotFoundError`, or `ValueError` for a file that is not a whole checkpoint of the course.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint at {path}: save one there, or check the path.")
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}): it may have been cut short; "
            "save or download it again."
        ) from error
    if "config" not in header:
        raise ValueError(f"{path} holds weights but no config: it was not saved by `course.checkpoint`.")
    config = ModelConfig(**json.loads(header["config"]))
    config.check_weights(weights)
    return config, weights, _tokenizer(header, path)


def _tokenizer(header: dict[str, str], path: Path) -> Tokenizer | None:
    if "alphabet" in header:
        return CharTokenizer(json.loads(header["alphabet"]))
    if "tokenizer" in header:
        return BPETokenizer.from_dict(json.loads(header["tokenizer"]), where=f"The tokenizer in {path}")
    return None


def _to_numpy(weight) -> np.ndarray:
    if hasattr(weight, "detach"):  # a tensor, on any device
        weight = weight.detach().cpu().numpy()
    return np.ascontiguousarray(weight)

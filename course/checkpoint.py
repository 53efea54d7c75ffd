"""A model on disk: its weights as safetensors, its config and tokenizer in the same file's header."""

import dataclasses
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save_file

from course.atomic import replacing
from course.config import ModelConfig
from course.tokenizer import BPETokenizer, CharTokenizer

Tokenizer = CharTokenizer | BPETokenizer

PRECISIONS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}  # as safetensors and NumPy write them
SHIPPED = Path(__file__).resolve().parents[1] / "assets/models/tales.safetensors"  # comes with the course


def save(path: str | Path, config: ModelConfig, weights: dict, tokenizer: Tokenizer | None = None) -> None:
    """Write a checkpoint whole or not at all. `weights` are arrays by name, or tensors, of any precision."""
    config.check_weights(weights)
    header = {"config": json.dumps(dataclasses.asdict(config))}
    if isinstance(tokenizer, CharTokenizer):
        header["alphabet"] = json.dumps(tokenizer.tokens[1:])
    elif tokenizer is not None:
        header["tokenizer"] = json.dumps(tokenizer.to_dict())
    with replacing(Path(path)) as temporary, system_errors():
        _write(weights, temporary, header)


@contextmanager
def system_errors() -> Iterator[None]:
    """safetensors raises the system's errors, a full disk say, as its own: make each an `OSError` again."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def load(path: str | Path) -> tuple[ModelConfig, dict[str, np.ndarray], Tokenizer | None]:
    """-> config, weights by name, tokenizer (None if it was saved without one).

    Weights have the precision they were saved in, but bfloat16, which NumPy lacks, comes as float32. Raises
    `FileNotFoundError`, or `ValueError` for a file that is not a whole checkpoint of the course.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint at {path}: save one there, or check the path.")
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
        weights = {name: _to_numpy(**content) for name, content in deserialize(path.read_bytes())}
    except (SafetensorError, ValueError) as error:
        raise ValueError(
            f"{path} is not a whole safetensors file of a model ({error}): it may have been cut short; "
            "save or download it again."
        ) from error
    if "config" not in header:
        raise ValueError(f"{path} holds weights but no config: it was not saved by `course.checkpoint`.")
    try:
        config = ModelConfig(**json.loads(header["config"]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"The config in {path} is of no model that this course knows ({error}).") from error
    config.check_weights(weights)
    try:
        return config, weights, _tokenizer(header, path)
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"The tokenizer in {path} is damaged ({error}): save the model anew.") from error


def _tokenizer(header: dict[str, str], path: Path) -> Tokenizer | None:
    if "alphabet" in header:
        return CharTokenizer(json.loads(header["alphabet"]))
    if "tokenizer" in header:
        return BPETokenizer.from_dict(json.loads(header["tokenizer"]), where=f"The tokenizer in {path}")
    return None


def _write(weights: dict, path: Path, header: dict[str, str]) -> None:
    if any(hasattr(weight, "detach") for weight in weights.values()):  # tensors, on any device
        from safetensors.torch import save_file as save_tensors  # whoever has tensors has PyTorch

        save_tensors({name: w.detach().cpu().contiguous() for name, w in weights.items()}, path, header)
    else:
        save_file({name: np.ascontiguousarray(w) for name, w in weights.items()}, path, header)


def _to_numpy(dtype: str, shape: list[int], data: bytearray) -> np.ndarray:
    """A tensor of a safetensors file as an array."""
    if dtype == "BF16":  # the upper half of a float32
        upper = np.frombuffer(data, "<u2").astype("<u4")
        return (upper << 16).view("<f4").reshape(shape)
    if dtype not in PRECISIONS:
        raise ValueError(f"its weights are {dtype}, expected BF16, {', '.join(PRECISIONS)}")
    return np.frombuffer(data, PRECISIONS[dtype]).reshape(shape)

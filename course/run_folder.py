"""A run's folder: its recipe, its log, and checkpoints from which it can go on.

    runs/tales/recipe.yaml
               log.jsonl
               checkpoints/step_00000500/    weights.safetensors, optimizer.safetensors, state.json
               latest, best                  each the name of one of these

A checkpoint is written under another name and moved into place whole. Its `state.json` has a checksum of
each of its files, so that one that the disk has damaged is noticed, and the one before it taken.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from course import checkpoint
from course.atomic import disk_full_in_words, replacing
from course.checkpoint import Tokenizer
from course.config import ModelConfig


@dataclass
class Snapshot:
    """Everything that a run goes on from, after so many steps."""

    step: int
    config: ModelConfig
    weights: dict[str, np.ndarray | Tensor]
    tokenizer: Tokenizer
    optimizer: dict[str, Tensor]  # what it remembers
    state: dict  # what the trainer remembers besides: plain numbers


class RunFolder:
    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.recipe, self.log = self.path / "recipe.yaml", self.path / "log.jsonl"
        self.checkpoints = self.path / "checkpoints"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within it no other process trains in this folder. Raises `RuntimeError` where one does."""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path / ".lock", timeout=0):
                yield
        except Timeout:
            raise RuntimeError(
                f"Another process is training in {self.path}: wait for its end, stop it, or choose another "
                "folder."
            ) from None

    def save(self, snapshot: Snapshot, *, best: bool, keep: int) -> Path:
        """Write a checkpoint, let `latest` (and `best`) name it, and remove all older ones but the last
        `keep` and the best."""
        final = self.checkpoints / f"step_{snapshot.step:08d}"
        temporary = self.checkpoints / f"part_{os.getpid()}_{snapshot.step}"
        with disk_full_in_words(final):
            temporary.mkdir(parents=True)
            try:
                weights = temporary / "weights.safetensors"
                checkpoint.save(weights, snapshot.config, snapshot.weights, snapshot.tokenizer)
                memory = _on_cpu(snapshot.optimizer | _random_state())
                with checkpoint.system_errors():
                    save_file(memory, temporary / "optimizer.safetensors")
                checksums = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
                state = {"step": snapshot.step, "best": best, **snapshot.state, "sha256": checksums}
                (temporary / "state.json").write_text(json.dumps(state, indent=1))
                if final.exists():  # a damaged one, which the run was resumed without
                    shutil.rmtree(final)
                os.replace(temporary, final)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        self._name(final.name, best)
        self._rotate(keep)
        return final

    def restore(self) -> tuple[Snapshot | None, list[str]]:
        """The newest whole checkpoint, or None if there is none, and a sentence for each damaged one.

        PyTorch's random generators are set to where they were.
        """
        with self.locked():
            for leftover in self.checkpoints.glob("part_*"):  # of a process that was killed as it wrote
                shutil.rmtree(leftover)
            damaged = []
            for folder in self._newest_first():
                try:
                    snapshot, best = _read(folder)
                except (OSError, ValueError, KeyError, SafetensorError) as error:
                    damaged.append(
                        f"The checkpoint {folder.name} is damaged ({error}): trying the one before."
                    )
                    continue
                self._name(folder.name, best)  # a kill may have come before its writer did
                return snapshot, damaged
        return None, damaged

    def find(self, which: str = "best") -> Path:
        """The file of weights of the `best` or the `latest` checkpoint. Raises `FileNotFoundError`."""
        pointer = self.path / which
        if not pointer.is_file():
            raise FileNotFoundError(
                f"{self.path} has no {which} checkpoint: expected the folder of a training run, such as "
                "runs/tales after `python -m course train --preset tales`."
            )
        return self.checkpoints / pointer.read_text().strip() / "weights.safetensors"

    def _newest_first(self) -> Iterator[Path]:
        return iter(sorted(self.checkpoints.glob("step_*"), reverse=True))

    def _name(self, checkpoint: str, best: bool) -> None:
        """Let `latest` name a checkpoint, and `best`, if it is."""
        for pointer in ("latest", "best") if best else ("latest",):
            with replacing(self.path / pointer) as temporary:
                temporary.write_text(checkpoint + "\n")

    def _rotate(self, keep: int) -> None:
        best = self.path / "best"
        spared = best.read_text().strip() if best.is_file() else ""
        for folder in list(self._newest_first())[keep:]:
            if folder.name != spared:
                shutil.rmtree(folder)


def load(path: str | Path, which: str = "best") -> tuple[ModelConfig, dict[str, np.ndarray], Tokenizer]:
    """Config, weights and tokenizer of a run's folder, or of one file of weights.

    Raises `FileNotFoundError` or `ValueError` for what is neither.
    """
    path = Path(path)
    file = RunFolder(path).find(which) if path.is_dir() else path
    config, weights, tokenizer = checkpoint.load(file)
    if tokenizer is None:
        raise ValueError(f"{file} was saved without its tokenizer: nothing can be read or written with it.")
    return config, weights, tokenizer


def _read(folder: Path) -> tuple[Snapshot, bool]:
    """-> what it holds, and whether it was the best when it was written."""
    state = json.loads((folder / "state.json").read_text())
    for name, checksum in state.pop("sha256").items():
        if _sha256(folder / name) != checksum:
            raise ValueError(f"{name} is not what was written")
    config, weights, tokenizer = checkpoint.load(folder / "weights.safetensors")
    tensors = load_file(folder / "optimizer.safetensors")
    _set_random_state(tensors)
    best = state.pop("best", False)
    return Snapshot(state.pop("step"), config, weights, tokenizer, tensors, state), best


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _random_state() -> dict[str, Tensor]:
    """Where PyTorch's generators are. (The course's other random numbers start anew from a seed and a step,
    each time they are needed.)"""
    state = {"random.cpu": torch.get_rng_state()}
    return state | ({"random.cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _set_random_state(tensors: dict[str, Tensor]) -> None:
    """Takes the generators' states out of `tensors`."""
    torch.set_rng_state(tensors.pop("random.cpu"))
    on_gpu = tensors.pop("random.cuda", None)
    if on_gpu is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(on_gpu)

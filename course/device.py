"""What this machine computes with, decided once, so that no notebook ever asks.

`DEVICE` is the GPU if there is one, else the CPU; `DTYPE` is what a full-size training run uses on it.
Without a GPU, Triton's kernels run in its interpreter and the course's CUDA C++ in the emulator: this module,
imported before Triton, turns them on.
Set `COURSE_DEVICE=cpu` to leave a GPU alone.
"""

import os
import random
from typing import TypeVar

import numpy as np
import torch

T = TypeVar("T")


def _choose_device() -> torch.device:
    wanted = os.environ.get("COURSE_DEVICE", "cuda" if torch.cuda.is_available() else "cpu")
    if wanted not in ("cpu", "cuda"):
        raise ValueError(f"COURSE_DEVICE={wanted!r} is unknown: set it to cpu or cuda, or unset it.")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            "COURSE_DEVICE=cuda, but PyTorch sees no GPU here: unset it to run on the CPU, or run "
            "`python -m course doctor` to see why."
        )
    return torch.device(wanted)


def _choose_dtype() -> torch.dtype:
    if DEVICE.type == "cpu":
        return torch.float32
    # bfloat16 arithmetic came with compute capability 8.0; a T4 (7.5) has float16
    return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16


DEVICE = _choose_device()
DTYPE = _choose_dtype()
if DEVICE.type == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it once, when it is imported
    os.environ.setdefault("COURSE_EMULATE_CUDA", "1")


def pick(*, cpu: T, gpu: T) -> T:
    """The size that suits this machine: `steps = pick(cpu=100, gpu=5000)`."""
    return gpu if DEVICE.type == "cuda" else cpu


def seed(n: int) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators."""
    random.seed(n)
    np.random.seed(n)
    torch.manual_seed(n)


def put(array, dtype: torch.dtype | None = None, *, beside: torch.Tensor | None = None) -> torch.Tensor:
    """An array or tensor as a tensor on `DEVICE`, or where the tensor `beside` is.

    What goes to a GPU is copied when its turn comes there, from memory that the GPU reads by itself: from
    ordinary memory the CPU copies, and waits for all that the GPU still has to do before.
    """
    where, x = DEVICE if beside is None else beside.device, torch.as_tensor(array, dtype=dtype)
    if where.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(where, non_blocking=True)
    return x.to(where)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Normal random numbers on `DEVICE`, from NumPy's generator: the same ones on every machine."""
    return put(np.random.default_rng(seed).standard_normal(shape), dtype)


def describe() -> str:
    """One line: what this machine computes with."""
    if DEVICE.type == "cuda":
        return f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}"
    threads = torch.get_num_threads()
    return f"CPU ({threads} thread{'s' * (threads > 1)}), PyTorch {torch.__version__}"


def synchronize() -> None:
    """Wait until the GPU has finished, so that a clock read next tells the truth."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()

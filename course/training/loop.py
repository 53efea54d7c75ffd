"""The loop that trains either transformer, by hand or by autograd: both give loss and gradients."""

import functools
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from course import device, optim
from course.data import Batches, check_tokens, in_order


@dataclass
class History:
    """What a run recorded: the loss of every step, and the validation loss at some of them."""

    losses: list[float] = field(default_factory=list)
    validation: dict[int, float] = field(default_factory=dict)  # by the number of steps done
    seconds: float = 0.0


def evaluate(model, tokens: np.ndarray, batch_size: int = 64) -> float:
    """The mean loss over a whole text, window by window."""
    check_tokens(tokens, model.config.vocab_size)
    to = functools.partial(device.put, beside=model.weights["embedding.weight"])
    total, count = 0.0, 0
    with torch.no_grad():
        for ids, targets in in_order(tokens, batch_size, model.config.context_length, to=to):
            total += model.loss(ids, targets).item() * targets.numel()
            count += targets.numel()
    return total / count


def perplexity(loss: float) -> float:
    """e to the loss. Raises `FloatingPointError` where that is no number: of a model that is broken."""
    if not loss < math.log(sys.float_info.max):
        raise FloatingPointError(
            f"The loss on held-out text is {loss}: the training of this model broke down. A lower learning "
            "rate or gradient clipping usually cures it."
        )
    return math.exp(loss)


def token_losses(model, tokens: np.ndarray, batch_size: int = 16) -> np.ndarray:
    """The loss of each token but the first, in nats, float32: of those that `evaluate` takes the mean of.

    They are read in windows as there, so that a token at the start of one is predicted from little.
    """
    check_tokens(tokens, model.config.vocab_size)
    to = functools.partial(device.put, beside=model.weights["embedding.weight"])
    losses = []
    for ids, targets in in_order(tokens, batch_size, model.config.context_length, to=to):
        logits = torch.as_tensor(model.logits(ids)).float().flatten(0, -2)
        losses.append(torch.nn.functional.cross_entropy(logits, targets.flatten(), reduction="none").cpu())
    return torch.cat(losses).numpy()


def train(
    model,
    optimizer,
    batches: Batches,
    steps: int,
    *,
    schedule: Callable[[int], float] = lambda step: 1.0,
    max_norm: float | None = None,
    validation: np.ndarray | None = None,
    every: int = 100,
    report: Callable[[int, History], None] = lambda step, history: None,
) -> History:
    """Train `model` (manual or autograd) for some steps and record what happened.

    The learning rate is the optimizer's times `schedule(step)`. Every `every` steps, and after the last,
    the validation text is measured, if there is one, and `report(steps_done, history)` is called. Raises
    `FloatingPointError` with the step and the tensor's name when a loss or a gradient is not finite.
    """
    check_tokens(batches.tokens, model.config.vocab_size)
    history, base_lr = History(), optimizer.lr
    pending: list[tuple[Tensor, Tensor]] = []  # on a GPU, looking at a number makes the CPU wait
    started = time.perf_counter()
    for step in range(steps):
        loss, gradients = model.loss_and_gradients(*batches.at(step))
        norms = torch.stack(torch._foreach_norm(list(gradients.values())))
        pending.append((loss, norms))
        if max_norm is not None:
            optim.clip(gradients, max_norm)
        optimizer.lr = base_lr * schedule(step)
        optimizer.step(gradients)
        done = step + 1
        if done % every == 0 or done == steps:
            _record(history, pending, list(gradients))
            device.synchronize()
            history.seconds += time.perf_counter() - started
            if validation is not None:
                history.validation[done] = evaluate(model, validation)
            report(done, history)
            started = time.perf_counter()
    optimizer.lr = base_lr
    return history


def _record(history: History, pending: list[tuple[Tensor, Tensor]], names: list[str]) -> None:
    """Move what is pending into the history, or stop at the first number that is not finite."""
    for loss, norms in pending:
        check_finite(len(history.losses), loss, norms, names)
        history.losses.append(loss.item())
    pending.clear()


def check_finite(step: int, loss: Tensor, norms: Tensor, names: list[str]) -> None:
    """Raise `FloatingPointError` if the loss or a gradient's norm is not a number, with the step and the
    name of the tensor where it began."""
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"Step {step}: the loss is {loss.item()}. A lower learning rate or gradient clipping "
            "usually cures it."
        )
    if not torch.isfinite(norms).all():
        # Backward runs from the loss to the input: the last name that is bad went bad first.
        bad = [name for name, n in zip(names, norms.tolist(), strict=True) if not math.isfinite(n)]
        raise FloatingPointError(
            f"Step {step}: the gradient of {bad[-1]} is not finite ({len(bad)} of {len(names)} "
            "gradients are not). A lower learning rate or gradient clipping usually cures it."
        )

"""One step of training: a batch in pieces, its mean gradient, clipped, and the optimizer's update."""

import dataclasses
import time
from typing import NamedTuple

import torch
from torch import Tensor

from course import device, optim
from course.data import Batches
from course.model import Transformer
from course.training import precision, schedule
from course.training.recipe import Recipe
from course.training.replay import Replay

OWN_KERNELS = ("triton", "cuda")  # engines that do without the library's kernels: their optimizer is one, too


class Done(NamedTuple):
    """What a step leaves behind; the tensors are still being computed, on a GPU."""

    loss: Tensor
    norms: Tensor  # of each parameter's gradient, before clipping
    lr: float
    skipped: bool  # its gradients overflowed float16


class Step:
    """Calls with a step's number, from 0, train `model` one step further.

    Everything a step does follows from its number, the weights, and what `state` gives. With
    `recipe.compile`, or on a GPU unless that is false, loss and gradients are compiled. `computing` is the
    model that computes them: `model`, or for kernels that compute in 16 bits a copy of it.
    """

    def __init__(self, recipe: Recipe, model: Transformer, batches: Batches):
        self.recipe, self.model, self.batches = recipe, model, batches
        self.weights = model.weights
        self.optimizer = _optimizer(recipe, self.weights)
        self.dtype = precision.choose(recipe.precision, recipe.engine)
        self.scaler = precision.LossScaler() if self.dtype == torch.float16 else None
        self.copy = None
        if self.dtype != torch.float32 and recipe.engine != "torch":
            self.copy = precision.Copy(model, recipe.engine, self.dtype)
        self.computing = self.copy.model if self.copy else model
        on_gpu = model.embedding.weight.is_cuda
        # Our kernels are compiled already; around them torch.compile would find little to fuse.
        worthwhile = on_gpu and recipe.engine not in OWN_KERNELS
        self.compiled = worthwhile if recipe.compile is None else recipe.compile
        graphs = recipe.cuda_graphs and on_gpu
        mode = "reduce-overhead" if graphs else "default"
        self._compute_loss = torch.compile(self.loss, mode=mode) if self.compiled else self.loss
        self.replayed = graphs and not self.compiled  # the compiler records graphs of its own
        self.replay: Replay | None = None  # made of the first piece

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """The model's loss, its products in the recipe's precision."""
        with self.autocast():
            return self.computing.loss(ids, targets)

    def autocast(self) -> torch.autocast:
        kind = self.model.embedding.weight.device.type
        return torch.autocast(kind, self.dtype, enabled=self.dtype != torch.float32 and not self.copy)

    def __call__(self, step: int) -> Done:
        scale = self.scaler.scale if self.scaler else 1.0
        loss, gradients = self._loss_and_gradients(step, scale)
        norms = torch.stack(torch._foreach_norm(list(gradients.values()), dtype=torch.float32))
        lr = self.learning_rate(step)
        if self.scaler:
            finite = bool(torch.isfinite(norms).all())
            self.scaler.update(finite)
            if not finite:
                return Done(loss, norms, lr, skipped=True)
        factor = None
        if self.recipe.optimizer.clip:
            factor = optim.clip_factor(torch.linalg.vector_norm(norms), self.recipe.optimizer.clip)
        self.optimizer.lr = lr
        self.optimizer.step(gradients, factor)
        if self.copy:
            self.copy.refresh()
        return Done(loss, norms, lr, skipped=False)

    def learning_rate(self, step: int) -> float:
        shape = dataclasses.asdict(self.recipe.schedule)
        return self.recipe.optimizer.lr * schedule.factor(step=step, steps=self.recipe.steps, **shape)

    def _loss_and_gradients(self, step: int, scale: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss of a batch and its gradients, from pieces of equal size, one after the other."""
        ids, targets = self.batches.at(step)
        n = self.recipe.accumulation
        total, gradients = 0.0, None
        for piece in zip(ids.chunk(n), targets.chunk(n), strict=True):
            if self.compiled:  # the first call imports the compiler, which takes seconds
                torch.compiler.cudagraph_mark_step_begin()
            if self.replayed and self.replay is None:
                self.replay = Replay(self._of_piece, *piece)
            loss, new = (self.replay or self._of_piece)(*piece, scale)
            total = total + loss / n
            if n == 1 and scale == 1.0:
                gradients = list(new)
            elif gradients is None:  # a copy: a CUDA graph writes the next ones to the same place
                gradients = [g.to(torch.float32, copy=True) for g in new]
            else:
                torch._foreach_add_(gradients, [g.float() for g in new])
        if n * scale != 1.0:
            torch._foreach_mul_(gradients, 1 / (n * scale))
        return total, dict(zip(self.weights, gradients, strict=True))

    def _of_piece(self, ids: Tensor, targets: Tensor, scale: float | Tensor) -> tuple[Tensor, list[Tensor]]:
        """The loss, and the gradients of `scale` times it."""
        loss = self._compute_loss(ids, targets)
        return loss.detach(), torch.autograd.grad(loss * scale, list(self.computing.weights.values()))

    def compile(self) -> float:
        """Compile, by a computation whose result nobody uses. -> seconds

        Raises `RuntimeError` where that cannot be done: there is no C compiler, say.
        """
        started = time.perf_counter()
        try:
            self._loss_and_gradients(0, 1.0)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # Inductor's, Triton's, the C compiler's: there are many kinds
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            raise RuntimeError(
                f"torch.compile failed on this machine ({reason}): train without it, --compile false."
            ) from error
        device.synchronize()
        return time.perf_counter() - started

    def state(self) -> dict[str, float]:
        """What a step remembers besides the optimizer."""
        return self.scaler.state() if self.scaler else {}

    def load_state(self, state: dict[str, float]) -> None:
        if self.scaler and "scale" in state:
            self.scaler.load_state(state)


def _optimizer(recipe: Recipe, weights: dict[str, Tensor]) -> optim.AdamW | optim.Muon:
    r, one_kernel = recipe.optimizer, recipe.engine if recipe.engine in OWN_KERNELS else None
    if r.name == "adamw":
        return optim.AdamW(weights, r.lr, r.betas, r.eps, r.weight_decay, one_kernel)
    return optim.Muon(
        weights, r.lr, r.adam_lr, r.betas, r.eps, r.weight_decay, r.adam_weight_decay, r.momentum, one_kernel
    )

"""A training run: a recipe in, a folder with a log, samples and checkpoints out.

What a step does follows from the recipe, the step's number, the weights and the optimizer's memory, and
from nothing else. So a run that was killed goes on from its last checkpoint as if nothing had happened.
"""

import functools
import math
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch

from course import device, flops, inference, runlog
from course.config import ModelConfig
from course.data import Batches
from course.model import Transformer
from course.run_folder import RunFolder, Snapshot
from course.training import corpus
from course.training.interrupt import Interrupt
from course.training.loop import check_finite, evaluate, perplexity
from course.training.recipe import Recipe
from course.training.step import Done, Step

Listener = Callable[[dict], None]


class Trainer:
    """Trains the model of a recipe; `run` is the whole of it.

    `listeners` are called with every event that the log gets (`course.runlog`). With `resume`, the run in
    `folder` goes on from its newest whole checkpoint. Raises `FileExistsError` for a folder that has a run
    in it otherwise, `ValueError` for a recipe that does not fit its text or the checkpoint, and what
    `course.data` raises for a text that is not there.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: str | Path,
        *,
        resume: bool = False,
        listeners: tuple[Listener, ...] = (),
    ):
        self.recipe, self.folder, self.listeners = recipe, RunFolder(folder), list(listeners)
        if self.folder.recipe.exists() and not resume:
            raise FileExistsError(
                f"{folder} holds a run already: go on with it by --resume {folder}, or choose another folder."
            )
        snapshot, self.notes = self.folder.restore() if resume else (None, [])
        how = {"triton": "interpreted", "cuda": "emulated"}.get(recipe.engine)
        if how and device.DEVICE.type == "cpu":
            self.notes.append(
                f"Without a GPU the kernels of {recipe.engine} are {how}: --engine torch is faster."
            )
        self.corpus = corpus.load(recipe, snapshot and snapshot.tokenizer)
        self.corpus.tokenizer.encode(recipe.sample.prompt)  # better now than at the first sample
        self.validation = self.corpus.validation.tokens[: recipe.evaluation_tokens]
        self.config = recipe.model_of(self.corpus.tokenizer.vocab_size)
        if snapshot and snapshot.config != self.config:
            raise ValueError(_other_model(snapshot.config, self.config))
        weights = snapshot and snapshot.weights
        self.model = Transformer(
            self.config, recipe.engine, weights=weights, seed=recipe.seed, device=device.DEVICE
        )
        Batches(self.validation, 1, self.config.context_length)  # raises if that is too short
        batches = Batches(
            self.corpus.training.tokens,
            recipe.batch_size,
            self.config.context_length,
            seed=recipe.seed,
            to=functools.partial(device.put, beside=self.model.embedding.weight),
        )
        self.update = Step(recipe, self.model, batches)
        self.done, self.best_loss, self.seconds = 0, math.inf, 0.0
        if snapshot:
            self.update.optimizer.load_state(snapshot.optimizer)
            self.update.load_state(snapshot.state)
            self.done, self.seconds = snapshot.step, snapshot.state["seconds"]
            self.best_loss = snapshot.state["best_loss"]
        self.pending: list[Done] = []

    @classmethod
    def resume(
        cls, folder: str | Path, changes: dict | None = None, *, listeners: tuple[Listener, ...] = ()
    ) -> "Trainer":
        """The run in a folder, from where it was, with some fields of its recipe changed."""
        path = RunFolder(folder).recipe
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no run that could go on: it has no recipe.yaml.")
        was = Recipe.load(path)
        recipe = was.changed(changes or {})
        for name in ("tokenizer", "vocab_size", "tokenizer_bytes"):
            if getattr(recipe, name) != getattr(was, name):
                raise ValueError(
                    f"{name} was {getattr(was, name)!r}, and a run that goes on keeps its tokenizer: leave "
                    "it as it is, or begin a new run."
                )
        return cls(recipe, folder, resume=True, listeners=listeners)

    def run(self) -> float | None:
        """Train until the recipe's last step. -> the validation loss then, or None if nothing was left to do

        A Ctrl-C, or SIGTERM, ends the run after the step and a checkpoint, with `KeyboardInterrupt`. Raises
        `FloatingPointError`, with the step and the tensor's name, when a loss or a gradient is not finite,
        and `RuntimeError` that says what to do when compiling fails, the GPU's memory is full, or another
        process trains in the folder.
        """
        recipe, loss = self.recipe, None
        with (
            self.folder.locked(),
            self._open_log() as log,
            Interrupt() as interrupt,
            self._memory_full_in_words(),
        ):
            self.listeners.insert(0, log.write)
            self._start()
            while self.done < recipe.steps:
                self.pending.append(self.update(self.done))
                self.done += 1
                best = False
                if self._due(recipe.log_every) or interrupt.wanted:
                    self._report()
                if self._due(recipe.evaluate_every):
                    loss = self._evaluate()
                    best, self.best_loss = loss < self.best_loss, min(loss, self.best_loss)
                if self._due(recipe.sample.every):
                    self._sample()
                if best or self._due(recipe.checkpoint_every) or interrupt.wanted:
                    self._save(best)
                if interrupt.wanted:
                    raise KeyboardInterrupt(f"Step {self.done} has a checkpoint, from which a run can go on.")
        return loss

    def _open_log(self) -> runlog.RunLog:
        """The log up to the step where this begins; and beside it the recipe, as it is now."""
        self.recipe.save(self.folder.recipe)
        runlog.rewind(self.folder.log, self.done)
        return runlog.RunLog(self.folder.log)

    def _due(self, every: int) -> bool:
        return every > 0 and (self.done % every == 0 or self.done == self.recipe.steps)

    def _tell(self, event: str, **content) -> None:
        whole = {"event": event, "step": self.done, **content}
        for listener in self.listeners:
            listener(whole)

    def _start(self) -> None:
        gpu = torch.cuda.get_device_name() if device.DEVICE.type == "cuda" else ""
        self.peak = flops.peak(gpu)
        self._tell(
            "start",
            machine=device.describe(),
            steps=self.recipe.steps,
            parameters=self.config.n_parameters(),
            training_tokens=len(self.corpus.training.tokens),
            validation_tokens=len(self.validation),
            precision=str(self.update.dtype).removeprefix("torch."),
        )
        for note in self.notes:
            self._tell("note", text=note)
        if self.update.compiled:
            self._tell("compiled", seconds=round(self.update.compile(), 2))
        self.clock = time.perf_counter()

    def _report(self) -> None:
        """Log the steps since the last time. On a GPU, to look at their losses is to wait for them."""
        if not self.pending:
            return
        device.synchronize()
        elapsed, n = time.perf_counter() - self.clock, len(self.pending)
        self.seconds += elapsed
        names = list(self.model.weights)
        for step, (loss, norms, lr, skipped) in enumerate(self.pending, start=self.done - n + 1):
            if skipped:
                self._tell("step", step=step, loss=loss.item(), lr=lr, grad_norm=None, skipped=True)
                continue
            check_finite(step, loss, norms, names)
            grad_norm = torch.linalg.vector_norm(norms).item()
            self._tell("step", step=step, loss=loss.item(), lr=lr, grad_norm=grad_norm)
        self.pending.clear()
        tokens_per_second = n * self.recipe.batch_size * self.config.context_length / elapsed
        mfu = flops.utilization(self.config, tokens_per_second, self.peak)
        self._tell(
            "speed",
            ms_per_step=round(1000 * elapsed / n, 3),
            tokens_per_second=round(tokens_per_second),
            mfu=mfu and round(mfu, 4),
            seconds=round(self.seconds, 3),
        )
        self.clock = time.perf_counter()

    @contextmanager
    def _clock_stopped(self):
        """What happens in between is not training: its time does not count as such."""
        self._report()
        yield
        self.clock = time.perf_counter()

    def _evaluate(self) -> float:
        with self._clock_stopped(), self.update.autocast():
            size = self.recipe.batch_size // self.recipe.accumulation
            loss = evaluate(self.update.computing, self.validation, size)
            bits = corpus.bits_per_byte(loss, self.corpus.validation)
            self._tell("evaluation", loss=loss, perplexity=perplexity(loss), bits_per_byte=bits)
        return loss

    def _sample(self) -> None:
        s = self.recipe.sample
        with self._clock_stopped(), self.update.autocast():
            text = inference.generate(
                self.update.computing,
                self.corpus.tokenizer,
                s.prompt,
                s.tokens,
                temperature=s.temperature,
                seed=self.done,
            )
            self._tell("sample", text=text)

    def _save(self, best: bool) -> None:
        with self._clock_stopped():
            state = {"seconds": self.seconds, "best_loss": self.best_loss, **self.update.state()}
            snapshot = Snapshot(
                self.done,
                self.config,
                self.model.weights,
                self.corpus.tokenizer,
                self.update.optimizer.state(),
                state,
            )
            path = self.folder.save(snapshot, best=best, keep=self.recipe.keep)
            self._tell("checkpoint", name=path.name, best=best)

    @contextmanager
    def _memory_full_in_words(self):
        try:
            yield
        except torch.OutOfMemoryError as error:
            pieces = 2 * self.recipe.accumulation
            raise RuntimeError(
                f"The GPU's memory is full ({error}): compute each batch in smaller pieces, with "
                f"--accumulation {pieces}, which gives the same result, or choose a smaller model."
            ) from error


def _other_model(was: ModelConfig, now: ModelConfig) -> str:
    name = next(n for n, value in vars(was).items() if value != getattr(now, n))
    return (
        f"These weights are of another model: {name} was {getattr(was, name)!r}, and the recipe now says "
        f"{getattr(now, name)!r}. Go on without that change, or begin a new run."
    )

"""A whole run: the recipe, the step, the folder, and what happens when one is killed, damaged or stopped."""

import dataclasses
import functools
import importlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from course import checkpoint, data, device, run_folder, runlog
from course.data import Batches
from course.model import Transformer
from course.tokenizer import BPETokenizer
from course.training import Recipe, Trainer, corpus, perplexity
from course.training.listeners import Progress, WeightsAndBiases
from course.training.recipe import presets
from course.training.step import Step
from kernels.cuda import emulator
from kernels.packed import joined

ROOT = Path(__file__).resolve().parent.parent
TINY = {
    "model.context_length": 8,
    "model.n_layer": 1,
    "model.n_head": 2,
    "model.d_model": 16,
    "batch_size": 4,
    "steps": 12,
    "schedule.warmup": 3,
    "log_every": 5,
    "evaluate_every": 6,
    "evaluation_tokens": 200,
    "checkpoint_every": 4,
    "sample.every": 6,
    "sample.tokens": 5,
    "compile": False,
}


@pytest.fixture(autouse=True, scope="module")
def on_the_cpu():
    """Also where there is a GPU: its sums are not the same ones every time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "DEVICE", torch.device("cpu"))
        patch.setattr(device, "DTYPE", torch.float32)
        yield


def recipe(**fields) -> Recipe:
    return Recipe().changed({**TINY, **{name.replace("__", "."): v for name, v in fields.items()}})


def results(folder: Path) -> list[dict]:
    """The lines of a log that two equal runs share."""
    return [e for e in runlog.read(folder / "log.jsonl") if e["event"] in ("step", "evaluation", "sample")]


class Killed(BaseException):
    """Nothing in the trainer catches this, as nothing catches a SIGKILL."""


def killed_at(event: int):
    """A listener that ends the run at the so manyth event."""
    count = iter(range(event))

    def listener(_) -> None:
        if next(count, None) is None:
            raise Killed

    return listener


# Recipes


def test_every_preset_is_a_recipe_of_the_size_that_its_name_says():
    sizes = {"tinystories-25m": 25e6, "tinystories-75m": 75e6, "python-75m": 75e6, "python-124m": 124e6}
    expected = {"char-tales", "char-shakespeare", "tales", "shipped", *sizes}
    assert set(presets()) == expected
    for name in expected:
        preset = Recipe.preset(name)
        assert Recipe().changed(dict(_flat(preset.to_dict()))) == preset
        if name in sizes:
            n = preset.model_of(preset.vocab_size).n_parameters()
            assert abs(n / sizes[name] - 1) < 0.05, f"{name} has {n:,} parameters"


def _flat(tree, prefix=""):
    for name, value in tree.items():
        yield from _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model.n_layers": 4}, "Unknown field model.n_layers: did you mean model.n_layer?"),
        ({"zzz": 4}, "Unknown field zzz: choose one of data, tokenizer"),
        ({"optimizer": 3}, "Unknown field optimizer"),
        ({"optimizer.lr": "-1"}, "optimizer.lr = '-1': it should be greater than 0"),
        ({"optimizer.name": "sgd"}, "optimizer.name = 'sgd': it should be 'adamw' or 'muon'"),
        ({"steps": "many"}, "steps = 'many': it should be a valid integer"),
        ({"model.n_head": 5}, "n_head = 5 does not divide d_model = 128"),
        ({"accumulation": 3}, "accumulation = 3 does not divide batch_size = 16"),
        ({"tokenizer": "bpe"}, "tokenizer = bpe needs a vocab_size"),
        ({"vocab_size": 300}, "vocab_size is for tokenizer = bpe"),
        ({"schedule.decay": 1.5}, "schedule.decay = 1.5: it should be less than or equal to 1"),
        ({"model.n_layer": None}, "model.n_layer = None: it should be a valid integer"),
        ({"optimizer.betas": [1, 0.9]}, "optimizer.betas.0 = 1: it should be less than 1"),
        ({"optimizer.momentum": 1}, "optimizer.momentum = 1: it should be less than 1"),
        ({"optimizer.lr": "inf"}, "optimizer.lr = 'inf': it should be a finite number"),
        ({"model.norm_eps": -1}, "norm_eps = -1.0: expected a number above 0"),
        ({"model.rope_theta": 0}, "rope_theta = 0.0: expected a number above 0"),
    ],
)
def test_a_recipe_refuses_what_makes_no_sense(fields, message):
    with pytest.raises(ValueError, match="^" + message.replace("?", r"\?")):
        Recipe().changed(fields)


def test_text_from_flags_and_files_becomes_values_of_the_fields_types(tmp_path):
    changed = Recipe().changed({"optimizer.lr": "1e-3", "compile": "true", "optimizer.clip": None})
    assert (changed.optimizer.lr, changed.compile, changed.optimizer.clip) == (1e-3, True, None)
    changed.save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == changed
    (tmp_path / "short.yaml").write_text("optimizer: {betas: [0.9, 0.95], lr: 1e-4}\nsteps: 7\n")
    short = Recipe.load(tmp_path / "short.yaml")
    assert (short.optimizer.betas, short.optimizer.lr, short.steps) == ((0.9, 0.95), 1e-4, 7)
    assert short.batch_size == Recipe().batch_size


@pytest.mark.parametrize("content", ["- 1\n", "a: [", "steps: 0\n", "step: 5\n", "\xff"])
def test_a_file_that_is_no_recipe_is_named(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"recipe\.yaml"):
        Recipe.load(path)


def test_unknown_presets_are_refused():
    with pytest.raises(ValueError, match="choose one of char-shakespeare, char-tales"):
        Recipe.preset("tale")


# A step


TOKENS = np.random.default_rng(0).integers(0, 20, 500)


def step_of(recipe: Recipe, tokens: np.ndarray = TOKENS, vocab_size: int = 20, device: str = "cpu") -> Step:
    config, to = recipe.model_of(vocab_size), functools.partial(torch.as_tensor, device=device)
    batches = Batches(tokens, recipe.batch_size, config.context_length, to=to)
    return Step(recipe, Transformer(config, recipe.engine, device=device), batches)


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("pieces", [2, 8])
def test_accumulation_equals_the_large_batch(name, pieces):
    """Sums in another order differ by some units of 1e-7 in each gradient. Adam's first steps would blow that
    up where a gradient is next to 0 (m / sqrt(v) is its sign), which a larger eps prevents."""
    whole, parts = (
        step_of(recipe(batch_size=8, accumulation=n, optimizer__name=name, optimizer__eps=1e-3))
        for n in (1, pieces)
    )
    for i in range(5):
        assert abs(whole(i).loss - parts(i).loss) < 1e-6
    for key, w in whole.weights.items():
        torch.testing.assert_close(parts.weights[key], w, rtol=0, atol=1e-6)


def test_a_clipped_step_is_smaller_and_reports_the_norm_before():
    free, clipped = (step_of(recipe(optimizer__clip=c)) for c in (None, 1e-3))
    before = {k: w.detach().clone() for k, w in clipped.weights.items()}
    assert torch.equal(free(0).norms, clipped(0).norms)
    m = clipped.optimizer.m
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(m)))
    assert norm == pytest.approx(1e-3 * (1 - clipped.recipe.optimizer.betas[0]), rel=1e-3)
    assert any(not torch.equal(before[k], w) for k, w in clipped.weights.items())


def test_a_step_with_pytorch_s_own_optimizer_clips_too(monkeypatch):
    """As `tools/benchmark_training.py` measures it."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    benchmark = importlib.import_module("benchmark_training")
    step = step_of(recipe(optimizer__clip=1e-3))
    step.optimizer = benchmark.Fused(step.weights)
    step(0)
    m = [state["exp_avg"] for state in step.optimizer.adamw.state.values()]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(m)))
    assert norm == pytest.approx(1e-3 * (1 - 0.9), rel=1e-3)


def test_float16_trains_with_a_scale_and_leaves_out_steps_that_overflow():
    step = step_of(recipe(precision="float16"))
    step.scaler.scale = 2.0**40
    before = {k: w.detach().clone() for k, w in step.weights.items()}
    assert step(0).skipped and step.scaler.scale == 2.0**39
    assert all(torch.equal(before[k], w) for k, w in step.weights.items())
    step.scaler.scale = 2.0**10
    exact = step_of(recipe(precision="float32"))
    for i in range(5):
        done = step(i)
        assert not done.skipped
        # float16 has eleven significant bits, and a loss of 3 has a thousandth of its own in the last
        assert done.loss.item() == pytest.approx(exact(i).loss.item(), abs=5e-3)
    copy = step_of(recipe(precision="float16"))
    copy.load_state(step.state())
    assert (copy.scaler.scale, copy.scaler.good) == (2.0**10, 5)


def test_bfloat16_computes_products_in_16_bits_and_keeps_weights_in_32():
    step = step_of(recipe(precision="bfloat16"))
    ids, targets = step.batches.at(0)
    with step.autocast():
        logits = step.model(ids)
    assert logits.dtype == torch.bfloat16
    assert step.loss(ids, targets).dtype == torch.float32
    step(0)
    assert {w.dtype for w in step.weights.values()} == {torch.float32}


def test_a_compiled_step_is_the_same_step():
    eager, compiled = (step_of(recipe(compile=wanted)) for wanted in (False, True))
    assert compiled.compile() > 0
    for i in range(3):
        assert eager(i).loss.item() == pytest.approx(compiled(i).loss.item(), abs=1e-5)


def test_a_compiler_that_fails_is_said_in_words(monkeypatch):
    def broken(*_):
        raise RuntimeError("no C compiler\nand a page of C++")

    step = step_of(recipe(compile=True))
    monkeypatch.setattr(step, "_compute_loss", broken)
    with pytest.raises(RuntimeError, match=r"no C compiler\): train without it, --compile false"):
        step.compile()


def test_the_reference_engine_has_one_precision():
    with pytest.raises(ValueError, match="precision = bfloat16: the engine reference computes in float32"):
        step_of(recipe(engine="reference", precision="bfloat16"))
    assert step_of(recipe(engine="reference")).dtype == torch.float32


@pytest.fixture(params=["triton", "cuda"])
def engine(request) -> str:
    """One whose kernels are ours."""
    if request.param == "triton" and not find_spec("triton"):
        pytest.skip("needs Triton")
    return request.param


def where_it_runs(engine: str) -> str:
    if engine == "cuda":
        return "cuda" if torch.cuda.is_available() else "cpu"
    from kernels.triton.launch import INTERPRETED

    return "cpu" if INTERPRETED else "cuda"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_our_kernels_train_as_the_torch_engine_does(engine, optimizer, precision):
    """In 16 bits the two round in different places; eight bits of bfloat16 leave the losses this close.

    Two things would blow a rounding up: a small eps, as in the test of accumulation above, and Muon's
    iteration, which a GPU does in float16.
    """
    how = dict(
        optimizer__name=optimizer, optimizer__eps=1e-3, precision=precision, batch_size=2, compile=False
    )
    ours, theirs = (
        step_of(recipe(engine=name, **how), device=where_it_runs(engine)) for name in (engine, "torch")
    )
    if ours.scaler:
        ours.scaler.scale = theirs.scaler.scale = 2.0**8
    before = {name: w.detach().clone() for name, w in ours.weights.items()}
    tolerance = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 3e-3}[precision]
    for i in range(2):
        done = ours(i)
        assert not done.skipped
        assert done.loss.item() == pytest.approx(theirs(i).loss.item(), abs=tolerance)
    assert {w.dtype for w in ours.weights.values()} == {torch.float32}
    for name, w in ours.weights.items():
        step, expected = w.detach() - before[name], theirs.weights[name].detach() - before[name]
        apart = max(20 * tolerance, 0.05 if optimizer == "muon" else 0.0)
        assert (step - expected).norm() <= apart * expected.norm(), name
        if ours.copy:
            assert torch.equal(ours.copy.model.weights[name], w.to(ours.dtype))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_our_kernels_clip_as_the_course_does(engine, optimizer):
    how = dict(optimizer__name=optimizer, optimizer__clip=1e-3, batch_size=2, compile=False)
    ours, theirs = (
        step_of(recipe(engine=name, **how), device=where_it_runs(engine)) for name in (engine, "torch")
    )
    ours(0), theirs(0)
    means = theirs.optimizer.state()
    for name, mean in ours.optimizer.state().items():
        if mean.is_floating_point():
            torch.testing.assert_close(mean, means[name], rtol=2e-3, atol=1e-9)


def test_a_copy_has_weights_side_by_side_that_are_multiplied_as_one(engine):
    step = step_of(recipe(engine=engine, precision="bfloat16"), device=where_it_runs(engine))
    for block in step.copy.model.blocks:
        for layer in (block.attention, block.mlp):
            weights = tuple(part.weight.detach() for part in layer.packed)
            assert torch.equal(joined(weights), torch.cat(weights))


def test_a_step_of_the_tales_preset_on_our_kernels(engine):
    """Two layers of it and one sequence: without a GPU the kernels are interpreted or emulated, slowly."""
    tokens = np.random.default_rng(0).integers(0, 512, 5000)
    small = {"batch_size": 1, "model.n_layer": 2}
    losses, norms = [], []
    for name in (engine, "torch"):
        how = Recipe.preset("tales", engine=name, precision="float32", compile=False, **small)
        step = step_of(how, tokens, vocab_size=512, device=where_it_runs(engine))
        with emulator.checks(False):  # of every access to memory: ten times as long
            done = step(0)
        losses.append(done.loss)
        norms.append(done.norms)
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    torch.testing.assert_close(*norms, rtol=1e-4, atol=1e-6)


# A run


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "tiny"
    assert Trainer(recipe(), folder).run() > 0
    return folder


def test_a_run_leaves_its_recipe_log_samples_and_checkpoints(finished):
    assert Recipe.load(finished / "recipe.yaml") == recipe()
    events = runlog.read(finished / "log.jsonl")
    kinds = [event["event"] for event in events]
    assert kinds[0] == "start" and events[0]["parameters"] > 0
    steps = [event for event in events if event["event"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, 13))
    assert steps[-1]["loss"] < steps[0]["loss"] and all(event["grad_norm"] > 0 for event in steps)
    assert [e["step"] for e in events if e["event"] == "evaluation"] == [6, 12]
    assert [e["step"] for e in events if e["event"] == "sample"] == [6, 12]
    assert all(e["tokens_per_second"] > 0 for e in events if e["event"] == "speed")
    saved = sorted(path.name for path in (finished / "checkpoints").iterdir())
    assert saved == ["step_00000008", "step_00000012"]  # the last two; the best is one of them
    assert (finished / "latest").read_text() == "step_00000012\n"


def test_a_finished_model_is_loaded_and_measured_again(finished):
    config, weights, tokenizer = run_folder.load(finished, "latest")
    from course.training import evaluate

    _, validation = data.token_split("tales", tokenizer)
    loss = evaluate(Transformer(config, weights=weights), validation.tokens[:200], 4)
    assert loss == runlog.read(finished / "log.jsonl", "evaluation")[-1]["loss"]


def test_the_best_checkpoint_outlives_newer_ones(tmp_path, monkeypatch):
    from course.training import trainer

    losses = [5.0, 3.0, 4.0, 4.0, 3.5, 3.0]
    monkeypatch.setattr(trainer, "evaluate", lambda *_: losses[run.done // 2 - 1])
    run = Trainer(recipe(evaluate_every=2, keep=1), tmp_path / "run")
    assert run.run() == 3.0 and run.best_loss == 3.0
    saved = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert saved == ["step_00000004", "step_00000012"]
    assert (tmp_path / "run/best").read_text() == "step_00000004\n"  # equal is not better


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("seed", range(4))
def test_a_run_that_dies_anywhere_goes_on_to_the_same_log(tmp_path, name, seed):
    fields = {"optimizer__name": name, "accumulation": 2}
    whole = Trainer(recipe(**fields), tmp_path / "whole")
    whole.run()
    broken, rng, deaths = tmp_path / "broken", random.Random(seed), 0
    run = Trainer(recipe(**fields), broken, listeners=(killed_at(rng.randrange(1, 12)),))
    while run.done < 12:
        try:
            run.run()
        except Killed:
            deaths += 1
            run = Trainer.resume(broken, listeners=(killed_at(rng.randrange(1, 30)),))
    assert deaths
    Trainer.resume(broken).run()  # it may have died after the last checkpoint: nothing is left to do
    assert results(broken) == results(tmp_path / "whole")
    ours, theirs = (run_folder.load(f, "latest")[1] for f in (broken, tmp_path / "whole"))
    assert all(np.array_equal(ours[k], theirs[k]) for k in theirs)


@pytest.mark.parametrize(("name", "accumulation"), [("adamw", 1), ("muon", 2)])
def test_kill_9_at_a_random_step_then_resume(tmp_path, name, accumulation):
    flags = {
        **TINY,
        "optimizer.name": name,
        "accumulation": accumulation,
        "steps": 300,
        "checkpoint_every": 7,
    }
    flags["log_every"] = 1
    words = [word for k, v in flags.items() for word in (f"--{k}", str(v).lower())]
    whole = _command("train", "--preset", "char-tales", "--out", str(tmp_path / "whole"), *words)
    broken = _command("train", "--preset", "char-tales", "--out", str(tmp_path / "broken"), *words)
    wanted = random.randrange(10, 200)
    while broken.poll() is None and _last_step(tmp_path / "broken/log.jsonl") < wanted:
        pass
    broken.send_signal(signal.SIGKILL)
    assert broken.wait() == -signal.SIGKILL, broken.stderr.read()
    assert whole.wait() == 0, whole.stderr.read()
    resumed = _command("train", "--resume", str(tmp_path / "broken"))
    assert resumed.wait() == 0, resumed.stderr.read()
    assert len(results(tmp_path / "whole")) > 300
    assert results(tmp_path / "broken") == results(tmp_path / "whole"), f"killed at step {wanted}"


def _command(*words: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COURSE_DEVICE": "cpu"}
    command = [sys.executable, "-m", "course", *words]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def _last_step(log: Path) -> int:
    events = runlog.read(log, "step") if log.exists() else []
    return events[-1]["step"] if events else 0


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_latest_falls_back_to_the_one_before_and_says_so(finished, tmp_path, file, damage):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    path = folder / "checkpoints/step_00000012" / file
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        path.unlink()
    trainer = Trainer.resume(folder)
    assert trainer.done == 8
    trainer.run()
    (note,) = runlog.read(folder / "log.jsonl", "note")
    assert note["text"].startswith("The checkpoint step_00000012 is damaged (")
    assert results(folder) == results(finished)


def test_with_no_whole_checkpoint_left_it_begins_anew_and_says_so(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for path in folder.glob("checkpoints/*/state.json"):
        path.write_text("")
    trainer = Trainer.resume(folder)
    assert trainer.done == 0 and len(trainer.notes) == 2


@pytest.mark.parametrize(
    "full",
    [
        OSError(28, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
    ids=["the system's error", "safetensors' own"],
)
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch, full):
    trainer = Trainer(recipe(), tmp_path / "run")
    real, calls = run_folder.save_file, iter([True, False])

    def save_file(tensors, path):
        if not next(calls):
            Path(path).write_bytes(b"half")
            raise full
        real(tensors, path)

    monkeypatch.setattr(run_folder, "save_file", save_file)
    with pytest.raises(
        OSError, match=r"disk is full, so that step_00000006 was not written: free some space"
    ):
        trainer.run()
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step_00000004"]
    monkeypatch.undo()
    assert Trainer.resume(tmp_path / "run").done == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_run_after_the_step_with_a_checkpoint(finished, tmp_path, number):
    def interrupt(event: dict) -> None:
        if event["event"] == "step" and event["step"] == 5:
            os.kill(os.getpid(), number)

    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt, match="Step 5 has a checkpoint"):
        Trainer(recipe(), tmp_path / "run", listeners=(interrupt,)).run()
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    trainer = Trainer.resume(tmp_path / "run")
    assert trainer.done == 5
    trainer.run()
    assert results(tmp_path / "run") == results(finished)


def test_a_run_can_be_made_longer(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    trainer = Trainer.resume(tmp_path / "run", {"steps": 15})
    trainer.run()
    assert trainer.done == 15 and Recipe.load(tmp_path / "run/recipe.yaml").steps == 15


def test_a_folder_with_a_run_is_not_written_over(finished):
    with pytest.raises(FileExistsError, match="holds a run already"):
        Trainer(recipe(), finished)


def test_a_folder_without_a_run_cannot_go_on(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        Trainer.resume(tmp_path)
    with pytest.raises(FileNotFoundError, match="has no best checkpoint"):
        run_folder.load(tmp_path)


def test_a_checkpoint_of_another_model_or_optimizer_is_refused(finished):
    with pytest.raises(ValueError, match="weights are of another model"):
        Trainer.resume(finished, {"model.n_layer": 2})
    with pytest.raises(ValueError, match="of another optimizer"):
        Trainer.resume(finished, {"optimizer.name": "muon"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.n_head": 1}, "weights are of another model: n_head was 2, and the recipe now says 1"),
        ({"model.rope_theta": 7}, "rope_theta was 10000.0, and the recipe now says 7.0"),
        (
            {"tokenizer": "bpe", "vocab_size": 300},
            "tokenizer was 'char', and a run .* keeps its tokenizer",
        ),
    ],
)
def test_what_weights_of_the_same_shapes_were_trained_for_cannot_change(finished, changes, message):
    before = (finished / "recipe.yaml").read_text()
    with pytest.raises(ValueError, match=message):
        Trainer.resume(finished, changes)
    assert (finished / "recipe.yaml").read_text() == before


def test_two_processes_do_not_train_in_one_folder(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    waiting = Trainer.resume(tmp_path / "run", {"steps": 15})
    before = (tmp_path / "run/log.jsonl").read_bytes()
    hold = "import sys; from course.run_folder import RunFolder\n"
    hold += "with RunFolder(sys.argv[1]).locked(): print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, tmp_path / "run"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        other.stdout.readline()
        for begin in (lambda: Trainer.resume(tmp_path / "run", {"steps": 15}), waiting.run):
            with pytest.raises(RuntimeError, match="Another process is training in"):
                begin()
        assert (tmp_path / "run/log.jsonl").read_bytes() == before
        other.kill()  # no lock outlives its process
    waiting.run()
    assert waiting.done == 15


def test_a_kill_between_a_checkpoint_and_its_names(tmp_path, monkeypatch):
    def kill(*_):
        raise Killed

    trainer = Trainer(recipe(evaluate_every=4), tmp_path / "run")
    monkeypatch.setattr(run_folder.RunFolder, "_name", kill)
    with pytest.raises(Killed):
        trainer.run()
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match="has no best checkpoint"):
        run_folder.load(tmp_path / "run")
    assert Trainer.resume(tmp_path / "run").done == 4
    for which in ("best", "latest"):
        assert run_folder.RunFolder(tmp_path / "run").find(which).parent.name == "step_00000004"


def test_a_loss_that_is_not_finite_ends_the_run_with_the_step(tmp_path):
    trainer = Trainer(recipe(optimizer__lr=1e30, schedule__warmup=0, optimizer__clip=None), tmp_path / "run")
    with pytest.raises(FloatingPointError, match=r"^Step \d+: the "):
        trainer.run()
    assert json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 1e3])
def test_a_loss_without_a_perplexity_is_an_error(loss):
    with pytest.raises(FloatingPointError, match=f"held-out text is {loss}"):
        perplexity(loss)
    assert perplexity(math.log(7)) == pytest.approx(7)


def test_what_cannot_work_is_said_before_anything_is_written(tmp_path):
    folder = tmp_path / "run"
    for fields, message in [
        ({"data": "tale"}, "Unknown dataset"),
        ({"sample__prompt": "Ω"}, "The character 'Ω'"),
        ({"evaluation_tokens": 5}, "has no window"),
        ({"tokenizer": "none.json"}, "There is no tokenizer at none.json"),
        ({"engine": "cupy"}, "engine"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            Trainer(recipe(**fields), folder)
    assert not folder.exists()


def test_a_full_gpu_is_said_in_words(tmp_path):
    trainer = Trainer(recipe(accumulation=2), tmp_path / "run")
    trainer.update = _Full()
    with pytest.raises(RuntimeError, match="smaller pieces, with --accumulation 4"):
        trainer.run()


class _Full:
    """A step on a GPU that has no memory left."""

    compiled, dtype = False, torch.float32

    def __call__(self, _):
        raise torch.OutOfMemoryError("tried to allocate 3 GiB")


def test_a_bpe_is_trained_on_the_training_text_and_kept_with_the_weights(tmp_path):
    fields = recipe(tokenizer="bpe", vocab_size=300, tokenizer_bytes=10_000)
    trainer = Trainer(fields, tmp_path / "run")
    trainer.run()
    *_, tokenizer = run_folder.load(tmp_path / "run")
    assert isinstance(tokenizer, BPETokenizer) and tokenizer.vocab_size == 300
    sample = list(data.sample("tales", 10_000))
    assert 5_000 < len("".join(sample)) < 20_000
    assert tokenizer.tokens == BPETokenizer.train(sample, 300).tokens
    assert Trainer.resume(tmp_path / "run").corpus.tokenizer.tokens == tokenizer.tokens


def test_bits_per_byte_does_not_depend_on_the_tokenizer():
    """A model that gives every byte the same probability needs 8 bits for each, however they are grouped."""
    characters = corpus.load(Recipe()).validation
    bpe = corpus.load(Recipe().changed({"tokenizer": "bpe", "vocab_size": 300})).validation
    for file in (characters, bpe):
        uniform = 8 * np.log(2) * file.text_bytes / len(file.tokens)  # nats a token
        assert corpus.bits_per_byte(uniform, file) == pytest.approx(8)
    assert len(bpe.tokens) < len(characters.tokens)


def test_weights_without_a_tokenizer_are_refused(finished, tmp_path):
    config, weights, _ = run_folder.load(finished)
    checkpoint.save(tmp_path / "weights.safetensors", config, weights)
    with pytest.raises(ValueError, match="without its tokenizer"):
        run_folder.load(tmp_path / "weights.safetensors")


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("precision", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_gpu_trains_as_the_cpu_does(finished, tmp_path, monkeypatch, name, precision, graphs, accumulation):
    fields = {"optimizer__name": name, "accumulation": accumulation}
    Trainer(recipe(**fields), tmp_path / "cpu").run()
    monkeypatch.setattr(device, "DEVICE", torch.device("cuda"))
    on_gpu = recipe(**fields, precision=precision, compile=True, cuda_graphs=graphs)
    Trainer(on_gpu, tmp_path / "gpu").run()
    cpu, gpu = ([e["loss"] for e in results(tmp_path / d) if e["event"] == "step"] for d in ("cpu", "gpu"))
    assert len(gpu) == 12
    # Losses of about 4, from products with 8 significant bits (bfloat16); orthogonalized in float16, too.
    assert max(abs(a - b) for a, b in zip(cpu, gpu, strict=True)) < (0.05 if precision != "float32" else 0.02)
    resumed = Trainer.resume(tmp_path / "gpu", {"steps": 14})
    resumed.run()
    assert resumed.done == 14


@pytest.mark.gpu
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_replayed_steps_are_the_same_to_the_last_bit(tmp_path, monkeypatch, precision, accumulation):
    monkeypatch.setattr(device, "DEVICE", torch.device("cuda"))
    logs = []
    for graphs in (False, True):
        fields = {"engine": "triton", "precision": precision, "accumulation": accumulation}
        run = Trainer(recipe(**fields, cuda_graphs=graphs), tmp_path / f"{graphs}")
        run.run()
        assert (run.update.replay is not None) == graphs
        logs.append(results(tmp_path / f"{graphs}"))
    assert logs[0] == logs[1]


# Logs and listeners


def test_every_listener_hears_what_the_log_says(tmp_path):
    heard = []
    Trainer(recipe(log_every=4), tmp_path / "run", listeners=(heard.append,)).run()
    assert heard == runlog.read(tmp_path / "run/log.jsonl")


def test_a_log_whose_last_line_was_cut_is_read_and_rewound(tmp_path):
    path = tmp_path / "log.jsonl"
    with runlog.RunLog(path) as log:
        for step in range(5):
            log.write({"event": "step", "step": step, "text": "é"})
    path.write_bytes(path.read_bytes()[:-7])
    assert [event["step"] for event in runlog.read(path)] == [0, 1, 2, 3]
    runlog.rewind(path, 2)
    assert [event["step"] for event in runlog.read(path, "step")] == [0, 1, 2]
    path.write_text('{"event": "step"}\nnonsense\n{}\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        runlog.read(path)


def test_the_bar_counts_steps_that_are_done_and_shows_samples(tmp_path, capsys):
    Trainer(recipe(), tmp_path / "run", listeners=(progress := Progress(),)).run()
    progress.close()
    assert progress.bar.n == progress.bar.total == 12
    output = capsys.readouterr()
    assert "12/12" in output.err and "loss=" in output.err and "tok/s=" in output.err
    assert "validation loss" in output.out and "\nThe " in output.out


def test_weights_and_biases_gets_the_numbers(monkeypatch, tmp_path):
    sent = []
    run = types.SimpleNamespace(log=lambda numbers, step: sent.append((step, numbers)), finish=lambda: None)
    fake = types.SimpleNamespace(init=lambda **options: run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    listener = WeightsAndBiases("project", "run", {})
    Trainer(recipe(), tmp_path / "run", listeners=(listener,)).run()
    assert [step for step, numbers in sent if "evaluation/loss" in numbers] == [6, 12]
    assert all("text" not in name for _, numbers in sent for name in numbers)


def test_without_wandb_it_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(RuntimeError, match="pip install wandb"):
        WeightsAndBiases("project", "run", {})


# The command line


def course(*words: str, capsys) -> tuple[int, str, str]:
    from course.__main__ import main

    try:
        status = main([str(word) for word in words])
    except SystemExit as end:
        status = end.code
    output = capsys.readouterr()
    return status, output.out, output.err


def flags(**fields) -> list[str]:
    given = {**TINY, **{name.replace("__", "."): value for name, value in fields.items()}}
    return [word for k, v in given.items() for word in (f"--{k}", json.dumps(v).strip('"'))]


def test_train_and_evaluate_from_the_command_line(tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["train", "--preset", "char-tales", "--out", out, *flags(optimizer__betas=[0.8, 0.9])]
    status, printed, _ = course(*arguments, capsys=capsys)
    assert status == 0 and f"chat {out}" in printed
    assert Recipe.load(out / "recipe.yaml").optimizer.betas == (0.8, 0.9)
    status, printed, _ = course("evaluate", out, "--tokens", 200, "--batch-size", 4, "--json", capsys=capsys)
    last = runlog.read(out / "log.jsonl", "evaluation")[-1]
    assert status == 0 and json.loads(printed)["loss"] == pytest.approx(last["loss"], abs=1e-6)
    status, printed, _ = course("evaluate", out, "--data", "tales", capsys=capsys)
    assert status == 0 and "bits a byte" in printed
    status, printed, _ = course("train", "--resume", out, capsys=capsys)
    assert status == 0 and "has all its 12 steps" in printed
    status, _, said = course(*arguments, capsys=capsys)
    assert status == 1 and "holds a run already" in said


def test_a_recipe_can_be_shown_and_used_as_a_file(tmp_path, capsys):
    status, printed, _ = course("train", "--preset", "tales", "--steps", 7, "--show", capsys=capsys)
    assert status == 0
    (tmp_path / "mine.yaml").write_text(printed)
    assert Recipe.load(tmp_path / "mine.yaml") == Recipe.preset("tales", steps=7)
    again = course("train", "--recipe", tmp_path / "mine.yaml", "--show", capsys=capsys)
    assert again[:2] == (0, printed)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["train"], 2, "one of the arguments --preset --recipe --resume is required"),
        (["train", "--preset", "tale"], 1, "error: Unknown preset 'tale'"),
        (["train", "--preset", "tales", "--step", "3"], 2, "unrecognized arguments: --step"),
        (
            ["train", "--preset", "tales", "--steps", "x"],
            1,
            "error: steps = 'x': it should be a valid integer",
        ),
        (["train", "--recipe", "nowhere.yaml"], 1, "nowhere.yaml"),
        (["train", "--resume", "nowhere"], 1, "error: nowhere holds no run"),
        (["evaluate", "nowhere"], 1, "error: There is no checkpoint at nowhere"),
        (
            ["evaluate", checkpoint.SHIPPED, "--batch-size", 0],
            1,
            "error: --batch-size 0: expected a whole number",
        ),
        (["evaluate", checkpoint.SHIPPED, "--tokens", -5], 1, "error: --tokens -5: expected a whole number"),
    ],
)
def test_bad_commands_get_one_line(words, status, said, capsys):
    got, _, error = course(*words, capsys=capsys)
    assert got == status and said in error and "Traceback" not in error


def test_help_names_every_field(capsys):
    _, printed, _ = course("train", "--help", capsys=capsys)
    for group in dataclasses.fields(Recipe):
        assert f"--{group.name}" in printed

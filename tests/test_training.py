"""Optimizers, the loop and checkpoints."""

import itertools
import math
import struct

import numpy as np
import pytest
import torch

from course import checkpoint, data, optim, training
from course.config import preset
from course.initial import initial_weights
from course.manual import ManualTransformer
from course.model import Transformer, as_tensors
from course.tokenizer import CharTokenizer

CONFIG = preset("modern", vocab_size=11, context_length=8, n_layer=2, n_head=2, n_kv_head=1, d_model=16)
TOKENS = np.tile(np.arange(11), 40)  # each token tells the next: easy to learn


def manual(dtype=torch.float64, config=CONFIG):
    return ManualTransformer(config, as_tensors(initial_weights(config), dtype=dtype))


def batches(batch_size=4):
    return data.Batches(TOKENS, batch_size, CONFIG.context_length, to=torch.from_numpy)


# Optimizers


def test_adamw_equals_pytorchs():
    rng = np.random.default_rng(0)
    ours = {"matrix": torch.from_numpy(rng.standard_normal((3, 4))), "gain": torch.ones(4).double()}
    theirs = {name: w.clone().requires_grad_() for name, w in ours.items()}
    optimizer = optim.AdamW(ours, 1e-2, (0.9, 0.95), weight_decay=0.1)
    groups = [
        {"params": [theirs["matrix"]], "weight_decay": 0.1},
        {"params": [theirs["gain"]], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))
    for _ in range(100):
        gradients = {name: torch.from_numpy(rng.standard_normal(tuple(w.shape))) for name, w in ours.items()}
        for name, w in theirs.items():
            w.grad = gradients[name].clone()
        optimizer.step(gradients)
        reference.step()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name].detach(), rtol=1e-12, atol=1e-12)


def test_sgd_is_a_step_down_the_gradient():
    w = {"w": torch.tensor([1.0, 2.0])}
    optim.SGD(w, 0.5).step({"w": torch.tensor([1.0, -1.0])})
    assert w["w"].tolist() == [0.5, 2.5]


def test_clip_equals_pytorchs():
    rng = np.random.default_rng(0)
    gradients = {str(n): torch.from_numpy(rng.standard_normal((n, 3))) for n in (2, 5)}
    parameters = [torch.zeros_like(g, requires_grad=True) for g in gradients.values()]
    for p, g in zip(parameters, gradients.values(), strict=True):
        p.grad = g.clone()
    norm = torch.nn.utils.clip_grad_norm_(parameters, 0.7)
    torch.testing.assert_close(optim.clip(gradients, 0.7), norm)
    for p, g in zip(parameters, gradients.values(), strict=True):
        torch.testing.assert_close(g, p.grad)
    small = {"g": torch.full((2,), 0.1)}
    optim.clip(small, 1.0)
    assert small["g"].tolist() == pytest.approx([0.1, 0.1])


def test_schedule_warms_up_and_comes_down():
    factors = [training.warmup_cosine(step, 1000) for step in range(1000)]
    assert factors[0] == 0.01 and factors[99] == 1.0
    assert max(factors) == 1.0 and factors[-1] == pytest.approx(0.1, abs=1e-3)
    assert factors[100:] == sorted(factors[100:], reverse=True)


# The loop


def test_by_hand_and_by_autograd_train_alike_and_learn():
    curves = []
    for model in (
        manual(),
        Transformer(CONFIG, "torch", dtype=torch.float64),
        Transformer(CONFIG, "reference", dtype=torch.float64),
    ):
        optimizer = optim.AdamW(model.weights, 1e-2)
        history = training.train(model, optimizer, batches(), 60, max_norm=1.0, validation=TOKENS, every=30)
        curves.append(history.losses)
        assert set(history.validation) == {30, 60} and history.seconds > 0
        assert history.losses[0] == pytest.approx(math.log(11), rel=0.1)
        assert history.validation[60] < 0.2
    np.testing.assert_allclose(curves[0], curves[1], atol=1e-9)
    np.testing.assert_allclose(curves[0], curves[2], atol=1e-9)


def test_evaluate_is_the_mean_over_the_text():
    model = manual()
    windows = list(data.in_order(TOKENS, 1, CONFIG.context_length, to=torch.from_numpy))
    expected = np.mean([model.loss(ids, targets).item() for ids, targets in windows])
    assert training.evaluate(model, TOKENS, batch_size=7) == pytest.approx(expected)


def test_nan_stops_training_with_step_and_name():
    model, steps = manual(), itertools.count()
    inner = model.loss_and_gradients

    def gradients_break(ids, targets):
        loss, gradients = inner(ids, targets)
        if next(steps) == 3:
            gradients["blocks.1.mlp.down.weight"][0, 0] = math.inf
            gradients["embedding.weight"][0, 0] = math.nan
        return loss, gradients

    model.loss_and_gradients = gradients_break
    with pytest.raises(FloatingPointError, match=r"Step 3: the gradient of blocks.1.mlp.down.weight"):
        training.train(model, optim.SGD(model.weights, 0.1), batches(), 10, every=2)

    model = manual()
    with pytest.raises(FloatingPointError, match=r"Step \d+: the (loss|gradient)"):
        training.train(model, optim.SGD(model.weights, 1e300), batches(), 50)


def test_tokens_outside_the_vocabulary_never_reach_the_model():
    foreign = data.Batches(np.arange(100), 2, 8, to=torch.from_numpy)
    with pytest.raises(ValueError, match="Token id 99 is outside the vocabulary of 11"):
        training.train(manual(), None, foreign, 1)


# Checkpoints


def test_a_checkpoint_loads_into_both_models(tmp_path):
    tokenizer = CharTokenizer("abc")
    weights = initial_weights(CONFIG, seed=5)
    checkpoint.save(tmp_path / "runs" / "model.safetensors", CONFIG, weights, tokenizer)
    config, loaded, again = checkpoint.load(tmp_path / "runs" / "model.safetensors")
    assert config == CONFIG and again.tokens == tokenizer.tokens
    assert all((loaded[name] == weights[name]).all() for name in weights)
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["model.safetensors"]
    ids = torch.zeros(1, 3, dtype=torch.long)
    double = torch.float64
    a = ManualTransformer(config, as_tensors(loaded, dtype=double)).logits(ids)
    b = Transformer(config, weights=loaded, dtype=double).logits(ids)
    torch.testing.assert_close(a, b)


def test_tensors_save_as_well_as_arrays(tmp_path):
    model = Transformer(CONFIG)
    checkpoint.save(tmp_path / "m", CONFIG, model.weights)
    _, loaded, tokenizer = checkpoint.load(tmp_path / "m")
    assert tokenizer is None
    assert (loaded["final_norm.weight"] == 1).all()


def test_a_checkpoint_of_another_config_is_refused(tmp_path):
    other = preset("modern", vocab_size=11, context_length=8, n_layer=1, n_head=2, n_kv_head=1, d_model=16)
    with pytest.raises(ValueError, match="is not one of its parameters"):
        checkpoint.save(tmp_path / "m", other, initial_weights(CONFIG))
    assert not list(tmp_path.iterdir())
    checkpoint.save(tmp_path / "m", CONFIG, initial_weights(CONFIG))
    _, weights, _ = checkpoint.load(tmp_path / "m")
    with pytest.raises(ValueError, match="These weights are of another model"):
        ManualTransformer(other, as_tensors(weights))


def test_broken_checkpoints_are_refused_in_words(tmp_path):
    path = tmp_path / "m"
    with pytest.raises(FileNotFoundError, match="There is no checkpoint at"):
        checkpoint.load(path)
    checkpoint.save(path, CONFIG, initial_weights(CONFIG))
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"not a checkpoint", struct.pack("<Q", 1 << 60)):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="is not a whole safetensors file"):
            checkpoint.load(path)


def test_a_killed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "m"
    checkpoint.save(path, CONFIG, initial_weights(CONFIG))
    before = path.read_bytes()

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, CONFIG, initial_weights(CONFIG, seed=9))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1

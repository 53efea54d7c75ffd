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
from course.training.precision import LossScaler

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


def newton_schulz_in_float64(s: np.ndarray) -> np.ndarray:
    """What five steps make of singular values that are divided by the matrix's norm."""
    a, b, c = optim.NEWTON_SCHULZ
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    return s


@pytest.mark.parametrize("shape", [(5, 5), (16, 48), (48, 16), (1, 7), (3, 4, 9)])
def test_orthogonalize_keeps_the_singular_vectors_and_moves_the_values_as_published(shape):
    x = torch.from_numpy(np.random.default_rng(0).standard_normal(shape))
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    moved = torch.from_numpy(newton_schulz_in_float64((s.unsqueeze(-2) / norm).numpy()))
    torch.testing.assert_close(optim.orthogonalize(x), u * moved @ vt, rtol=1e-9, atol=1e-9)


def test_orthogonalize_with_converging_coefficients_is_the_polar_factor():
    """(15 s - 10 s³ + 3 s⁵) / 8 has its fixed point at 1 and meets it cubically (Higham, 2008)."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((12, 20)))
    u, _, vt = torch.linalg.svd(x, full_matrices=False)
    polar = optim.orthogonalize(x, steps=30, coefficients=(15 / 8, -10 / 8, 3 / 8))
    torch.testing.assert_close(polar, u @ vt, rtol=1e-10, atol=1e-10)


def test_five_published_steps_bring_singular_values_near_1():
    s = newton_schulz_in_float64(np.geomspace(2e-3, 1, 10_001))
    assert 0.66 < s.min() < 0.69 and 1.20 < s.max() < 1.22


def test_muon_is_its_formula_and_leaves_the_rest_to_adamw():
    rng = np.random.default_rng(0)
    weights = as_tensors(initial_weights(CONFIG), dtype=torch.float64)
    mine = {name: w.clone() for name, w in weights.items()}
    others = {n: w for n, w in mine.items() if not (n.startswith("blocks.") and w.dim() == 2)}
    muon = optim.Muon(weights, 0.02, 0.003, weight_decay=0.5, adam_weight_decay=0.1, momentum=0.9)
    adamw = optim.AdamW(others, 0.003, weight_decay=0.1)
    m = {name: torch.zeros_like(w) for name, w in mine.items()}
    for step in range(3):
        muon.lr = 0.02 / (step + 1)
        adamw.lr = 0.003 / (step + 1)
        g = {name: torch.from_numpy(rng.standard_normal(tuple(w.shape))) for name, w in mine.items()}
        muon.step(g)
        adamw.step(g)
        for name in mine.keys() - others.keys():
            m[name] = 0.9 * m[name] + 0.1 * g[name]
            update = optim.orthogonalize(0.9 * m[name] + 0.1 * g[name])
            rows, columns = update.shape
            mine[name] = (1 - muon.lr * 0.5) * mine[name] - muon.lr * max(1, rows / columns) ** 0.5 * update
    assert 0 < len(others) < len(mine)
    for name in mine:
        torch.testing.assert_close(weights[name], mine[name], rtol=1e-10, atol=1e-10)


def test_muon_without_a_hidden_matrix_is_refused():
    with pytest.raises(ValueError, match="use AdamW"):
        optim.Muon({"embedding.weight": torch.ones(3, 3)})


@pytest.mark.parametrize("make", [optim.AdamW, optim.Muon, optim.SGD])
def test_an_optimizer_goes_on_from_its_state(make):
    rng = np.random.default_rng(0)
    first = as_tensors(initial_weights(CONFIG))
    gradients = [
        {name: torch.from_numpy(rng.standard_normal(tuple(w.shape))).float() for name, w in first.items()}
        for _ in range(4)
    ]
    optimizer = make(first, lr=0.01)
    for g in gradients[:2]:
        optimizer.step(g)
    second = {name: w.clone() for name, w in first.items()}
    resumed = make(second, lr=0.01)
    resumed.load_state({name: t.clone() for name, t in optimizer.state().items()})
    for g in gradients[2:]:
        optimizer.step(g)
        resumed.step(g)
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(ValueError, match="'strange' is unknown"):
        resumed.load_state({**resumed.state(), "strange": torch.ones(1)})


def test_schedules_rise_stay_and_fall():
    at = lambda step, **options: training.factor(step=step, steps=100, warmup=10, **options)
    for shape in ("cosine", "linear", "constant"):
        assert [at(s, shape=shape) for s in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert at(100, shape="cosine") == pytest.approx(0.1) and at(100, shape="linear", floor=0) == 0
    assert at(55, shape="linear", floor=0) == 0.5 and at(55, shape="cosine", floor=0) == pytest.approx(0.5)
    assert at(99, shape="constant") == 1
    late = [at(s, shape="linear", floor=0, decay=0.5) for s in (10, 50, 75, 100)]
    assert late == [1, 1, 0.5, 0]
    assert at(30, shape="cosine") == training.warmup_cosine(30, 100, warmup=10)
    with pytest.raises(ValueError, match="Unknown schedule 'step'"):
        at(50, shape="step")


def test_the_loss_scale_halves_doubles_and_gives_up():
    scaler = LossScaler(scale=4.0, interval=3)
    scaler.update(finite=False)
    assert scaler.scale == 2.0
    for finite in (True, True, False, True, True, True):
        scaler.update(finite)
    assert scaler.scale == 2.0  # halved, then doubled after three good steps in a row
    scaler.update(finite=False)
    with pytest.raises(FloatingPointError, match="overflow float16 even without loss scaling"):
        scaler.update(finite=False)


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


@pytest.mark.parametrize("make", [manual, lambda: Transformer(CONFIG, "torch", dtype=torch.float64)])
def test_the_losses_of_tokens_are_those_that_evaluate_takes_the_mean_of(make):
    model = make()
    losses = training.token_losses(model, TOKENS, batch_size=5)
    windows = (len(TOKENS) - 1) // CONFIG.context_length
    assert losses.shape == (windows * CONFIG.context_length,) and losses.dtype == np.float32
    assert losses.mean() == pytest.approx(training.evaluate(model, TOKENS), rel=1e-5)
    first = torch.from_numpy(TOKENS[None, : CONFIG.context_length].astype(np.int64))
    p = torch.as_tensor(model.logits(first)).softmax(-1)[0, 2, TOKENS[3]].item()
    assert losses[2] == pytest.approx(-math.log(p), rel=1e-5)


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_every_precision_come_back(tmp_path, dtype):
    weights = {name: w.to(dtype) for name, w in as_tensors(initial_weights(CONFIG)).items()}
    checkpoint.save(tmp_path / "m", CONFIG, weights)
    _, loaded, _ = checkpoint.load(tmp_path / "m")
    back = torch.float32 if dtype == torch.bfloat16 else dtype  # NumPy has no bfloat16
    for name, weight in weights.items():
        assert torch.equal(torch.from_numpy(loaded[name]), weight.to(back))


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

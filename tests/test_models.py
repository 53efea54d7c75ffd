"""The two transformers: one set of weights, one loss, one set of gradients, whatever the engine."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

import kernels
from course import checkpoint
from course.config import PRESETS, ModelConfig, preset
from course.device import DEVICE
from course.initial import initial_weights, rope_tables
from course.manual import ManualTransformer
from course.model import Transformer, as_tensors

SMALL = {"vocab_size": 31, "context_length": 12, "n_layer": 2, "n_head": 4, "d_model": 16}
VARIANTS = {
    "char": preset("char", **SMALL),
    "char-tied": preset("char", **SMALL, tie_embeddings=True),
    "gpt2": preset("gpt2", **SMALL),
    "gpt2-untied": preset("gpt2", **SMALL, tie_embeddings=False),
    "modern": preset("modern", **SMALL),
    "modern-window": preset("modern", **SMALL, sliding_window=5),
    "modern-wide": preset("modern", **SMALL | {"d_model": 64, "n_layer": 1}),
    "modern-untied": preset("modern", **SMALL, tie_embeddings=False, n_kv_head=1),
    "modern-plain": preset("modern", **SMALL, attention_sink=False, n_kv_head=4, bias=True),
}
ENGINES = ("reference", "torch")  # those that compute in float64
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def shaken_weights(config: ModelConfig) -> dict[str, np.ndarray]:
    """First weights plus noise, so that no bias, sink or norm is where its gradient is special."""
    rng = np.random.default_rng(7)
    weights = initial_weights(config, seed=1)
    return {name: w + 0.1 * rng.standard_normal(w.shape) for name, w in weights.items()}


def batch(config: ModelConfig, T: int = 11, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(3)
    ids = torch.from_numpy(rng.integers(0, config.vocab_size, (3, T + 1))).to(device)
    return ids[:, :-1], ids[:, 1:]


def models(config: ModelConfig, engine: str, weights, device: str = "cpu", dtype=torch.float64):
    yield ManualTransformer(config, as_tensors(weights, device, dtype), engine)
    yield Transformer(config, engine, weights=weights, device=device, dtype=dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_parity(variant, device):
    """By hand and by autograd, on every engine: loss and every gradient to 1e-10, in float64."""
    config = VARIANTS[variant]
    weights = shaken_weights(config)
    ids, targets = batch(config, device=device)
    results = {
        f"{type(model).__name__} on {engine}": model.loss_and_gradients(ids, targets)
        for engine in ENGINES
        for model in models(config, engine, weights, device)
    }
    assert len(results) == 2 * len(ENGINES)
    (first_loss, first), *others = results.values()
    assert list(first) == list(config.parameter_shapes())
    assert all(gradient.abs().max() > 0 for gradient in first.values())
    for (loss, gradients), who in zip(others, list(results)[1:], strict=True):
        assert abs(loss - first_loss) < 1e-10, who
        for name in first:
            assert (gradients[name] - first[name]).abs().max() < 1e-10, f"{name}, {who}"


@pytest.mark.parametrize("variant", ["char", "gpt2", "modern", "modern-window", "modern-wide"])
def test_one_checkpoint_on_all_engines(variant, tmp_path):
    """By hand and by autograd, on all four: loss and every gradient against float64, for the same batch."""
    config = VARIANTS[variant]
    checkpoint.save(tmp_path / "model.safetensors", config, as_tensors(shaken_weights(config)))
    config, weights, _ = checkpoint.load(tmp_path / "model.safetensors")
    ids, targets = batch(config, device=DEVICE)
    exact = Transformer(config, "reference", weights=weights, device=DEVICE, dtype=torch.float64)
    expected_loss, expected = exact.loss_and_gradients(ids, targets)
    # Softmax does not see a bias of the keys: its gradient is zero, and what is computed is all rounding.
    least = 1e-2 * max(gradient.norm() for gradient in expected.values())
    engines = [name for name in kernels.ENGINES if name != "triton" or find_spec("triton")]
    for engine in engines:
        for model in models(config, engine, weights, DEVICE, torch.float32):
            loss, gradients = model.loss_and_gradients(ids, targets)
            who = f"{type(model).__name__} on {engine}"
            assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5), who
            assert set(gradients) == set(expected)
            for name, gradient in expected.items():
                error = (gradients[name] - gradient).norm() / max(gradient.norm(), least)
                assert error < 2e-5, f"{name}: {error:.1e}, {who}"


@pytest.mark.parametrize("variant", ["char", "modern-window"])
def test_whole_model_gradients_equal_finite_differences(variant):
    config = VARIANTS[variant]
    weights = as_tensors(shaken_weights(config), dtype=torch.float64)
    model = ManualTransformer(config, weights, "reference")
    ids, targets = batch(config)
    _, gradients = model.loss_and_gradients(ids, targets)
    rng, h = np.random.default_rng(0), 1e-5
    for name, w in weights.items():
        place = tuple(rng.integers(0, size) for size in w.shape)
        values = []
        for sign in (1, -1):
            w[place] += sign * h
            values.append(model.loss(ids, targets).item())
            w[place] -= sign * h
        slope = (values[0] - values[1]) / (2 * h)
        assert gradients[name][place].item() == pytest.approx(slope, rel=1e-5, abs=1e-9), name


def test_compiled_model_has_the_same_gradients():
    config = VARIANTS["modern"]
    ids, targets = batch(config)
    for engine in ENGINES:
        eager = Transformer(config, engine, seed=2)
        compiled = Transformer(config, engine, seed=2)
        compiled.loss = torch.compile(compiled.loss, fullgraph=True, backend="aot_eager")
        loss, gradients = eager.loss_and_gradients(ids, targets)
        compiled_loss, compiled_gradients = compiled.loss_and_gradients(ids, targets)
        torch.testing.assert_close(loss, compiled_loss)
        for name in gradients:
            torch.testing.assert_close(gradients[name], compiled_gradients[name], rtol=1e-4, atol=1e-6)


def test_the_hand_written_model_records_no_graph_and_imports_no_torch():
    import course.manual

    assert not any(getattr(course.manual, name, None) is torch for name in vars(course.manual))
    config = VARIANTS["modern"]
    model = ManualTransformer(config, as_tensors(initial_weights(config)), "reference")
    loss, gradients = model.loss_and_gradients(*batch(config))
    assert loss.grad_fn is None and all(g.grad_fn is None for g in gradients.values())


def test_attention_is_causal():
    config = VARIANTS["modern"]
    model = Transformer(config, seed=0)
    ids, _ = batch(config)
    changed = ids.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % config.vocab_size
    before, after = model.logits(ids), model.logits(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert (before[:, 7:] - after[:, 7:]).abs().max() > 1e-4


def test_first_loss_is_that_of_a_uniform_guess():
    for name in ("char", "modern"):
        config = VARIANTS[name]
        loss = Transformer(config, seed=0).loss(*batch(config))
        assert loss.item() == pytest.approx(np.log(config.vocab_size), rel=0.02)


def test_rope_tables_are_rotations_and_position_0_does_not_turn():
    cos, sin = rope_tables(9, 8)
    np.testing.assert_allclose(cos**2 + sin**2, 1)
    assert (cos[0] == 1).all() and (sin[0] == 0).all()
    assert sin[1, 0] == pytest.approx(np.sin(1.0))


def test_initial_weights_depend_on_the_seed_alone():
    config = VARIANTS["gpt2"]
    a, b, c = (initial_weights(config, seed) for seed in (0, 0, 1))
    assert all((a[n] == b[n]).all() for n in a) and any((a[n] != c[n]).any() for n in a)
    # Known digits: on another machine, a stored notebook output would differ if these did.
    assert a["embedding.weight"][0, 0].round(6) == 0.002515


# Configurations


def test_presets_have_the_sizes_they_are_known_for():
    assert set(PRESETS) == {"char", "gpt2", "modern"}
    assert preset("gpt2").n_parameters() == 124_439_808
    assert preset("char").n_parameters() == 826_112


def test_parameter_count_is_that_of_the_module():
    for config in VARIANTS.values():
        assert config.n_parameters() == sum(p.numel() for p in Transformer(config).parameters())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_head": 3}, "n_head = 3 does not divide d_model = 16"),
        ({"n_kv_head": 3}, "n_kv_head = 3 does not divide n_head = 4"),
        ({"n_layer": 0}, "n_layer = 0: expected a whole number of at least 1"),
        ({"d_model": 16.0}, "d_model = 16.0: expected a whole number"),
        ({"sliding_window": -1}, "sliding_window = -1"),
        ({"norm": "batch"}, "norm = 'batch' is unknown: choose one of rms, layer"),
        ({"mlp": "relu"}, "mlp = 'relu' is unknown"),
        ({"position": "alibi"}, "position = 'alibi' is unknown"),
        ({"d_model": 12, "n_head": 4, "n_kv_head": 2}, "is odd, and RoPE rotates pairs"),
        ({"n_heads": 4}, "Unknown field 'n_heads'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_words(changes, words):
    with pytest.raises(ValueError, match=words):
        preset("modern", **{**SMALL, **changes})


def test_unknown_preset():
    with pytest.raises(ValueError, match="Unknown preset 'gpt5': choose one of char, gpt2, modern"):
        preset("gpt5")


# Bad input to a model


@pytest.fixture(params=["manual", "autograd"])
def model(request):
    config = VARIANTS["char"]
    if request.param == "manual":
        return ManualTransformer(config, as_tensors(initial_weights(config)))
    return Transformer(config)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (torch.zeros(1, 13, dtype=torch.long), "sequence of 13 tokens is longer than the context of 12"),
        (torch.full((1, 3), 31), "Token id 31 is outside the vocabulary of 31"),
        (torch.full((1, 3), -1), "Token id -1 is outside the vocabulary"),
        (torch.zeros(3, dtype=torch.long), r"shape \(B, T\), got \(3,\)"),
    ],
)
def test_ids_that_do_not_fit_are_refused_in_words(model, ids, words):
    with pytest.raises(ValueError, match=words):
        model.logits(ids)


def test_weights_of_another_model_are_refused_in_words():
    config = VARIANTS["char"]
    weights = initial_weights(config)
    for build in (
        lambda w: ManualTransformer(config, as_tensors(w)),
        lambda w: Transformer(config, weights=w),
    ):
        with pytest.raises(ValueError, match=r"'blocks.0.attention.q.weight' is missing"):
            build({n: w for n, w in weights.items() if "attention.q" not in n})
        with pytest.raises(ValueError, match="'extra' is not one of its parameters"):
            build({**weights, "extra": np.zeros(3)})
        with pytest.raises(ValueError, match=r"head.weight has shape \(3, 3\), the config asks for"):
            build({**weights, "head.weight": np.zeros((3, 3))})


def test_unknown_engine():
    for build in (
        lambda: Transformer(VARIANTS["char"], "tpu"),
        lambda: ManualTransformer(VARIANTS["char"], as_tensors(initial_weights(VARIANTS["char"])), "tpu"),
    ):
        with pytest.raises(ValueError, match="Unknown engine 'tpu'"):
            build()

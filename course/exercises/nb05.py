"""Checkers of notebook 05: parameters, the cache, squeezed positions, first weights, windows."""

import math
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from course.config import ModelConfig
from course.exercises.checking import Wrong, exercise, expect_close

# --- 05.1 -------------------------------------------------------------------------------

_SMALL = dict(vocab_size=11, context_length=7, n_layer=1, n_head=2, d_model=12)
_CONFIGS = (
    {},
    {"tie_embeddings": True},
    {"mlp": "gelu"},
    {"n_kv_head": 1},
    {"norm": "layer"},
    {"position": "learned"},
    {"attention_sink": True},
    {"bias": True},
    {"bias": True, "mlp": "gelu", "n_kv_head": 1},
    {"n_layer": 3},
    dict(n_layer=5, n_head=6, d_model=36, n_kv_head=3, d_ff=50, bias=True, norm="layer", position="learned"),
    dict(n_layer=2, tie_embeddings=True, attention_sink=True, n_kv_head=1, d_ff=17, mlp="gelu"),
)


@exercise("05.1")
def count_parameters(count) -> None:
    for changes in _CONFIGS:
        config = ModelConfig(**{**_SMALL, **changes})
        got, expected = count(SimpleNamespace(**vars(config))), config.n_parameters()
        if isinstance(got, bool) or not isinstance(got, int | np.integer):
            raise Wrong(f"The count should be a whole number (int), and is a {type(got).__name__}.")
        if got == expected:
            continue
        described = ", ".join(f"{name} = {value!r}" for name, value in changes.items()) or "the defaults"
        reason = _reason(config, int(got) - expected)
        raise Wrong(f"With {described} you count {got:,}, and the model has {expected:,}.{reason}")


def _reason(c: ModelConfig, excess: int) -> str:
    """Which part of a model is as large as what was counted too much, or too little."""
    C, F, L, kv = c.d_model, c.d_ff, c.n_layer, c.n_kv_head * c.d_head
    linear_biases = L * (2 * C + 2 * kv + C + F * (2 if c.mlp == "swiglu" else 1))
    too_much = {
        c.vocab_size * C: c.tie_embeddings and "A tied model has one table, not two.",
        2 * L * C * (C - kv): kv < C and "Keys and values have H_kv heads, and are narrower than C.",
        L * C * F: c.mlp == "gelu" and "GELU has two matrices, up and down; only SwiGLU has a gate.",
        c.vocab_size: "The head has no bias.",
        c.context_length * C: c.position == "rope" and "RoPE has no table of positions.",
    }
    too_little = {
        c.vocab_size * C: not c.tie_embeddings and "Untied, the head has a table of its own.",
        C: "The last norm, after the blocks, is missing.",
        2 * L * C: "Two norms a block are missing.",
        2 * L * C + C: "Norms are missing." if c.norm == "rms" else "LayerNorm has a bias beside its weight.",
        L * C * F: c.mlp == "swiglu" and "SwiGLU has three matrices: gate, up and down.",
        L * c.n_head: c.attention_sink and "One sink score a head and layer is missing.",
        c.context_length * C: c.position == "learned" and "The table of positions is missing.",
        linear_biases: c.bias and "The biases of the linear layers are missing.",
    }
    hint = too_much.get(excess) if excess > 0 else too_little.get(-excess)
    return f" {hint}" if hint else ""


# --- 05.2 -------------------------------------------------------------------------------


@exercise("05.2")
def kv_cache_bytes(count) -> None:
    cases = [
        (3, 40, 4, 2, None, 1, 10, 4),
        (2, 48, 6, 3, None, 5, 33, 2),
        (4, 64, 8, 1, 16, 2, 100, 2),
        (4, 64, 8, 8, 16, 3, 9, 8),
    ]
    for L, C, H, H_kv, window, B, T, size in cases:
        config = SimpleNamespace(n_layer=L, d_model=C, n_head=H, n_kv_head=H_kv, sliding_window=window)
        got = count(config, B, T, size)
        if isinstance(got, bool) or not isinstance(got, int | np.integer):
            raise Wrong(f"The number of bytes should be a whole number, and is a {type(got).__name__}.")
        D, kept = C // H, T if window is None else min(T, window)
        expected = 2 * L * H_kv * D * kept * B * size
        wrong = {
            expected // 2: "Keys and values are two arrays: a factor 2 is missing.",
            expected // L: "Every layer has a cache of its own.",
            expected // B: "Every text of the batch has a cache of its own.",
            expected // size: "These are numbers, not bytes.",
            expected // H_kv * H: "Only the key-value heads are kept, H_kv of them, not H.",
            expected // D * C: "A head is D = C / H wide, not C.",
            expected // kept * T: "With a window of w, no more than w columns are kept.",
            expected // kept * (window or T): "A text shorter than the window fills only T columns.",
        }
        if got != expected:
            case = f"L = {L}, C = {C}, H = {H}, H_kv = {H_kv}, window = {window}, B = {B}, T = {T}"
            raise Wrong(f"{wrong.get(int(got), '')} {case}: {got:,}, expected {expected:,}.".strip())


# --- 05.3 -------------------------------------------------------------------------------


def _angles(positions: Tensor, D: int, theta: float) -> Tensor:
    return torch.outer(positions, theta ** (-torch.arange(0, D, 2, dtype=torch.float64) / D))


@exercise("05.3")
def squeezed_tables(tables) -> None:
    for T, D, theta, trained in [
        (12, 8, 10_000.0, 4),
        (9, 6, 500.0, 6),
        (5, 4, 10_000.0, 16),
        (7, 2, 10.0, 7),
    ]:
        result = tables(T, D, theta, trained)
        if not isinstance(result, tuple) or len(result) != 2:
            raise Wrong("The function should return two things: cos, sin.")
        t = torch.arange(T, dtype=torch.float64)
        expected = _angles(t * min(1.0, trained / T), D, theta)
        mistakes = {
            "The positions are not squeezed: the tables are plain RoPE's.": _angles(t, D, theta),
            "Positions are stretched: the factor is trained / T, not T / trained.": _angles(
                t * T / trained, D, theta
            ),
            "A text that is no longer than `trained` must stay as it is.": _angles(t * trained / T, D, theta),
            "Squeezed positions were rounded to whole numbers: neighbours would share a place.": _angles(
                torch.floor(t * min(1.0, trained / T)), D, theta
            ),
        }
        cos, sin = result
        for words, angles in mistakes.items():
            same = all(isinstance(x, Tensor) and x.shape == angles.shape for x in result)
            got = (
                same
                and torch.allclose(cos.double(), angles.cos())
                and torch.allclose(sin.double(), angles.sin())
            )
            if got and not torch.allclose(angles, expected):
                raise Wrong(f"{words} (T = {T}, trained = {trained})")
        expect_close("cos", cos, expected.cos())
        expect_close("sin", sin, expected.sin())


# --- 05.4 -------------------------------------------------------------------------------


@exercise("05.4")
def rescaled(rescale) -> None:
    rng = np.random.default_rng(54)
    for n_layer in (2, 5):
        config = ModelConfig(9, 6, n_layer, n_head=2, d_model=8, n_kv_head=1)
        shapes = config.parameter_shapes()
        weights = {name: torch.tensor(rng.standard_normal(shape)) for name, shape in shapes.items()}
        before = {name: w.clone() for name, w in weights.items()}
        got = rescale(weights, n_layer)
        if not isinstance(got, dict) or set(got) != set(weights):
            raise Wrong("Return a dictionary with the same names as `weights`.")
        if any(not torch.equal(weights[name], w) for name, w in before.items()):
            raise Wrong("The weights that came in were changed in place; make new tensors.")
        for name, w in before.items():
            ends_branch = name.endswith(("attention.o.weight", "mlp.down.weight"))
            factor = ((got[name] * w).sum() / (w * w).sum()).item()
            if not ends_branch and not torch.equal(got[name], w):
                raise Wrong(f"{name} was changed, and does not write into the stream: leave it as it is.")
            if ends_branch and torch.equal(got[name], w):
                raise Wrong(f"{name} was not changed, and it writes into the stream.")
            if ends_branch and math.isclose(factor, n_layer**-0.5):
                raise Wrong(f"{name}: there are two branches a layer, 2 L in all, not L.")
            if ends_branch and math.isclose(factor, 1 / (2 * n_layer)):
                raise Wrong(f"{name}: 1/(2L) on a matrix is 1/(2L)² on the variance: take the root.")
            if ends_branch:
                expect_close(name, got[name], w / math.sqrt(2 * n_layer))


# --- 05.5 -------------------------------------------------------------------------------


@exercise("05.5")
def reach(answer) -> None:
    for windows, T in [
        ([4], 40),
        ([4, 4], 40),
        ([3, 8, 2], 40),
        ([5, None, 5], 40),
        ([9, 9], 12),
        ([1, 1], 6),
    ]:
        got = answer(list(windows), T)
        if isinstance(got, bool) or not isinstance(got, int | np.integer):
            raise Wrong(f"The answer should be a whole number, and is a {type(got).__name__}.")
        whole = None in windows
        uncapped = T if whole else 1 + sum(w - 1 for w in windows)
        expected = min(T, uncapped)
        if got == expected:
            continue
        case = f"With windows = {windows} and T = {T} you say {got}, and it is {expected}."
        if not whole and got == uncapped:
            raise Wrong(f"{case} There are only T tokens.")
        if not whole and got == min(T, sum(windows)):
            raise Wrong(f"{case} A window of w counts the token itself, so a layer adds w - 1.")
        if not whole and got == expected - 1:
            raise Wrong(f"{case} The last token sees itself, too.")
        if not whole and got == min(T, max(windows)):
            raise Wrong(f"{case} Layers add up: what a layer sees has already looked further back.")
        if whole:
            raise Wrong(f"{case} One layer with full attention sees everything.")
        raise Wrong(case)

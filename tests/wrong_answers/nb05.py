"""Mistakes that a careful person makes in notebook 05, and what the check must say to each."""

import math

import torch


def _count(
    c, *, tied=True, gate=True, grouped=True, last_norm=True, layer_bias=True, places=True, biases=True
):
    """`count_parameters` with one thing wrong."""
    C, F, D = c.d_model, c.d_ff, c.d_model // c.n_head
    kv = (c.n_kv_head if grouped else c.n_head) * D
    bias = int(c.bias and biases)
    mlp = C * F + bias * F + F * C + bias * C
    if c.mlp == "swiglu" and gate:
        mlp += C * F + bias * F
    norm = C * (2 if c.norm == "layer" and layer_bias else 1)
    attention = 2 * C * (C + bias) + 2 * kv * (C + bias) + c.n_head * c.attention_sink
    tables = c.vocab_size * C * (1 if c.tie_embeddings and tied else 2)
    positions = c.context_length * C * (c.position == "learned" and places)
    return tables + positions + c.n_layer * (attention + mlp + 2 * norm) + norm * last_norm


def _but(**wrong):
    return lambda config: _count(config, **wrong)


def _cache(c, B, T, size, *, two=2, heads=None, window=True):
    kept = min(T, c.sliding_window) if window and c.sliding_window else T
    return two * c.n_layer * (heads or c.n_kv_head) * (c.d_model // c.n_head) * kept * B * size


def _tables(factor, whole=False):
    def tables(T, D, theta, trained):
        t = torch.arange(T, dtype=torch.float64) * factor(T, trained)
        angles = torch.outer(t.floor() if whole else t, theta ** (-torch.arange(0, D, 2).double() / D))
        return angles.cos(), angles.sin()

    return tables


def _rescaled(factor, ends=("attention.o.weight", "mlp.down.weight")):
    return lambda weights, L: {n: w * factor(L) if n.endswith(ends) else w for n, w in weights.items()}


def _in_place(weights, n_layer):
    for name, w in weights.items():
        if name.endswith(("attention.o.weight", "mlp.down.weight")):
            w /= math.sqrt(2 * n_layer)
    return weights


WRONG_ANSWERS = {
    "05.1": [
        (_but(tied=False), "one table, not two"),
        (_but(gate=False), "three matrices"),
        (_but(grouped=False), "narrower than C"),
        (_but(last_norm=False), "last norm"),
        (_but(layer_bias=False), "LayerNorm has a bias"),
        (_but(places=False), "table of positions is missing"),
        (_but(biases=False), "biases of the linear layers are missing"),
        (lambda config: float(_count(config)), "whole number"),
    ],
    "05.2": [
        (lambda c, B, T, size: _cache(c, B, T, size, two=1), "a factor 2 is missing"),
        (lambda c, B, T, size: _cache(c, B, T, size, heads=c.n_head), "not H"),
        (lambda c, B, T, size: _cache(c, B, T, size, window=False), "no more than w columns"),
        (lambda c, B, T, size: _cache(c, B, c.sliding_window or T, size), "fills only T columns"),
        (lambda c, B, T, size: _cache(c, 1, T, size), "Every text of the batch"),
        (lambda c, B, T, size: _cache(c, B, T, 1), "numbers, not bytes"),
    ],
    "05.3": [
        (_tables(lambda T, trained: 1), "plain RoPE's"),
        (_tables(lambda T, trained: T / trained), "stretched"),
        (_tables(lambda T, trained: trained / T), "must stay as it is"),
        (_tables(lambda T, trained: min(1, trained / T), whole=True), "whole numbers"),
    ],
    "05.4": [
        (_rescaled(lambda L: L**-0.5), "not L"),
        (_rescaled(lambda L: 1 / (2 * L)), "take the root"),
        (_rescaled(lambda L: (2 * L) ** -0.5, "attention.o.weight"), "was not changed"),
        (_rescaled(lambda L: (2 * L) ** -0.5, ".weight"), "does not write into the stream"),
        (_in_place, "in place"),
    ],
    "05.5": [
        (lambda windows, T: min(T, sum(w or T for w in windows)), "adds w - 1"),
        (lambda windows, T: T if None in windows else 1 + sum(w - 1 for w in windows), "only T tokens"),
        (lambda windows, T: min(T, max(w or T for w in windows)), "Layers add up"),
        (lambda windows, T: min(T, 1 + sum((w or 1) - 1 for w in windows)), "sees everything"),
    ],
}

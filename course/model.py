"""The transformer as an `nn.Module`: the same operations, differentiated by autograd.

Its parameter names are those of `course.manual.ManualTransformer`, so one checkpoint loads into both.
"""

import numpy as np
import torch
from torch import Tensor, nn

from course.config import ModelConfig
from course.initial import initial_weights, rope_tables
from kernels.autograd import bind
from kernels.packed import unpack


def as_tensors(
    weights: dict[str, np.ndarray], device=None, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Arrays by name as tensors: what `ManualTransformer` needs on the engines that PyTorch serves."""
    return {
        name: torch.from_numpy(np.asarray(weight)).to(device=device, dtype=dtype)
        for name, weight in weights.items()
    }


class Transformer(nn.Module):
    """A decoder-only transformer whose every operation comes from an engine of `kernels`.

    Weights are drawn from `seed` (see `course.initial`) or taken from `weights`, arrays or tensors by
    name, and kept on `device` as `dtype`. Raises `ValueError` if they are of another model or the engine
    is unknown.
    """

    def __init__(
        self,
        config: ModelConfig,
        engine: str = "torch",
        *,
        weights: dict | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.config = config
        self.ops = ops = bind(engine)
        self.embedding = _Table(config.vocab_size, config.d_model)
        if config.position == "learned":
            self.position = _Table(config.context_length, config.d_model)
        else:
            tables = rope_tables(config.context_length, config.d_head, config.rope_theta)
            for name, table in zip(("cos", "sin"), tables, strict=True):
                self.register_buffer(name, torch.from_numpy(table), persistent=False)
        self.blocks = nn.ModuleList(Block(config, ops) for _ in range(config.n_layer))
        self.final_norm = Norm(config, ops)
        if not config.tie_embeddings:
            self.head = _Table(config.vocab_size, config.d_model)
        self.to(device=device, dtype=dtype)
        parameters = dict(self.named_parameters())
        self._weights = {name: parameters[name] for name in config.parameter_shapes()}
        self.load(initial_weights(config, seed) if weights is None else weights)

    @property
    def weights(self) -> dict[str, Tensor]:
        """Every parameter by name, in the order of the forward pass."""
        return dict(self._weights)

    def load(self, weights: dict) -> None:
        """Copy arrays or tensors by name into the parameters. Raises `ValueError` if they do not fit."""
        self.config.check_weights(weights)
        with torch.no_grad():
            for name, parameter in self._weights.items():
                parameter.copy_(torch.as_tensor(weights[name]))

    def forward(self, ids: Tensor) -> Tensor:
        """ids `(B, T)` -> logits `(B, T, V)`. Raises `ValueError` for ids that do not fit."""
        return self.ops.linear(self.features(ids), self._weights[self.config.head_name], None)

    def features(self, ids: Tensor) -> Tensor:
        """ids `(B, T)` -> what the head reads of each token, `(B, T, C)`.

        The sum that ends a branch and the norm that begins the next one are one operation, and the sum is
        what the norm has to read anyway. So a block returns its last branch without adding it.
        """
        if not torch.compiler.is_compiling():
            self.config.check_ids(ids)
        T = ids.shape[1]
        x = self.ops.embedding(ids, self.embedding.weight)
        rope = None
        if self.config.position == "learned":
            places = torch.arange(T, device=ids.device)
            x = self.ops.add(x, self.ops.embedding(places, self.position.weight))
        else:
            rope = self.cos[:T], self.sin[:T]
        branch = None
        for block in self.blocks:
            x, branch = block(x, branch, rope)
        return self.final_norm.add(x, branch)[0]

    def logits(self, ids: Tensor) -> Tensor:
        """ids `(B, T)` -> logits `(B, T, V)`, without recording a graph."""
        with torch.no_grad():
            return self(ids)

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy of predicting targets `(B, T)` from ids `(B, T)`."""
        head = self._weights[self.config.head_name]
        return self.ops.linear_cross_entropy(self.features(ids), head, targets)

    def loss_and_gradients(self, ids: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its gradient with respect to every parameter, by name."""
        loss = self.loss(ids, targets)
        gradients = torch.autograd.grad(loss, list(self._weights.values()))
        return loss.detach(), dict(zip(self._weights, gradients, strict=True))


class _Table(nn.Module):
    """A matrix with a row for each token or position."""

    def __init__(self, n_rows: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_rows, width))


class Linear(nn.Module):
    def __init__(self, in_features: int, out_features: int, bias: bool, ops):
        super().__init__()
        self.ops = ops
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.linear(x, self.weight, self.bias)


def _as_one(layers: tuple[Linear, ...]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of one layer that computes what these do, side by side: its product reads x once, and
    so does each of its two gradients."""
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
    return torch.cat([layer.weight for layer in layers]), bias


class Norm(nn.Module):
    """RMSNorm or LayerNorm, as the config chooses."""

    def __init__(self, config: ModelConfig, ops):
        super().__init__()
        self.ops, self.eps = ops, config.norm_eps
        self.weight = nn.Parameter(torch.empty(config.d_model))
        self.bias = nn.Parameter(torch.empty(config.d_model)) if config.norm == "layer" else None

    @property
    def weights(self) -> tuple[Tensor, ...]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.ops.rmsnorm if self.bias is None else self.ops.layernorm
        return norm(x, *self.weights, self.eps)

    def add(self, x: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor]:
        """The norm of x + branch, and x + branch; a branch of None adds nothing."""
        if branch is None:
            return self(x), x
        add_norm = self.ops.add_rmsnorm if self.bias is None else self.ops.add_layernorm
        return add_norm(branch, x, *self.weights, self.eps)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, ops):
        super().__init__()
        self.ops, self.window = ops, config.sliding_window
        self.d_head, self.n_head, self.n_kv_head = config.d_head, config.n_head, config.n_kv_head
        C, kv_width = config.d_model, config.n_kv_head * config.d_head
        self.q = Linear(C, C, config.bias, ops)
        self.k = Linear(C, kv_width, config.bias, ops)
        self.v = Linear(C, kv_width, config.bias, ops)
        self.sink = nn.Parameter(torch.empty(config.n_head)) if config.attention_sink else None
        self.o = Linear(C, C, config.bias, ops)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        heads = self.n_head, self.n_kv_head, self.n_kv_head
        qkv = self.ops.linear(x, *_as_one((self.q, self.k, self.v))).unflatten(-1, (-1, self.d_head))
        return self.o(self._attend(qkv, heads, rope).flatten(-2))

    def _attend(self, qkv: Tensor, heads: tuple[int, int, int], rope: tuple[Tensor, Tensor] | None) -> Tensor:
        if rope is None:
            q, k, v = unpack(qkv, heads)
        elif self.ops.rotary_attention is not None and not torch.compiler.is_compiling():
            return self.ops.rotary_attention(qkv, heads[0], *rope, self.sink, self.window)
        else:
            qk, v = unpack(qkv, (heads[0] + heads[1], heads[2]))
            q, k = unpack(self.ops.rope(qk, *rope), heads[:2])
        return self.ops.attention(q, k, v, self.sink, True, self.window)


class MLP(nn.Module):
    def __init__(self, config: ModelConfig, ops):
        super().__init__()
        self.ops = ops
        C, F = config.d_model, config.d_ff
        self.gate = Linear(C, F, config.bias, ops) if config.mlp == "swiglu" else None
        self.up = Linear(C, F, config.bias, ops)
        self.down = Linear(F, C, config.bias, ops)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            up, down = self.up, self.down
            return self.ops.gelu_mlp(x, up.weight, up.bias, down.weight, down.bias)
        whole = self.ops.linear(x, *_as_one((self.gate, self.up))).unflatten(-1, (2, -1))
        if self.ops.swiglu_linear is not None and not torch.compiler.is_compiling():
            return self.ops.swiglu_linear(whole, self.down.weight, self.down.bias)
        gate, up = unpack(whole, (1, 1))
        return self.down(self.ops.swiglu(gate, up).flatten(-2))


class Block(nn.Module):
    """x ← x + attention(norm(x)), then x ← x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, ops):
        super().__init__()
        self.attention_norm = Norm(config, ops)
        self.attention = Attention(config, ops)
        self.mlp_norm = Norm(config, ops)
        self.mlp = MLP(config, ops)

    def forward(
        self, x: Tensor, branch: Tensor | None, rope: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """x and what is still to be added to it, None at first -> the same after this block."""
        y, x = self.attention_norm.add(x, branch)
        y, x = self.mlp_norm.add(x, self.attention(y, rope))
        return x, self.mlp(y)

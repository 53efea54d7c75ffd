"""The model's configuration: its choices, its presets, and the parameters that follow from them."""

import dataclasses
import math
from dataclasses import dataclass

NORMS, MLPS, POSITIONS = ("rms", "layer"), ("swiglu", "gelu"), ("rope", "learned")


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer. The defaults are the modern choices; `preset` gives whole models.

    Raises `ValueError`, naming the field, for sizes that do not fit together.
    """

    vocab_size: int
    context_length: int  # T, the longest sequence
    n_layer: int
    n_head: int  # H
    d_model: int  # C
    n_kv_head: int | None = None  # H_kv, n_head unless given
    d_ff: int | None = None  # F, 4 C (gelu) or about 8/3 C (swiglu) unless given
    norm: str = "rms"
    mlp: str = "swiglu"
    position: str = "rope"
    bias: bool = False  # of the linear layers
    tie_embeddings: bool = False  # the head is the embedding table
    attention_sink: bool = False
    sliding_window: int | None = None
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0

    def __post_init__(self):
        for name in ("vocab_size", "context_length", "n_layer", "n_head", "d_model"):
            self._require_positive(name)
        if self.n_kv_head is None:
            object.__setattr__(self, "n_kv_head", self.n_head)
        if self.d_ff is None:
            wide = 4 * self.d_model if self.mlp == "gelu" else 32 * math.ceil(self.d_model / 12)
            object.__setattr__(self, "d_ff", wide)
        self._require_positive("n_kv_head")
        self._require_positive("d_ff")
        if self.sliding_window is not None:
            self._require_positive("sliding_window")
        for name, choices in (("norm", NORMS), ("mlp", MLPS), ("position", POSITIONS)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} = {getattr(self, name)!r} is unknown: choose one of {', '.join(choices)}."
                )
        for name in ("norm_eps", "rope_theta"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} = {getattr(self, name)!r}: expected a number above 0.")
        if self.d_model % self.n_head:
            raise ValueError(
                f"n_head = {self.n_head} does not divide d_model = {self.d_model}: choose a width that "
                f"is a multiple of it, such as {self.n_head * max(1, self.d_model // self.n_head)}."
            )
        if self.n_head % self.n_kv_head:
            raise ValueError(
                f"n_kv_head = {self.n_kv_head} does not divide n_head = {self.n_head}: every "
                "key-value head must serve the same number of query heads."
            )
        if self.position == "rope" and self.d_head % 2:
            raise ValueError(
                f"d_model / n_head = {self.d_head} is odd, and RoPE rotates pairs of features: choose "
                "an even head width."
            )

    def _require_positive(self, name: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} = {value!r}: expected a whole number of at least 1.")

    @property
    def d_head(self) -> int:
        """D, the width of one head."""
        return self.d_model // self.n_head

    @property
    def head_name(self) -> str:
        """The name of the matrix that turns features into logits."""
        return "embedding.weight" if self.tie_embeddings else "head.weight"

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter's name and shape, in the order of the forward pass."""
        C, F = self.d_model, self.d_ff
        q_width, kv_width = self.n_head * self.d_head, self.n_kv_head * self.d_head
        shapes: dict[str, tuple[int, ...]] = {}

        def linear(name: str, out_features: int, in_features: int) -> None:
            shapes[f"{name}.weight"] = (out_features, in_features)
            if self.bias:
                shapes[f"{name}.bias"] = (out_features,)

        def norm(name: str) -> None:
            shapes[f"{name}.weight"] = (C,)
            if self.norm == "layer":
                shapes[f"{name}.bias"] = (C,)

        shapes["embedding.weight"] = (self.vocab_size, C)
        if self.position == "learned":
            shapes["position.weight"] = (self.context_length, C)
        for i in range(self.n_layer):
            norm(f"blocks.{i}.attention_norm")
            linear(f"blocks.{i}.attention.q", q_width, C)
            linear(f"blocks.{i}.attention.k", kv_width, C)
            linear(f"blocks.{i}.attention.v", kv_width, C)
            if self.attention_sink:
                shapes[f"blocks.{i}.attention.sink"] = (self.n_head,)
            linear(f"blocks.{i}.attention.o", C, q_width)
            norm(f"blocks.{i}.mlp_norm")
            if self.mlp == "swiglu":
                linear(f"blocks.{i}.mlp.gate", F, C)
            linear(f"blocks.{i}.mlp.up", F, C)
            linear(f"blocks.{i}.mlp.down", C, F)
        norm("final_norm")
        if not self.tie_embeddings:
            shapes["head.weight"] = (self.vocab_size, C)
        return shapes

    def n_parameters(self) -> int:
        """How many numbers the model learns."""
        return sum(math.prod(shape) for shape in self.parameter_shapes().values())

    def check_weights(self, weights: dict) -> None:
        """Raise `ValueError` unless `weights` has this model's names and shapes, and no others."""
        expected = self.parameter_shapes()
        if missing := [name for name in expected if name not in weights]:
            raise ValueError(
                f"These weights are of another model: {missing[0]!r} is missing "
                f"({len(missing)} of {len(expected)} are). Load them with the config they were saved with."
            )
        if extra := [name for name in weights if name not in expected]:
            raise ValueError(
                f"These weights are of another model: {extra[0]!r} is not one of its parameters "
                f"({len(extra)} are not). Load them with the config they were saved with."
            )
        for name, shape in expected.items():
            if tuple(weights[name].shape) != shape:
                raise ValueError(
                    f"These weights are of another model: {name} has shape "
                    f"{tuple(weights[name].shape)}, the config asks for {shape}."
                )

    def check_ids(self, ids) -> None:
        """Raise `ValueError` unless ids `(B, T)` fit the context, and (on the CPU) the vocabulary."""
        if len(ids.shape) != 2:
            raise ValueError(f"Expected token ids of shape (B, T), got {tuple(ids.shape)}.")
        if ids.shape[1] > self.context_length:
            raise ValueError(
                f"A sequence of {ids.shape[1]} tokens is longer than the context of "
                f"{self.context_length}: shorten it, or choose a larger context_length."
            )
        # On a GPU, looking would make the CPU wait at every step; `course.data` looks before.
        if getattr(ids, "is_cpu", False) and ids.shape[0] * ids.shape[1]:
            low, high = int(ids.min()), int(ids.max())
            if low < 0 or high >= self.vocab_size:
                raise ValueError(
                    f"Token id {low if low < 0 else high} is outside the vocabulary of "
                    f"{self.vocab_size}: was the text encoded with another tokenizer?"
                )


_CLASSIC = {"norm": "layer", "mlp": "gelu", "position": "learned", "bias": True}
_PRESETS = {
    # 0.8M parameters: trains on characters in minutes, on anything
    "char": dict(vocab_size=96, context_length=64, n_layer=4, n_head=4, d_model=128, **_CLASSIC),
    # GPT-2 small, 124M parameters (Radford et al., 2019)
    "gpt2": dict(
        vocab_size=50_257,
        context_length=1024,
        n_layer=12,
        n_head=12,
        d_model=768,
        tie_embeddings=True,
        **_CLASSIC,
    ),
    # 25M parameters in today's shape: RMSNorm, RoPE, SwiGLU, grouped queries, a learned sink
    "modern": dict(
        vocab_size=10_000,
        context_length=512,
        n_layer=8,
        n_head=8,
        d_model=512,
        n_kv_head=2,
        attention_sink=True,
        tie_embeddings=True,
    ),
}
PRESETS = tuple(_PRESETS)


def preset(name: str, **changes) -> ModelConfig:
    """A named configuration with some fields changed: `preset("char", vocab_size=65)`.

    Raises `ValueError` for an unknown preset or field.
    """
    if name not in _PRESETS:
        raise ValueError(f"Unknown preset {name!r}: choose one of {', '.join(PRESETS)}.")
    fields = [field.name for field in dataclasses.fields(ModelConfig)]
    for field in changes:
        if field not in fields:
            raise ValueError(f"Unknown field {field!r}: a model has {', '.join(fields)}.")
    return ModelConfig(**{**_PRESETS[name], **changes})

"""A run's recipe: everything that decides what a training run does, in YAML and as flags."""

import dataclasses
import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass

from course.atomic import replacing
from course.config import ModelConfig

PRESETS = Path(__file__).resolve().parents[1] / "presets"

record = dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
Share = Annotated[float, Field(ge=0, lt=1)]


def about(text: str, default):
    """A field with its explanation, which `train --help` shows."""
    return Field(default, description=text)


@record
class Optimizer:
    name: Literal["adamw", "muon"] = about("muon: for the hidden matrices, and AdamW for the rest", "adamw")
    lr: PositiveFloat = about("learning rate at its peak", 3e-3)
    adam_lr: PositiveFloat = about("with muon, that of AdamW", 3e-3)
    betas: tuple[Share, Share] = about("AdamW's two memories", (0.9, 0.99))
    eps: PositiveFloat = about("AdamW's", 1e-8)
    weight_decay: NonNegativeFloat = about("of matrices", 0.1)
    adam_weight_decay: NonNegativeFloat = about("with muon, that of AdamW's matrices", 0.0)
    momentum: Share = about("of muon", 0.95)
    clip: PositiveFloat | None = about("the gradients' joint norm at most; null: any", 1.0)


@record
class Schedule:
    shape: Literal["cosine", "linear", "constant"] = about("how the learning rate falls", "cosine")
    warmup: NonNegativeInt = about("steps up to the peak", 100)
    decay: float = Field(
        1.0, ge=0, le=1, description="the share of the steps, the last ones, in which it falls"
    )
    floor: float = Field(0.1, ge=0, le=1, description="where it ends, as a share of the peak")


@record
class Sample:
    prompt: str = Field("The ", min_length=1, description="what the model goes on from")
    tokens: PositiveInt = about("how far", 200)
    temperature: NonNegativeFloat = about("0: always the likeliest token", 0.8)
    every: NonNegativeInt = about("steps between samples; 0: none", 500)


def _shape_of_the_model() -> type:
    """The fields of `ModelConfig` but the vocabulary's size, which the tokenizer decides."""
    fields = {field.name: field for field in dataclasses.fields(ModelConfig)}
    small = {"context_length": 128, "n_layer": 4, "n_head": 4, "d_model": 128}
    del fields["vocab_size"]
    shape = [(name, field.type, small.get(name, field.default)) for name, field in fields.items()]
    return dataclasses.make_dataclass("Model", shape, frozen=True)


Model = record(_shape_of_the_model())


@record
class Recipe:
    """A whole run. Raises `ValueError`, naming the field, for values that make no sense."""

    data: str = about("which text: see `python -m course data list`", "tales")
    tokenizer: str = about("char, bpe (trained on the text first), or the file of one", "char")
    vocab_size: PositiveInt | None = about("of bpe", None)
    tokenizer_bytes: PositiveInt = about("of the text, about, that bpe is trained on", 50_000_000)
    model: Model = Model()
    engine: str = about("whose kernels compute", "torch")
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    steps: PositiveInt = about("updates of the weights", 1000)
    batch_size: PositiveInt = about("sequences a step", 16)
    accumulation: PositiveInt = about("pieces that a batch is computed in, for less memory", 1)
    seed: NonNegativeInt = about("of the first weights and the order of the data", 0)
    precision: Literal["auto", "float32", "bfloat16", "float16"] = about(
        "of the products; auto: what suits the machine", "auto"
    )
    compile: bool | None = about("torch.compile; null: on a GPU, but for the engines triton and cuda", None)
    cuda_graphs: bool = about("replay a step's kernels as CUDA graphs: faster for small models", False)
    log_every: PositiveInt = about("steps between looks at the losses", 10)
    evaluate_every: PositiveInt = about("steps between validations", 250)
    evaluation_tokens: PositiveInt | None = about("of the validation text; null: all", None)
    checkpoint_every: PositiveInt = about("steps between checkpoints", 250)
    keep: PositiveInt = about("checkpoints, besides the best", 2)
    sample: Sample = Sample()
    wandb: str | None = about("a project of Weights & Biases to log to", None)

    def __post_init__(self):
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"accumulation = {self.accumulation} does not divide batch_size = {self.batch_size}: "
                "the pieces of a batch must be of one size"
            )
        if self.tokenizer == "bpe" and self.vocab_size is None:
            raise ValueError("tokenizer = bpe needs a vocab_size, such as 1024")
        if self.tokenizer != "bpe" and self.vocab_size is not None:
            raise ValueError("vocab_size is for tokenizer = bpe: another one has its own")
        self.model_of(vocab_size=1)

    def model_of(self, vocab_size: int) -> ModelConfig:
        """This recipe's model, for a tokenizer of so many tokens."""
        return ModelConfig(vocab_size=vocab_size, **dataclasses.asdict(self.model))

    def changed(self, fields: dict[str, object]) -> "Recipe":
        """A recipe with other values of some fields, by dotted name: `{"model.n_layer": 4, "steps": 500}`.

        Numbers may be text. Raises `ValueError` for an unknown field, naming the one that may have been
        meant, and for a value that a field cannot have.
        """
        tree, known = self.to_dict(), list(field_names())
        for name, value in fields.items():
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(known)}."
                raise ValueError(f"Unknown field {name}: {hint}")
            *path, last = name.split(".")
            branch = tree
            for part in path:
                branch = branch[part]
            branch[last] = value
        return _from_dict(tree)

    def to_dict(self) -> dict:
        """Plain dictionaries, lists and numbers, as YAML and JSON write them."""
        return TypeAdapter(Recipe).dump_python(self, mode="json")

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def save(self, path: Path) -> None:
        """Write a YAML file whole or not at all."""
        with replacing(path) as temporary:
            temporary.write_text(self.to_yaml(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Recipe":
        """The recipe of a YAML file; what it leaves out has its default. Raises `ValueError`."""
        try:
            tree = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not YAML: {error}") from None
        if not isinstance(tree, dict):
            raise ValueError(f"{path} is no recipe: expected lines of the form `field: value`.")
        try:
            return cls().changed(dict(_flat(tree)))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def preset(cls, name: str, **fields) -> "Recipe":
        """A recipe that ships with the course: `Recipe.preset("tales", steps=100)`."""
        if name not in presets():
            raise ValueError(f"Unknown preset {name!r}: choose one of {', '.join(presets())}.")
        return cls.load(PRESETS / f"{name}.yaml").changed(fields)


def presets() -> list[str]:
    """The names of the recipes that ship with the course."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def field_names() -> dict[str, str]:
    """Every field by its dotted name, with what is said about it."""
    return dict(_names(Recipe))


def _names(kind: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, field in kind.__pydantic_fields__.items():
        if dataclasses.is_dataclass(field.annotation):
            yield from _names(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field.description or "see course.config.ModelConfig"


def _flat(tree: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _from_dict(tree: dict) -> Recipe:
    try:
        return TypeAdapter(Recipe).validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        name, why = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ").rstrip(".")
        why = why.replace("Input should be", "it should be")
        raise ValueError(f"{name} = {first['input']!r}: {why}." if name else f"{why}.") from None

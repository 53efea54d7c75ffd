"""The contract: what an operation is, and the list of all of them, as data.

An operation is a pair of functions::

    y, saved = name_forward(*inputs)      # saved: a tuple, exactly what the backward pass needs
    gradients = name_backward(dy, saved)  # one gradient per differentiable input, in input order

- Arrays in, arrays out: no global state, no classes, nothing modified in place.
- `saved` holds inputs, new arrays and the forward's own plain numbers, and nothing else.
- An operation with one differentiable input returns its gradient bare, one with several returns a
  tuple. An optional input that was `None` has the gradient `None`.
- An operation with two outputs returns them as a tuple, and its backward takes a tuple.

An engine is a module of such pairs; `kernels.engine` loads one by name. Everything that needs to know
about operations in general (the autograd binding, the tests, the benchmarks) reads this table.
"""

from dataclasses import dataclass

ENGINES = ("reference", "torch", "triton", "cuda")


@dataclass(frozen=True)
class Operation:
    """One row of the table: the inputs of `name_forward`, in order, and which of them have gradients."""

    name: str
    inputs: tuple[str, ...]
    differentiable: tuple[str, ...]
    engines: tuple[str, ...] = ENGINES
    outputs: tuple[str, ...] = ("y",)


def _operation(name: str, inputs: str, differentiable: str, **more) -> Operation:
    return Operation(name, tuple(inputs.split()), tuple(differentiable.split()), **more)


OPERATIONS = {
    operation.name: operation
    for operation in (
        _operation("embedding", "ids weight", "weight"),
        _operation("linear", "x weight bias", "x weight bias"),
        _operation("add", "a b", "a b"),
        _operation("mul", "a b", "a b"),
        _operation("rmsnorm", "x weight eps", "x weight"),
        _operation("add_rmsnorm", "x residual weight eps", "x residual weight", outputs=("y", "h")),
        _operation("layernorm", "x weight bias eps", "x weight bias"),
        _operation(
            "add_layernorm",
            "x residual weight bias eps",
            "x residual weight bias",
            outputs=("y", "h"),
        ),
        _operation("rope", "x cos sin", "x"),
        _operation("gelu", "x", "x"),
        _operation("swiglu", "gate up", "gate up"),
        _operation("gelu_mlp", "x up up_bias down down_bias", "x up up_bias down down_bias"),
        _operation("softmax", "x", "x"),
        _operation("attention", "q k v sink causal window softmax_scale", "q k v sink"),
        _operation("cross_entropy", "logits targets ignore_index", "logits"),
        _operation("linear_cross_entropy", "x weight targets ignore_index", "x weight"),
    )
}

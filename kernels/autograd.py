"""One generic binding: any pair of the contract becomes an operation that autograd can differentiate.

`bind("reference").rmsnorm(x, weight, eps)` calls `rmsnorm_forward` and, in the backward pass,
`rmsnorm_backward`. An engine that has a differentiable function of its own, such as
`kernels.torch.rmsnorm`, is used as is; and where nobody will ask for gradients, `<operation>_inference`
stands in for the forward function of an engine that has one. A pair is bound twice:

- In eager mode it is one `torch.autograd.Function`, which adds least to the time of a call.
- For whoever watches or traces operations, `torch.compile` above all, it is two `torch.library` custom ops:
  one opaque operation with known shapes that nobody traces into. The fake implementation that tells those
  shapes is the pair itself, run on tensors without data: an engine allocates its outputs with ordinary
  PyTorch calls, and launches its kernels only on tensors that have data.

How `saved` travels through the custom ops: one takes and returns tensors only, and may not return its
inputs. So the forward op returns its outputs and the *new* tensors in `saved`; a `recipe`, a string such as
`[("input", 0), ("output", 1), ("plain", 1e-05)]`, says how to put `saved` together again.
"""

import ast
import functools
import inspect
import itertools
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack, is_in_torch_dispatch_mode

import kernels
from kernels.operations import OPERATIONS, Operation

_TYPES = {
    "ids": "Tensor",
    "targets": "Tensor",
    "eps": "float",
    "causal": "bool",
    "window": "int?",
    "softmax_scale": "float?",
    "ignore_index": "int",
}
# What an engine may have beyond the contract, and a model uses where it is there: operations that are fused
# with what comes before them or after. Called with every input. A product `onto` something uses that up.
FUSED = (
    Operation("normalize", ("x", "eps"), ("x",), outputs=("x_hat", "x")),
    Operation("linear_onto", ("x", "weight", "onto"), ("x", "weight", "onto")),
    Operation(
        "swiglu_mlp",
        ("x", "weight", "bias", "down", "down_bias", "onto"),
        ("x", "weight", "bias", "down", "down_bias", "onto"),
    ),
    Operation(
        "rotary_attention",
        ("x", "weight", "bias", "n_head", "cos", "sin", "sink", "window"),
        ("x", "weight", "bias", "sink"),
    ),
)


def bind(engine: str) -> SimpleNamespace:
    """The operations of an engine as differentiable functions, under their own names.

    Raises `ValueError` for an unknown engine, `RuntimeError` for one that cannot be loaded.
    """
    module = kernels.engine(engine)
    bound = {}
    for name, operation in OPERATIONS.items():
        if engine in operation.engines:
            own = getattr(module, name, None)
            bound[name] = own if callable(own) else differentiable(engine, name)
    for operation in FUSED:
        ways = [
            getattr(module, f"{operation.name}_{way}", None) for way in ("forward", "backward", "inference")
        ]
        bound[operation.name] = _fused(operation, *ways) if all(ways[:2]) else None
    return SimpleNamespace(**bound)


@functools.cache
def differentiable(engine: str, name: str) -> Callable:
    """`name_forward` and `name_backward` of an engine as one differentiable function."""
    forward, backward = kernels.pair(engine, name)
    operation = OPERATIONS[name]
    signature = inspect.signature(forward)
    count, places = len(operation.inputs), _places(operation)
    defaults = tuple(p.default for p in signature.parameters.values())
    required = defaults.count(inspect.Parameter.empty)
    as_function = _function(operation, forward, backward)
    as_custom_op = _custom_op(f"course_{engine}::{name}", operation, signature, forward, backward)
    inference = getattr(kernels.engine(engine), f"{name}_inference", None)
    inference_op = inference and _inference_op(f"course_{engine}::{name}_inference", operation, inference)

    @functools.wraps(forward)
    def apply(*args, **kwargs):
        if kwargs or not required <= len(args) <= count:
            call = signature.bind(*args, **kwargs)
            call.apply_defaults()
            args = call.args
        elif len(args) < count:  # the same, in a tenth of the time
            args += defaults[len(args) :]
        watched = torch.compiler.is_compiling() or (is_in_torch_dispatch_mode() and not _transparent())
        if torch.is_grad_enabled():
            for place in places:
                x = args[place]
                if isinstance(x, Tensor) and x.requires_grad:
                    return as_custom_op(*args) if watched else as_function(*args)
        if inference is not None:
            return inference_op(*args) if watched else inference(*args)
        return as_custom_op(*args) if watched else forward(*args)[0]

    return apply


def _transparent() -> bool:
    """Whether all who watch want to see what the pair does, and not one opaque operation."""
    return all(getattr(mode, "transparent", False) for mode in _get_current_dispatch_mode_stack())


def _function(operation: Operation, forward: Callable, backward: Callable) -> Callable:
    """The pair as an `autograd.Function`."""
    count = len(operation.inputs)
    places = _places(operation)
    single = len(operation.outputs) == 1

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            y, saved = forward(*inputs)
            tensors = [item if isinstance(item, Tensor) else None for item in saved]
            ctx.save_for_backward(*tensors)
            ctx.plain = [item for item, tensor in zip(saved, tensors, strict=True) if tensor is None]
            return y

        @staticmethod
        def backward(ctx, *dy):
            if torch.is_grad_enabled():
                raise RuntimeError(f"{operation.name} has first derivatives only: unset create_graph.")
            saved = ctx.saved_tensors
            if ctx.plain:
                plain = iter(ctx.plain)
                saved = tuple([next(plain) if item is None else item for item in saved])
            gradients = backward(dy[0] if single else dy, saved)
            every = [None] * count
            for place, gradient in zip(places, gradients if len(places) > 1 else (gradients,), strict=True):
                every[place] = gradient
            return tuple(every)

    return Function.apply


def _fused(
    operation: Operation, forward: Callable, backward: Callable, inference: Callable | None
) -> Callable:
    """The pair as one function; where nothing keeps track of gradients `inference`, if there is one."""
    apply = _function(operation, forward, backward)
    if inference is None:
        return apply
    return lambda *inputs: apply(*inputs) if torch.is_grad_enabled() else inference(*inputs)


def _places(operation: Operation) -> list[int]:
    """Which inputs have gradients."""
    return [operation.inputs.index(name) for name in operation.differentiable]


def _custom_op(
    path: str, operation: Operation, signature: inspect.Signature, forward: Callable, backward: Callable
) -> Callable:
    """The pair as two custom ops, `path` and `path_backward`."""
    single = len(operation.outputs) == 1
    # What the forward saved, by the kind of call; filled by every run, real or fake.
    recipes: dict[tuple, str] = {}

    def run_forward(*inputs) -> list[Tensor]:
        y, saved = forward(*inputs)
        outputs = [y] if single else list(y)
        new: list[Tensor] = []
        recipe = repr([_describe(item, inputs, outputs, new) for item in saved])
        recipes[_kind(inputs)] = recipe
        return _without_aliases([*outputs, *new], inputs)

    def run_backward(dy: list[Tensor], tensors: list[Tensor], recipe: str) -> list[Tensor]:
        saved = tuple(value if source == "plain" else tensors[value] for source, value in _parse(recipe))
        gradients = backward(dy[0] if single else tuple(dy), saved)
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        return _without_aliases([g for g in gradients if g is not None], [*dy, *tensors])

    def setup_context(ctx, inputs, output):
        recipe, tensors = [], []
        for source, value in _parse(recipes[_kind(inputs)]):
            if source != "plain":
                tensors.append(inputs[value] if source == "input" else output[value])
                source, value = "tensor", len(tensors) - 1
            recipe.append((source, value))
        ctx.recipe = repr(recipe)
        ctx.save_for_backward(*tensors)
        ctx.present = [argument is not None for argument in inputs]

    def backward_formula(ctx, douts: list[Tensor]):
        dy = [d.contiguous() for d in douts[: len(operation.outputs)]]
        gradients = iter(backward_op(dy, list(ctx.saved_tensors), ctx.recipe))
        return tuple(
            next(gradients) if present and name in operation.differentiable else None
            for name, present in zip(operation.inputs, ctx.present, strict=True)
        )

    forward_op = torch.library.custom_op(
        path, run_forward, mutates_args=(), schema=_schema(operation, signature)
    )
    forward_op.register_fake(run_forward)
    backward_op = torch.library.custom_op(
        f"{path}_backward",
        run_backward,
        mutates_args=(),
        schema="(Tensor[] dy, Tensor[] tensors, str recipe) -> Tensor[]",
    )
    backward_op.register_fake(run_backward)
    forward_op.register_autograd(backward_formula, setup_context=setup_context)

    def apply(*args):
        outputs = forward_op(*args)
        return outputs[0] if single else tuple(outputs[: len(operation.outputs)])

    return apply


def _inference_op(path: str, operation: Operation, inference: Callable) -> Callable:
    """A function that computes the outputs and saves nothing, as a custom op."""

    def run(*inputs) -> list[Tensor]:
        y = inference(*inputs)
        return [y] if len(operation.outputs) == 1 else list(y)

    op = torch.library.custom_op(
        path, run, mutates_args=(), schema=_schema(operation, inspect.signature(inference))
    )
    op.register_fake(run)
    return lambda *args: op(*args)[0] if len(operation.outputs) == 1 else tuple(op(*args))


def _schema(operation: Operation, signature: inspect.Signature) -> str:
    parameters = []
    for name in operation.inputs:
        optional = signature.parameters[name].annotation == Tensor | None
        parameters.append(f"{_TYPES.get(name, 'Tensor?' if optional else 'Tensor')} {name}")
    return f"({', '.join(parameters)}) -> Tensor[]"


def _kind(inputs: tuple) -> tuple:
    """Two calls of one kind save the same things: same dtypes, same layout, same plain numbers."""
    return tuple((x.dtype, x.is_contiguous()) if isinstance(x, Tensor) else x for x in inputs)


def _describe(item, inputs: tuple, outputs: list[Tensor], new: list[Tensor]) -> tuple:
    """Where a backward pass finds one item of `saved`; a tensor met for the first time joins `new`."""
    if not isinstance(item, Tensor):
        return "plain", _plain(item)
    for i, x in enumerate(inputs):
        if item is x:
            return "input", i
    for i, y in enumerate(itertools.chain(outputs, new)):
        if item is y:
            return "output", i
    new.append(item)
    return "output", len(outputs) + len(new) - 1


def _plain(item):
    """Numbers that a compiler's tracing made symbolic become plain again."""
    if isinstance(item, tuple):
        return tuple(_plain(x) for x in item)
    if isinstance(item, torch.SymInt):
        return int(item)
    return float(item) if isinstance(item, torch.SymFloat) else item


_parse = functools.cache(ast.literal_eval)


def _without_aliases(results: list[Tensor], inputs) -> list[Tensor]:
    """A custom op's results may share memory neither with its inputs nor with each other, and a layout that
    depends on how the inputs lie beside each other is not one that a compiler can know."""
    seen = {x.untyped_storage()._cdata for x in inputs if isinstance(x, Tensor)}
    separate = []
    for x in results:
        shared = x.untyped_storage()._cdata in seen or not x.is_contiguous()
        separate.append(x.clone(memory_format=torch.contiguous_format) if shared else x)
        seen.add(separate[-1].untyped_storage()._cdata)
    return separate

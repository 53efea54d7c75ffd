"""Every operation in every engine, dtype and shape, against the float64 reference; and the reference
against finite differences."""

import importlib.util

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operation_cases import (
    CASES,
    TOLERANCE,
    arguments,
    assert_equals_float64_reference,
    draw_like,
    outputs,
    run_pair,
)

import kernels
from kernels import reference
from kernels.autograd import bind, differentiable
from kernels.operations import OPERATIONS

ENGINES = ("reference", "torch")  # those that compute in float64; the others have tests of their own
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def test_every_operation_of_the_table_has_cases_and_both_functions():
    assert {case.operation for case in CASES} == set(OPERATIONS)
    here = [name for name in kernels.ENGINES if name != "triton" or importlib.util.find_spec("triton")]
    for operation in OPERATIONS.values():
        for engine in set(operation.engines) & set(here):
            forward, backward = kernels.pair(engine, operation.name)
            assert callable(forward) and callable(backward)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("engine", ENGINES)
def test_engine_equals_float64_reference(engine, case, dtype, device):
    inputs = arguments(case, dtype, device)
    assert_equals_float64_reference(engine, case, inputs, dtype)


# Not the large ones: a step of 1e-6 is lost beside values of 1e4.
@pytest.mark.parametrize("case", [case for case in CASES if not case.large], ids=str)
def test_reference_gradients_equal_finite_differences(case):
    """gradcheck differentiates numerically, and compares with the pair's backward, in float64."""
    inputs = arguments(case, torch.float64, "cpu")
    operation = OPERATIONS[case.operation]
    inputs = tuple(
        x.requires_grad_() if name in operation.differentiable and x is not None else x
        for name, x in zip(operation.inputs, inputs, strict=True)
    )
    if any(isinstance(x, torch.Tensor) and x.requires_grad and x.numel() == 0 for x in inputs):
        return  # nothing to move
    assert torch.autograd.gradcheck(differentiable("reference", case.operation), inputs)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", [case for case in CASES if case.strided], ids=str)
def test_the_layout_of_inputs_does_not_matter(engine, case):
    inputs = arguments(case, torch.float64, "cpu")
    dense = tuple(x.contiguous() if isinstance(x, torch.Tensor) else x for x in inputs)
    assert any(isinstance(x, torch.Tensor) and not x.is_contiguous() for x in inputs)
    for ours, theirs in zip(run_pair(engine, case, inputs), run_pair(engine, case, dense), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_is_modified_in_place(engine, case):
    inputs = arguments(case, torch.float64, "cpu")
    before = [x.clone() if isinstance(x, torch.Tensor) else x for x in inputs]
    forward, backward = kernels.pair(engine, case.operation)
    y, saved = forward(*inputs)
    copies = [x.clone() if isinstance(x, torch.Tensor) else x for x in saved]
    dy = tuple(torch.ones_like(out) for out in outputs(y))
    backward(dy if len(dy) > 1 else dy[0], saved)
    for old, new in zip(before + copies, [*inputs, *saved], strict=True):
        if isinstance(old, torch.Tensor):
            assert torch.equal(old, new)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bound_operations_have_the_pairs_gradients(case):
    """`bind` on both engines, through autograd, against the pair called by hand."""
    operation = OPERATIONS[case.operation]
    inputs = arguments(case, torch.float64, "cpu")
    expected_y, expected = run_pair("reference", case, inputs)
    for engine in ENGINES:
        live = tuple(
            x.clone().requires_grad_() if name in operation.differentiable and x is not None else x
            for name, x in zip(operation.inputs, inputs, strict=True)
        )
        y = outputs(getattr(bind(engine), case.operation)(*live))
        torch.autograd.backward(y, [draw_like(out, seed) for seed, out in enumerate(y)])
        for a, b in zip(y, expected_y, strict=True):
            torch.testing.assert_close(a.detach(), b, rtol=1e-10, atol=1e-10)
        names = operation.differentiable
        leaves = [x for name, x in zip(operation.inputs, live, strict=True) if name in names]
        for x, gradient in zip(leaves, expected, strict=True):
            if x is not None:
                torch.testing.assert_close(x.grad, gradient, rtol=1e-9, atol=1e-9)


@given(
    B=st.integers(1, 2), T=st.integers(1, 7), more=st.integers(0, 5), H_kv=st.integers(1, 3),
    repeats=st.integers(1, 3), D=st.integers(1, 5), causal=st.booleans(), sink=st.booleans(),
    window=st.none() | st.integers(1, 9), seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_attention_equals_the_naive_formula(B, T, more, H_kv, repeats, D, causal, sink, window, seed):
    """One query at a time, in loops: what attention means, with nothing vectorised to get wrong."""
    rng = np.random.default_rng(seed)
    S, H = T + more, H_kv * repeats
    window = window if causal else None
    q, k, v = (rng.standard_normal(s) for s in ((B, T, H, D), (B, S, H_kv, D), (B, S, H_kv, D)))
    extra = rng.standard_normal(H) if sink else None
    expected = np.zeros((B, T, H, D))
    for b, t, h in np.ndindex(B, T, H):
        here = S - T + t
        first = 0 if window is None else max(0, here - window + 1)
        last = here + 1 if causal else S
        scores = k[b, first:last, h // repeats] @ q[b, t, h] / np.sqrt(D)
        weights = np.exp(scores)
        total = weights.sum() + (np.exp(extra[h]) if sink else 0)
        expected[b, t, h] = weights / total @ v[b, first:last, h // repeats]
    tensors = [None if x is None else torch.from_numpy(x) for x in (q, k, v, extra)]
    for engine in ENGINES:
        y, _ = kernels.pair(engine, "attention")[0](*tensors, causal, window)
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-9, atol=1e-9)


@given(shift=st.floats(-1e4, 1e4), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_softmax_does_not_see_a_shift_and_sums_to_one(shift, seed):
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((3, 17)))
    y, _ = reference.softmax_forward(x + shift)
    torch.testing.assert_close(y, reference.softmax_forward(x)[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(y.sum(-1), torch.ones(3, dtype=x.dtype))


def test_linear_cross_entropy_never_holds_all_logits(monkeypatch):
    monkeypatch.setattr(reference, "CHUNK", 4)
    case = next(case for case in CASES if case.operation == "linear_cross_entropy")
    inputs = arguments(case, torch.float64, "cpu")
    x, weight, targets = inputs[:3]
    rows, V = targets.numel(), weight.shape[0]
    _, saved = reference.linear_cross_entropy_forward(*inputs)
    assert rows > 4
    assert all(s.shape[-1:] != (V,) or s is weight for s in saved if isinstance(s, torch.Tensor))
    whole, _ = reference.cross_entropy_forward(x @ weight.T, targets)
    torch.testing.assert_close(reference.linear_cross_entropy_forward(*inputs)[0], whole)


def test_under_torch_compile_the_gradients_stay():
    ops = bind("reference")

    def f(x, weight):
        y, h = ops.add_rmsnorm(x, ops.gelu(x), weight, 1e-5)
        return (ops.softmax(y) * h).sum()

    x = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 8))).requires_grad_()
    weight = torch.linspace(0.5, 1.5, 8, dtype=torch.float64, requires_grad=True)
    eager = torch.autograd.grad(f(x, weight), (x, weight))
    compiled = torch.autograd.grad(
        torch.compile(f, fullgraph=True, backend="aot_eager")(x, weight), (x, weight)
    )
    for a, b in zip(eager, compiled, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_output_that_nobody_uses_has_no_say(engine):
    x, residual = (torch.from_numpy(np.random.default_rng(s).standard_normal((3, 8))) for s in (0, 1))
    x.requires_grad_()
    y, h = bind(engine).add_rmsnorm(x, residual, torch.ones(8, dtype=torch.float64), 1e-5)
    (from_h,) = torch.autograd.grad(h.sum(), x, retain_graph=True)
    assert (from_h == 1).all()
    dy = draw_like(y, 0)
    expected = reference.rmsnorm_backward(
        dy, reference.rmsnorm_forward(h.detach(), torch.ones_like(x[0]), 1e-5)[1]
    )[0]
    torch.testing.assert_close(torch.autograd.grad(y, x, dy)[0], expected)


@pytest.mark.parametrize("name", ["rmsnorm", "attention", "add", "linear_cross_entropy"])
def test_custom_ops_pass_pytorchs_own_inspection(name):
    differentiable("reference", name)
    case = next(case for case in CASES if case.operation == name)
    inputs = [
        x.requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for x in arguments(case, torch.float64, "cpu")
    ]
    torch.library.opcheck(getattr(torch.ops.course_reference, name).default, inputs)


# Bad input


def test_unknown_engine_and_operation_are_named_with_the_choices():
    with pytest.raises(ValueError, match=r"Unknown engine 'cudnn': choose one of reference, torch, triton"):
        kernels.engine("cudnn")
    with pytest.raises(ValueError, match="Unknown operation 'conv2d': choose one of embedding"):
        kernels.pair("reference", "conv2d")


def test_an_engine_whose_package_is_missing_says_what_to_install(monkeypatch):
    def fail(name):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(kernels.importlib, "import_module", fail)
    with pytest.raises(RuntimeError, match=r"needs the package 'torch'.*pip install torch"):
        kernels.engine("reference")


def test_where_triton_has_no_package_the_engine_says_so(monkeypatch):
    def fail(name):
        raise ModuleNotFoundError("No module named 'triton'", name="triton")

    monkeypatch.setattr(kernels.importlib, "import_module", fail)
    monkeypatch.setattr(kernels.sys, "platform", "darwin")
    with pytest.raises(RuntimeError, match="Triton has packages for Linux only; use Linux or Colab"):
        kernels.engine("triton")
    monkeypatch.setattr(kernels.sys, "platform", "linux")
    with pytest.raises(RuntimeError, match="pip install triton"):
        kernels.engine("triton")


def ones(*shape):
    return torch.ones(shape, dtype=torch.float64)


@pytest.mark.parametrize("engine", kernels.ENGINES)
@pytest.mark.parametrize(
    ("operation", "inputs", "words"),
    [
        ("linear", (ones(2, 3), ones(4, 5)), "last dimension is 3 and the weight's is 5"),
        ("linear", (ones(2, 5), ones(4, 5), ones(3)), r"needs a bias of shape \(4,\), got \(3,\)"),
        ("linear", (ones(2, 5), ones(4, 5), ones(1)), r"needs a bias of shape \(4,\), got \(1,\)"),
        ("gelu_mlp", (ones(2, 3), ones(4, 5), None, ones(3, 4), None), "last dimension is 3"),
        ("gelu_mlp", (ones(2, 3), ones(4, 3), None, ones(3, 5), None), "makes 4 features .* reads 5"),
        (
            "gelu_mlp",
            (ones(2, 3), ones(4, 3), ones(1), ones(3, 4), None),
            r"bias of shape \(4,\), got \(1,\)",
        ),
        ("rmsnorm", (ones(2, 3), ones(4), 1e-5), "last dimension is 3 and the weight's is 4"),
        ("layernorm", (ones(2, 3), ones(4), ones(4), 1e-5), "last dimension is 3"),
        ("rope", (ones(1, 2, 1, 3), ones(2, 1), ones(2, 1)), "D even"),
        ("rope", (ones(1, 2, 1, 4), ones(3, 2), ones(3, 2)), r"tables must have shape \(2, 2\)"),
        ("attention", (ones(1, 2, 3, 4), ones(1, 2, 2, 4), ones(1, 2, 2, 4)), "3 query heads"),
        ("attention", (ones(1, 3, 1, 4), ones(1, 2, 1, 4), ones(1, 2, 1, 4)), "at least as many keys"),
        ("attention", (*[ones(1, 2, 1, 4)[:, :0]] * 3,), "a softmax over no keys"),
        ("attention", (ones(1, 2, 1, 4), ones(1, 2, 1, 5), ones(1, 2, 1, 5)), "do not agree"),
        ("attention", (ones(2, 1, 4), ones(2, 1, 4), ones(2, 1, 4)), r"expected q \(B, T, H, D\)"),
        ("attention", (*[ones(1, 2, 1, 4)] * 3, None, True, 0), "window = 0"),
        ("attention", (*[ones(1, 2, 1, 4)] * 3, ones(2)), "one sink a head"),
        ("cross_entropy", (ones(2, 3), torch.zeros(3, dtype=torch.long)), r"need targets of shape \(2,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_in_words(engine, operation, inputs, words):
    pytest.importorskip(engine if engine == "triton" else "torch")
    if engine not in OPERATIONS[operation].engines:
        pytest.skip(f"the engine {engine} has no {operation}")
    forward, _ = kernels.pair(engine, operation)
    with pytest.raises(ValueError, match=words):
        forward(*inputs)
    with pytest.raises(ValueError, match=words):
        getattr(bind(engine), operation)(*inputs)


@pytest.mark.parametrize("engine", ["reference", "torch"])
def test_attention_over_nothing_but_a_sink_is_0(engine):
    q, k, sink = ones(1, 2, 1, 16), ones(1, 0, 1, 16), ones(1)
    forward, backward = kernels.pair(engine, "attention")
    y, saved = forward(q, k, k, sink, False, None, None)
    assert torch.equal(y, torch.zeros_like(q))
    for gradient, x in zip(backward(torch.ones_like(y), saved), (q, k, k, sink), strict=True):
        assert torch.equal(gradient, torch.zeros_like(x))

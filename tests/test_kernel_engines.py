"""The engines that are kernels of our own, triton and cuda, on all the shared cases: values, gradients and
errors, interpreted or emulated, or on this machine's GPU."""

import numpy as np
import pytest
import torch
from operation_cases import CASES, TOLERANCE, arguments, draw_like, outputs, run_pair
from operation_cases import assert_equals_float64_reference as assert_equals_reference
from torch._subclasses import FakeTensorMode

import kernels
from course.config import preset
from course.device import DEVICE
from course.initial import initial_weights
from course.model import Transformer
from kernels import reference
from kernels.autograd import differentiable
from kernels.operations import OPERATIONS

ENGINES = ("triton", "cuda")
FIRST = {case.operation: case for case in reversed(CASES)}  # one case of each operation
DTYPES = [dtype for dtype in TOLERANCE if dtype != torch.float64]


@pytest.fixture(params=ENGINES)
def engine(request) -> str:
    if request.param == "triton":
        pytest.importorskip("triton", reason="Triton has no package for this platform")
    return request.param


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    numbers = np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(numbers).float().to(DEVICE)


# Values


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_engine_equals_float64_reference(engine, case, dtype):
    assert_equals_reference(engine, case, arguments(case, dtype, DEVICE), dtype)


@pytest.mark.parametrize("case", FIRST.values(), ids=str)
def test_the_layout_of_output_gradients_does_not_matter(engine, case):
    """Gaps between features, and one number for all of them, as `y.sum().backward()` makes it."""
    forward, backward = kernels.pair(engine, case.operation)
    y, saved = forward(*arguments(case, torch.float32, DEVICE))
    y = outputs(y)

    def gaps(x):
        return torch.stack((x, x), dim=-1)[..., 0]

    def alike(x):
        return torch.ones((), device=DEVICE).expand(x.shape)

    for layout in (gaps, alike):
        dy = tuple(layout(draw_like(out, seed)) for seed, out in enumerate(y))
        dense = tuple(d.contiguous() for d in dy)
        got = outputs(backward(dy if len(y) > 1 else dy[0], saved))
        expected = outputs(backward(dense if len(y) > 1 else dense[0], saved))
        for a, b in zip(got, expected, strict=True):  # compiled for another layout, it may round otherwise
            assert a is b is None or torch.allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", FIRST.values(), ids=str)
def test_two_runs_give_the_same_bits_and_modify_nothing(engine, case):
    inputs = arguments(case, torch.float32, DEVICE)
    before = [x.clone() if isinstance(x, torch.Tensor) else x for x in inputs]
    first, second = run_pair(engine, case, inputs), run_pair(engine, case, inputs)
    for a, b in zip((*first[0], *first[1]), (*second[0], *second[1]), strict=True):
        assert a is b is None or torch.equal(a, b)
    for old, new in zip(before, inputs, strict=True):
        assert torch.equal(old, new) if isinstance(old, torch.Tensor) else old == new


# Under autograd and compilers


@pytest.mark.parametrize("case", FIRST.values(), ids=str)
def test_bound_operations_have_the_pairs_gradients(engine, case):
    operation = OPERATIONS[case.operation]
    inputs = arguments(case, torch.float32, DEVICE)
    live = tuple(
        x.clone().requires_grad_() if name in operation.differentiable and x is not None else x
        for name, x in zip(operation.inputs, inputs, strict=True)
    )
    expected_y, expected = run_pair(engine, case, inputs)
    y = outputs(differentiable(engine, case.operation)(*live))
    torch.autograd.backward(y, [draw_like(out, seed) for seed, out in enumerate(y)])
    for a, b in zip(y, expected_y, strict=True):
        assert torch.equal(a.detach(), b)
    leaves = [x for name, x in zip(operation.inputs, live, strict=True) if name in operation.differentiable]
    for x, gradient in zip(leaves, expected, strict=True):
        assert x is gradient is None or torch.equal(x.grad, gradient)


@pytest.mark.parametrize("case", FIRST.values(), ids=str)
def test_custom_ops_pass_pytorchs_own_inspection(engine, case):
    differentiable(engine, case.operation)
    inputs = [
        x.requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for x in arguments(case, torch.float32, DEVICE)
    ]
    ours = getattr(torch.ops, f"course_{engine}")
    torch.library.opcheck(getattr(ours, case.operation).default, inputs)


@pytest.mark.parametrize("case", FIRST.values(), ids=str)
def test_tensors_without_data_launch_nothing_and_tell_the_shapes(engine, case):
    inputs = arguments(case, torch.float32, DEVICE)
    y, gradients = run_pair(engine, case, inputs)
    mode = FakeTensorMode()
    forward, backward = kernels.pair(engine, case.operation)
    with mode:
        fake = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in inputs]
        fake_y, saved = forward(*fake)
        dy = tuple(torch.empty_like(out) for out in outputs(fake_y))
        fake_gradients = backward(dy if len(dy) > 1 else dy[0], saved)
    for real, shape in zip((*y, *gradients), (*outputs(fake_y), *outputs(fake_gradients)), strict=True):
        assert real is shape is None or (real.shape, real.dtype) == (shape.shape, shape.dtype)


@pytest.mark.parametrize("name", ["modern", "gpt2"])
def test_a_transformer_has_the_references_gradients(engine, name):
    config = preset(name, vocab_size=31, context_length=12, n_layer=2, n_head=2, d_model=32)
    weights = initial_weights(config, seed=1)
    ids = torch.from_numpy(np.random.default_rng(3).integers(0, 31, (2, 12))).to(DEVICE)
    results = [
        Transformer(config, engine, weights=weights, device=DEVICE).loss_and_gradients(
            ids[:, :-1], ids[:, 1:]
        )
        for engine in (engine, "reference")
    ]
    (loss, gradients), (expected_loss, expected) = results
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)
    # Softmax does not see a bias of the keys: its gradient is zero, and what is computed is all rounding.
    least = 1e-3 * max(gradient.norm() for gradient in expected.values())
    for parameter, gradient in expected.items():
        error = (gradients[parameter] - gradient).norm() / max(gradient.norm(), least)
        assert error < 1e-4, parameter


# Bad input


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((2, 3, 4, 5), (3, 1, 5)),
        ((5,), (2, 3, 4, 5)),
        ((2, 1, 4, 1), (1, 3, 1, 5)),
        ((2, 1, 3, 1, 2, 1, 4), (1, 3, 1, 2, 1, 5, 1)),  # more dimensions than the kernels have
        ((4, 64, 8), (64, 8)),  # in vectors of four
        ((), (2, 3)),
        ((4, 0), (4, 1)),
        ((1, 1), (1,)),
    ],
    ids=str,
)
def test_broadcasting_and_its_sums(engine, a, b):
    operations = kernels.engine(engine)
    a, b = drawn(*a), drawn(*b, seed=1)
    for name in ("add", "mul"):
        y, saved = getattr(operations, f"{name}_forward")(a, b)
        torch.testing.assert_close(y, a + b if name == "add" else a * b)
        dy = drawn(*y.shape, seed=2)
        gradients = getattr(operations, f"{name}_backward")(dy, saved)
        expected = getattr(reference, f"{name}_backward")(dy, saved)
        for ours, theirs in zip(gradients, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", FIRST.values(), ids=str)
def test_dtypes_that_kernels_do_not_have_are_refused(engine, case):
    forward, _ = kernels.pair(engine, case.operation)
    with pytest.raises(TypeError, match=rf"{case.operation}: .*float64"):
        forward(*arguments(case, torch.float64, DEVICE))


@pytest.mark.parametrize("case", FIRST.values(), ids=str)
def test_tensors_on_two_devices_are_refused(engine, case):
    inputs = list(arguments(case, torch.float32, DEVICE))
    tensors = [i for i, x in enumerate(inputs) if isinstance(x, torch.Tensor)]
    if len(tensors) == 1:
        pytest.skip("one tensor is on one device")
    inputs[tensors[-1]] = inputs[tensors[-1]].to("meta")
    with pytest.raises(ValueError, match=rf"{case.operation}: tensors on .*meta"):
        kernels.pair(engine, case.operation)[0](*inputs)


def test_dtypes_are_not_mixed(engine):
    x, weight = drawn(2, 8), drawn(8).bfloat16()
    with pytest.raises(TypeError, match=r"float32 and of torch\.bfloat16; convert all to one dtype"):
        kernels.engine(engine).rmsnorm_forward(x, weight, 1e-5)


@pytest.mark.parametrize("operation", ["embedding", "cross_entropy", "linear_cross_entropy"])
def test_fractions_are_no_ids_and_no_targets(engine, operation):
    ids = torch.tensor([0.5, 1.7], device=DEVICE)
    x, table = drawn(2, 8), drawn(4, 8)
    inputs = {"embedding": (ids, table), "cross_entropy": (x, ids), "linear_cross_entropy": (x, table, ids)}
    with pytest.raises(TypeError, match=rf"{operation}: (ids|targets) must be integers, not torch\.float32"):
        kernels.pair(engine, operation)[0](*inputs[operation])


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("case", FIRST.values(), ids=str)
def test_a_cuda_graph_replays_an_operation(engine, case):
    """Nothing in a call waits for the GPU; captured once, it computes anew from its inputs."""
    inputs = arguments(case, torch.float32, "cuda")
    run_pair(engine, case, inputs)  # compiles
    forward, backward = kernels.pair(engine, case.operation)
    dy = tuple(draw_like(out, seed) for seed, out in enumerate(run_pair(engine, case, inputs)[0]))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, saved = forward(*inputs)
        gradients = backward(dy if len(dy) > 1 else dy[0], saved)
    for x in inputs:
        if isinstance(x, torch.Tensor) and x.is_floating_point():
            x.mul_(0.5)
    graph.replay()
    expected_y, expected = run_pair(engine, case, inputs)
    for a, b in zip((*outputs(y), *outputs(gradients)), (*expected_y, *expected), strict=True):
        assert a is b is None or torch.equal(a, b)

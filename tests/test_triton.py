"""The triton engine: values, gradients and errors, in the interpreter or on this machine's GPU; and every
kernel compiled for every GPU that the course is taken on."""

import json

import another_python
import numpy as np
import pytest
import torch
from operation_cases import CASES, TOLERANCE, outputs
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
from course.device import DEVICE
from kernels import reference
from kernels.autograd import FUSED, bind
from kernels.operations import OPERATIONS

pytest.importorskip("triton", reason="Triton has no package for this platform")

from kernels.triton import norms, softmax
from kernels.triton.ahead import GPUS

OURS = [name for name, operation in OPERATIONS.items() if "triton" in operation.engines]
CASES = [case for case in CASES if case.operation in OURS]
FIRST = {case.operation: case for case in reversed(CASES)}  # one case of each operation
DTYPES = [dtype for dtype in TOLERANCE if dtype != torch.float64]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    numbers = np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(numbers).float().to(DEVICE)


# Values


@pytest.fixture
def narrow_programs(monkeypatch):
    """The widest block made 16 columns."""
    shapes = (norms._forward_shape, norms._backward_shape, softmax._shape)
    monkeypatch.setattr(norms, "WIDEST", 16)
    monkeypatch.setattr(softmax, "WIDEST", 16)
    for shape in shapes:
        shape.cache_clear()
    yield
    for shape in shapes:
        shape.cache_clear()


@pytest.mark.parametrize("C", [1, 5, 16, 17, 40])
@pytest.mark.parametrize("n", [1, 7])
def test_rows_wider_than_a_program(narrow_programs, n, C):
    """Rows of one block, of one full block, and of several."""
    x, residual, dy, dh = (drawn(n, C, seed=seed) for seed in range(4))
    weight, bias = drawn(C, seed=4), drawn(C, seed=5)
    for operation, inputs, d in (
        ("rmsnorm", (x, weight, 1e-5), dy),
        ("layernorm", (x, weight, bias, 0.1), dy),  # of one column x - μ is 0: do not divide by √ε ≈ 0
        ("add_rmsnorm", (x, residual, weight, 1e-5), (dy, dh)),
        ("add_layernorm", (x, residual, weight, bias, 0.1), (dy, dh)),
        ("softmax", (x,), dy),
    ):
        results = []
        for engine in ("triton", "reference"):
            forward, backward = kernels.pair(engine, operation)
            y, saved = forward(*inputs)
            results.append((*outputs(y), *outputs(backward(d, saved))))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("blocks", ["one", "several"])
def test_softmax_of_masked_scores(request, blocks):
    if blocks == "several":
        request.getfixturevalue("narrow_programs")
    x = torch.full((2, 40), -torch.inf, device=DEVICE)
    x[0, 30], x[1, 2], x[1, 39] = 1.0, 3e4, 3e4 + 1
    torch.testing.assert_close(softmax.softmax_forward(x)[0], torch.softmax(x, -1))


# Under autograd and compilers


def test_a_custom_op_has_one_layout_wherever_its_inputs_lie():
    """A compiler is told the layout by tensors without data, which are no neighbours of each other."""

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    attention = bind("triton").attention
    q, k, v = (piece.requires_grad_() for piece in drawn(1, 9, 8, 16).split((4, 2, 2), dim=2))
    expected = torch.autograd.grad(attention(q, k, v).sum(), (q, k, v))
    with Watching():  # makes the pair two custom ops
        gradients = torch.autograd.grad(attention(q, k, v).sum(), (q, k, v))
    for got, exact in zip(gradients, expected, strict=True):
        assert torch.equal(got, exact) and got.is_contiguous() and not exact.is_contiguous()


def test_under_torch_compile_the_gradients_stay():
    ops = bind("triton")

    def f(x, weight):
        y, h = ops.add_rmsnorm(x, x * x, weight, 1e-5)
        return (ops.softmax(y) * h).sum()

    x, weight = drawn(3, 8).requires_grad_(), torch.linspace(0.5, 1.5, 8, device=DEVICE, requires_grad=True)
    eager = torch.autograd.grad(f(x, weight), (x, weight))
    compiled = torch.autograd.grad(
        torch.compile(f, fullgraph=True, backend="aot_eager")(x, weight), (x, weight)
    )
    for a, b in zip(eager, compiled, strict=True):
        torch.testing.assert_close(a, b)


# Bad input


def test_a_residual_or_bias_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"x \(2, 8\) and residual \(8,\) differ"):
        norms.add_rmsnorm_forward(drawn(2, 8), drawn(8), drawn(8), 1e-5)
    with pytest.raises(ValueError, match=r"weight \(8,\) and bias \(1,\) differ"):
        norms.layernorm_forward(drawn(2, 8), drawn(8), drawn(1), 1e-5)


def test_gradients_of_another_shape_are_refused():
    _, saved = softmax.softmax_forward(drawn(3, 8))
    with pytest.raises(ValueError, match=r"shape \(3, 8\) has no gradient \(2, 8\)"):
        softmax.softmax_backward(drawn(2, 8), saved)
    _, saved = norms.rmsnorm_forward(drawn(3, 8), drawn(8), 1e-5)
    with pytest.raises(ValueError, match=r"shape \(3, 8\) has no gradient \(2, 8\)"):
        norms.rmsnorm_backward(drawn(2, 8), saved)


# On a GPU


@pytest.mark.gpu
def test_large_tensors_are_deterministic():
    """Many programs, many partial sums: the bits do not depend on which program is first."""
    x, dy, weight = drawn(5000, 1000), drawn(5000, 1000, seed=1), drawn(1000, seed=2)
    _, saved = norms.layernorm_forward(x, weight, weight, 1e-5)
    first = norms.layernorm_backward(dy, saved)
    for _ in range(20):
        for a, b in zip(first, norms.layernorm_backward(dy, saved), strict=True):
            assert torch.equal(a, b)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_kernels_run_where_the_tensors_are():
    x, weight = drawn(4, 8).to("cuda:1"), drawn(8).to("cuda:1")
    y, _ = norms.rmsnorm_forward(x, weight, 1e-5)
    assert y.device == x.device and torch.cuda.current_device() == 0
    torch.testing.assert_close(y, reference.rmsnorm_forward(x, weight, 1e-5)[0])


def test_tensors_on_the_cpu_without_the_interpreter_are_refused():
    program = (
        "import torch, kernels\n"
        "try: kernels.engine('triton').rmsnorm_forward(torch.ones(2, 8), torch.ones(8), 1e-5)\n"
        "except RuntimeError as error: print(error)"
    )
    finished = another_python.run("-c", program)
    assert "rmsnorm: Triton's kernels run on a GPU" in finished.stdout, finished.stderr
    assert "TRITON_INTERPRET=1" in finished.stdout


# Compiled for every GPU


@pytest.mark.compiles
@pytest.mark.parametrize("gpu", GPUS)
def test_every_kernel_compiles_for_every_gpu(gpu):
    """Exactly what the operations would launch there, within its shared memory and registers."""
    finished = another_python.run("tests/compile_for_gpus.py", gpu)
    assert finished.returncode == 0, finished.stderr
    launches = [json.loads(line) for line in finished.stdout.splitlines()]
    fused = {operation.name for operation in FUSED} - {"linear_onto"}  # the library's product alone
    assert {launch["what"].split("-")[0] for launch in launches} == {*OURS, *fused}
    for launch in launches:
        assert launch["machine_code"] > 0
        assert launch["shared"] <= GPUS[gpu].shared, launch
        assert launch["stack"] <= 1024, "a tile that is far too large for the registers"
        if launch["what"] == "rmsnorm-wide bfloat16" and launch["kernel"] == "_norm_forward":
            assert launch["loads"] == 4, "a row must be loaded once: two loads of x and two of the weight"

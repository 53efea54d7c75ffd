"""The cuda engine's rows, sums, embedding and losses: what the shared cases do not reach."""

import numpy as np
import pytest
import torch

import kernels
from course.device import DEVICE
from kernels import reference
from kernels.cuda import elementwise, embedding, losses, norms, rope, rows, softmax

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NAMED = {"ids": lambda dtype: str(dtype)[6:]}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    numbers = np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(numbers).float().to(DEVICE)


def assert_close(got, expected, dtype=torch.float32):
    tolerance = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    error = (got.double() - expected).norm() / max(expected.norm(), 0.1)  # some are but rounding
    assert error <= tolerance, f"{error:.1e}"


# Rows


WIDTHS = [1, 8, 31, 33, 256, 1000, 1032, 2050, 8200, 8201]


@pytest.mark.parametrize("dtype", DTYPES, **NAMED)
@pytest.mark.parametrize("C", WIDTHS)
def test_rows_of_any_width(C, dtype):
    """A lane, a warp, a block; with one number at a time and with many, whole chunks and parts of one."""
    assert_rows_are_right(C, dtype)


def assert_rows_are_right(C: int, dtype: torch.dtype):
    x, residual, dy, dh = (drawn(5, C, seed=seed).to(dtype) for seed in range(4))
    weight, bias = (drawn(C, seed=seed).to(dtype) for seed in (4, 5))
    for operation, inputs, d in (
        ("softmax", (x,), dy),
        ("rmsnorm", (x, weight, 0.1), dy),  # of one column x - μ is 0: do not divide by √ε ≈ 0
        ("layernorm", (x, weight, bias, 0.1), dy),
        ("add_layernorm", (x, residual, weight, bias, 0.1), (dy, dh)),
    ):
        exact = [z.double() if isinstance(z, torch.Tensor) else z for z in inputs]
        if operation == "add_layernorm":  # of what is stored
            exact[:2] = (x + residual).double(), torch.zeros_like(x).double()
        results = []
        for engine, given, gradient in (("cuda", inputs, d), ("reference", exact, _double(d))):
            forward, backward = kernels.pair(engine, operation)
            y, saved = forward(*given)
            gradients = backward(gradient, saved)
            results.append((*_tuple(y), *_tuple(gradients)))
        for ours, theirs in zip(*results, strict=True):
            assert_close(ours, theirs, dtype)


def _double(d):
    return tuple(x.double() for x in d) if isinstance(d, tuple) else d.double()


def _tuple(y) -> tuple:
    return y if isinstance(y, tuple) else (y,)


def test_the_threads_of_a_row_grow_with_its_width():
    assert rows._shape(768, 8, 1024, 16, 1024, None) == (32, 4, 3, 8, True, True)
    assert rows._shape(8192, 8, 1024, 16, 1024, None) == (512, 1, 2, 8, True, True)
    odd = 50257  # no multiple of 8: one by one
    assert rows._shape(odd, 8, 1024, 16, 1024, 16384) == (1024, 1, 16, 1, False, False)
    for C in range(1, 5000, 7):
        how = rows._shape(C, 8, 1024, 16, 1024, None)
        held = how.ROW_THREADS * how.PIECES * how.VECTOR
        assert held >= C and C % how.VECTOR == 0 and how.threads <= 1024
        assert how.HELD and how.EXACT is (held == C)


@pytest.mark.parametrize("dtype", DTYPES, **NAMED)
@pytest.mark.parametrize("C", [70, 128, 1500])
def test_rows_that_a_block_cannot_hold_go_through_it_in_chunks(monkeypatch, C, dtype):
    for module in (softmax, losses):
        monkeypatch.setattr(module, "WIDEST", 64)
    plans = softmax._forward_plan, softmax._backward_plan, losses._plan
    for plan in plans:
        plan.cache_clear()
    x, dy = drawn(3, C).to(dtype), drawn(3, C, seed=1).to(dtype)
    y, saved = softmax.softmax_forward(x)
    exact = torch.softmax(x.double(), -1)
    assert_close(y, exact, dtype)
    assert_close(
        softmax.softmax_backward(dy, saved), reference.softmax_backward(dy.double(), (y.double(),)), dtype
    )
    targets = torch.tensor([C - 1, -100, 3], device=DEVICE)
    loss, saved = losses.cross_entropy_forward(x, targets)
    expected, exact = reference.cross_entropy_forward(x.double(), targets)
    assert_close(loss, expected)
    one = torch.ones((), device=DEVICE)
    assert_close(
        losses.cross_entropy_backward(one, saved), reference.cross_entropy_backward(one, exact), dtype
    )
    weight = drawn(C, 8, seed=2).to(dtype)
    loss, _ = losses.linear_cross_entropy_forward(drawn(3, 8, seed=3).to(dtype), weight, targets)
    logits = drawn(3, 8, seed=3).to(dtype).double() @ weight.double().T
    assert_close(loss, reference.cross_entropy_forward(logits, targets)[0], dtype)
    for plan in plans:
        plan.cache_clear()


def test_softmax_of_masked_scores():
    x = torch.full((2, 40), -torch.inf, device=DEVICE)
    x[0, 30], x[1, 2], x[1, 39] = 1.0, 3e4, 3e4 + 1
    torch.testing.assert_close(softmax.softmax_forward(x)[0], torch.softmax(x, -1))


@pytest.mark.parametrize("C", [64, 2048])
def test_rows_that_begin_anywhere(C):
    """Vectors of 16 bytes need addresses that are multiples of 16; a view may begin between them."""
    memory = drawn(3 * C + 8)
    for first in (0, 1, 4):
        x = memory[first : first + 3 * C].view(3, C)
        assert_close(softmax.softmax_forward(x)[0], torch.softmax(x.double(), -1))
        spread = drawn(3, C + 6)[:, first : first + C]  # rows at a distance that is no multiple of 4
        assert_close(softmax.softmax_forward(spread)[0], torch.softmax(spread.double(), -1))


def test_a_large_mean_leaves_the_variance_its_digits():
    x = drawn(4, 256) + 1e4
    weight = torch.ones(256, device=DEVICE)
    y, _ = norms.layernorm_forward(x, weight, torch.zeros_like(weight), 1e-5)
    exact, _ = reference.layernorm_forward(x.double(), weight.double(), weight.double() * 0, 1e-5)
    assert (y.double() - exact).norm() / exact.norm() < 1e-3  # of single squares nothing would be left


@pytest.mark.parametrize("n", [1, 2, 7, 33])
def test_weight_gradients_sum_over_any_number_of_rows(n):
    for C in (24, 1100):
        x, dy, weight = drawn(n, C), drawn(n, C, seed=1), drawn(C, seed=2)
        _, saved = norms.layernorm_forward(x, weight, weight, 1e-5)
        got = norms.layernorm_backward(dy, saved)
        exact = [z.double() for z in (x, weight, weight)]
        expected = reference.layernorm_backward(dy.double(), reference.layernorm_forward(*exact, 1e-5)[1])
        for ours, theirs in zip(got, expected, strict=True):
            assert_close(ours, theirs)
        again = norms.layernorm_backward(dy, saved)
        assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@pytest.fixture
def shared_memory_of_an_h100(monkeypatch):
    monkeypatch.setattr(norms, "shared_memory", lambda device: 227 * 1024)
    norms._backward_plan.cache_clear()
    yield
    norms._backward_plan.cache_clear()


@pytest.mark.skipif(
    DEVICE.type == "cuda", reason="a GPU has what it has, and the rows above were run with it"
)
@pytest.mark.parametrize("dtype", DTYPES, **NAMED)
def test_wide_rows_where_the_next_ones_have_room(dtype, shared_memory_of_an_h100):
    assert_rows_are_right(8200, dtype)


def test_rows_of_nothing():
    for shape in ((0, 8), (3, 0)):
        x = torch.empty(shape, device=DEVICE)
        y, saved = softmax.softmax_forward(x)
        assert y.shape == shape and softmax.softmax_backward(x, saved).shape == shape
    x, weight = torch.empty((0, 8), device=DEVICE), torch.ones(8, device=DEVICE)
    y, saved = norms.layernorm_forward(x, weight, weight, 1e-5)
    dx, dweight, dbias = norms.layernorm_backward(y, saved)
    assert dx.shape == (0, 8) and not dweight.any() and not dbias.any()


# Embedding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], **NAMED)
@pytest.mark.parametrize("C", [6, 8, 300])
@pytest.mark.parametrize(
    "ids", [[3] * 300, [0] * 4 + [4] * 40 + [1] * 9, [2, 0, 4, 2, 2, 1, 0, 2], [], list(range(5))], ids=len
)
@pytest.mark.parametrize("comparisons", [0, embedding.MOST_COMPARISONS], ids=["sorted", "compared"])
def test_rows_that_many_tokens_share_sum_their_gradients(monkeypatch, comparisons, ids, C, dtype):
    monkeypatch.setattr(embedding, "MOST_COMPARISONS", comparisons)
    ids = torch.tensor(ids, dtype=torch.long, device=DEVICE)
    dy = drawn(len(ids), C).to(dtype)
    got = embedding.embedding_backward(dy, (ids, 5))
    expected = reference.embedding_backward(dy.double(), (ids, 5))
    assert_close(got, expected, dtype)
    assert torch.equal(got, embedding.embedding_backward(dy, (ids, 5)))


@pytest.mark.parametrize("comparisons", [0, embedding.MOST_COMPARISONS], ids=["sorted", "compared"])
def test_an_id_that_is_not_in_the_table(monkeypatch, comparisons):
    monkeypatch.setattr(embedding, "MOST_COMPARISONS", comparisons)
    ids = torch.tensor([1, -1, 5, 10**10, 4], device=DEVICE)
    weight, dy = drawn(5, 3), drawn(5, 3, seed=1)
    y, saved = embedding.embedding_forward(ids, weight)
    assert torch.equal(y[[0, 4]], weight[[1, 4]]) and y[1:4].isnan().all()
    dweight = embedding.embedding_backward(dy, saved)
    assert torch.equal(dweight[[1, 4]], dy[[0, 4]]) and not dweight[[0, 2, 3]].any()


def test_ids_of_32_bits_and_ids_that_are_no_integers():
    weight = drawn(5, 8)
    ids = torch.tensor([[4, 0], [2, 2]], dtype=torch.int32, device=DEVICE)
    y, saved = embedding.embedding_forward(ids, weight)
    assert torch.equal(y, weight[ids.long()])
    assert embedding.embedding_backward(y, saved).shape == (5, 8)
    with pytest.raises(TypeError, match=r"ids must be integers, not torch\.float32"):
        embedding.embedding_forward(drawn(3), weight)


# Sums and products


@pytest.mark.parametrize("R", [0, 1, 7, 128, 300])
def test_long_sums_in_pieces(R):
    x = drawn(2, R, 5)
    got = elementwise.sum_middle(x)
    torch.testing.assert_close(got, x.sum(1), rtol=1e-5, atol=1e-5)
    assert torch.equal(got, elementwise.sum_middle(x))


def test_strides_of_any_kind():
    a, b = drawn(5, 4, 6).permute(2, 0, 1), drawn(12, 5, 8, seed=1)[::2, :, ::2]
    torch.testing.assert_close(elementwise.add_forward(a, b)[0], a + b)
    torch.testing.assert_close(elementwise.mul_forward(a[0].T, b[0].T)[0], a[0].T * b[0].T)


@pytest.mark.parametrize("n", [1, 7, 8, 1025])
@pytest.mark.parametrize("first", [0, 1])
def test_the_last_numbers_go_one_by_one(n, first):
    x, dy = drawn(n + first)[first:], drawn(n + first, seed=1)[first:]
    y, saved = elementwise.gelu_forward(x)
    assert_close(y, torch.nn.functional.gelu(x.double(), approximate="tanh"))
    assert_close(elementwise.gelu_backward(dy, saved), reference.gelu_backward(dy.double(), (x.double(),)))
    gate, up = elementwise.swiglu_backward(dy, (x, dy))
    expected = reference.swiglu_backward(dy.double(), (x.double(), dy.double()))
    assert_close(gate, expected[0])
    assert_close(up, expected[1])


# Losses


def test_chunks_of_logits_make_the_same_gradients(monkeypatch):
    x, weight = drawn(300, 8), drawn(40, 8, seed=1)
    targets = torch.from_numpy(np.random.default_rng(0).integers(0, 40, 300)).to(DEVICE)
    one = torch.ones((), device=DEVICE)
    for dtype in (torch.float32, torch.bfloat16):
        inputs = x.to(dtype), weight.to(dtype)
        exact, saved = reference.linear_cross_entropy_forward(*(z.double() for z in inputs), targets)
        expected = reference.linear_cross_entropy_backward(one, saved)
        for bytes_ in (2**30, 1):  # all rows at once, and 128 at a time
            monkeypatch.setattr(losses, "CHUNK_BYTES", bytes_)
            loss, saved = losses.linear_cross_entropy_forward(*inputs, targets)
            gradients = losses.linear_cross_entropy_backward(one, saved)
            assert loss.item() == pytest.approx(exact.item(), rel=1e-5 if dtype == torch.float32 else 1e-3)
            for ours, theirs in zip(gradients, expected, strict=True):
                assert ours.dtype == dtype
                assert_close(ours, theirs, dtype)
            alone = losses.linear_cross_entropy_inference(*inputs, targets)
            assert alone.item() == pytest.approx(loss.item(), rel=1e-6)


def test_targets_that_are_no_class_and_losses_of_no_token():
    logits = drawn(3, 8)
    for bad in (-1, 8):
        loss, _ = losses.cross_entropy_forward(logits, torch.tensor([1, bad, 2], device=DEVICE))
        assert loss.isnan()
    none = torch.full((3,), -100, device=DEVICE)
    assert losses.cross_entropy_forward(logits, none)[0].isnan()
    with pytest.raises(TypeError, match="targets must be integers"):
        losses.cross_entropy_forward(logits, drawn(3))
    with pytest.raises(ValueError, match="one number"):
        losses.cross_entropy_backward(drawn(3), losses.cross_entropy_forward(logits, none)[1])


# Rotations, and bad input


@pytest.mark.parametrize("D", [6, 32])
def test_rotating_views_and_back(D):
    fused = drawn(2, 5, 3, 2 * D)
    x = fused[..., D:]  # of several projections computed together
    angles = torch.arange(5.0 * D // 2, device=DEVICE).view(5, D // 2)
    y, saved = rope.rope_forward(x, angles.cos(), angles.sin())
    assert_close(y, reference.rope_forward(x.double(), angles.cos().double(), angles.sin().double())[0])
    assert_close(rope.rope_backward(y, saved), x.double())


def test_gradients_of_another_shape_are_refused():
    """A kernel would read past their end."""
    x, ids = drawn(3, 8), torch.zeros(3, dtype=torch.long, device=DEVICE)
    tables = drawn(3, 4), drawn(3, 4)
    for operation, inputs, dy in (
        ("softmax", (x,), drawn(2, 8)),
        ("layernorm", (x, x[0], x[0], 1e-5), drawn(2, 8)),
        ("gelu", (x,), drawn(2, 8)),
        ("swiglu", (x, x), drawn(3, 7)),
        ("add", (x, x[0]), drawn(8)),
        ("mul", (x, x[0]), drawn(1, 3, 8)),
        ("embedding", (ids, x), drawn(2, 8)),
        ("rope", (drawn(1, 3, 2, 8), *tables), drawn(1, 4, 2, 8)),
    ):
        forward, backward = kernels.pair("cuda", operation)
        with pytest.raises(ValueError, match=operation):
            backward(dy, forward(*inputs)[1])


def test_inputs_of_another_shape_are_refused():
    x, w = drawn(2, 8), drawn(8)
    for call, words in (
        (lambda: norms.add_rmsnorm_forward(x, w, w, 1e-5), r"x \(2, 8\) and residual \(8,\)"),
        (lambda: norms.layernorm_forward(x, w, drawn(1), 1e-5), r"weight \(8,\) and bias \(1,\)"),
        (lambda: elementwise.swiglu_forward(x, w), r"gate \(2, 8\) and up \(8,\) must have one shape"),
        (lambda: losses.linear_cross_entropy_forward(x, drawn(5, 8), torch.zeros(3).long()), "needs targets"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


@pytest.mark.gpu
def test_large_arrays_are_deterministic():
    """Many blocks, many partial sums: the bits do not depend on which block is first."""
    for C in (1000, 4096):
        x, dy, weight = drawn(5000, C), drawn(5000, C, seed=1), drawn(C, seed=2)
        _, saved = norms.layernorm_forward(x, weight, weight, 1e-5)
        first = norms.layernorm_backward(dy, saved)
        for _ in range(20):
            for a, b in zip(first, norms.layernorm_backward(dy, saved), strict=True):
                assert torch.equal(a, b)

"""What a training step is made of: the kinds of kernels, and the counting of operations and launches."""

import importlib
import pkgutil
from pathlib import Path

import numpy as np
import pytest
import torch

import kernels.cuda
from course import device, profiling
from course.config import ModelConfig
from course.model import Transformer
from kernels.cuda import matmul
from kernels.cuda.signature import signatures

CPU_ONLY = pytest.mark.skipif(device.DEVICE.type == "cuda", reason="counts operations on a CPU")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_NNT", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "matrix products"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_bf16>(Params)", "matrix products"),
        (
            "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, cutlass::bfloat16_t>>",
            "attention",
        ),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_3_64x64x128", "attention"),
        ("void at::native::(anonymous namespace)::cunn_SoftMaxForward<4, float>()", "loss"),
        ("void at::native::(anonymous namespace)::nll_loss_forward_reduce_cuda_kernel_2d<float>()", "loss"),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float>()", "norms"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdam>()", "optimizer"),
        ("triton_per_fused__to_copy_add_mean_mul_pow_rsqrt_3", "norms"),
        ("triton_poi_fused_mul_silu_5", "elementwise"),
        ("triton_poi_fused_mm_7", "elementwise"),  # a copy for a product
        ("triton_tem_fused_mm_2", "matrix products"),
        ("void at::native::vectorized_elementwise_kernel<4, CUDAFunctor_add<float>>()", "elementwise"),
        ("Memcpy DtoD (Device -> Device)", "elementwise"),
        ("mm.default", "matrix products"),
        ("baddbmm.out", "matrix products"),
        ("_foreach_norm.Scalar", "optimizer"),
        ("comma.default", "elementwise"),
    ],
)
def test_kinds_of_kernels_by_their_names(name, kind):
    assert profiling.kind(name) == kind
    assert kind in profiling.KINDS


def test_the_courses_own_kernels_are_of_the_kind_of_their_file():
    pytest.importorskip("triton")
    for name, kind in (
        ("_dkv_kernel", "attention"),
        ("_forward_kernel", "attention"),
        ("_exp_logits_kernel", "loss"),
        ("_mean_kernel", "loss"),
        ("_norm_backward", "norms"),
        ("_rotate_kernel", "elementwise"),
        ("_swiglu_forward", "elementwise"),
        ("_matmul_kernel", "matrix products"),
        ("_adamw_kernel", "optimizer"),
        ("_look_ahead_kernel", "optimizer"),
        ("flash_dkv", "attention"),
        ("layernorm_backward", "norms"),
        ("linear_forward", "matrix products"),
    ):
        assert profiling.kind(name) == kind


def test_every_file_with_kernels_has_a_kind():
    pytest.importorskip("triton")
    import kernels.triton

    helpers = {"arithmetic"}  # called by kernels, never launched
    for module in pkgutil.iter_modules(kernels.triton.__path__):
        path = Path(importlib.import_module(f"kernels.triton.{module.name}").__file__)
        if "@triton.jit" in path.read_text() and module.name not in helpers:
            assert profiling._FILES[module.name] in profiling.KINDS


def test_every_file_of_cuda_kernels_has_a_kind_and_no_two_have_a_kernel_of_one_name():
    names = []
    for path in Path(kernels.cuda.__file__).parent.glob("*.cu"):
        assert profiling._FILES[path.stem] in profiling.KINDS
        names += signatures(path.read_text(encoding="utf-8"))
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)


@CPU_ONLY
def test_operations_are_counted_with_their_bytes():
    a, b = torch.ones(4, 8), torch.ones(8, 2)

    def function():
        c = (a @ b).view(2, 4)  # (4, 2); the view is nobody's work
        c += 1
        torch.empty(1000)
        return c.t().expand(3, 4, 2) * 2  # an expanded tensor has more numbers than memory

    rows = {row.name: row for row in profiling.operations_of(function)}
    assert rows["mm.default"] == ("mm.default", "matrix products", 4 * (32 + 16 + 8), 1)
    assert rows["add_.Tensor"].nbytes == 4 * (8 + 8)  # read and written
    assert rows["mul.Tensor"].nbytes == 4 * (8 + 24)
    assert set(rows) == {"mm.default", "add_.Tensor", "mul.Tensor"}
    assert profiling.by_kind(list(rows.values()), "calls")["elementwise"] == 2


@CPU_ONLY
def test_launches_are_counted_and_not_what_the_interpreter_does():
    activations = pytest.importorskip("kernels.triton.activations")
    gate, up = torch.ones(2, 3, 100), torch.ones(2, 3, 100)
    y, saved = activations.swiglu_forward(gate, up)
    rows = profiling.operations_of(lambda: activations.swiglu_backward(y, saved))
    assert rows == [("_swiglu_backward", "elementwise", 5 * 4 * 600, 1)]


@CPU_ONLY
def test_emulated_launches_are_counted():
    a, b = torch.ones(5, 7), torch.ones(7, 3)
    rows = profiling.operations_of(lambda: matmul.matmul(a, b))
    assert rows == [("matmul", "matrix products", 4 * (35 + 21 + 15), 1)]


@CPU_ONLY
def test_a_steps_operations_are_seen_inside_of_the_pairs_of_an_engine():
    pytest.importorskip("triton")
    config = ModelConfig(vocab_size=11, context_length=4, n_layer=1, n_head=2, d_model=8, tie_embeddings=True)
    ids = torch.from_numpy(np.random.default_rng(0).integers(11, size=(1, 5)))
    model = Transformer(config, "triton")
    rows = profiling.operations_of(lambda: model.loss_and_gradients(ids[:, :-1], ids[:, 1:]))
    calls = {row.name: row.calls for row in rows}
    assert calls["_swiglu_up_kernel"] == calls["_swiglu_down_backward_kernel"] == calls["_dkv_kernel"] == 1
    assert calls["_norm_forward"] == calls["_norm_backward"] == 3
    # Of q, k and v together three products; of o and of gate and up together two each, and of down one: the
    # others are in the kernels named above, or add to the residual stream.
    assert calls["mm.default"] == 3 + 2 * 2 + 1
    assert calls["addmm_.default"] == 2
    assert profiling.kind("addmm_.default") == "matrix products"
    assert calls["addmm.out"] == 2  # and of the loss two, for dx and dW
    assert not [name for name in calls if "course_triton" in name]
    counted = profiling.by_kind(rows, "nbytes")
    assert sum(counted.values()) == sum(row.nbytes for row in rows)


def test_each_of_the_two_says_what_it_needs():
    wrong = profiling.operations_of if device.DEVICE.type == "cuda" else profiling.kernels_of
    with pytest.raises(RuntimeError, match=r"on a GPU|needs a GPU"):
        wrong(lambda: None)


@pytest.mark.gpu
def test_kernels_and_their_times_on_a_gpu():
    a = torch.ones(4096, 4096, dtype=torch.bfloat16, device="cuda")
    y = torch.empty_like(a)

    def function():
        torch.mm(a, a, out=y)
        y.add_(1)
        y.add_(1)

    function()
    for runs in (1, 3):
        rows = profiling.kernels_of(function, runs)
        rows = [row for row in rows if not row.name.startswith("Mem")]  # cuBLAS may clear memory of its own
        assert [(row.kind, row.calls) for row in rows] == [("matrix products", 1), ("elementwise", 2)]
        assert all(0.005 < row.milliseconds < 5 for row in rows)

"""Arithmetic counted by formula, and by PyTorch as it runs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from course import flops
from course.config import ModelConfig, preset
from course.initial import initial_weights
from course.manual import ManualTransformer
from course.model import as_tensors


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA A100-SXM4-40GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.05),
        ("Tesla T4", 65.0),
        ("NVIDIA GeForce RTX 4090", None),
        ("", None),
    ],
)
def test_peaks_are_found_by_the_names_that_cuda_gives(name, tflops):
    assert flops.peak(name) == (None if tflops is None else tflops * 1e12)


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_embeddings": True}, {"mlp": "gelu", "position": "learned"}, {"n_kv_head": 1}],
    ids=str,
)
def test_the_formula_counts_what_runs(changes):
    """The counter sees products of matrices. The formula's N has the norms' gains besides: 6 for each."""
    config = ModelConfig(vocab_size=50, context_length=16, n_layer=2, n_head=4, d_model=32, **changes)
    ids = torch.zeros(1, 16, dtype=torch.int64)
    with FlopCounterMode(display=False) as counted:
        ManualTransformer(config, as_tensors(initial_weights(config))).loss_and_gradients(ids, ids)
    gains = sum(shape[0] for shape in config.parameter_shapes().values() if len(shape) == 1)
    assert counted.get_total_flops() == 16 * (flops.per_token(config) - 6 * gains)


def test_gpt2_takes_what_is_published():
    """nanoGPT reports an MFU by the same formula: 6 x 124M less the position table, and attention."""
    config = preset("gpt2")
    assert flops.n_multiplied(config) == 124_439_808 - 1024 * 768
    assert flops.per_token(config) == 6 * 123_653_376 + 12 * 12 * 12 * 64 * 1024


def test_utilization_is_the_share_of_the_peak():
    config = preset("char")
    assert flops.utilization(config, 1e6, 100 * flops.per_token(config) * 1e6) == pytest.approx(0.01)
    assert flops.utilization(config, 1e6, None) is None

"""The sweep that finds tiles for attention, with a clock that knows the answer."""

import copy

import pytest
import torch

pytest.importorskip("triton", reason="Triton has no package for this platform")

from course.device import DEVICE
from kernels.triton import attention
from kernels.triton.launch import gpu
from tools import tune_attention as tuning

D, LENGTHS = 16, (20, 40)
CHOICES = [(32, 16, 4, 1, None), (16, 16, 4, 1, None), (16, 32, 4, 1, None)]


@pytest.fixture
def table(monkeypatch) -> dict:
    """The rows of this machine; a pass takes as many ms as the kernel's tile has numbers."""
    monkeypatch.setattr(tuning, "TOKENS", 40)
    monkeypatch.setattr(tuning, "FEATURES", 16)
    return attention.TILES[attention._table(gpu(torch.empty(0, device=DEVICE)), torch.float32)]


@pytest.mark.parametrize("kernel", tuning.KERNELS)
def test_the_fastest_of_the_right_ones_wins_and_the_table_is_as_it_was(monkeypatch, capsys, table, kernel):
    def milliseconds(function):
        function()
        M, N, *_ = next(iter(table[kernel].values()))
        return M * N

    def wrong_for_wide_tiles(inputs, right=tuning.both_passes):
        results = right(inputs)
        return [x + 1 for x in results] if next(iter(table[kernel].values())) == CHOICES[2] else results

    monkeypatch.setattr(tuning, "milliseconds", milliseconds)
    monkeypatch.setattr(tuning, "both_passes", wrong_for_wide_tiles)
    before = copy.deepcopy(table)
    M, N, *_ = next(iter(table[kernel].values()))
    found = tuning.tune(kernel, D, torch.float32, LENGTHS, CHOICES)
    assert [candidate for _, candidate in found] == [CHOICES[1], CHOICES[0]]
    assert found[0][0] == pytest.approx(16 * 16 / (M * N)) and found[1][0] == pytest.approx(32 * 16 / (M * N))
    assert "(16, 32, 4, 1, None): wrong by" in capsys.readouterr().out
    assert table == before


def test_candidates_are_many_and_different():
    every = list(tuning.candidates())
    assert len(every) == len(set(every)) == 99
    for table in ("H100", "A100"):
        for kernel in (attention.FORWARD, attention.DKV):
            assert attention.TILES[table][kernel][64] in every

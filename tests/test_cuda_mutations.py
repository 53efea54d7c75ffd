"""Kernels broken on purpose, one line at a time: the emulator or the comparison with float64 must see each.

A test of kernels is worth what it catches. So here the sources are copied, one thing is made wrong in one of
them (a barrier is dropped, a tail is off by one, a term of a formula is lost), and the engine's ordinary test
is run on it: it has to fail. Most races and accesses out of bounds leave the values right, on a CPU always
and on a GPU most of the time: what sees them are the emulator's checks of every access to memory.
"""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from operation_cases import IGNORED, Case, Ids, arguments, assert_equals_float64_reference

from kernels.cuda import emulator, launch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="broken kernels are for the emulator")

NARROW = Case("softmax", ((5, 33),), "narrow")
WIDE = Case("layernorm", ((3, 2050), (2050,), (2050,), 0.1), "wide")
NORM = Case("add_layernorm", ((9, 24), (9, 24), (24,), (24,), 0.1), "narrow")
TABLE = Case("embedding", (Ids((21,), 5), (5, 8)), "many")
GELU = Case("gelu", ((3, 7),), "tail")
PRODUCT = Case("linear", ((9, 70), (11, 70), (11,)), "odd")
LOSS = Case("linear_cross_entropy", ((3, 5), (2050, 5), Ids((3,), 2050), IGNORED), "wide")
ATTENTION = Case("attention", ((1, 37, 2, 8), (1, 37, 2, 8), (1, 37, 2, 8), None, True, None, None), "tiles")

# file, what is right, what is wrong, what shows it
RACES = {
    "a barrier between writing and reading a row's sums": (
        "rows.cuh",
        "    __syncthreads();\n",
        "",
        WIDE,
    ),
    "two reductions in one place": ("rows.cuh", "turn % 2", "0", WIDE),
    "a barrier between the warps' sums": (
        "norms.cu",
        "            });\n        __syncthreads();\n",
        "            });\n",
        NORM,
    ),
    "a barrier between the slices of a sum": ("sums.cuh", "= sum;\n    __syncthreads();\n", "= sum;\n", NORM),
    "a barrier before logits become gradients": (
        "losses.cu",
        "if (ROW_WARPS > 1) __syncthreads();",
        "",
        LOSS,
    ),
    "a barrier between loading a slab and multiplying it": (
        "float_tile.cuh",
        "            __syncthreads();\n            if (k + BLOCK_K < k_end)",
        "            if (k + BLOCK_K < k_end)",
        PRODUCT,
    ),
    "a barrier between loading a tile of keys and using it": (
        "flash.cu",
        "v_of_head, key, D);\n        __syncthreads();\n",
        "v_of_head, key, D);\n",
        ATTENTION,
    ),
}
OUTSIDE = {
    "a row's tail off by one": (
        "rows.cuh",
        "each_piece(start, C, [&](int p) { pieces",
        "each_piece(start, C + 1, [&](int p) { pieces",
        NARROW,
    ),
    "an array's tail read in one piece": (
        "neighbours.cuh",
        "i + VECTOR <= n) return read",
        "i < n) return read",
        GELU,
    ),
    "one group too many": (
        "elementwise.cu",
        "if (group >= groups)",
        "if (group > groups)",
        Case("add", ((3, 5), (3, 5)), "same"),
    ),
    "the last warp's share of the ids": (
        "embedding.cu",
        "end = min(places, begin + share)",
        "end = begin + share",
        TABLE,
    ),
}
DIVERGENCE = {
    "a lane that takes no part in a vote": (
        "embedding.cu",
        "            found[a] = __ballot",
        "            if (lane < 31) found[a] = __ballot",
        TABLE,
    ),
}
COPIES = {
    "no waiting for a row": ("norms.cu", "__pipeline_wait_prior(STAGES - 1);", "", WIDE),
    "waiting for too few": ("norms.cu", "wait_prior(STAGES - 1)", "wait_prior(STAGES)", WIDE),
}
BY_VALUES = {
    "a row's tail left out": (
        "rows.cuh",
        "start + column_of(piece) < C",
        "start + column_of(piece) + 1 < C",
        NARROW,
    ),
    "a step of the sum over lanes": ("rows.cuh", "apart > 0; apart /= 2", "apart > 1; apart /= 2", NARROW),
    "the mean of the gradients": ("norms.cu", "g(p, i) - mean_g - x_hat", "g(p, i) - x_hat", NORM),
    "the variance of another mean": (
        "norms.cu",
        "(part(p, i) - mean) * (part(p, i) - mean)",
        "part(p, i) * part(p, i)",
        NORM,
    ),
    "what comes through h": ("norms.cu", "dx_of(p, i, c) + more(p, i)", "dx_of(p, i, c)", NORM),
    "the last token of a share": ("embedding.cu", "place < end &&", "place < end - 1 &&", TABLE),
    "all but the first match of a vote": ("embedding.cu", "found[a] &= found[a] - 1", "found[a] = 0", TABLE),
    "the target's column": ("losses.cu", "column == target", "column == target + 1", LOSS),
    "the cube in GELU's slope": ("gelu.cuh", "1.0f + 3.0f * GELU_CUBIC", "1.0f + GELU_CUBIC", GELU),
    "the rotation back": (
        "rope.cu",
        "sine = sign *",
        "sine =",
        Case("rope", ((1, 5, 2, 6), (5, 3), (5, 3)), "odd"),
    ),
    "a tail of the sum over k": (
        "float_tile.cuh",
        "k < k_end; k += BLOCK_K",
        "k + BLOCK_K <= k_end; k += BLOCK_K",
        PRODUCT,
    ),
}


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """A function that copies the engine's sources, changes one, and has the engine use these."""
    load = launch.load

    def break_it(file: str, right: str, wrong: str) -> None:
        for path in (*emulator.HERE.glob("*.cu"), *emulator.HERE.glob("*.cuh")):
            shutil.copy(path, tmp_path)
        text = (tmp_path / file).read_text()
        assert right in text, f"{file} no longer has {right!r}: update this test"
        (tmp_path / file).write_text(text.replace(right, wrong))
        monkeypatch.setattr(launch, "load", lambda name, **more: load(Path(tmp_path, name), **more))
        forget_plans()

    yield break_it
    monkeypatch.undo()
    forget_plans()


def forget_plans() -> None:
    """What the engine keeps of the kernels that it has loaded."""
    for name, module in list(sys.modules.items()):
        if name.startswith("kernels.cuda.") and name not in ("kernels.cuda.nvrtc", "kernels.cuda.emulator"):
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


def run(case: Case) -> None:
    inputs = arguments(case, torch.float32, "cpu")
    assert_equals_float64_reference("cuda", case, inputs, torch.float32)


@pytest.mark.parametrize("case", [NARROW, WIDE, NORM, TABLE, GELU, PRODUCT, LOSS, ATTENTION], ids=str)
def test_the_kernels_as_they_are_pass(case):
    run(case)


@pytest.mark.parametrize("what", RACES)
def test_the_emulator_sees_a_missing_barrier(broken, what):
    *how, case = RACES[what]
    broken(*how)
    with pytest.raises(emulator.EmulatorError, match=r"There is no (__syncwarp or )?__syncthreads between"):
        run(case)


@pytest.mark.parametrize("what", OUTSIDE)
def test_the_emulator_sees_what_is_out_of_bounds(broken, what):
    *how, case = OUTSIDE[what]
    broken(*how)
    with pytest.raises(emulator.EmulatorError, match=r"; \w+ has \d+ elements\."):
        run(case)


@pytest.mark.parametrize("what", DIVERGENCE)
def test_the_emulator_sees_who_is_missing(broken, what):
    *how, case = DIVERGENCE[what]
    broken(*how)
    with pytest.raises(emulator.EmulatorError, match="All must come to the same one"):
        run(case)


@pytest.mark.parametrize("what", COPIES)
def test_the_emulator_sees_copies_that_have_not_arrived(broken, what):
    *how, case = COPIES[what]
    broken(*how)
    with pytest.raises(emulator.EmulatorError, match="__pipeline_wait_prior must come first"):
        run(case)


@pytest.mark.parametrize("what", BY_VALUES)
def test_the_comparison_sees_the_lack_of(broken, what):
    *how, case = BY_VALUES[what]
    broken(*how)
    with pytest.raises(AssertionError, match=r"relative errors|not everything is finite"):
        run(case)

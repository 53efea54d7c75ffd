"""Machine code of CUDA C++ as text: the kernel's, for the GPU that was asked for; or what is missing."""

import importlib.util
import shutil

import pytest
import torch

from course import assembly
from kernels.cuda.cache import CompileError

pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed")

SOURCE = """extern "C" __global__ void scale(const scalar *x, scalar *y, float factor) {
    y[threadIdx.x] = scalar(float(x[threadIdx.x]) * factor + FACTOR);
}"""


def test_machine_code_is_of_this_source_and_gpu():
    code = assembly.sass(SOURCE, FACTOR=2)
    assert "scale" in code and "sm_90a" in code
    assert code.count("FFMA") == 1 and "LDG.E " in code and "STG.E " in code
    assert "sm_80" in assembly.sass(SOURCE, capability=80, FACTOR=2)
    assert "LDG.E.U16" in assembly.sass(SOURCE, scalar=torch.bfloat16, FACTOR=2)  # two bytes a number


def test_what_is_not_cuda_cpp():
    with pytest.raises(CompileError, match="FACTOR"):
        assembly.sass(SOURCE)


def test_nothing_that_reads_machine_code(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match="pip install triton"):
        assembly.sass(SOURCE, FACTOR=2)


def test_a_reader_that_is_older_than_the_code(monkeypatch, tmp_path):
    old = tmp_path / "cuobjdump"
    old.write_text("#!/bin/sh\necho unknown version >&2\nexit 1\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(RuntimeError, match="cannot read this code: unknown version"):
        assembly.sass(SOURCE, FACTOR=2)

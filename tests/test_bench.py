"""The benchmark: without a GPU it checks values, and what is wrong does not pass."""

import json

import pytest
import torch

from kernels import bench
from kernels.operations import OPERATIONS


def test_every_operation_is_in_the_table():
    assert {job.operation for job in bench.JOBS} == set(OPERATIONS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="would time everything")
def test_without_a_gpu_it_checks_values_and_says_what_it_cannot_do(tmp_path, capsys):
    file = tmp_path / "results.json"
    assert bench.main(["rmsnorm", "attention", "--engines", "torch", "--output", str(file)]) == 0
    assert "No GPU here" in capsys.readouterr().out
    results = json.loads(file.read_text())["results"]
    assert [r["operation"] for r in results] == ["rmsnorm", "attention"]
    assert all(r["right"] and 0 < r["error"] < 1e-5 for r in results)


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_a_wrong_gradient_is_found(monkeypatch, factor):
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            y = torch.softmax(x, -1)
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx, dy):
            (y,) = ctx.saved_tensors
            return factor * y * (dy - (dy * y).sum(-1, keepdim=True))

    job = next(job for job in bench.JOBS if job.operation == "softmax")
    monkeypatch.setattr(bench, "competitors", lambda job, engines: iter([("torch", Wrong.apply)]))
    (result,) = bench.measure(job, ["torch"], torch.float32, "cpu", None)
    assert not result["right"]


def test_bad_arguments_are_refused_in_words(tmp_path, capsys):
    for argv, words in (
        (["conv2d"], "unknown operations conv2d: choose from embedding"),
        (["add", "--output", str(tmp_path / "none" / "x.json")], "there is no folder"),
    ):
        with pytest.raises(SystemExit):
            bench.main(argv)
        assert words in capsys.readouterr().err

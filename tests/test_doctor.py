"""The machine check is right with and without a GPU, a compiler, a package, a corpus."""

import subprocess
import sys

import pytest
import torch

from course import __main__ as command_line
from course import data, device, doctor
from kernels.cuda import nvrtc


def findings() -> dict[str, doctor.Finding]:
    return {finding.what: finding for finding in doctor.examine()}


def test_this_machine_can_run_the_course(capsys):
    assert command_line.main(["doctor"]) == 0
    assert "The course can run here." in capsys.readouterr().out


def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    gpu = findings()["GPU"]
    assert gpu.status == doctor.LACK and gpu.found == "none"


def test_with_a_gpu(monkeypatch):
    class Properties:
        total_memory = 80 * 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    gpu = findings()["GPU"]
    assert gpu.status == doctor.OK and gpu.found == "NVIDIA H100, 80 GiB, sm_90"
    monkeypatch.setenv("COURSE_DEVICE", "cpu")
    assert findings()["GPU"].remedy == "left alone, because COURSE_DEVICE=cpu is set"


def test_with_a_gpu_that_this_pytorch_was_not_built_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert "built without CUDA" in findings()["GPU"].found


def test_with_and_without_a_compiler(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/g++" if name == "g++" else None)
    assert findings()["C++ compiler"] == doctor.Finding("C++ compiler", "g++")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    lack = findings()["C++ compiler"]
    assert lack.status == doctor.LACK and ("apt install g++" in lack.remedy or "xcode" in lack.remedy)


def test_with_and_without_nvidias_compiler(monkeypatch):
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 0))
    monkeypatch.setattr(nvrtc, "cuda_headers", lambda: None)
    assert findings()["CUDA C++"] == doctor.Finding("CUDA C++", "NVRTC 13.0 (needed from notebook 12 on)")

    def missing():
        raise RuntimeError("it is missing here")

    monkeypatch.setattr(nvrtc, "version", missing)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    lack = findings()["CUDA C++"]
    assert (lack.status, lack.found) == (doctor.LACK, "none")
    assert "'cuda-core[cu13]>=1.2' nvidia-cuda-nvrtc nvidia-cuda-runtime;" in lack.remedy
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert "'cuda-core[cu12]>=1.2' nvidia-cuda-nvrtc-cu12 " in findings()["CUDA C++"].remedy
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "no package for macOS" in findings()["CUDA C++"].remedy


def test_a_fatal_lack_is_named_and_exits_with_1(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(data.registry, "DATA_DIR", tmp_path)
    monkeypatch.delenv("COURSE_DATA_DIR", raising=False)
    assert command_line.main(["doctor"]) == 1
    assert "The course cannot run here yet: see corpus." in capsys.readouterr().out


def test_an_old_pytorch_is_fatal(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.4.1+cu121")
    assert findings()["PyTorch"].status == doctor.FATAL


def test_missing_packages_are_said_in_words_not_in_a_traceback(tmp_path):
    """In a Python that finds neither rich nor numpy."""
    for package in ("rich", "numpy"):
        (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError(name='{package}')")
    run = subprocess.run(
        [sys.executable, "-m", "course", "doctor"],
        cwd=data.DATA_DIR.parent,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert "is not installed" in run.stderr and "make lab" in run.stderr
    assert "Traceback" not in run.stderr


# The device


def test_pick_takes_the_size_of_this_machine():
    expected = "large" if device.DEVICE.type == "cuda" else "small"
    assert device.pick(cpu="small", gpu="large") == expected


def test_normal_numbers_are_the_same_everywhere():
    x = device.normal(2, 3, seed=0)
    assert x.dtype == torch.float64 and x.shape == (2, 3)
    assert x[0, 0].item() == pytest.approx(0.12573022, abs=1e-8)


@pytest.mark.parametrize(
    ("value", "words"), [("tpu", "COURSE_DEVICE='tpu' is unknown"), ("cuda", "sees no GPU here")]
)
def test_a_device_that_is_not_there_is_refused(monkeypatch, value, words):
    monkeypatch.setenv("COURSE_DEVICE", value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises((ValueError, RuntimeError), match=words):
        device._choose_device()


def test_dtype_follows_the_gpu(monkeypatch):
    monkeypatch.setattr(device, "DEVICE", torch.device("cuda"))
    for capability, dtype in (((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda found=capability: found)
        assert device._choose_dtype() == dtype

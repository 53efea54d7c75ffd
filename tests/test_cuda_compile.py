"""Every kernel of the cuda engine as machine code for every GPU, on a machine that has none of them."""

import json

import another_python
import pytest
import torch

from kernels.cuda import norms, nvrtc
from kernels.cuda.launch import like, likes
from kernels.cuda.module import HERE, resources
from kernels.cuda.rows import WIDEST, shape
from kernels.operations import OPERATIONS

pytest.importorskip("triton", reason="the GPUs' sizes stand beside Triton's compiler")
from kernels.triton.ahead import GPUS

try:
    nvrtc.version()
except RuntimeError as missing:
    pytest.skip(str(missing), allow_module_level=True)

OURS = {name for name, operation in OPERATIONS.items() if "cuda" in operation.engines}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_widest_norms_spill_no_registers(dtype):
    (x,) = likes(like(torch.empty(1, WIDEST, dtype=dtype)))
    backward = norms._backward_shape(x, True)
    for way, how, stages in (
        ("forward", shape(x, True), 0),
        ("backward", backward, 0),
        ("backward", backward, 3),
    ):
        takes = resources("norms.cu", scalar=dtype, capability=90, **how._asdict(), STAGES=stages)
        assert {name: t.spilled for name, t in takes.items() if name.endswith(way)} == {
            f"{norm}_{way}": 0 for norm in ("rmsnorm", "layernorm")
        }


@pytest.mark.compiles
@pytest.mark.parametrize("gpu", GPUS)
def test_every_launch_compiles_and_fits(gpu):
    """Exactly what the operations would launch there, within the memory and registers that there are."""
    finished = another_python.run("tests/compile_cuda_for_gpus.py", gpu)
    assert finished.returncode == 0, finished.stderr[-3000:]
    launches = [json.loads(line) for line in finished.stdout.splitlines()]
    assert {launch["what"].split("-")[0].split()[0] for launch in launches} == OURS | {"adamw"}
    assert {launch["from"][0] for launch in launches} == {path.name for path in HERE.glob("*.cu")}
    for launch in launches:
        assert launch["shared"] <= GPUS[gpu].shared, launch
        registers = -(-launch["registers"] // 8) * 8  # a processor hands them out by eights
        assert registers * launch["threads"] <= 65536, launch

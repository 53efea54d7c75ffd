"""Every kernel of the cuda engine as machine code for every GPU, on a machine that has none of them."""

import json

import pytest

from kernels.cuda import nvrtc
from kernels.cuda.module import HERE
from kernels.operations import OPERATIONS

pytest.importorskip("triton", reason="the GPUs' sizes stand beside Triton's compiler")
from kernels.triton.ahead import GPUS

try:
    nvrtc.version()
except RuntimeError as missing:
    pytest.skip(str(missing), allow_module_level=True)

OURS = {name for name, operation in OPERATIONS.items() if "cuda" in operation.engines}


@pytest.mark.compiles("compile_cuda_for_gpus.py")
@pytest.mark.parametrize("gpu", GPUS)
def test_every_launch_compiles_and_fits(gpu, compiled):
    """Exactly what the operations would launch there, within the memory and registers that there are."""
    assert compiled.returncode == 0, compiled.stderr[-3000:]
    launches = [json.loads(line) for line in compiled.stdout.splitlines()]
    assert {launch["what"].split("-")[0].split()[0] for launch in launches} == OURS | {"adamw"}
    assert {launch["from"][0] for launch in launches} == {path.name for path in HERE.glob("*.cu")}
    for launch in launches:
        assert launch["shared"] <= GPUS[gpu].shared, launch
        registers = -(-launch["registers"] // 8) * 8  # a processor hands them out by eights
        assert registers * launch["threads"] <= 65536, launch

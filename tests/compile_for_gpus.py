"""Compile what every operation of the triton engine would launch on a GPU that is not here.

`python tests/compile_for_gpus.py T4` prints one JSON line a launch: operation, kernel, the shared memory it
asks for, what a thread keeps in memory for want of registers, and how many loads from global memory its PTX
has. It is a program of its own, because a process that interprets Triton's kernels cannot compile them.
"""

import json
import re
import sys

import torch
import triton
from operation_cases import IGNORED, Case, Ids, outputs

import kernels
from course import assembly
from kernels.triton.ahead import GPUS, compiling

# In float32 these take the shared memory of causal attention at the same width.
VARIANTS = [
    Case("attention", ((2, 1024, 4, 64), *[(2, 1024, 2, 64)] * 2, (4,), True, 256, None), "everything"),
    Case("attention", ((2, 100, 4, 64), *[(2, 1000, 4, 64)] * 2, None, False, None, None), "full"),
    *(  # beyond the contract
        Case(
            "rotary_attention",
            ((2, 1024, 320), (8 * D, 320), (8 * D,), 4, (1024, D // 2), (1024, D // 2), (4,), 256),
            f"{D}",
        )
        for D in (64, 128)
    ),
]
# Sizes of real models, where tests on values are tiny: one line for each configuration worth compiling.
CASES = [
    Case("rmsnorm", ((4096, 64), (64,), 1e-5), "narrow"),
    Case("rmsnorm", ((4096, 4096), (4096,), 1e-5), "wide"),
    Case("rmsnorm", ((4096, 20000), (20000,), 1e-5), "blocks"),
    Case("add_rmsnorm", ((4096, 768), (4096, 768), (768,), 1e-5), "gpt"),
    Case("normalize", ((4096, 640), 1e-5), "modern"),  # beyond the contract
    Case("layernorm", ((4096, 768), (768,), (768,), 1e-5), "gpt"),
    Case("add_layernorm", ((4096, 8192), (4096, 8192), (8192,), (8192,), 1e-5), "wide"),
    Case("softmax", ((4096, 1000),), "odd"),
    Case("softmax", ((4096, 50304),), "blocks"),
    Case("embedding", (Ids((4, 1024), 50304), (50304, 768)), "gpt"),
    Case("linear", ((4, 1024, 768), (3072, 768), (3072,)), "gpt"),
    Case("add", ((4, 1024, 768), (4, 1024, 768)), "same"),
    Case("add", ((4, 1024, 768), (1024, 768)), "positions"),
    Case("mul", ((4, 1024, 768), (4, 1024, 768)), "same"),
    Case("rope", ((4, 1024, 12, 64), (1024, 32), (1024, 32)), "gpt"),
    Case("gelu", ((4, 1024, 3072),), "gpt"),
    Case("swiglu", ((4, 1024, 2048), (4, 1024, 2048)), "gpt"),
    Case("gelu_mlp", ((4, 1024, 768), (3072, 768), (3072,), (768, 3072), (768,)), "gpt"),
    Case("swiglu_mlp", ((4, 1024, 640), (3456, 640), None, (640, 1728), None), "modern"),  # this, too
    *(
        Case("attention", (*[(2, 1024, 4, D)] * 3, None, True, None, None), f"causal-{D}")
        for D in (16, 64, 128, 256)
    ),
    *VARIANTS,
    Case("cross_entropy", ((4096, 50304), Ids((4096,), 50304), IGNORED), "gpt"),
    Case("linear_cross_entropy", ((4096, 768), (50304, 768), Ids((4096,), 50304), IGNORED), "gpt"),
]


def dtypes(gpu: str, case: Case | None) -> list[torch.dtype]:
    """What models are trained in there: a T4 has no bfloat16. And float32, for which the compiler takes long,
    on one GPU of each table of tiles, as an A100 has an L4's, a B200 an H100's; the variants on an H100."""
    half = torch.float16 if gpu == "T4" else torch.bfloat16
    single = ("H100",) if case in VARIANTS else ("T4", "L4", "H100")
    return [half, torch.float32] if gpu in single else [half]


def main(gpu: str) -> None:
    engine = kernels.engine("triton")
    for case in CASES:
        forward, backward = (getattr(engine, f"{case.operation}_{way}") for way in ("forward", "backward"))
        for dtype in dtypes(gpu, case):
            with compiling(GPUS[gpu]) as compiled:
                y, saved = forward(*shapes_only(case, dtype))
                dy = tuple(torch.empty_like(out) for out in outputs(y))
                backward(dy if len(dy) > 1 else dy[0], saved)
            for name, kernel, _ in compiled:
                print(
                    json.dumps(
                        {
                            "what": f"{case} {str(dtype)[6:]}",
                            "kernel": name,
                            "machine_code": len(kernel.asm["cubin"]),
                            "shared": kernel.metadata.shared,
                            "stack": stack(kernel.asm["cubin"]),
                            "loads": kernel.asm["ptx"].count("ld.global"),
                        }
                    )
                )


def stack(machine_code: bytes) -> int:
    """The bytes of memory for each thread's own variables."""
    used = assembly.dump(machine_code, "--dump-resource-usage", triton.knobs.nvidia.cuobjdump.path)
    return int(re.search(r"STACK:(\d+)", used)[1])


def shapes_only(case: Case, dtype: torch.dtype) -> tuple:
    """The inputs of a case on a GPU, without data: called where PyTorch makes fake tensors."""

    def make(spec):
        if isinstance(spec, Ids):
            return torch.empty(spec.shape, dtype=torch.int64, device="cuda")
        return torch.empty(spec, dtype=dtype, device="cuda") if isinstance(spec, tuple) else spec

    return tuple(make(spec) for spec in case.inputs)


if __name__ == "__main__":
    main(sys.argv[1])

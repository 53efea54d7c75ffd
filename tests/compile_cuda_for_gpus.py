"""Compile what every operation of the cuda engine would launch on a GPU that is not here.

`python tests/compile_cuda_for_gpus.py T4` prints one JSON line a kernel and configuration: what it takes of
a processor, and what the launch asks for. It is a program of its own, because it tells the engine that a GPU
is here: the operations run on tensors of shapes only, choose their tiles and grids as they would there, and
each launch is checked as the loader checks it.
"""

import json
import sys
from types import SimpleNamespace

import torch
from compile_for_gpus import CASES, GPUS, dtypes, shapes_only
from operation_cases import outputs
from torch._subclasses import FakeTensorMode

import kernels
from kernels.cuda import launch, module, nvrtc
from kernels.cuda.arguments import check_arguments, launch_shape
from kernels.operations import OPERATIONS


class Recorded:
    """A module whose kernels note their launches instead of starting."""

    def __init__(self, file: str, gpu, notes: dict, scalar=torch.float32, **macros):
        self.source = module._read(file, scalar, macros)
        self.key, self.gpu, self.notes = (file, str(scalar)[6:], *macros.items()), gpu, notes
        self.takes = nvrtc.resources(*self.source[:3], gpu.capability)

    def __getattr__(self, name: str) -> SimpleNamespace:
        signature = self.source.signatures[name]

        def at(kernel, shape):
            _, block, shared_bytes = launch_shape(name, shape)

            def note(*arguments) -> None:
                check_arguments(signature, arguments, "cuda:0")
                takes, threads = self.takes[name], block[0] * block[1] * block[2]
                line = {
                    "kernel": name,
                    "from": self.key,
                    **takes._asdict(),
                    "threads": threads,
                    "shared": takes.shared + shared_bytes,
                }
                self.notes[json.dumps(line)] = None

            return note

        return type("Kernel", (), {"__getitem__": at})()


def main(name: str) -> None:
    gpu = GPUS[name]
    notes: dict[str, None] = {}
    launch.load = lambda file, **more: Recorded(file, gpu, notes, **more)
    launch.FakeTensor = ()  # nothing is one: the engine launches as for tensors that have data
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_capability = lambda device=None: divmod(gpu.capability, 10)
    torch.cuda.get_device_properties = lambda device=None: SimpleNamespace(
        multi_processor_count=gpu.processors,
        shared_memory_per_block_optin=gpu.shared,
        major=gpu.capability // 10,
        minor=gpu.capability % 10,
    )
    for case in CASES:
        if "cuda" not in OPERATIONS[case.operation].engines:
            continue
        forward, backward = kernels.pair("cuda", case.operation)
        for dtype in dtypes(name):
            with FakeTensorMode():
                y, saved = forward(*shapes_only(case, dtype))
                dy = tuple(torch.empty_like(out) for out in outputs(y))
                backward(dy if len(dy) > 1 else dy[0], saved)
            for line in notes:
                print(json.dumps({"what": f"{case} {str(dtype)[6:]}", **json.loads(line)}))
            notes.clear()


if __name__ == "__main__":
    main(sys.argv[1])

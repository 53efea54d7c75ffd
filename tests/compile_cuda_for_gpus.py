"""Compile what every operation of the cuda engine would launch on a GPU that is not here.

`python tests/compile_cuda_for_gpus.py T4` prints one JSON line a kernel and configuration: what it takes of
a processor, and what the launch asks for. It is a program of its own, because it tells the engine that a GPU
is here: the operations run on tensors of shapes only, choose their tiles and grids as they would there, and
each launch is checked as the loader checks it.
"""

import functools
import json
import math
import sys
from types import SimpleNamespace
from typing import NamedTuple

import torch
from compile_for_gpus import CASES, GPUS, dtypes, shapes_only
from operation_cases import outputs
from torch._subclasses import FakeTensorMode, fake_tensor

import kernels
from kernels.cuda import launch, module, nvrtc
from kernels.cuda.arguments import check_arguments, launch_shape
from kernels.cuda.signature import SCALARS, Signature
from kernels.operations import OPERATIONS


class Recorded:
    """A module whose kernels note their launches instead of starting."""

    def __init__(self, gpu, notes: dict, file: str, scalar=torch.float32, **macros):
        self.source, self.notes = module._read(file, scalar, macros), notes
        self.what = (file, str(scalar)[6:], *macros.items())
        self.takes = nvrtc.resources(*self.source[:3], gpu.capability)

    def __getattr__(self, name: str) -> "RecordedKernel":
        return RecordedKernel(self, self.source.signatures[name])


class RecordedKernel(NamedTuple):
    of: Recorded
    signature: Signature

    def __getitem__(self, shape: tuple) -> "RecordedLaunch":
        return RecordedLaunch(self, launch_shape(self.signature.name, shape))


class RecordedLaunch(NamedTuple):
    kernel: RecordedKernel
    shape: tuple
    prepared: tuple = ()

    def __call__(self, *arguments) -> None:
        (of, signature), (_, block, shared_bytes) = self.kernel, self.shape
        check_arguments(signature, arguments + self.prepared, "cuda:0")
        takes = of.takes[signature.name]
        line = {"kernel": signature.name, "from": of.what, **takes._asdict()}
        line |= {"threads": math.prod(block), "shared": takes.shared + shared_bytes}
        of.notes[json.dumps(line)] = None

    def prepare(self, *numbers) -> "RecordedLaunch":
        return self._replace(prepared=numbers)


def adamw(dtype: torch.dtype) -> None:
    """The optimizer's kernel, which is no operation: its tables hold addresses, and shapes have none."""
    table, decays = (torch.empty(9, dtype=t, device="cuda") for t in (torch.int64, torch.float32))
    for vector in (1, 4):
        types = {"WEIGHT": SCALARS[dtype], "GRADIENT": SCALARS[dtype], "MEAN": "float"}
        kernel = launch.module("adamw.cu", **types, VECTOR=vector).adamw
        kernel[9, 128](table, decays, *[1.0] * 6)


def part(x: torch.Tensor, index) -> torch.Tensor:
    """`x[index]`, for slices: PyTorch's own asks for the GPU."""
    for dim, place in enumerate(index if isinstance(index, tuple) else (index,)):
        start, stop, _ = place.indices(x.shape[dim])
        x = x.narrow(dim, start, stop - start)
    return x


def main(name: str) -> None:
    gpu = GPUS[name]
    notes: dict[str, None] = {}
    torch.Tensor.__getitem__, torch.Tensor.data_ptr = part, lambda x: 1 << 20
    launch.load = functools.partial(Recorded, gpu, notes)
    launch.FakeTensor = ()  # nothing is one: the engine launches as for tensors that have data
    torch.cuda.is_available = lambda: True
    fake_tensor.init_gpu_context = lambda device: None  # before 2.13, a first fake tensor would start the GPU
    torch.cuda.get_device_capability = lambda device=None: divmod(gpu.capability, 10)
    torch.cuda.get_device_properties = lambda device=None: SimpleNamespace(
        multi_processor_count=gpu.processors,
        shared_memory_per_block_optin=gpu.shared,
        major=gpu.capability // 10,
        minor=gpu.capability % 10,
    )
    for case in [*CASES, None]:
        for dtype in dtypes(name, case):
            with FakeTensorMode():
                if case is None:
                    adamw(dtype)
                elif case.operation in OPERATIONS and "cuda" in OPERATIONS[case.operation].engines:
                    forward, backward = kernels.pair("cuda", case.operation)
                    y, saved = forward(*shapes_only(case, dtype))
                    dy = tuple(torch.empty_like(out) for out in outputs(y))
                    backward(dy if len(dy) > 1 else dy[0], saved)
            for line in notes:
                print(json.dumps({"what": f"{case or 'adamw'} {str(dtype)[6:]}", **json.loads(line)}))
            notes.clear()


if __name__ == "__main__":
    main(sys.argv[1])

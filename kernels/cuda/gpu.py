"""Kernels on a GPU: machine code loaded when it is first launched, arguments checked and packed, the launch.

All of a launch takes a few microseconds of the CPU's time, most of it the driver's. So everything that can
be is made once: per kernel how its arguments are packed, per grid and block what the driver is told.
"""

import ctypes
import operator
import struct
import threading
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.nn import Parameter

from kernels.cuda import driver, nvrtc
from kernels.cuda.arguments import INTEGERS, check_arguments, launch_shape, place
from kernels.cuda.signature import DTYPES, TENSOR_MAP, Signature
from kernels.cuda.signature import Parameter as Argument
from kernels.cuda.tensor_map import TensorMap

# How a value lies in memory, in the letters of Python's struct.
_LETTERS = {
    "float": "f",
    "double": "d",
    "__half": "e",
    "__nv_bfloat16": "H",
    "bool": "?",
    "int8_t": "b",
    "uint8_t": "B",
    "int": "i",
    "unsigned": "I",
    "int64_t": "q",
    TENSOR_MAP: "128s",
}


class Code:
    """One source: compiled and loaded for a GPU when a kernel is first launched there."""

    def __init__(self, text: str, name: str, folder: Path):
        self._source = text, name, folder
        self._modules: dict[int, ctypes.c_void_p] = {}

    def compile(self, device: int) -> bytes:
        """-> the machine code for that GPU."""
        major, minor = torch.cuda.get_device_capability(device)
        return nvrtc.compile(*self._source, 10 * major + minor)

    def function(self, kernel: str, device: int) -> driver.Function:
        """A kernel on a GPU, the current one."""
        if device not in self._modules:
            self._modules[device] = driver.load(self.compile(device))
        return driver.function(self._modules[device], kernel, device)


class GpuKernel:
    """A kernel on GPUs: `kernel[grid, block](*arguments)`, or `kernel[grid, block, shared_bytes](..)`.

    It is launched on PyTorch's current stream of the GPU that the tensors are on, and returns at once.
    """

    def __init__(self, signature: Signature, code: Code):
        self.signature, self.code = signature, code
        self.kinds = [_kind(parameter) for parameter in signature.parameters]
        letters = ["P" if p.pointer else _LETTERS[p.type] for p in signature.parameters]
        form = struct.Struct("".join(letters))
        self.pack, self.buffer = form.pack_into, ctypes.create_string_buffer(max(form.size, 1))
        ends = [struct.calcsize("".join(letters[: i + 1])) for i in range(len(letters))]
        starts = [end - struct.calcsize(letter) for end, letter in zip(ends, letters)]
        address = ctypes.addressof(self.buffer)
        # The driver takes an array of addresses, one an argument, and copies what lies there.
        self.addresses = (ctypes.c_void_p * max(len(starts), 1))(*(address + start for start in starts))
        self.lock = threading.Lock()  # of the buffer: a backward pass is another thread's
        self.launches: dict[tuple, Launch] = {}
        self.functions: dict[int, driver.Function] = {}
        self.allowed: dict[int, int] = {}

    def __getitem__(self, shape: tuple) -> "Launch":
        try:
            return self.launches[shape]
        except (KeyError, TypeError):  # not seen yet, or something that cannot be a grid
            pass
        launch = Launch(self, *launch_shape(self.signature.name, shape))
        if len(self.launches) >= 1024:  # grids that change at every call
            self.launches.clear()
        self.launches[shape] = launch
        return launch

    def on(self, device: int) -> driver.Function:
        """This kernel on a GPU, the current one."""
        if device not in self.functions:
            self.functions[device] = self.code.function(self.signature.name, device)
        return self.functions[device]

    def allow_shared(self, found: driver.Function, device: int, dynamic: int) -> None:
        """Let launches take that many bytes beside the kernel's own; never fewer than one may already."""
        if found.shared + dynamic > 48 * 1024 and dynamic > self.allowed.get(device, 0):
            driver.allow_shared(found, dynamic)
            self.allowed[device] = dynamic


class Launch:
    """A kernel with a grid, a block and its shared memory; call it with the arguments."""

    def __init__(self, kernel: GpuKernel, grid: tuple, block: tuple, shared_bytes: int):
        self.kernel, self.grid, self.block, self.shared_bytes = kernel, grid, block, shared_bytes
        self.configs: dict[int, tuple] = {}  # by GPU

    def __call__(self, *arguments) -> None:
        """Raises `TypeError` or `ValueError` for arguments that the kernel cannot take, before the launch.

        Tensors that have shapes only, as `torch.compile` traces with, launch nothing.
        """
        kernel, device, values = self.kernel, None, []
        kinds = kernel.kinds
        if len(arguments) != len(kinds):
            check_arguments(kernel.signature, arguments, "cuda")
        for kind, a in zip(kinds, arguments):
            its = type(a)  # asked in the order of how often it comes
            if (its is Tensor or its is Parameter) and a.dtype is kind:
                index = a.get_device()
                if index != device:
                    if device is not None or index < 0:
                        return self._otherwise(arguments)
                    device = index
                values.append(a.data_ptr())
            elif its is kind:
                values.append(a)
            elif a is None and type(kind) is torch.dtype:
                values.append(0)
            else:
                return self._otherwise(arguments)
        self._start(device, values, arguments)

    def _start(self, device: int | None, values: list, arguments: tuple) -> None:
        current = torch._C._cuda_getDevice()
        if device != current:
            if device is None:  # no tensor says which
                device = current
            else:
                with torch.cuda.device(device):
                    return self._start(device, values, arguments)
        config = self.configs.get(device)
        if config is None:
            config = self._first(device)
        told, address, handle, launch = config
        kernel = self.kernel
        with kernel.lock:
            try:
                kernel.pack(kernel.buffer, 0, *values)
            except (struct.error, OverflowError) as wrong:
                check_arguments(kernel.signature, arguments, f"cuda:{device}")
                raise ValueError(f"{kernel.signature}: {wrong}.") from wrong
            told.stream = torch._C._cuda_getCurrentRawStream(device)
            code = launch(address, handle, kernel.addresses, None)
            if code == driver.INVALID_CONTEXT:  # a thread that has not called PyTorch yet
                torch.cuda.set_device(device)
                code = launch(address, handle, kernel.addresses, None)
        if code:
            raise RuntimeError(f"{kernel.signature.name}: {driver.words(code)}.")

    def _first(self, device: int) -> tuple:
        """What the driver is told at every launch, once it is sure that this GPU can launch it."""
        kernel, name = self.kernel, self.kernel.signature.name
        with driver.loading(device):
            found = kernel.on(device)
            threads = self.block[0] * self.block[1] * self.block[2]
            if threads > found.threads:
                raise ValueError(
                    f"{name}: a block of {self.block} has {threads} threads, and of this kernel the GPU "
                    f"runs at most {found.threads}: __launch_bounds__ says so, or its registers are used up."
                )
            if found.shared + self.shared_bytes > found.shared_most:
                raise ValueError(
                    f"{name}: {found.shared} bytes of shared memory in the kernel and {self.shared_bytes} at "
                    f"its launch are more than the {found.shared_most} that a block has on this GPU."
                )
            kernel.allow_shared(found, device, self.shared_bytes)
        told = driver.LaunchConfig(self.grid, self.block, self.shared_bytes)
        config = told, ctypes.pointer(told), found.handle, driver.library().cuLaunchKernelEx
        self.configs[device] = config
        return config

    def _otherwise(self, arguments: tuple) -> None:
        """What is rare: other kinds of numbers, tensors of other classes, and what is wrong."""
        tensors = [a for a in arguments if isinstance(a, Tensor)]
        places = [where for where in map(place, tensors) if where.startswith("cuda")] or ["cuda"]
        check_arguments(self.kernel.signature, arguments, places[0])
        if any(isinstance(x, FakeTensor) for x in tensors):
            return
        values = [
            value.data_ptr() if isinstance(value, Tensor) else _number(parameter, value)
            for parameter, value in zip(self.kernel.signature.parameters, arguments)
        ]
        self._start(tensors[0].get_device() if tensors else None, values, arguments)


def _kind(parameter: Argument):
    """What an argument is in almost all calls: a dtype for tensors, a type for what is no tensor."""
    if parameter.pointer:
        return DTYPES[parameter.type]
    if parameter.type == "__nv_bfloat16":
        return None  # always the long way
    return {"bool": bool, TENSOR_MAP: TensorMap}.get(
        parameter.type, int if parameter.type in INTEGERS else float
    )


def _number(parameter: Argument, value):
    """As `struct` packs it: null pointers are 0, a bfloat16 is its 16 bits."""
    if parameter.pointer:
        return 0
    if parameter.type == TENSOR_MAP:
        return value
    if parameter.type == "__nv_bfloat16":
        return torch.tensor(value, dtype=torch.bfloat16).view(torch.uint16).item()
    return operator.index(value) if parameter.type in INTEGERS else value

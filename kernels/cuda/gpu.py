"""Kernels on a GPU: machine code loaded when it is first launched, arguments checked and packed, the launch.

All of a launch takes a few microseconds of the CPU's time, most of it the driver's. So everything that can
be is made once: per kernel how its arguments are packed, per grid and block what the driver is told.
"""

import ctypes
import functools
import operator
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.nn import Parameter

from kernels.cuda import driver, nvrtc
from kernels.cuda.arguments import INTEGERS, Kernel, check_arguments, launch_shape, place
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
STREAM = "P16x"  # in the driver's configuration, and after it the attributes: there are none


class Code:
    """One source: compiled and loaded for a GPU when a kernel is first launched there."""

    def __init__(self, text: str, name: str, folder: Path):
        self.text, self.name, self.folder = text, name, folder
        self._modules: dict[int, ctypes.c_void_p] = {}

    def compile(self, device: int) -> bytes:
        """-> the machine code for that GPU."""
        major, minor = torch.cuda.get_device_capability(device)
        return nvrtc.compile(self.text, self.name, self.folder, 10 * major + minor)

    def function(self, kernel: str, device: int) -> driver.Function:
        """A kernel on a GPU, the current one."""
        if device not in self._modules:
            self._modules[device] = driver.load(self.compile(device))
        return driver.function(self._modules[device], kernel, device)


class GpuKernel(Kernel):
    """A kernel on GPUs: `kernel[grid, block](*arguments)`, or `kernel[grid, block, shared_bytes](..)`.

    It is launched on PyTorch's current stream of the GPU that the tensors are on, and returns at once.
    """

    def __init__(self, signature: Signature, code: Code):
        self.signature, self.code = signature, code
        self.read = _reader(signature)
        self.letters = ["P" if p.pointer else _LETTERS[p.type] for p in signature.parameters]
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
        self.read, self.prepared = kernel.read, ()
        self.forms: dict[int, list[tuple]] = {}  # by GPU, those that nobody is filling in

    def __call__(self, *arguments) -> None:
        """Raises `TypeError` or `ValueError` for arguments that the kernel cannot take, before the launch.

        Tensors that have shapes only, as `torch.compile` traces with, launch nothing.
        """
        try:
            device, values = self.read(*arguments)
        except TypeError:  # not what comes in almost all calls
            return self._otherwise(arguments)
        self._start(device, values, arguments)

    def prepare(self, *numbers) -> "Prepared":
        """This launch with its last arguments given, for whoever makes it many times; see `Prepared`."""
        return Prepared(self, numbers)

    def _start(self, device: int | None, values: tuple, arguments: tuple) -> None:
        forms = self.forms.get(device)
        if forms is None or (_several_gpus() and device != torch.cuda.current_device()):
            return self._elsewhere(device, values, arguments)
        try:
            form = forms.pop()
        except IndexError:  # another thread is filling it in: a backward pass
            form = self._form(device)
        pack, buffer, stream, start, config, handle, addresses = form
        try:
            pack(buffer, 32, stream(device), *values)
        except (struct.error, OverflowError) as wrong:
            check_arguments(self.kernel.signature, arguments + self.prepared, f"cuda:{device}")
            raise ValueError(f"{self.kernel.signature}: {wrong}.") from wrong
        code = start(config, handle, addresses, None)
        if code == driver.INVALID_CONTEXT:  # a thread that has not called PyTorch yet
            torch.cuda.set_device(device)
            code = start(config, handle, addresses, None)
        forms.append(form)
        if code:
            raise RuntimeError(f"{self.kernel.signature.name}: {driver.words(code)}.")

    def _elsewhere(self, device: int | None, values: tuple, arguments: tuple) -> None:
        """A first launch on a GPU, or one on a GPU that is not the current one."""
        if device is None:  # no tensor says which
            device = torch.cuda.current_device()
        elif device < 0:  # on the CPU
            return self._otherwise(arguments)
        with torch.cuda.device(device):
            if device not in self.forms:
                self.forms[device] = [self._form(device)]
            self._start(device, values, arguments)

    def _form(self, device: int) -> tuple:
        """What a launch tells the driver, as far as it is known; for a GPU that can launch it.

        It begins with the driver's own configuration; from its stream on it is filled in at every launch.
        """
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
        letters = kernel.letters
        form = struct.Struct(STREAM + "".join(letters))
        buffer = ctypes.create_string_buffer(32 + form.size)
        config = driver.LaunchConfig.from_buffer(buffer)
        config.grid[:], config.block[:], config.shared_bytes = self.grid, self.block, self.shared_bytes
        # The driver takes an array of addresses, one an argument, and copies what lies there.
        ends = [struct.calcsize(STREAM + "".join(letters[: i + 1])) for i in range(len(letters))]
        starts = [32 + end - struct.calcsize(letter) for end, letter in zip(ends, letters)]
        first = ctypes.addressof(buffer)
        addresses = (ctypes.c_void_p * (len(starts) + 1))(*(first + start for start in starts))
        stream, start = torch._C._cuda_getCurrentRawStream, driver.library().cuLaunchKernelEx
        return form.pack_into, buffer, stream, start, ctypes.pointer(config), found.handle, addresses

    def _otherwise(self, arguments: tuple) -> None:
        """What is rare: other kinds of numbers, tensors of other classes, and what is wrong."""
        tensors = [a for a in arguments if isinstance(a, Tensor)]
        places = [where for where in map(place, tensors) if where.startswith("cuda")] or ["cuda"]
        check_arguments(self.kernel.signature, arguments + self.prepared, places[0])
        if any(isinstance(x, FakeTensor) for x in tensors):
            return
        values = tuple(
            value.data_ptr() if isinstance(value, Tensor) else _number(parameter, value)
            for parameter, value in zip(self.kernel.signature.parameters, arguments)
        )
        self._start(tensors[0].get_device() if tensors else None, values, arguments)


class Prepared(Launch):
    """A launch of which all is decided but the tensors, which come first: made once, called many times.

    Called with the tensors, or None, the first not None. The caller answers for their dtypes, and that they
    are on one GPU: only addresses are read. What is prepared is checked once, when it is prepared.
    """

    def __init__(self, launch: Launch, numbers: tuple):
        super().__init__(launch.kernel, launch.grid, launch.block, launch.shared_bytes)
        parameters = self.kernel.signature.parameters
        self.count = len(parameters) - len(numbers)
        self.prepared = numbers
        check_arguments(self.kernel.signature, (None,) * self.count + numbers, "cuda")
        self.numbers = [_number(p, n) for p, n in zip(parameters[self.count :], numbers)]

    def __call__(self, *tensors: Tensor | None) -> None:
        values = [0 if x is None else x.data_ptr() for x in tensors]
        self._start(tensors[0].get_device(), values, tensors)

    def _form(self, device: int) -> tuple:
        pack, buffer, *rest = super()._form(device)
        pack(buffer, 32, 0, *[0] * self.count, *self.numbers)
        return struct.Struct(STREAM + "P" * self.count).pack_into, buffer, *rest


@functools.cache
def _several_gpus() -> bool:
    return torch.cuda.device_count() > 1


def _reader(signature: Signature) -> Callable:
    """A function of a kernel's arguments -> the GPU of its tensors, and what `struct` packs.

    It returns nothing for what is rare: numbers of other classes than int and float, and what is wrong. It is
    written here line by line, for one signature: a loop over arguments and their kinds takes twice as long.
    """
    given = {"Tensor": Tensor, "Parameter": Parameter}
    names = [f"a{i}" for i in range(len(signature.parameters))]
    lines = ["device = None"]
    for name, parameter in zip(names, signature.parameters):
        if parameter.pointer:
            given[f"dtype_{name}"] = DTYPES[parameter.type]
            lines += [
                f"its = type({name})",
                f"if (its is Tensor or its is Parameter) and {name}.dtype is dtype_{name}:",
                f"    its = {name}.get_device()",
                "    if its != device:",
                "        if device is not None: return",
                "        device = its",
                f"    {name} = {name}.data_ptr()",
                f"elif {name} is None: {name} = 0",
                "else: return",
            ]
        else:
            given[f"type_{name}"] = _type(parameter)
            lines.append(f"if type({name}) is not type_{name}: return")
    lines.append(f"return device, ({' '.join(name + ',' for name in names)})")
    exec("\n    ".join([f"def read({', '.join(names)}):", *lines]), given)
    return given["read"]


def _type(parameter: Argument) -> type | None:
    """Of an argument that is no tensor, in almost all calls."""
    if parameter.type in ("float", "double", "__half"):
        return float
    return {"bool": bool, TENSOR_MAP: TensorMap, "__nv_bfloat16": None}.get(parameter.type, int)


def _number(parameter: Argument, value):
    """As `struct` packs it: null pointers are 0, a bfloat16 is its 16 bits."""
    if parameter.pointer:
        return 0
    if parameter.type == "__nv_bfloat16":
        return torch.tensor(value, dtype=torch.bfloat16).view(torch.uint16).item()
    return operator.index(value) if parameter.type in INTEGERS else value

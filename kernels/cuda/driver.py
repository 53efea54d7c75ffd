"""The few functions of NVIDIA's driver that it takes to load and launch a kernel, called directly.

The driver's library came with the GPU; PyTorch uses the same one, so its tensors, streams and graphs are
the driver's too.
"""

import ctypes
import functools
import sys
from contextlib import contextmanager
from typing import NamedTuple

import torch

INVALID_CONTEXT = 201
_WRONG_CODE = (200, 209, 222)  # an image, an architecture, a version that the driver cannot read
_EARLIER = (700, 702, 714, 715, 716, 717, 718, 719)  # kernels run behind: what one did wrong shows later


class LaunchConfig(ctypes.Structure):
    """The driver's CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("attribute_count", ctypes.c_uint),
    )


class Function(NamedTuple):
    """A kernel on one GPU, and what limits its launches there."""

    handle: ctypes.c_void_p
    threads: int  # a block can have: fewer than the GPU's where each takes many registers
    shared: int  # bytes that the kernel's own arrays take
    shared_most: int  # bytes that a block can have


@functools.cache
def library() -> ctypes.CDLL:
    """Raises `OSError` on a machine without a driver."""
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def call(name: str, *arguments) -> None:
    """Call a function of the driver. Raises `RuntimeError` in the driver's words."""
    code = getattr(library(), name)(*arguments)
    if code:
        raise RuntimeError(f"{name}: {words(code)}")


def words(code: int) -> str:
    """What an error of the driver means."""
    text = ctypes.c_char_p()
    library().cuGetErrorString(code, ctypes.byref(text))
    said = f"{(text.value or b'unknown error').decode()} (error {code})"
    if code in _EARLIER:
        said += (
            ". A kernel that was launched before did this: to find it, set CUDA_LAUNCH_BLOCKING=1, run "
            "compute-sanitizer, or run on the CPU with emulate=True"
        )
    if code in _WRONG_CODE:
        said += (
            ". The driver is older than the compiler, NVRTC: update it, or install the packages "
            "nvidia-cuda-nvrtc, nvidia-cuda-runtime and cuda-bindings in the version that nvidia-smi shows"
        )
    return said


@contextmanager
def loading(device: int):
    """Around what loads or allocates on a GPU: its context is this thread's, and captures allow it."""
    torch.cuda.set_device(device)  # a thread that never called PyTorch has no context yet
    mode = ctypes.c_int(2)  # relaxed: code may be loaded while this thread captures a CUDA graph
    call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
    try:
        yield
    finally:
        call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))


def load(cubin: bytes) -> ctypes.c_void_p:
    """Machine code onto the current GPU -> its module, which stays as long as the process."""
    module = ctypes.c_void_p()
    call("cuModuleLoadData", ctypes.byref(module), cubin)
    return module


def function(module: ctypes.c_void_p, name: str, device: int) -> Function:
    """A kernel of a module on the current GPU."""
    handle = ctypes.c_void_p()
    call("cuModuleGetFunction", ctypes.byref(handle), module, name.encode())
    limit = functools.partial(_ask, "cuFuncGetAttribute", of=handle)
    return Function(handle, limit(0), limit(1), _ask("cuDeviceGetAttribute", 97, ctypes.c_int(device)))


def allow_shared(found: Function, dynamic: int) -> None:
    """Let its launches take that many bytes; without asking, a block has 48 KiB."""
    call("cuFuncSetAttribute", found.handle, 8, ctypes.c_int(dynamic))


def _ask(name: str, attribute: int, of) -> int:
    value = ctypes.c_int()
    call(name, ctypes.byref(value), attribute, of)
    return value.value

"""CUDA C++ without a GPU: the same source, compiled by g++ or clang++, run on CPU tensors.

`compile` turns a source into a `Library`, `launch` runs one of its kernels. The header emulator.h gives the
compiler CUDA's names, emulator_runtime.cpp runs blocks and threads.
"""

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

HERE = Path(__file__).parent
CUDA_HEADERS = (
    "cuda_fp16.h",
    "cuda_bf16.h",
    "cuda_pipeline.h",
    "cuda_runtime.h",
    "cuda_pipeline_primitives.h",
)
FLAGS = [
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-shared",
    "-ffp-contract=off",
    "-U_FORTIFY_SOURCE",
    "-fno-strict-aliasing",
    # Two sources made of one file with other macros have functions of the same names: each keeps its own.
    "-fvisibility=hidden",
]


class EmulatorError(RuntimeError):
    """What a kernel did wrong, or why it cannot be compiled."""


class Library:
    """A compiled source: its kernels by name."""

    def __init__(self, path: Path, kernels: dict[str, ctypes.c_void_p]):
        self.path, self.kernels = path, kernels


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    chosen = os.environ.get("COURSE_CACHE_DIR")
    return (Path(chosen) if chosen else Path.home() / ".cache" / "tensors-to-tensor-cores") / "cuda"


@functools.cache
def compiler() -> str:
    """The path of the C++ compiler. Raises `EmulatorError` where there is none."""
    for name in ("g++", "clang++") if sys.platform != "darwin" else ("clang++", "g++"):
        if found := shutil.which(name):
            return found
    install = {
        "darwin": "xcode-select --install",
        "win32": "use the Windows Subsystem for Linux (wsl --install), and there: sudo apt install g++",
    }.get(
        sys.platform, "sudo apt install g++ (Debian, Ubuntu, WSL), or your system's package of g++ or clang"
    )
    raise EmulatorError(
        f"There is no GPU here, and to run CUDA C++ on the CPU takes a C++ compiler: {install}."
    )


@functools.cache
def _runtime() -> tuple[ctypes.CDLL, Path]:
    path = _build((HERE / "emulator_runtime.cpp").read_text(), "runtime", ["-pthread"])
    runtime = ctypes.CDLL(str(path))
    runtime.emulated_printed.restype = ctypes.c_char_p
    return runtime, path


def _build(source: str, name: str, options: Sequence[str], headers: dict[str, str] | None = None) -> Path:
    """Compile a text to a shared library, or find the one that was compiled from it before."""
    headers = headers or {}
    key = hashlib.sha256(repr((source, headers, list(options), FLAGS, _version())).encode()).hexdigest()[:20]
    path = cache_folder() / f"emulated-{name}-{key}.so"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for header in CUDA_HEADERS:
            (Path(folder) / header).write_text("")
        for header, text in headers.items():
            (Path(folder) / header).write_text(text)
        code = Path(folder) / f"{name}.cpp"
        code.write_text(source)
        made = Path(folder) / "made.so"
        command = [compiler(), *FLAGS, "-I", folder, str(code), *options, "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if not line.startswith("In file included")]
            raise EmulatorError("\n".join(errors[:12]))
        staged = path.with_suffix(f".{os.getpid()}")
        shutil.copy(made, staged)
        os.replace(staged, path)
    return path


@functools.cache
def _version() -> str:
    said = subprocess.run([compiler(), "--version"], capture_output=True, text=True).stdout
    return f"{said} {platform.machine()}"


_SHARED = re.compile(r"(extern\s+)?\b__shared__\s+([^;{}()=]*(?:\([^()]*\)[^;{}()=]*)*);")
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.MULTILINE)
_KERNEL = re.compile(
    r"__global__\s+(?:\w+\s*(?:\([^()]*\)\s*)?)*?\bvoid\s+(?:__launch_bounds__\s*\([^()]*\)\s*)?(\w+)\s*\("
)
_COMMENT = re.compile(r'//[^\n]*|/\*.*?\*/|("(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\')', re.DOTALL)


def _without_comments(source: str) -> str:
    return _COMMENT.sub(lambda m: m[1] or re.sub(r"[^\n]", " ", m[0]), source)


def _rewrite(source: str) -> str:
    """`__shared__` declarations become references to the memory of the block."""
    return _SHARED.sub(_reference, source)


def _reference(match: re.Match) -> str:
    text = re.sub(r"__align__\s*\(([^()]*)\)", r"alignas(\1)", match[2])
    alignment = re.search(r"alignas\s*\(([^()]*)\)", text)
    text = re.sub(r"alignas\s*\([^()]*\)", "", text)
    newlines = "\n" * match[0].count("\n")
    first, *more = _split(" ".join(text.split()))
    kind, name, dimensions = re.fullmatch(r"(.+?)\s*\b(\w+)\s*((?:\[[^\]]*\]\s*)*)", first).groups()
    if match[1]:
        return f'{kind} *{name} = ({kind} *)emulated_dynamic_shared("{name}");' + newlines
    out = []
    for declared in [name + dimensions, *more]:
        name, dimensions = re.fullmatch(r"\s*(\w+)\s*(.*)", declared).groups()
        aligned = f"alignof({kind})" + (
            f" > {alignment[1]} ? alignof({kind}) : {alignment[1]}" if alignment else ""
        )
        out.append(
            f"using emulated_{name} = {kind}{dimensions}; static const EmulatedSharedArray emulated_its_{name} = "
            f'{{"{name}", sizeof(emulated_{name}), {aligned}}}; emulated_{name} &{name} = '
            f"*(emulated_{name} *)emulated_shared(&emulated_its_{name});"
        )
    return " ".join(out) + newlines


def _split(text: str) -> list[str]:
    """At the commas that separate declarators, not those of template arguments."""
    parts, depth = [""], 0
    for c in text:
        depth += (c in "<([{") - (c in ">)]}")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return parts


def _headers(source: str, folders: Sequence[Path]) -> dict[str, str]:
    found: dict[str, str] = {}
    wanted = _INCLUDE.findall(source)
    while wanted:
        name = wanted.pop()
        path = next((Path(f) / name for f in folders if (Path(f) / name).is_file()), None)
        if name in found or path is None:
            continue
        text = _without_comments(path.read_text())
        found[name] = f'#line 1 "{path}"\n{_rewrite(text)}'
        wanted += _INCLUDE.findall(text)
    return found


def compile(
    source: str, name: str, include_dirs: Sequence[Path] = (), options: Sequence[str] = ()
) -> Library:
    """Compile CUDA C++ for this computer's CPU, or take it from the cache.

    source: the text; name: how messages call it; include_dirs: where `#include "x.cuh"` looks; options: for
    the compiler, such as `-DBLOCK=256`. Raises `EmulatorError` without a compiler or for a text that it rejects.
    """
    runtime, runtime_path = _runtime()
    plain = _without_comments(source)
    kernels = _KERNEL.findall(plain)
    whole = "\n".join(
        [
            (HERE / "emulator.h").read_text(),
            f'#line 1 "{name}"',
            _rewrite(plain),
            *(f"EMULATED_KERNEL({kernel})" for kernel in kernels),
        ]
    )
    stem = re.sub(r"\W+", "_", Path(name).stem)
    path = _build(whole, stem, [*options, "-Wno-psabi", str(runtime_path)], _headers(plain, include_dirs))
    library = ctypes.CDLL(str(path))
    return Library(
        path, {k: ctypes.cast(getattr(library, f"emulated_kernel_{k}"), ctypes.c_void_p) for k in kernels}
    )


_C_TYPES = {
    "float": ctypes.c_float,
    "double": ctypes.c_double,
    "int": ctypes.c_int32,
    "unsigned": ctypes.c_uint32,
    "unsigned int": ctypes.c_uint32,
    "int64_t": ctypes.c_int64,
    "long long": ctypes.c_int64,
    "uint64_t": ctypes.c_uint64,
    "bool": ctypes.c_bool,
    "uint8_t": ctypes.c_uint8,
    "int8_t": ctypes.c_int8,
}


def launch(library: Library, signature, grid, block, shared_bytes: int, arguments: Sequence) -> None:
    """Run `signature.name` on CPU tensors and numbers. Returns when all blocks are done.

    signature.parameters: each with `name`, `type` (a C type) and `pointer` (a bool).
    Raises `EmulatorError` for what the kernel does wrong.
    """
    runtime, _ = _runtime()
    values = [
        ctypes.c_void_p(a.data_ptr() if isinstance(a, torch.Tensor) else a)
        if p.pointer
        else _C_TYPES[p.type.removeprefix("const ")](a)
        for p, a in zip(signature.parameters, arguments, strict=True)
    ]
    pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
    error = ctypes.create_string_buffer(4096)
    workers = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count())
    grid, block = ((ctypes.c_uint * 3)(*(*v, 1, 1)[:3]) for v in (_tuple(grid), _tuple(block)))
    failed = runtime.emulated_launch(
        library.kernels[signature.name], pointers, grid, block, shared_bytes, workers, error, len(error)
    )
    if text := runtime.emulated_printed():
        print(text.decode(), end="")
    if failed:
        raise EmulatorError(f"{signature.name}, {error.value.decode()}")


def _tuple(extent) -> tuple:
    return (extent,) if isinstance(extent, int) else tuple(extent)

"""CUDA C++ to machine code for one GPU architecture, by NVIDIA's run-time compiler NVRTC through `cuda.core`.

Neither a GPU nor the CUDA toolkit is needed: the compiler and the headers are packages of pip's. On a GPU
machine that has the toolkit, its headers serve too.
"""

import functools
import io
import os
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from kernels.cuda import cache
from kernels.cuda.cache import CompileError

# NVRTC knows no header of the C++ library, only those of CUDA: what else a kernel names is defined here.
PRELUDE = """\
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#define INFINITY __int_as_float(0x7f800000)
struct alignas(64) CUtensorMap { uint64_t opaque[16]; };
"""
HEADERS = {"__half": "cuda_fp16.h", "__nv_bfloat16": "cuda_bf16.h"}


class Resources(NamedTuple):
    """What one kernel takes of a processor."""

    registers: int  # a thread
    shared: int  # bytes a block, without what is asked for at the launch
    spilled: int  # bytes a thread keeps in memory, because its registers do not suffice


def compile(text: str, name: str, folder: Path, capability: int) -> bytes:
    """-> the cubin of a source for compute capability `capability`, 90 for an H100; kept on disk.

    Headers in `folder` are found, `name` stands in messages. For an H100 and later the code may use what only
    that architecture has. Raises `CompileError`, and `RuntimeError` where there is no NVRTC.
    """
    own = cache.headers(text, [folder])
    source, options = _prepare(text, name, folder, capability, own)
    parts = (source, name, repr(sorted(own.items())), repr(sorted(options.items())), *map(str, version()))
    path = cache.compiled(parts, ".cubin", lambda: _compile(source, options)[0])
    return cache.content(path)


def resources(text: str, name: str, folder: Path, capability: int) -> dict[str, Resources]:
    """What every kernel of a source takes on such a GPU, by name. Compiles, and raises as `compile` does."""
    source, options = _prepare(text, name, folder, capability, cache.headers(text, [folder]))
    # On a machine with a GPU NVRTC keeps what it has compiled for it, and has then nothing to say of it.
    _, log = _compile(source, options | {"no_cache": True})
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        used = re.search(r"Used (\d+) registers", part)
        shared, spilled = re.search(r"(\d+) bytes smem", part), re.search(r"(\d+) bytes spill stores", part)
        numbers = [int(match[1]) if match else 0 for match in (used, shared, spilled)]
        found[part.partition("'")[0]] = Resources(*numbers)
    return found


def _prepare(
    text: str, name: str, folder: Path, capability: int, own: dict[str, str]
) -> tuple[str, dict[str, object]]:
    """-> what the compiler gets to read, and its options."""
    everything = text + "".join(own.values())
    wanted = [f"#include <{header}>\n" for word, header in HEADERS.items() if word in everything]
    folders = [folder, cuda_headers()] if wanted or "#include <" in everything else [folder]
    options = {
        "name": name,
        "arch": f"sm_{capability}{'a' if capability >= 90 else ''}",
        "std": "c++17",
        "lineinfo": True,  # for profilers and compute-sanitizer; the code is the same
        "ptxas_options": ["-v"],  # say what each kernel takes
        "include_path": [str(path) for path in folders],
    }
    return f'{"".join(wanted)}{PRELUDE}#line 1 "{name}"\n{text}', options


def _compile(source: str, options: dict[str, object]) -> tuple[bytes, str]:
    """-> the cubin, and what the compiler said."""
    Program, ProgramOptions, _ = _nvrtc()
    log = io.StringIO()
    try:
        code = Program(source, "c++", ProgramOptions(**options)).compile("cubin", logs=log).code
        return bytes(code), log.getvalue()
    except Exception as error:  # of another class in every version of cuda.core
        if "NVRTC_ERROR" not in str(error):
            raise
        log = str(error).partition("compilation log:")[2] or str(error)
        problem = "\n\n".join(_messages(log)).rstrip()
    raise CompileError(f"{options['name']} does not compile for {options['arch']}.\n\n{problem}")


def _messages(log: str) -> list[str]:
    """The first three errors of a compiler's log: where, what, the source's line, and a caret under it.

    What the assembler says has no line of the source; it is shown as it is.
    """
    head = re.compile(r"(.+)\((\d+)\): (?:catastrophic )?error(?: #\S+)?: (.*)")
    lines, found = [line for line in log.splitlines() if not re.match("ptxas (info|  )", line)], []
    for i, text in enumerate(lines):
        if match := head.match(text):
            rest = lines[i + 1 : i + 20]
            end = next((n for n, line in enumerate(rest) if line.strip() == "^"), None)
            shown = [] if end is None else rest[: end + 1]
            found.append("\n".join([f"{Path(match[1]).name}, line {match[2]}: {match[3]}", *shown]))
    if not found:
        return ["\n".join(lines).strip()]
    more = len(found) - 3
    return found[:3] + [f"and {more} more error{'s' * (more > 1)}"] * (more > 0)


@functools.cache
def _nvrtc():
    """-> cuda.core's Program and ProgramOptions, and the binding to NVRTC itself, loaded."""
    try:
        try:
            from cuda.core import Program, ProgramOptions
        except ImportError:  # before version 1 they stood elsewhere
            from cuda.core.experimental import Program, ProgramOptions
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()  # looks for the library
    except (ImportError, RuntimeError) as missing:
        first = str(missing).strip().splitlines()[:1]
        raise RuntimeError(
            f"CUDA C++ is compiled by NVIDIA's NVRTC, which is missing here: {remedy()}. ({' '.join(first)})"
        ) from missing
    return Program, ProgramOptions, nvrtc


def remedy() -> str:
    """What to do where there is no NVRTC."""
    if sys.platform == "darwin":
        return "it has no package for macOS; emulate=True runs kernels on the CPU"
    cuda_12 = "-cu12" if (torch.version.cuda or "").startswith("12.") else ""
    core = f"'cuda-core[cu{cuda_12[3:] or 13}]>=1.2'"
    return f"pip install {core} nvidia-cuda-nvrtc{cuda_12} nvidia-cuda-runtime{cuda_12}"


def version() -> tuple[int, int]:
    """Of NVRTC: (13, 0). Raises `RuntimeError` with what to install where there is none."""
    _, major, minor = _nvrtc()[2].nvrtcVersion()
    return major, minor


@functools.cache
def cuda_headers() -> Path:
    """The folder of cuda_fp16.h and its like, in a package of pip's, else in a CUDA toolkit.

    Raises `RuntimeError` where there is none.
    """
    packages = [Path(folder) / "nvidia" for folder in sys.path]
    toolkits = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    if nvcc := shutil.which("nvcc"):
        toolkits.append(Path(nvcc).resolve().parents[1])
    folders = [
        *(p / f"cu{version()[0]}" / "include" for p in packages),
        *(p / "cuda_runtime" / "include" for p in packages),  # where CUDA 12's packages have them
        *(Path(toolkit) / "include" for toolkit in [*toolkits, "/usr/local/cuda"] if toolkit),
    ]
    for folder in folders:
        if (folder / "cuda_fp16.h").is_file():
            return folder
    raise RuntimeError(
        "The headers of CUDA (cuda_fp16.h) are not installed: pip install nvidia-cuda-runtime, or set "
        "CUDA_HOME to the folder of a CUDA toolkit."
    )

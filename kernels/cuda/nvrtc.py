"""CUDA C++ to machine code for one GPU architecture, by NVIDIA's run-time compiler NVRTC through `cuda.core`.

Neither a GPU nor the CUDA toolkit is needed: the compiler and the headers are packages of pip's. On a GPU
machine that has the toolkit, its headers serve too.
"""

import functools
import os
import re
import shutil
import sys
from pathlib import Path

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


def compile(text: str, name: str, folder: Path, capability: int) -> bytes:
    """-> the cubin of a source for compute capability `capability`, 90 for an H100; kept on disk.

    Headers in `folder` are found, `name` stands in messages. For an H100 and later the code may use what only
    that architecture has. Raises `CompileError`, and `RuntimeError` where there is no NVRTC.
    """
    source, include, parts = _prepared(text, name, folder, capability)
    path = cache.compiled(parts, ".cubin", lambda: _compile(source, name, [folder, include], parts[-1]))
    return cache.content(path)


def listing(text: str, name: str, folder: Path, capability: int) -> tuple[str, str]:
    """-> the PTX of a source that `compile` accepts, and what the assembler says of it: registers, spills."""
    source, include, parts = _prepared(text, name, folder, capability)
    nvrtc = _nvrtc()[2]  # itself: cuda.core asks the driver before it gives PTX
    _, program = nvrtc.nvrtcCreateProgram(source.encode(), name.encode(), 0, None, None)
    options = [f"-arch={parts[-1]}", "-std=c++17", "--ptxas-options=-v"]
    options += [f"-I{path}" for path in (folder, include) if path]
    nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    texts = []
    for size, get in ((nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX),
                      (nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog)):  # fmt: skip
        buffer = bytes(size(program)[1])
        get(program, buffer)
        texts.append(buffer.rstrip(b"\0").decode())
    nvrtc.nvrtcDestroyProgram(program)
    return texts[0], texts[1]


def _prepared(text: str, name: str, folder: Path, capability: int) -> tuple[str, Path | None, tuple]:
    """-> what the compiler gets, CUDA's headers if it needs them, and all that its result depends on, the
    architecture last."""
    own = cache.headers(text, [folder])
    everything = text + "".join(own.values())
    wanted = [f"#include <{header}>\n" for word, header in HEADERS.items() if word in everything]
    source = f'{"".join(wanted)}{PRELUDE}#line 1 "{name}"\n{text}'
    architecture = f"sm_{capability}{'a' if capability >= 90 else ''}"
    include = cuda_headers() if wanted or "#include <" in everything else None
    parts = (source, name, repr(sorted(own.items())), str(include), *map(str, version()), architecture)
    return source, include, parts


def _compile(source: str, name: str, folders: list[Path | None], architecture: str) -> bytes:
    Program, ProgramOptions, _ = _nvrtc()
    options = ProgramOptions(
        arch=architecture,
        std="c++17",
        lineinfo=True,  # for profilers and compute-sanitizer; the code is the same
        name=name,
        include_path=[str(folder) for folder in folders if folder],
    )
    try:
        return bytes(Program(source, "c++", options).compile("cubin").code)
    except Exception as error:  # of another class in every version of cuda.core
        if "NVRTC_ERROR" not in str(error):
            raise
        log = str(error).partition("compilation log:")[2] or str(error)
        problem = "\n\n".join(_messages(log)).rstrip()
    raise CompileError(f"{name} does not compile for {architecture}.\n\n{problem}")


def _messages(log: str) -> list[str]:
    """The first three errors of a compiler's log: where, what, the source's line, and a caret under it.

    What the assembler says has no line of the source; it is shown as it is.
    """
    head = re.compile(r"(.+)\((\d+)\): (?:catastrophic )?error(?: #\S+)?: (.*)")
    lines, found = log.splitlines(), []
    for i, text in enumerate(lines):
        if match := head.match(text):
            rest = lines[i + 1 : i + 20]
            end = next((n for n, line in enumerate(rest) if line.strip() == "^"), None)
            shown = [] if end is None else rest[: end + 1]
            found.append("\n".join([f"{Path(match[1]).name}, line {match[2]}: {match[3]}", *shown]))
    if not found:
        return [log.strip()]
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
        remedy = "pip install cuda-core nvidia-cuda-nvrtc nvidia-cuda-runtime"
        if sys.platform == "darwin":
            remedy = "there is none for macOS; kernels run with emulate=True"
        first = str(missing).strip().splitlines()[:1]
        raise RuntimeError(
            f"CUDA C++ is compiled by NVIDIA's NVRTC, which is not installed: {remedy}. ({' '.join(first)})"
        ) from missing
    return Program, ProgramOptions, nvrtc


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

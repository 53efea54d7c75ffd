"""CUDA C++ without a GPU: the same source, compiled by g++ or clang++, run on CPU tensors, and watched.

`compile` turns a source into a `Library`, `launch` runs one of its kernels. Every access to memory is
checked, and what a GPU would let pass is an `EmulatorError` that names kernel, block, thread, line and
element. Inside `checks(False)` nothing is checked, and kernels run about ten times as fast.

emulator.h gives the compiler CUDA's names; emulator_runtime.cpp runs blocks and threads; emulator_checks.cpp
looks at the accesses.

What it has: threads, blocks, shared memory, barriers, shuffles, votes, atomics, asynchronous copies into
shared memory, printf and assert. What it reports:

- elements out of bounds, of arguments, of shared arrays and of local ones; null and wild pointers; vectors at
  addresses that are no multiples of their size; writes through pointers to const;
- shared memory that is read before it is written, or while a copy into it is on its way;
- two threads at the same bytes of shared or global memory, one of them writing, with nothing between;
- barriers and shuffles that not all threads reach; a shuffle from a lane that takes no part;
- division by zero, and more local memory than a stack has.

What it has not: warps in step, a schedule like a GPU's, or its memory model. Threads take turns only where
they wait; between two such places a thread runs alone, and everybody sees what it wrote at once. So a kernel
that is right here can still lack a fence. A thread that waits for a block which has not begun waits for ever.
After a __threadfence() anywhere in a launch, races between blocks are no longer looked for: the emulator
cannot know what the fence is for. Arrays that a function was given by pointer and that are local to its
caller have no bounds. Arithmetic is the CPU's, and the compiler fuses no multiplication with an addition; the
fast versions of functions (__expf) are the exact ones. PTX is not there: tensor cores are, where a header
writes out what their instructions do (ladder/mma.cuh), clusters and TMA are not.
"""

import contextlib
import ctypes
import functools
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from kernels.cuda import cache
from kernels.cuda.cache import CompileError
from kernels.cuda.signature import Signature, signatures, without_comments

HERE = Path(__file__).parent
# CUDA's own headers: what they declare is in emulator.h.
CUDA_HEADERS = (
    "cuda_runtime.h",
    "cuda_fp16.h",
    "cuda_bf16.h",
    "cuda_pipeline.h",
    "cuda_pipeline_primitives.h",
)
FLAGS = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-U_FORTIFY_SOURCE"]
# Contracting a * b + c would make results depend on the processor. A frame must fit a fiber's stack.
KERNEL_FLAGS = ["-ffp-contract=off", "-fno-strict-aliasing", "-fno-exceptions", "-Wframe-larger-than=65536"]
KERNEL_FLAGS += ["-Wno-psabi", "-g1", "-gdwarf-4"]
CHECK_FLAGS = ["-DEMULATED_CHECKS", "-fno-tree-vectorize", "-fno-omit-frame-pointer"]
CHECK_FLAGS += ["-fsanitize=thread,bounds,integer-divide-by-zero"]


class EmulatorError(RuntimeError):
    """What a kernel did wrong: kernel, block, thread, line, and what a GPU would have let pass."""


_checking = True


@contextlib.contextmanager
def checks(on: bool) -> Iterator[None]:
    """Whether launches inside are checked. Without checks a bug may do anything to this process."""
    global _checking
    before, _checking = _checking, on
    try:
        yield
    finally:
        _checking = before


_reachable: tuple[Tensor, ...] = ()


@contextlib.contextmanager
def reachable(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Kernels launched inside may reach these tensors too, through addresses in a table that they are given.

    Of these only the bounds are checked, and a launch that fails can have changed them.
    """
    global _reachable
    before, _reachable = _reachable, tuple(sorted(tensors, key=Tensor.data_ptr))
    try:
        yield
    finally:
        _reachable = before


class Library:
    """A source and what it was compiled to, with checks and without: each when it is first needed."""

    def __init__(self, source: str, name: str, headers: dict[str, str], options: Sequence[str]):
        self.source, self.name, self.headers, self.options = source, name, headers, options
        self._compiled: dict[bool, ctypes.CDLL] = {}

    def compiled(self, checked: bool) -> ctypes.CDLL:
        """The machine code. Raises `CompileError` with the line, `EmulatorError` without a compiler."""
        if checked not in self._compiled:
            _runtime()  # first: it has the functions that the library calls
            try:
                self._compiled[checked] = _build(*self.recipe(checked))
            except CompileError as error:
                show = lambda m: f"{m[0]}\n    {m[2]} | {self.line(m[1], int(m[2]))}"
                raise CompileError(re.sub(r"(?m)^(\S+) line (\d+): .*", show, str(error))) from None
        return self._compiled[checked]

    def recipe(self, checked: bool) -> tuple[dict[str, str], list[str]]:
        """What the compiler is given: the texts of files by their names, and flags."""
        flags = [*KERNEL_FLAGS, *self.options, *(CHECK_FLAGS if checked else ())]
        if checked and "clang" in _version(compiler()):  # else x += 1 is a write only
            flags += ["-mllvm", "-tsan-instrument-read-before-write"]
        return {"kernel.cpp": _plain_cpp(self), **self.headers}, flags

    def line(self, file: str, number: int) -> str:
        """A line of the source, or of a header of it, as it was written."""
        headers = {Path(name).name: text for name, text in self.headers.items()}
        text = self.source if file == self.name else headers.get(file, "")
        lines = text.split(f'#line 1 "{file}"\n')[-1].split("\n")
        return lines[number - 1].strip() if 0 < number <= len(lines) else ""


def compile(
    source: str, name: str, include_dirs: Sequence[Path] = (), options: Sequence[str] = ()
) -> Library:
    """Compile CUDA C++ for this computer's CPU, or take it from the cache.

    `name` is how messages call the source, `include_dirs` is where `#include "x.cuh"` is looked for,
    `options` are for the compiler. Raises `CompileError` with the line, `EmulatorError` without a compiler.
    """
    library = Library(source, name, cache.headers(source, include_dirs), options)
    library.compiled(_checking)
    return library


# From CUDA C++ to C++


def _plain_cpp(library: Library) -> str:
    kernels = signatures(library.source)
    return "\n".join(
        [
            '#line 1 "emulator.h"',
            (HERE / "emulator.h").read_text(encoding="utf-8"),
            '#line 1 "before the source"',
            _rewrite(library.source),
            *(f"EMULATED_KERNEL({name})" for name in kernels),
        ]
    )


_SHARED = re.compile(r"(extern\s+)?\b__shared__\s+((?:[^;{}()=]|\([^()]*\))*);")
_ALIGNED = re.compile(r"(?:alignas|__align__)\s*\(((?:[^()]|\([^()]*\))*)\)")
_NAME = re.compile(r"(.*?)\b(\w+)\s*((?:\[[^\]]*\]\s*)*)")


def _rewrite(source: str) -> str:
    """`__shared__` declarations become references to memory of the block. Lines stay where they are."""
    return _SHARED.sub(_references, without_comments(source))


def _references(match: re.Match) -> str:
    aligned = _ALIGNED.search(match[2])
    alignment = aligned[1] if aligned else "1"
    first, *more = _split(" ".join(_ALIGNED.sub("", match[2]).split()))
    kind, name, dimensions = _NAME.fullmatch(first).groups()
    declared = [(name, dimensions), *(_NAME.fullmatch(text.strip()).groups()[1:] for text in more)]
    return " ".join(
        _dynamic(kind, name, alignment) if match[1] else _static(kind + dimensions, name, alignment)
        for name, dimensions in declared
    ) + "\n" * match[0].count("\n")


def _static(array: str, name: str, alignment: str) -> str:
    return (
        f"using EmulatedType_{name} = {array}; static constexpr EmulatedSharedArray emulated_{name} = "
        f'emulated_describe<EmulatedType_{name}>("{name}", sizeof(EmulatedType_{name}), {alignment}); '
        f"EmulatedType_{name} &{name} = *(EmulatedType_{name} *)emulated_shared(&emulated_{name});"
    )


def _dynamic(item: str, name: str, alignment: str) -> str:
    return (
        f"static constexpr EmulatedSharedArray emulated_{name} = "
        f'emulated_describe<{item}>("{name}", 0, {alignment}); '
        f"{item} *{name} = ({item} *)emulated_dynamic_shared(&emulated_{name});"
    )


def _split(text: str) -> list[str]:
    """At the commas between declarators, not at those of template arguments."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "<([{") - (character in ">)]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


# The compiler


def compiler() -> str:
    """The path of the C++ compiler. Raises `EmulatorError` where there is none."""
    for name in ("g++", "clang++"):
        found = shutil.which(name)
        if found and _version(found) and sys.platform != "win32":
            return found
    install = {
        "darwin": "xcode-select --install",
        "win32": "install the Windows Subsystem for Linux (wsl --install), and in it: sudo apt install g++",
    }.get(sys.platform, "sudo apt install g++ (on Debian, Ubuntu and in WSL; elsewhere the package of g++)")
    raise EmulatorError(
        f"To run CUDA C++ without a GPU takes a C++ compiler, g++ or clang++, and there is none. {install}"
    )


@functools.cache
def _version(compiler: str) -> str:
    """Empty for a command that only says where to get a compiler, as on a Mac."""
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True)
    return "" if done.returncode else f"{done.stdout} {platform.machine()}"


@functools.cache
def _runtime() -> ctypes.CDLL:
    names = ("emulator_runtime.h", "emulator_runtime.cpp", "emulator_checks.cpp")
    files = {name: (HERE / name).read_text(encoding="utf-8") for name in names}
    return _build(files, ["-pthread"], mode=ctypes.RTLD_GLOBAL)


def _build(files: dict[str, str], flags: Sequence[str], mode: int = ctypes.DEFAULT_MODE) -> ctypes.CDLL:
    """The library of these `.cpp` files, and headers, compiled now or earlier."""
    parts = [_version(compiler()), *FLAGS, *flags, *(part for item in files.items() for part in item)]
    path = cache.compiled(parts, ".so", lambda: _compile(files, flags))
    try:
        return ctypes.CDLL(str(path), mode=mode)
    except OSError as error:
        raise CompileError(f"{str(error).removeprefix(str(path) + ': ')}") from None


def _compile(files: dict[str, str], flags: Sequence[str]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return _make(files, flags, folder).read_bytes()


def _make(files: dict[str, str], flags: Sequence[str], folder: str) -> Path:
    for name in CUDA_HEADERS:
        Path(folder, name).touch()
    for name, text in files.items():
        rewritten = f'#line 1 "{name}"\n{_rewrite(text)}' if name.endswith(".cuh") else text
        Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
        Path(folder, name).write_text(rewritten, encoding="utf-8")
    sources = [name for name in files if name.endswith(".cpp")]
    objects = [str(Path(name).with_suffix(".o")) for name in sources]
    for code, made in zip(sources, objects):
        _call([*FLAGS, *flags, "-I.", "-c", code, "-o", made], folder)
    # What is not defined here is in the runtime, which was loaded before.
    later = ["-Wl,-undefined,dynamic_lookup"] if sys.platform == "darwin" else ["-ldl"]
    _call(["-shared", *objects, "-o", "made.so", "-pthread", *later], folder)
    return Path(folder, "made.so")


def _call(arguments: list[str], folder: str) -> None:
    done = subprocess.run([compiler(), *arguments], cwd=folder, capture_output=True, text=True)
    told = []
    for line in done.stderr.splitlines():
        found = re.match(r"(.+?):(\d+):(?:\d+:)? (?:(?:fatal )?error: (.*)|.*(frame size) \D*(\d+))", line)
        if found:
            what = found[3] or f"{found[5]} bytes of local memory are more than the emulator's threads have"
            told.append(f"{found[1]} line {found[2]}: {what}")
    if done.returncode or told:
        raise CompileError("\n".join(told[:3]) or done.stderr.strip())


# Launches


class _Argument(ctypes.Structure):
    """What a pointer parameter was given; struct Argument in emulator_runtime.h."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
        ("item", ctypes.c_uint32),
        ("offset", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("parameter", ctypes.c_uint32),
    ]


CONST, NONE, GAPS, TABLE = 1, 2, 4, 8
MOST_POINTERS = 32
_NUMBERS = {
    "float": ctypes.c_float,
    "double": ctypes.c_double,
    "bool": ctypes.c_bool,
    "int8_t": ctypes.c_int8,
    "uint8_t": ctypes.c_uint8,
    "int": ctypes.c_int32,
    "unsigned": ctypes.c_uint32,
    "int64_t": ctypes.c_int64,
}
SHARED_BYTES = 227 * 1024  # the most that a block of an H100 can have


def launch(
    library: Library, signature: Signature, grid: tuple, block: tuple, shared_bytes: int, arguments: Sequence
) -> None:
    """Run a kernel on CPU tensors and numbers; returns when all blocks are done.

    A launch that fails while it is checked leaves all tensors as they were. Raises `EmulatorError` for what
    the kernel does wrong, and `KeyboardInterrupt` if it was stopped.
    """
    if shared_bytes > SHARED_BYTES:
        raise ValueError(
            f"{signature.name}: {shared_bytes} bytes of shared memory; a block has at most {SHARED_BYTES}."
        )
    checked = _checking
    code = library.compiled(checked)
    values = [_value(p, a) for p, a in zip(signature.parameters, arguments, strict=True)]
    pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
    described = _describe(code, signature, arguments) if checked else []
    if len(described) > MOST_POINTERS:
        raise ValueError(f"{signature.name}: more than {MOST_POINTERS} pointers; launch it in checks(False).")
    others = [_argument(f"the tensor of {tuple(x.shape)}", x, TABLE) for x in _reachable] if checked else []
    described += others
    text, said = ctypes.create_string_buffer(4096), ctypes.create_string_buffer(4096)
    runtime = _runtime()
    length = runtime.emulated_launch(
        getattr(code, f"emulated_kernel_{signature.name}"),
        pointers,
        (_Argument * len(described))(*described),
        len(described),
        len(others),
        (ctypes.c_uint * 3)(*grid),
        (ctypes.c_uint * 3)(*block),
        shared_bytes,
        torch.get_num_threads(),
        checked,
        text,
        len(text),
    )
    while n := runtime.emulated_printed(said, len(said)):
        sys.stdout.write(said.raw[:n].decode(errors="replace"))
    if length < 0:
        raise KeyboardInterrupt
    if length:
        raise EmulatorError(_with_lines(library, checked, f"{signature.name}, {text.value.decode()}"))


def _value(parameter, argument):
    if not parameter.pointer:
        return _NUMBERS[parameter.type](argument)
    return ctypes.c_void_p(None if argument is None else argument.data_ptr())


def _describe(code: ctypes.CDLL, signature: Signature, arguments: Sequence) -> list[_Argument]:
    constants = ctypes.c_uint64.in_dll(code, f"emulated_constants_{signature.name}").value
    described = []
    for i, (parameter, x) in enumerate(zip(signature.parameters, arguments)):
        if not parameter.pointer:
            continue
        flags = CONST if constants >> i & 1 else 0
        if x is None:
            described.append(_Argument(parameter.name.encode(), None, 0, 1, 0, flags | NONE, i))
        else:
            described.append(_argument(parameter.name, x, flags, i))
    return described


def _argument(name: str, x: Tensor, flags: int, parameter: int = 0) -> _Argument:
    elements = x.numel()
    if elements and not x.is_contiguous():
        elements = 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride()))
        flags |= GAPS * (elements != x.numel())
    size = x.element_size()
    offset = x.storage_offset() * size % 512
    return _Argument(name.encode(), x.data_ptr(), elements * size, size, offset, flags, parameter)


# Lines


def _with_lines(library: Library, checked: bool, text: str) -> str:
    """The text with `file line n` for every place in the machine code, and with these lines below."""
    shown = {}

    def name(match: re.Match) -> str:
        found = _line(library, checked, int(match[1], 16) - 1)  # a call returns behind itself
        if found is None and match[2] == "0":
            return f"address {match[1]} of the compiled code"
        file, line = found or (library.name, 0)
        line = int(match[2]) or line
        known = any(file == other for other, _ in shown)
        shown[file, line] = library.line(file, line)
        return f"line {line}" if known else f"{file} line {line}"

    text = re.sub(r"@\((0x[0-9a-f]+):(\d+)\)", name, text)
    return "\n".join([text, *(f"    {line} | {source}" for (_, line), source in shown.items() if source)])


def _line(library: Library, checked: bool, address: int) -> tuple[str, int] | None:
    """Where in the source the machine code at this address comes from."""
    path = library.compiled(checked)._name
    if sys.platform == "darwin":  # there the lines stay in the object files: make them again
        with tempfile.TemporaryDirectory() as folder:
            made = _make(*library.recipe(checked), folder)
            subprocess.run(["dsymutil", "--flat", made], capture_output=True)
            said = _output("atos", "-i", "-o", f"{made}.dwarf", hex(address))
    elif shutil.which("addr2line"):
        said = _output("addr2line", "-i", "-e", path, hex(address))
    elif shutil.which("llvm-symbolizer"):
        said = _output("llvm-symbolizer", "--output-style=GNU", "--functions=none", "-e", path, hex(address))
    else:
        return None
    for file, line in re.findall(r"([^/(\s]+):(\d+)", said):  # from inlined functions outwards
        if file not in ("emulator.h", "??"):
            return file, int(line)
    return None


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout

"""What a kernel takes, read out of its CUDA C++ source: the loader checks and packs arguments by it.

A kernel is declared as `extern "C" __global__ void name(const float *x, float *y, int R, float eps)`, with or
without `__launch_bounds__(..)` before or after `void`. Comments are skipped, the preprocessor is not run: a
kernel, its name and its types stand in the source as they are.
"""

import re
from typing import NamedTuple

import torch

# The types that a parameter may have or point to, as they are normalised. What a pointer takes is a tensor.
DTYPES = {
    "float": torch.float32,
    "double": torch.float64,
    "__half": torch.float16,
    "__nv_bfloat16": torch.bfloat16,
    "bool": torch.bool,
    "int8_t": torch.int8,
    "uint8_t": torch.uint8,
    "int": torch.int32,
    "unsigned": torch.uint32,
    "int64_t": torch.int64,
}
SCALARS = {torch.float32: "float", torch.float16: "__half", torch.bfloat16: "__nv_bfloat16"}
TENSOR_MAP = "CUtensorMap"
_OTHER_NAMES = {
    "half": "__half",
    "signed char": "int8_t",
    "unsigned char": "uint8_t",
    "int32_t": "int",
    "unsigned int": "unsigned",
    "uint32_t": "unsigned",
    "long long": "int64_t",
    "long long int": "int64_t",
}
_QUALIFIERS = {"const", "volatile", "__restrict__", "__restrict", "__grid_constant__"}


class Parameter(NamedTuple):
    """One parameter: its type, or the type that it points to, by its name in `DTYPES` or `TENSOR_MAP`."""

    name: str
    type: str
    pointer: bool = False

    def __str__(self) -> str:
        return f"{self.type} *{self.name}" if self.pointer else f"{self.type} {self.name}"


class Signature(NamedTuple):
    """A kernel's name, its parameters in order, and the line of the source where it begins."""

    name: str
    parameters: tuple[Parameter, ...]
    line: int

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.parameters))})"


def signatures(source: str, scalar: str = "float") -> dict[str, Signature]:
    """Every kernel of the source, by name, in order. `scalar` in it stands for the type of that name.

    Raises `ValueError` for a kernel that is not `extern "C"`, is not void, or has a parameter of a type that
    the loader cannot pass; with the line.
    """
    code = without_comments(source)
    found = {}
    for place in re.finditer(r"\b__global__\b", code):
        line = code.count("\n", 0, place.start()) + 1
        name, parameters = _declaration(code, place, line)
        signature = Signature(
            name,
            tuple(_parameter(text, scalar, f"line {line}: kernel {name}") for text in parameters),
            line,
        )
        if found.setdefault(name, signature).parameters != signature.parameters:
            raise ValueError(f"line {line}: kernel {name} was declared otherwise in line {found[name].line}.")
    return found


def without_comments(source: str) -> str:
    """The source with spaces for its comments: every line and column stays where it is."""

    def blank(match: re.Match) -> str:
        text = match[0]
        return re.sub(r"[^\n]", " ", text) if text.startswith("/") else text

    comment_or_string = r'//(?:\\\n|[^\n])*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\''
    return re.sub(comment_or_string, blank, source, flags=re.DOTALL)


def _declaration(code: str, place: re.Match, line: int) -> tuple[str, list[str]]:
    """-> the name of the kernel of this `__global__`, and its parameters as they are written."""
    if not re.search(r'extern\s*"C"\s*$', code[: place.start()]):
        raise ValueError(
            f'line {line}: expected extern "C" before __global__: without it C++ gives the kernel another '
            "name. A template cannot be a kernel; write one that calls it, or use `scalar` and macros."
        )
    attribute = r"\s*__\w+__\s*(?:\((?:[^()]|\([^()]*\))*\))?"
    head = re.compile(rf"(?:{attribute})*\s*void\b(?:{attribute})*\s*(\w+)\s*\(").match(code, place.end())
    if head is None:
        raise ValueError(f"line {line}: expected `void name(` after __global__: a kernel returns nothing.")
    depth, pieces = 1, [""]
    for character in code[head.end() :]:
        depth += (character in "([{<") - (character in ")]}>")
        if depth == 0:
            break
        if character == "," and depth == 1:
            pieces.append("")
        else:
            pieces[-1] += character
    pieces = [" ".join(piece.split()) for piece in pieces]
    return head[1], [] if pieces in ([""], ["void"]) else pieces


def _parameter(text: str, scalar: str, where: str) -> Parameter:
    pointers = text.count("*")
    words = [word for word in text.replace("*", " ").split() if word not in _QUALIFIERS]
    if words == ["scalar"] or len(words) < 2 or not words[-1].isidentifier():
        raise ValueError(f"{where}: the parameter `{text}` needs a type and a name.")
    name, kind = words[-1], " ".join(words[:-1])
    kind = scalar if kind == "scalar" else _OTHER_NAMES.get(kind, kind)
    takes_map = kind == TENSOR_MAP and not pointers and "__grid_constant__" in text
    if pointers > 1 or not (kind in DTYPES or takes_map):
        raise ValueError(
            f"{where}: the loader cannot pass `{text}`; a parameter is one of {', '.join(DTYPES)}, scalar, a "
            f"pointer to one of them, or `const __grid_constant__ {TENSOR_MAP} name`."
        )
    return Parameter(name, kind, pointers == 1)

"""GLOSSARY.md and the pages say the same: every letter is in it, and counts what it says there.

Looked at are the formulas of every notebook, the shapes in their code, and the shapes in the package.
"""

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest

from tools import notebooks

ROOT = Path(__file__).resolve().parent.parent
GLOSSARY = (ROOT / "GLOSSARY.md").read_text(encoding="utf-8")

GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau phi "
    "varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell"
)
FORMULA = re.compile(r"\$\$.*?\$\$|(?<![`\\])\$[^$`]+?\$", re.S)
SYMBOL = re.compile(
    rf"\\mathcal\{{L\}}|\\(?:{'|'.join(GREEK.split())})(?![a-zA-Z])|\\mathrm\{{lse\}}"
    r"|(?<![A-Za-z\\])(?:[A-Z]_\{(?:kv|in|out)\}|[BT]_[MN]|[A-Z](?![A-Za-z]))"
)
SHAPE = re.compile(r"(?<!\w)\(((?:[A-Z](?:_[a-z]+)?|\d+)(?:, (?:[A-Z](?:_[a-z]+)?|\d+))+)\)")


class Row(NamedTuple):
    symbols: tuple[str, ...]
    names: tuple[str, ...]  # in code
    counts: frozenset[str]
    only: frozenset[str]  # numbers of notebooks; empty for everywhere


@cache
def rows() -> list[Row]:
    found = []
    for line in GLOSSARY.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 5 and cells[0].startswith("$"):
            symbols = tuple(re.findall(r"\$([^$]+)\$", cells[0]))
            names = tuple(re.findall(r"`([^`]+)`", cells[1]))
            found.append(Row(symbols, names, *(frozenset(filter(None, c.split(", "))) for c in cells[3:])))
    return found


def meanings(symbol: str, notebook: str) -> list[Row]:
    """What a symbol may mean in a notebook; anywhere at all, for the notebook ""."""
    return [
        row
        for row in rows()
        if symbol in row.symbols and (not notebook or not row.only or notebook in row.only)
    ]


def formulas(prose: str) -> list[str]:
    """The formulas of a text without what is words in them, and with the d of a gradient set apart."""
    found = FORMULA.findall(re.sub(r"```.*?```", "", prose, flags=re.S))
    words = r"\\(?:text|texttt|operatorname|mathrm(?!\{lse\})|begin|end)\s*\{[^}]*\}"
    kept = (re.sub(words + r"|_\{[a-z]{3,}[^}]*\}|_\{o\}", " ", formula) for formula in found)
    return [re.sub(r"(?<![A-Za-z\\])d(?=[A-Z\\])|\\mathbf|\\top|\\big|\\Big", " ", f) for f in kept]


def used(prose: str) -> set[str]:
    return {symbol for formula in formulas(prose) for symbol in SYMBOL.findall(formula)}


def shapes(text: str) -> set[str]:
    """The letters in every shape like (B, T, C), as a formula would write them."""
    letters = {letter for shape in SHAPE.findall(text) for letter in re.findall(r"[A-Z](?:_[a-z]+)?", shape)}
    return {re.sub(r"_(kv|in|out)$|_\w+$", lambda m: f"_{{{m[1]}}}" if m[1] else "", x) for x in letters}


@cache
def nouns() -> frozenset[str]:
    return frozenset().union(*(row.counts for row in rows()))


def problems(prose: str, code: str, notebook: str) -> list[str]:
    """What a notebook says otherwise than the glossary."""
    found = [
        f"{symbol} is not in GLOSSARY.md for notebook {notebook}"
        for symbol in sorted(used(prose) | shapes(prose) | shapes(code))
        if not meanings(symbol, notebook)
    ]
    counted = re.findall(rf"\$({SYMBOL.pattern})\$\s+(?:\w+\s+)?(\w+)", prose)
    for symbol, noun in counted:
        counts = frozenset().union(*(row.counts for row in meanings(symbol, notebook)))
        if noun in nouns() and noun not in counts:
            found.append(
                f"${symbol}$ {noun}: in GLOSSARY.md it counts {', '.join(sorted(counts)) or 'nothing'}"
            )
    return found


@cache
def text(path: Path) -> tuple[str, str]:
    cells = nbformat.read(path, as_version=4).cells
    return tuple("\n\n".join(c.source for c in cells if c.cell_type == k) for k in ("markdown", "code"))


@pytest.mark.parametrize("path", notebooks.find([]), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_letter_means_what_the_glossary_says(path):
    assert problems(*text(path), path.stem[:2]) == []


def test_the_shapes_in_the_package_are_in_the_glossary():
    files = [file for folder in ("course", "kernels") for file in (ROOT / folder).rglob("*.py")]
    letters = set().union(*(shapes(file.read_text(encoding="utf-8")) for file in files))
    assert {"B", "T", "C", "H_{kv}"} <= letters
    assert [letter for letter in sorted(letters) if not meanings(letter, "")] == []


@pytest.mark.parametrize("row", rows(), ids=lambda row: ", ".join(row.symbols))
def test_nothing_in_the_glossary_is_stale(row):
    """Each symbol is used in each notebook that its line names, or in some; each name is in some code."""
    for symbol in row.symbols:
        if not SYMBOL.fullmatch(symbol):
            continue  # of small letters there are too many
        where = {
            path.stem[:2]
            for path in notebooks.find([])
            if symbol in used(text(path)[0]) | shapes("".join(text(path)))
        }
        assert where and row.only <= where, (symbol, sorted(where))
    files = [file for folder in ("course", "kernels") for file in (ROOT / folder).rglob("*.py")]
    sources = [file.read_text(encoding="utf-8") for file in files]
    sources += [text(path)[1] for path in notebooks.find([])]
    for name in row.names:
        assert any(re.search(rf"(?<!\w){name}(?!\w)", source) for source in sources), name


# --- and each of these can fail ---------------------------------------------------------

BROKEN = {
    "Q is not in GLOSSARY.md for notebook 08": ("The bytes $Q$.", "", "08"),
    r"\chi is not in GLOSSARY.md for notebook 02": (r"$$x = \chi^2$$", "", "02"),
    "G is not in GLOSSARY.md for notebook 05": ("Its gradient $dG$.", "", "05"),
    "J is not in GLOSSARY.md for notebook 05": ("", "x = f(y)  # (B, J)", "05"),
    "$H$ layers": ("A model of $H$ layers.", "", "05"),
    "$L$ heads": ("With $L$ query\nheads.", "", "05"),
    "$L$ tokens": ("With $L$ tokens.", "", "04"),
    "$N$ weights": ("With $N$ weights.", "", "02"),
    "$N$ rows": ("With $N$ rows.", "", "05"),
}


@pytest.mark.parametrize("words", BROKEN)
def test_another_meaning_is_reported(words):
    (found,) = problems(*BROKEN[words])
    assert found.startswith(words)


def test_words_in_a_formula_are_no_letters():
    assert used(r"$$\text{MFU} = \mathrm{LayerNorm}(x)_{max}, \begin{pmatrix} dX \end{pmatrix}$$") == {"X"}
    assert used(r"`$A$` and ``` $B$ ```") == set()

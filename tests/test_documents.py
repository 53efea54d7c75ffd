"""What the pages point at is there: links, figures, cross-references, modules, commands' targets, papers.

The pages are the README and its like, and the prose of every notebook. `problems` looks at one page at a
time; the second half of this file breaks a page in each way and sees that it says so.
"""

import importlib
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest

from tools import notebooks

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "GLOSSARY.md", "data/README.md")


class Page(NamedTuple):
    """A document's prose; `number` is a notebook's, and "" for what is none."""

    path: Path
    prose: str
    code: str = ""

    @property
    def number(self) -> str:
        return self.path.stem[:2] if self.path.suffix == ".ipynb" else ""


def read(path: Path) -> Page:
    if path.suffix != ".ipynb":
        return Page(path, path.read_text(encoding="utf-8"))
    cells = nbformat.read(path, as_version=4).cells
    kinds = ("markdown", "code")
    return Page(path, *("\n\n".join(c.source for c in cells if c.cell_type == kind) for kind in kinds))


PATHS = [ROOT / name for name in PAGES] + notebooks.find([])


@cache
def pages() -> dict[Path, Page]:
    return {path: read(path) for path in PATHS}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


# --- links ------------------------------------------------------------------------------


def links(page: Page) -> list[str]:
    """Every target of a link or a picture that is no address on the web."""
    prose = re.sub(r"\$\$.*?\$\$|\$[^$]*\$|`[^`]*`", "", without_code(page.prose), flags=re.S)
    found = re.findall(r"\]\(([^)\s]+)", prose) + re.findall(r'(?:src|srcset|href)="([^"]+)"', prose)
    return [target for target in found if not re.match(r"https?:|mailto:", target)]


def without_code(prose: str) -> str:
    return re.sub(r"```.*?```", "", prose, flags=re.S)


def anchors(path: Path) -> set[str]:
    """What `#...` may stand behind a path: its headings, as GitHub or JupyterLab names them."""
    headings = re.findall(r"^#+ +(.+)$", without_code(read(path).prose), re.M)
    if path.suffix == ".ipynb":
        return {heading.replace(" ", "-") for heading in headings}
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Page):
    for target in links(page):
        where, _, anchor = target.partition("#")
        path = (page.path.parent / where).resolve() if where else page.path
        if not path.exists():
            yield f"the link {target} leads nowhere"
        elif anchor and anchor not in anchors(path):
            yield f"the link {target} leads to no heading"


# --- figures ----------------------------------------------------------------------------


def figures(page: Page) -> set[str]:
    """The drawn figures that a page shows, by their names in `assets/figures`."""
    shown = re.findall(r'plots\.figure\("(\w+)"\)', page.code)
    return {*shown, *(Path(link).stem for link in links(page) if "assets/figures/" in link)}


def missing_figures(page: Page):
    for figure in sorted(figures(page)):
        if not list((ROOT / "assets/figures").glob(f"{figure}.*")):
            yield f"there is no figure {figure}"


def test_every_figure_is_shown_somewhere():
    shown = set().union(*(figures(page) for page in pages().values()))
    assert {path.stem for path in (ROOT / "assets/figures").iterdir()} - shown == set()


# --- cross-references -------------------------------------------------------------------


@cache
def syllabus() -> set[str]:
    """The numbers of the lessons that there are or will be: the README's table."""
    return set(re.findall(r"^\| (\d\d) \|", (ROOT / "README.md").read_text(), re.M))


@cache
def exercises() -> set[str]:
    code = "\n".join(read(path).code for path in notebooks.find([]))
    return {*notebooks.CHECK_CALL.findall(code), *re.findall(r'@exercise\("(\d\d\.\d+)"', code)}


def sections(page: Page) -> set[str]:
    """The numbers of a notebook's sections."""
    return set(re.findall(r"^##+ (\d+)\. ", page.prose, re.M))


def numbered(word: str, prose: str):
    """All numbers in "notebooks 02 and 03", "sections 4 to 6", "section 3", by the first of them."""
    more = r"(?:(?:, | and | or | to )(\d+))?"
    for match in re.finditer(rf"\b{word}s?\s+(\d+){more}{more}", re.sub(r"\s+", " ", prose), re.I):
        yield from ((match, number) for number in match.groups() if number)


def lost_references(page: Page):
    prose = re.sub(r"\*\*|\s+", lambda match: "" if match[0] == "**" else " ", without_code(page.prose))
    for _, number in numbered("notebook", prose):
        if number not in syllabus() and number != page.number:
            yield f"there is no notebook {number}"
    for number in re.findall(r"\bexercises? (\d\d\.\d+)", prose, re.I):
        if number not in exercises():
            yield f"there is no exercise {number}"
    for match, number in numbered("section", prose):
        of = re.match(r" of (?:\[?notebook (\d\d)|\[(\d\d)\])", prose[match.end() :])
        before = re.search(r"notebook (\d\d)(?:'s|,) $", prose[: match.start()])
        other = (of or before)[1] if of or before else page.number
        if not other:
            continue  # a document that is no notebook has sections without numbers
        lessons = [path for path in notebooks.find([other]) if not notebooks.is_solutions(path)]
        if lessons and number not in sections(read(lessons[0])):
            yield f"notebook {other} has no section {number}"


# --- what is named in backticks ---------------------------------------------------------


def spans(prose: str) -> list[str]:
    """Everything between single backticks."""
    return re.findall(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)", without_code(prose))


@cache
def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.M))


def exists(dotted: str) -> bool:
    """Whether `course.training.Trainer` is a module or stands in one."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        base = ROOT.joinpath(*parts[:end])
        if base.with_suffix(".py").exists() or (base / "__init__.py").exists():
            found = importlib.import_module(module)
            for part in parts[end:]:
                if not hasattr(found, part):
                    return False
                found = getattr(found, part)
            return True
    return False


FOLDERS = ("course", "kernels", "tools", "tests")


def unknown_names(page: Page):
    for span in spans(page.prose):
        words = re.sub(r"\s+", " ", span).removeprefix(".venv/bin/").removeprefix("python ").split(" ")
        first = words[0].removesuffix("()")
        if "..." in span or re.search(r"[*{]|NN", first):
            continue  # the pattern of a name
        if re.match(rf"({'|'.join(FOLDERS)}|assets|data|notebooks)/", first):
            if not (ROOT / first).exists():
                yield f"there is no file {first}"
        elif re.fullmatch(r"\w+\.(py|cu|cuh|h)", first):
            if not any(next((ROOT / folder).rglob(first), None) for folder in FOLDERS):
                yield f"there is no file {first}"
        elif re.fullmatch(r"(course|kernels)(\.\w+)+", first):
            if not exists(first):
                yield f"there is no {first}"
        elif first == "make" and words[1:] and words[1] not in targets():
            yield f"there is no make {words[1]}"
        elif first == "-m" and words[1:] and words[1].startswith(FOLDERS) and not exists(words[1]):
            yield f"there is no module {words[1]}"


# --- papers -----------------------------------------------------------------------------

AUTHOR = r"(?:\w\.(?:-\w\.)? )+(?:[A-Z]?[a-z]+ )?[\w-]+"
AUTHORS = re.compile(rf"NVIDIA|Gemma Team|{AUTHOR} et al\.|{AUTHOR}|{AUTHOR}(?:, {AUTHOR})* and {AUTHOR}")
ARXIV = re.compile(r"\[arXiv:(\d{4}\.\d{4,5})\]\(https://arxiv\.org/abs/(\d{4}\.\d{4,5})\)\.")
CITATION = re.compile(r"([A-Z][\w-]+(?: and [A-Z][\w-]+| et al\.)?),? \(?((?:18|19|20)\d\d)\b")


class Reference(NamedTuple):
    """`- A. Author and B. Writer (2020). *Title.* Where. [arXiv:...](...). A remark.`"""

    authors: str
    year: str
    title: str
    source: str  # where it appeared, up to the address if there is one; a remark may follow

    @property
    def short(self) -> str:
        """How the text names it: Dao; Zhang and Sennrich; Su et al."""
        surnames = [author.split(". ")[-1] for author in re.split(", | and ", self.authors)]
        if len(surnames) > 2 or "et al" in self.authors:
            return f"{surnames[0].removesuffix(' et al.')} et al."
        return " and ".join(surnames)


def references(page: Page) -> list[Reference | str]:
    """The entries of a notebook's last section; one that is not of the form as it stands."""
    _, _, section = page.prose.partition("\n## References\n")
    found = []
    for entry in re.findall(r"^- .*(?:\n(?!- |\n).*)*", section, re.M):
        entry = re.sub(r"\s+", " ", entry).strip()
        match = re.fullmatch(r"- (.+?) \((\d{4})\)\. \*(.+?[.?])\*(?: (.*\S\.|.*`\.))?", entry)
        if match is None or not AUTHORS.fullmatch(match[1]):
            found.append(entry)
            continue
        authors, year, title, rest = match.groups("")
        address = re.search(r"\]\([^)]*\)\.", rest)
        source = rest[: address.end()] if address else rest.partition(". ")[0].rstrip(".")
        found.append(Reference(authors, year, title, source))
    return found


def odd_references(page: Page):
    for entry in references(page):
        if isinstance(entry, str):
            yield f"not of the form `- A. Author (year). *Title.* Where.`: {entry}"
        elif "arxiv" in entry.source.lower():
            match = ARXIV.search(entry.source)
            if match is None or match[1] != match[2]:
                form = "[arXiv:1234.56789](https://arxiv.org/abs/1234.56789)."
                yield f"not of the form `{form}`: {entry.title}"
            elif 2000 + int(match[1][:2]) > int(entry.year):
                yield f"the number {match[1]} is younger than {entry.year}: {entry.title}"
    text, _, _ = page.prose.partition("\n## References\n")
    listed = {(entry.short, entry.year) for entry in references(page) if isinstance(entry, Reference)}
    for short, year in CITATION.findall(re.sub(r"\s+", " ", without_code(text))):
        if listed and (short, year) not in listed:
            yield f"{short}, {year} is not among the references"


def papers() -> dict[str, dict[tuple, list[str]]]:
    """Title, without case and marks -> each way in which it is cited -> where."""
    found: dict[str, dict[tuple, list[str]]] = {}
    for path, page in pages().items():
        for entry in references(page) if page.number else ():
            if isinstance(entry, Reference):
                title = re.sub(r"\W+", " ", entry.title.lower())
                found.setdefault(title, {}).setdefault(tuple(entry), []).append(name(path))
    return found


def test_a_paper_is_cited_the_same_way_everywhere():
    assert {title: ways for title, ways in papers().items() if len(ways) > 1} == {}


def test_one_arxiv_number_is_one_paper():
    numbers: dict[str, set[str]] = {}
    for title, ways in papers().items():
        for number in ARXIV.findall(" ".join(way[3] for way in ways)):
            numbers.setdefault(number[0], set()).add(title)
    assert len(numbers) > 30
    assert {number: titles for number, titles in numbers.items() if len(titles) > 1} == {}


def problems(page: Page) -> list[str]:
    """What a page points at that is not there, in words."""
    return [
        *broken_links(page), *missing_figures(page), *lost_references(page), *unknown_names(page),
        *odd_references(page),
    ]  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=name)
def test_what_a_page_points_at_is_there(path):
    assert problems(pages()[path]) == []


# --- and each of these tests can fail ---------------------------------------------------

LESSON = ROOT / "notebooks/02_backprop_through_a_transformer.ipynb"
GOOD = "A. Gage and B.-C. Le Witt (1994). *On.* ACL. [arXiv:1508.07909](https://arxiv.org/abs/1508.07909)."

BROKEN = {  # what is said -> what is added to a good page
    "the link 03_nothing.ipynb leads nowhere": "[notebook 03](03_nothing.ipynb)",
    "the link ../README.md#nothing leads to no heading": "[here](../README.md#nothing)",
    "the link x.png leads nowhere": '<picture><source srcset="x.png"></picture>',
    "there is no figure 02_nothing": "![figure](../assets/figures/02_nothing.png)",
    "there is no notebook 19": "As in notebooks 03 and 19.",
    "there is no notebook 42": "As in\nnotebook 42.",
    "there is no exercise 02.9": "Exercise 02.9 asks for it.",
    "notebook 02 has no section 77": "See sections 2 and 77.",
    "notebook 03 has no section 99": "See section 99 of notebook 03.",
    "there is no course.nothing": "It is in `course.nothing`.",
    "there is no kernels.reference.nothing_forward": "`kernels.reference.nothing_forward` has it.",
    "there is no file kernels/nothing.py": "It is in `kernels/nothing.py`.",
    "there is no file nothing.cu": "It is in `nothing.cu`.",
    "there is no file tools/nothing.py": "`python tools/nothing.py --all` does it.",
    "there is no make nothing": "`make nothing NB=02`",
    "there is no module kernels.nothing": "`python -m kernels.nothing`",
    "Gage et al., 1994 is not among the references": f"(Gage et al., 1994)\n\n## References\n\n- {GOOD}",
    "not of the form `- A. Author": "\n## References\n\n- Gage, A., *On Words*, 1994.",
    "not of the form `[arXiv": "\n## References\n\n- " + GOOD.replace("abs/1508", "abs/1509"),
    "the number 1508.07909 is younger": "\n## References\n\n- " + GOOD,
}


@pytest.mark.parametrize("words", BROKEN)
def test_a_page_that_points_at_nothing_is_reported(words):
    page = Page(LESSON, read(LESSON).prose.split("## References")[0] + "\n\n" + BROKEN[words])
    assert any(problem.startswith(words) for problem in problems(page)), problems(page)


def test_a_figure_that_a_cell_shows_must_be_there():
    assert problems(Page(LESSON, "", 'plots.figure("02_nothing")')) == ["there is no figure 02_nothing"]


def test_references_are_told_apart_from_their_remarks():
    entries = references(Page(LESSON, f"\n## References\n\n- {GOOD} Where it\n  began.\n- {GOOD}"))
    assert entries[0] == entries[1] and entries[0].short == "Gage and Le Witt"

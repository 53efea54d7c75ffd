"""`python -m course data list|fetch|prepare`."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from course import data
from course.tokenizer import CharTokenizer


def configure(parser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="which texts there are, and which are here")

    fetch = actions.add_parser("fetch", help="download what is missing of some texts")
    fetch.add_argument("names", nargs="+", metavar="NAME", help=", ".join(data.DATASETS))

    prepare = actions.add_parser("prepare", help="encode a text into token files, once for each tokenizer")
    prepare.add_argument("name", metavar="NAME", help=", ".join(data.DATASETS))
    prepare.add_argument(
        "--tokenizer",
        default="char",
        help="a file that `python -m course tokenize train` wrote, or char: one token a character (default)",
    )
    prepare.add_argument("--again", action="store_true", help="even if the token files are there")

    fetch.add_argument("--folder", type=Path, help="where to put them (default: data/)")
    prepare.add_argument("--folder", type=Path, help="where to put them (default: data/tokens/)")


def run(arguments) -> int:
    return {"list": _list, "fetch": _fetch, "prepare": _prepare}[arguments.action](arguments)


def _list(arguments) -> int:
    table = Table(title="Texts", title_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column("here?")
    table.add_column("size", overflow="fold")
    table.add_column("what it is, where it is from, what to do", overflow="fold")
    for name, dataset in data.DATASETS.items():
        here = data.find(name) is not None
        about = (
            f"{dataset.about}\n[dim]{dataset.source}\n{dataset.licence}; held out: {dataset.held_out}[/dim]"
        )
        if not here:
            about += f"\n[bold]python -m course data fetch {name}[/bold]"
        table.add_row(name, "yes" if here else "no", dataset.size, about, end_section=True)
    Console().print(table)
    return 0


def _fetch(arguments) -> int:
    for name in arguments.names:
        where = data.fetch(name, arguments.folder)
        if where is None:  # it lies where it was asked to
            print(f"{name} is in {arguments.folder}: let COURSE_DATA_DIR name that folder.")
        else:
            print(f"{name} is here: {where}")
    return 0


def _prepare(arguments) -> int:
    if arguments.tokenizer == "char":
        if not data.fits_in_memory(arguments.name):
            raise ValueError(
                f"{arguments.name} is too large, or has too many characters, for a token each: name a "
                "tokenizer with --tokenizer, as `python -m course tokenize train` writes them."
            )
        tokenizer = CharTokenizer.from_text(data.load_text(arguments.name))
    else:
        from course.tokenizer import BPETokenizer

        tokenizer = BPETokenizer.load(arguments.tokenizer)
    paths = data.prepare(arguments.name, tokenizer, arguments.folder, again=arguments.again)
    for path, part in zip(paths, data.PARTS, strict=True):
        tokens = data.open_tokens(path, tokenizer)
        ratio = tokens.text_bytes / len(tokens.tokens)
        print(f"{part}: {len(tokens.tokens):,} tokens, {ratio:.2f} bytes of text each, in {path}")
    return 0

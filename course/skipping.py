"""Notebook cells that this machine cannot run say so, and the notebook goes on with the others."""

import ast

from IPython import get_ipython

from kernels.cuda import emulator


def go_on_without_compiler() -> None:
    """Where there is no C++ compiler, say what to install, and go on with the cells that need none.

    From the next cell on, the emulator's error is printed in the place of a traceback, and so is that a name
    is missing which such a cell would have defined. Every other error is an error as ever.
    """
    try:
        emulator.compiler()
    except emulator.EmulatorError as missing:
        print(missing)
        shell = get_ipython()
        shell.user_ns["_cell"] = cells = _Cells(emulator.EmulatorError)
        shell.ast_transformers.append(cells)


class _Cells(ast.NodeTransformer):
    """Puts every cell into `with _cell(names):`, where `names` is what it defines."""

    def __init__(self, missing: type[Exception]):
        self.missing = missing
        self.names: set[str] = set()  # of the cell that runs
        self.undefined: set[str] = set()  # by cells that did not run to their end

    def visit_Module(self, cell: ast.Module) -> ast.Module:
        names = {name for node in ast.walk(cell) for name in _defined(node)}
        if cell.body and isinstance(cell.body[-1], ast.Expr):  # what a cell shows must come last, alone
            shown = ast.Name("_shown", ast.Store())
            cell.body[-1] = ast.copy_location(ast.Assign([shown], cell.body[-1].value), cell.body[-1])
        frame = ast.parse(f"_shown = None\nwith _cell({names!r}): pass\n_shown")
        if cell.body:
            frame.body[1].body = cell.body
        return ast.fix_missing_locations(frame)

    def __call__(self, names: set[str]) -> "_Cells":
        self.names = names
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, traceback) -> bool:
        if isinstance(error, self.missing):
            print("Needs a C++ compiler.")
        elif isinstance(error, NameError) and error.name in self.undefined:
            print(f"{error.name} comes from a cell that could not run here.")
        else:
            return False
        self.undefined |= self.names
        return True


def _defined(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return [node.id]
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [(alias.asname or alias.name).split(".")[0] for alias in node.names]
    return []

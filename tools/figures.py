"""Draw every figure of the course into `assets/figures`: `make figures`, or `python tools/figures.py 01`.

The drawings of notebook NN stand in `tools/drawings/nbNN.py`, in a dictionary `DRAWINGS` from the figure's
name to a function that returns a matplotlib figure.
"""

import argparse
import importlib
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parent))

from course import plots

DRAWINGS = Path(__file__).resolve().parent / "drawings"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("numbers", nargs="*", help="notebooks, such as 01 02 (default: all)")
    numbers = parser.parse_args().numbers or [p.stem[2:] for p in sorted(DRAWINGS.glob("nb*.py"))]
    plots.use_house_style()
    matplotlib.rcParams.update({"figure.constrained_layout.use": False, "svg.fonttype": "path"})
    plots.FIGURES.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        for name, draw in importlib.import_module(f"drawings.nb{number}").DRAWINGS.items():
            path = plots.FIGURES / f"{name}.svg"
            figure = draw()
            # No date inside, so that drawing again changes nothing.
            figure.savefig(path, bbox_inches="tight", pad_inches=0.15, metadata={"Date": None})
            plt.close(figure)
            print(path.relative_to(plots.FIGURES.parent.parent))


if __name__ == "__main__":
    main()

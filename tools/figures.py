"""Draw every figure of the course into `assets/figures`: `make figures`, or `python tools/figures.py 01`.

The drawings of notebook NN stand in `tools/drawings/nbNN.py`, in a dictionary `DRAWINGS` from the figure's
name to a function that returns a matplotlib figure.
"""

import argparse
import importlib
import io
import sys
from pathlib import Path

import matplotlib
from PIL import Image

matplotlib.use("agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parent))

from course import plots

DRAWINGS = Path(__file__).resolve().parent / "drawings"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("numbers", nargs="*", help="notebooks, such as 01 02 (default: all)")
    numbers = parser.parse_args().numbers or [p.stem[2:] for p in sorted(DRAWINGS.glob("nb*.py"))]
    plots.use_house_style()
    matplotlib.rcParams.update({"figure.constrained_layout.use": False})
    plots.FIGURES.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        for name, draw in importlib.import_module(f"drawings.nb{number}").DRAWINGS.items():
            path = plots.FIGURES / f"{name}.png"
            figure, drawn = draw(), io.BytesIO()
            figure.savefig(drawn, dpi=200, bbox_inches="tight", pad_inches=0.15)
            plt.close(figure)
            # Flat colours and grey edges: 64 of them look the same and take a third of the room.
            Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)
            print(path.relative_to(plots.FIGURES.parent.parent))


if __name__ == "__main__":
    main()

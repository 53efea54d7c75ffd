"""The command line: `python -m course doctor`."""

import argparse
import sys


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m course", description="Tensors to Tensor Cores")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("doctor", help="what this machine can run, and what to do about the rest")
    parser.parse_args(argv)

    try:
        from course import doctor
    except ModuleNotFoundError as missing:
        print(f"The package {missing.name!r} is not installed here: run `make lab`.", file=sys.stderr)
        return 1
    return doctor.main()


if __name__ == "__main__":
    sys.exit(main())

"""`python -m bpfleet.emit [--check]`: write the generated files, or say which are out of date (exit code 1)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bpfleet.emit.files import out_of_date, write


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bpfleet.emit", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a file is out of date")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[2], help="the checkout")
    arguments = parser.parse_args()
    if arguments.check:
        stale = out_of_date(arguments.root)
        for path in stale:
            print(f"out of date: {path} (run `python -m bpfleet.emit`)", file=sys.stderr)
        return 1 if stale else 0
    for path in write(arguments.root):
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

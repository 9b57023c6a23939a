"""`python -m bench [GROUP]`: run all groups or one; print a table; write bench/results.json. Needs root."""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import List

from bench.report import RESULTS, Measurement, table, write

GROUPS = ("spine", "frontends", "survival", "policy")
"""Modules bench.<group>, each with `measure() -> list[Measurement]`."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("group", nargs="?", choices=GROUPS, help="only this group")
    chosen = parser.parse_args().group
    measurements: List[Measurement] = []
    for group in [chosen] if chosen else GROUPS:
        measurements += importlib.import_module(f"bench.{group}").measure()
    print(table(measurements))
    write(measurements)
    print(f"\nwritten to {RESULTS}")
    missed = [item.name for item in measurements if item.reached is False]
    if missed:
        print(f"goals missed: {', '.join(missed)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

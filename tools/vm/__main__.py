"""The command line: see tools/vm/__init__.py."""

from __future__ import annotations

import argparse
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

from bpfleet.errors import BpfleetError
from tools.vm.image import ensure_image, ensure_packages
from tools.vm.machine import Machine
from tools.vm.network import Network
from tools.vm.recipe import RECIPES


def _say(text: str) -> None:
    print(f"vm: {text}", flush=True)


def _ensure_images() -> None:
    """All at once: a build is mostly one process that unpacks."""
    with ThreadPoolExecutor() as pool:
        for built in [pool.submit(ensure_image, recipe, _say) for recipe in RECIPES.values()]:
            built.result()


def _boot(release: str) -> None:
    image = ensure_image(RECIPES[release], _say)
    with Network() as network, Machine(image, network, release) as machine:
        machine.wait()
        _say(f"up; log in by: {' '.join(machine.ssh_command())}")
        _say(f"console: {machine.console}; Ctrl-C ends it")
        signal.pause()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.vm", description="Images and machines of tests/vm.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("ensure", help="install what is missing here, build the images that are missing")
    verbs.add_parser("boot", help="boot one machine").add_argument("release", choices=sorted(RECIPES))
    options = parser.parse_args()
    try:
        ensure_packages(_say)
        if options.verb == "boot":
            _boot(options.release)
        else:
            _ensure_images()
    except KeyboardInterrupt:
        return 130
    except BpfleetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

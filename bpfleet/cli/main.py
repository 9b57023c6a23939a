"""`bpfleet`: the command line's entry point.

Each command is a module bpfleet.cli.<name> with `register(subparsers)`, which adds its parser and sets the
default `run`: a function from the parsed arguments to the exit code. A command module imports what is heavy
inside that function, so that no command pays for another's imports.

Exit codes: 0 done, 1 failed, 2 wrong usage or input; `bpfleet lab exec` passes on its command's.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from bpfleet import __version__
from bpfleet.cli.reach import visible
from bpfleet.errors import BpfleetError, InvalidInput

COMMANDS = ("lab", "status", "repair", "observe", "explain")


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="bpfleet",
        description="Networking, identity-based policy and flow visibility in eBPF for plain Linux hosts.",
    )
    top.add_argument("--version", action="version", version=f"bpfleet {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(f"bpfleet.cli.{name}").register(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(arguments)
    try:
        code = int(options.run(options))
        sys.stdout.flush()
        return code
    except BpfleetError as error:
        print(f"bpfleet: {_lines(error)}", file=sys.stderr)
        return 2 if isinstance(error, InvalidInput) else 1
    except BrokenPipeError:  # whoever reads us, such as head, has seen enough; the last flush must not complain either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:  # a path of the user's own: its name and the system's words say it all
        print(f"bpfleet: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _lines(error: BpfleetError) -> str:
    """Its text, which may be several lines (such as the kernel's words on a program), harmless to a terminal."""
    return "\n".join(visible(line) for line in str(error).split("\n"))


if __name__ == "__main__":
    sys.exit(main())

"""The agent's command line: `serve [--root DIRECTORY] [--local]`, run by install.launch_command."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Sequence, Tuple

from bpfleet.agent import wire
from bpfleet.agent.node import LOGS, Agent
from bpfleet.errors import InvalidInput

if TYPE_CHECKING:
    from bpfleet.loader.kernel import Kernel

PINS = "/sys/fs/bpf/bpfleet"


def place() -> Tuple[Path, Optional[str]]:
    """Directory of the objects that belong to this code, and the artefact's digest (None in a checkout)."""
    top = Path(__file__).parent.parent.parent
    objects = top / "objects"
    return (objects, top.name) if objects.is_dir() else (top / "build" / "bpf", None)


def real_kernel(root: Path) -> Kernel:
    """This host's kernel; imports what only a change needs. Raises HostUnfit for a host that cannot run bpfleet."""
    from bpfleet.agent.fitness import measure, require

    require(measure())
    from bpfleet.loader.real import RealKernel

    return RealKernel(place()[0], PINS, root / LOGS)


def main(arguments: Sequence[str]) -> int:
    """Serve on stdin and stdout. Only answers go to the real stdout: a stray print goes to stderr."""
    options = list(arguments)
    if options[:1] != ["serve"]:
        raise InvalidInput("usage: serve [--root DIRECTORY] [--local]")
    root = Path(options[options.index("--root") + 1] if "--root" in options else wire.STATE_ROOT)
    # Ctrl-C in a controller's terminal reaches a local agent too; the controller ends it by closing its input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    target = os.dup(1)
    os.dup2(2, 1)
    from bpfleet.agent.serve import serve

    agent = Agent(root, lambda: real_kernel(root), local="--local" in options, pins=PINS)
    return serve(agent, 0, target, place()[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

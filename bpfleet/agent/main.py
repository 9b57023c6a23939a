"""The agent's command line.

serve [--root DIRECTORY] [--local]                     run by install.launch_command
restore [--root DIRECTORY]                             run at boot and when devices appear: the script `boot` in ROOT
watchdog --root DIRECTORY --transaction T --socket NAME [--patience SECONDS] [--detach]     run by guard.Guard
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Iterator, List, Optional, Sequence, Tuple

from bpfleet.errors import BpfleetError, InvalidInput

if TYPE_CHECKING:
    from bpfleet.agent.guard import Guard
    from bpfleet.loader.kernel import Kernel

PINS = "/sys/fs/bpf/bpfleet"
NO_TCX = Path("/etc/bpfleet/no-tcx")
"""An operator's switch: while there is such a file, programs are attached as clsact filters, tcx or not."""


def place() -> Tuple[Path, Optional[str]]:
    """Directory of the objects that belong to this code, and the artefact's digest (None in a checkout)."""
    top = Path(__file__).resolve().parent.parent.parent  # the boot script comes by a link
    objects = top / "objects"
    return (objects, top.name) if objects.is_dir() else (top / "build" / "bpf", None)


def real_kernel(root: Path) -> Kernel:
    """This host's kernel; imports what only a change needs. Raises HostUnfit for a host that cannot run bpfleet."""
    from bpfleet.agent.fitness import measure, require
    from bpfleet.agent.node import LOGS

    require(measure())
    from bpfleet.loader.real import RealKernel

    return RealKernel(place()[0], PINS, root / LOGS, use_tcx=not NO_TCX.exists())


def command(root: Path) -> List[str]:
    """What runs this very code again as the watchdog of a node, whatever becomes of the files that are newer."""
    objects, digest = place()
    if digest is not None:
        code = [str(objects.parent)]
    else:
        start = "import sys; sys.path.insert(0, sys.argv.pop(1)); from bpfleet.agent.main import main"
        code = ["-c", f"{start}; sys.exit(main(sys.argv[1:]))", str(objects.parent.parent)]
    return [sys.executable, "-I", "-S", "-B", *code, "watchdog", "--root", str(root)]


@contextlib.contextmanager
def in_use() -> Iterator[None]:
    """Mark the installed agent that this runs from: a shared flock on its directory, which bootstrap.prune respects."""
    objects, digest = place()
    if digest is None:
        yield
        return
    handle = os.open(objects.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def main(arguments: Sequence[str]) -> int:
    """Run one of the commands above."""
    options = list(arguments)
    if options[:1] == ["serve"]:
        return serve(options)
    if options[:1] == ["watchdog"]:
        return watchdog(options)
    if options[:1] == ["restore"]:
        return restore(options)
    raise InvalidInput(f"usage:\n{__doc__}")


def serve(options: List[str]) -> int:
    """Serve on stdin and stdout. Only answers go to the real stdout: a stray print goes to stderr."""
    from bpfleet.agent import wire

    root = Path(_value(options, "--root") or wire.STATE_ROOT)
    # Ctrl-C in a controller's terminal reaches a local agent too; the controller ends it by closing its input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    target = os.dup(1)
    os.dup2(2, 1)
    from bpfleet.agent.node import Agent
    from bpfleet.agent.serve import serve

    def arm(transaction: str) -> Guard:
        from bpfleet.agent.guard import Guard

        return Guard(command(root), transaction)

    agent = Agent(root, lambda: real_kernel(root), local="--local" in options, pins=PINS, arm=arm)
    with in_use():
        return serve(agent, 0, target, place()[1])


def restore(options: List[str]) -> int:
    """Bring what is in force into the kernel again; exit status 1 if something could not be done."""
    from bpfleet.agent import wire
    from bpfleet.agent.node import Agent
    from bpfleet.agent.restore import restore
    from bpfleet.agent.serve import Log

    root = Path(_value(options, "--root") or wire.STATE_ROOT)
    log = Log(root / "agent.log")
    try:
        done, failures = restore(Agent(root, lambda: real_kernel(root), local=True, pins=PINS))
    except (BpfleetError, OSError) as problem:
        log.write(f"what is confirmed could not be restored: {problem}")
        return 1
    for failure in failures:
        log.write(f"not restored: {failure}")
    if done:
        log.write(done)
    return 1 if failures else 0


def watchdog(options: List[str]) -> int:
    """Watch over one transaction."""
    from bpfleet.agent import watchdog as dog

    if "--detach" in options:
        dog.detach()
    root = Path(_value(options, "--root"))
    patience = float(_value(options, "--patience") or dog.PATIENCE_SECONDS)
    watching = dog.Watchdog(root, _value(options, "--transaction"), lambda: real_kernel(root), patience, PINS)
    with in_use():
        return watching.run(_value(options, "--socket"))


def _value(options: List[str], name: str) -> str:
    return options[options.index(name) + 1] if name in options else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

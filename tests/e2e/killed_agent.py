"""On a lab host: the installed agent on the real kernel, at one place of whose work the victims are killed.

    killed_agent.py CHECKOUT INSTALLED VICTIMS PLACE:NUMBER[/PLACE:NUMBER]

Places as in tests/agent/killed.py. VICTIMS: `agent` (this process), `watchdog`, or `agent+watchdog`. The watchdog is
the real one, started as the agent itself would. With a second place the watchdog is killed too, there, while it puts
back what the agent left.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [sys.argv[2], sys.argv[1]]

from bpfleet.agent import watchdog, wire  # noqa: E402
from bpfleet.agent.guard import Guard  # noqa: E402
from bpfleet.agent.main import PINS, command, real_kernel  # noqa: E402
from bpfleet.agent.node import Agent  # noqa: E402
from bpfleet.agent.serve import serve  # noqa: E402
from tests.agent.killed import KilledFiles, die, happen_at, reached  # noqa: E402

ROOT = Path(wire.STATE_ROOT)


class KilledKernel:
    """The real kernel, which tells where it is."""

    def __init__(self) -> None:
        self._kernel = real_kernel(ROOT)

    def do(self, step: Any) -> None:
        reached("step")
        self._kernel.do(step)
        reached("done")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)


def watchdogs() -> list[int]:
    """Those of this host: it has its own process numbers."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it ended meanwhile
            if b"watchdog" in words and b"--transaction" in words:
                found.append(int(entry.name))
    return found


def end_watchdogs() -> None:
    found = watchdogs()
    if not found:
        sys.exit("there is no watchdog to be killed")
    for pid in found:
        process = os.pidfd_open(pid)
        signal.pidfd_send_signal(process, signal.SIGKILL)
        select.select([process], [], [])
        os.close(process)


def watch(place: str) -> int:
    """Be the watchdog that is killed at a place."""
    happen_at(place)
    options = sys.argv[6:]
    if "--detach" in options:
        watchdog.detach()
    transaction, name = (options[options.index(option) + 1] for option in ("--transaction", "--socket"))
    kernel: Any = KilledKernel
    return watchdog.Watchdog(ROOT, transaction, kernel).run(name)


def main() -> int:
    victims = sys.argv[3].split("+")
    place, _, second = sys.argv[4].partition("/")
    if sys.argv[5:6] == ["watchdog"]:
        return watch(second)
    watched_by = [sys.executable, "-I", "-S", "-B", *sys.argv[:5], "watchdog"] if second else command(ROOT)

    def happen() -> None:
        if "watchdog" in victims:
            end_watchdogs()
        if "agent" in victims:
            die()

    happen_at(place, happen)
    kernel: Any = KilledKernel
    agent = Agent(ROOT, kernel, local=True, pins=PINS, arm=lambda transaction: Guard(watched_by, transaction))
    agent.files = agent.journal_file._files = agent.store._files = KilledFiles(ROOT)
    return serve(agent, 0, 1)


if __name__ == "__main__":
    sys.exit(main())

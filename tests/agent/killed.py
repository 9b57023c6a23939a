"""Places in an agent's work at which something happens to it, for the processes that tests start.

step (before it is done), done (after it), write (before a file of the agent is replaced), draft (when what replaces it
lies beside it), written (after it), removal (before a file is removed); each with a number, from 0. Runs under Python
3.9, and where only an installed agent is.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Callable, Dict

from bpfleet.agent import files
from bpfleet.agent.files import Files, disk_full


def die() -> None:
    """End this process as an operator or the kernel would: at once."""
    os.kill(os.getpid(), signal.SIGKILL)


_place, _number = "", 0
_happen: Callable[[], None] = die
_seen: Dict[str, int] = {}


def happen_at(place: str, happen: Callable[[], None] = die) -> None:
    """Have it happen at PLACE:NUMBER; at none if that is empty."""
    global _place, _number, _happen
    _place, _, number = place.partition(":")
    _number = int(number or 0)
    _happen = happen


def reached(place: str) -> None:
    """To be called at each place."""
    count = _seen.get(place, 0)
    _seen[place] = count + 1
    if (place, count) == (_place, _number):
        _happen()


_write_all = files._write_all


def _told_write(handle: int, data: bytes) -> None:
    _write_all(handle, data)
    reached("draft")


files._write_all = _told_write


class KilledFiles(Files):
    """Files that tell where they are. `full`: from the how manyth write on the disk is full."""

    full = 1 << 30

    def write(self, path: Path, data: bytes) -> None:
        if _seen.get("write", 0) >= self.full:
            raise disk_full(path, len(data), 0)
        reached("write")
        super().write(path, data)
        reached("written")

    def remove(self, path: Path) -> None:
        reached("removal")
        super().remove(path)

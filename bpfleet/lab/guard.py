"""Takes a lab down when the process that wanted it is gone, however it went (kill -9 of a test run included).

The guard is a process of its own session that reads a pipe whose other end only the guarded process holds: the
kernel closes it whatever happens, and the end of the file is the signal.
"""

from __future__ import annotations

import subprocess
import sys

from bpfleet.lab import state


class Guard:
    """A running guard for the lab `name`, on duty until it is dismissed."""

    def __init__(self, name: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from bpfleet.lab.guard import wait; wait()", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """End the guard; it does nothing any more."""
        assert self._process.stdin is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()


def wait() -> None:
    """Life of the guard process."""
    sys.stdin.buffer.read()
    from bpfleet.lab.lab import take_down  # which imports this module

    name = sys.argv[1]
    if state.folder(name).exists():
        take_down(name)

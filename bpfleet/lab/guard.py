"""Takes a lab down when the process that wanted it is gone, however it went (kill -9 of a test run included).

The guard is a process of its own session that reads a pipe whose other end only the guarded process holds: the
kernel closes it whatever happens, and the end of the file is the signal.
"""

from __future__ import annotations

import subprocess
import sys


class Guard:
    """A running guard for the lab `name`."""

    def __init__(self, name: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bpfleet.lab.guard", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def release(self) -> None:
        """Let go: the guard makes sure that the lab is down, and ends."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


def main(name: str) -> int:
    sys.stdin.buffer.read()
    # Imported late: until it is needed a guard is one small process.
    from bpfleet.lab import state
    from bpfleet.lab.lab import take_down

    if state.folder(name).exists():
        take_down(name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

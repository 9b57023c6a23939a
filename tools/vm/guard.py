"""Removes a network and the machines on it when the process that wanted them is gone, however it went.

A process of its own session that reads a pipe whose other end only the guarded process holds: the kernel closes it
whatever happens, kill -9 included. Run as a script, `guard.py NETNS LINK DIRECTORY`; it imports nothing of this
project.
"""

import os
import shutil
import signal
import subprocess
import sys
import time

END_SECONDS = 10.0


def ip(*arguments: str) -> str:
    """Output of `ip`, empty if it failed: what is to be removed may be half made, or gone."""
    return subprocess.run(["ip", *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


def remove(netns: str, link: str, directory: str) -> None:
    """End what runs in the network namespace, then remove it, the link to it, and the machines' files (keys, logs)."""
    deadline = time.monotonic() + END_SECONDS
    while pids := ip("netns", "pids", netns).split():
        for pid in pids:
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue
        if time.monotonic() > deadline:
            print(f"vm: {netns} still holds the processes {' '.join(pids)}", file=sys.stderr)
            break
        time.sleep(0.05)
    ip("link", "delete", link)
    ip("netns", "delete", netns)
    shutil.rmtree(directory)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin.buffer.read()
    remove(*sys.argv[1:])

"""A network and mount namespace of its own for one test, entered by one thread only.

Everything made in it (devices, pins, links, mounts, named namespaces) ends with the thread, so also when the test
process is killed. Nothing outside is seen or touched.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar

from bpfleet.loader import cgroup, syscall

T = TypeVar("T")

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_CGROUPS = "bpfleet-contract"
_serial = itertools.count(1)
_libc = ctypes.CDLL(None, use_errno=True)


def missing() -> Optional[str]:
    """Why no sandbox can be made here, proven by trying; None if one can."""
    if os.geteuid() != 0:
        return "needs root"
    try:
        os.close(syscall.map_create(syscall.MAP_ARRAY, 4, 4, 1))
    except OSError as error:
        return f"needs bpf(2): {os.strerror(error.errno or errno.EPERM)}"
    with ThreadPoolExecutor(1) as pool:
        try:
            pool.submit(_checked, "unshare", _CLONE_NEWNET | _CLONE_NEWNS).result()
        except OSError as error:
            return f"needs namespaces: {error}"
    return None


class Sandbox:
    """Runs functions in its namespaces."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self.cgroup = new_cgroup()
        self.run(self._enter)

    def _enter(self) -> None:
        _checked("unshare", _CLONE_NEWNET | _CLONE_NEWNS)
        _checked("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
        _checked("mount", b"bpf", b"/sys/fs/bpf", b"bpf", 0, None)
        if self.cgroup is not None:
            _checked("mount", os.fsencode(self.cgroup), b"/sys/fs/cgroup", None, _MS_BIND, None)
        Path("/run/netns").mkdir(exist_ok=True)
        _checked("mount", b"tmpfs", b"/run/netns", b"tmpfs", 0, None)
        Sandbox._command("ip", "link", "set", "lo", "up")

    def run(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """The function's result; its exceptions come through."""
        return self._pool.submit(function, *arguments, **named).result()

    def command(self, *words: str) -> str:
        """Output of a command run inside; raises with its error output if it fails."""
        return self.run(self._command, *words)

    @staticmethod
    def _command(*words: str) -> str:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout

    def close(self) -> None:
        """End the thread, and with it the namespaces."""
        self._pool.shutdown()
        if self.cgroup is not None:
            remove_cgroup(self.cgroup)


def remove_cgroup(group: Path) -> None:
    """Remove a cgroup as soon as it is empty: a watchdog that has just been told to end may still be in it."""
    until = time.monotonic() + 30
    while True:
        try:
            group.rmdir()
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > until:
                raise
        time.sleep(0.05)


def new_cgroup() -> Optional[Path]:
    """An empty cgroup that the sandbox takes for the root, so that no socket of this machine is hooked."""
    top = cgroup.root()
    if top is None:
        return None
    for left in top.glob(f"{_CGROUPS}-*"):  # of test processes that were killed
        if not Path("/proc", left.name.split("-")[2]).exists():
            left.rmdir()
    made = top / f"{_CGROUPS}-{os.getpid()}-{next(_serial)}"
    made.mkdir()
    return made


def _checked(name: str, *arguments: Any) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)

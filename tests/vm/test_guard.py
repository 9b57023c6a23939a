"""Killing the process that boots a machine leaves nothing of it: no qemu, no namespace, no link, no keys."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tools.vm.image import ensure_image, ensure_packages
from tools.vm.recipe import RECIPES


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.1)
    return holds()


def running(words: str) -> list[str]:
    """Command lines of processes that hold these words."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return [line for line in lines if words in line]


def test_a_killed_boot_leaves_nothing() -> None:
    ensure_packages(print)
    ensure_image(RECIPES["bookworm"], print)
    boot = subprocess.Popen([sys.executable, "-m", "tools.vm", "boot", "bookworm"], start_new_session=True)
    directory = Path(tempfile.gettempdir()) / f"bpfleet-vm-{boot.pid}-1"
    link, netns = Path(f"/sys/class/net/bvm{boot.pid}-1"), Path("/run/netns") / directory.name
    try:
        assert eventually(lambda: any("qemu-system" in line for line in running(netns.name)))
        assert link.exists() and netns.exists() and directory.exists()
    finally:
        boot.send_signal(signal.SIGKILL)
        boot.wait()
    assert eventually(lambda: not (link.exists() or netns.exists() or directory.exists() or running(netns.name)))

"""Running programs of this machine to their end."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from bpfleet.errors import HostFailed

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def run(arguments: Sequence[str], *, seconds: float = 60.0, input: str | None = None, remedy: str = "") -> str:
    """Standard output of a program that ended well within `seconds`; HostFailed with its last words otherwise."""
    try:
        done = subprocess.run(
            list(arguments),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=seconds,
            env={**os.environ, "PATH": PATH, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
        )
    except subprocess.TimeoutExpired as expired:
        raise HostFailed(f"{' '.join(arguments)} did not end within {seconds:.0f} s", remedy=remedy) from expired
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        raise HostFailed(f"{' '.join(arguments)}: {'; '.join(said[-5:])}", remedy=remedy)
    return done.stdout

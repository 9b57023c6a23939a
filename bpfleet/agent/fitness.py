"""Whether a host can run bpfleet at all, told before anything is changed, every lack at once.

Measuring is apart from judging, so that any host can be judged as data. What only the attempt can show (libbpf's
symbols) is the loader's part: Kernel.check_fitness.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import List, Tuple

from bpfleet.errors import HostUnfit

MINIMUM_KERNEL = (6, 1)
MINIMUM_PYTHON = (3, 9)
BTF = Path("/sys/kernel/btf/vmlinux")


@dataclass(frozen=True)
class HostFacts:
    """kernel: `uname -r`. filesystems: what the kernel can mount. btf: whether the kernel describes its types."""

    kernel: str
    python: Tuple[int, ...]
    filesystems: Tuple[str, ...]
    btf: bool
    root: bool


def measure() -> HostFacts:
    """The facts of this host; no import and no call that takes time."""
    lines = Path("/proc/filesystems").read_text(encoding="ascii").splitlines()
    return HostFacts(
        kernel=os.uname().release,
        python=tuple(sys.version_info[:3]),
        filesystems=tuple(line.split()[-1] for line in lines if line.strip()),
        btf=BTF.exists(),
        root=os.geteuid() == 0,
    )


def problems(facts: HostFacts) -> List[HostUnfit]:
    """Everything that the host lacks."""
    found: List[HostUnfit] = []

    def lacks(what: str, remedy: str) -> None:
        found.append(HostUnfit(what, remedy=remedy, details={"kernel": facts.kernel}))

    if not facts.root:
        lacks("the agent does not run as root", "Log in as root (ssh.user).")
    version = re.match(r"(\d+)\.(\d+)", facts.kernel)
    if version is None or (int(version[1]), int(version[2])) < MINIMUM_KERNEL:
        lacks(f"kernel {facts.kernel} is too old: {_dotted(MINIMUM_KERNEL)} is the least", "Boot a newer kernel.")
    if facts.python < MINIMUM_PYTHON:
        have = _dotted(facts.python)
        lacks(f"Python {have} is too old: {_dotted(MINIMUM_PYTHON)} is the least", "Install a newer python3.")
    if not facts.btf:
        lacks(f"the kernel has no BTF ({BTF} is missing)", "Boot a kernel built with CONFIG_DEBUG_INFO_BTF=y.")
    if "bpf" not in facts.filesystems:
        lacks("the kernel has no bpf file system", "Boot a kernel built with CONFIG_BPF_SYSCALL=y.")
    return found


def require(facts: HostFacts) -> None:
    """Raise one HostUnfit that names all problems; details["problems"] holds each by itself."""
    found = problems(facts)
    if len(found) == 1:
        raise found[0]
    if found:
        raise HostUnfit(
            "; ".join(problem.what for problem in found),
            remedy=" ".join(problem.remedy for problem in found),
            details={"problems": [problem.to_wire() for problem in found]},
        )


def _dotted(version: Tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)

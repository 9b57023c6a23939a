"""What is recorded about a lab, before anything of it exists, and the locks around it.

    /run/bpfleet-lab/              locked (flock) while a number is chosen or a lab's folder comes and goes
    /run/bpfleet-lab/<name>/       locked while a command changes that lab
        state.json                 the record, written before the resource that it names
        id_ed25519[.pub]           the controller's key; host_keys/<host>[.pub] the hosts' keys
        switch                     the switch's network namespace (a bind mount of it)
        disks/                     a tmpfs: <host>/upper is the host's disk and outlives its reboots
        root/                      where a host mounts its root while it starts (in its own mount namespace)
        logs/<host>.log            what the start of a host had to say

The locks are on the folders themselves, so there is no lock file to leave behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bpfleet.errors import HostFailed, InvalidInput
from bpfleet.lab.plan import LabPlan, Shape

RUN = Path("/run/bpfleet-lab")
LOCK_SECONDS = 60.0


@dataclass
class Record:
    """One lab as recorded. `hosts`: name -> (pid, start time) of the host's process 1, see machine.started."""

    plan: LabPlan
    complete: bool = False
    hosts: dict[str, tuple[int, int]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "name": plan.name,
            "number": plan.number,
            "nodes": plan.shape.nodes,
            "workloads": plan.shape.workloads,
            "mtu": plan.shape.mtu,
            "directory": str(plan.directory),
            "share": list(plan.share),
            "complete": self.complete,
            "hosts": {name: list(identity) for name, identity in self.hosts.items()},
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Record:
        plan = LabPlan(
            name=data["name"],
            number=data["number"],
            shape=Shape(data["nodes"], data["workloads"], data["mtu"]),
            directory=Path(data["directory"]),
            share=tuple(data["share"]),
        )
        hosts = {name: (pid, start) for name, (pid, start) in data["hosts"].items()}
        return Record(plan, data["complete"], hosts)


def folder(name: str) -> Path:
    """The folder that holds everything recorded about the lab `name`."""
    return RUN / name


def read(name: str) -> Record | None:
    """The record of the lab `name`; None if there is none."""
    path = folder(name) / "state.json"
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    try:
        return Record.from_json(json.loads(text))
    except (ValueError, KeyError, TypeError) as broken:
        raise HostFailed(
            "the record of this lab cannot be read",
            file=str(path),
            remedy=f"Remove the file and run bpfleet lab down --name {name}: leftovers are found by name",
        ) from broken


def require(name: str) -> Record:
    """The record of a lab that must be there."""
    record = read(name)
    if record is None:
        known = ", ".join(names()) or "none"
        raise InvalidInput(f"there is no lab {name!r} (up: {known})", remedy=f"bpfleet lab up --name {name} makes it")
    return record


def write(record: Record) -> None:
    """Record, atomically."""
    path = folder(record.plan.name) / "state.json"
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(record.to_json(), indent=2) + "\n")
    draft.replace(path)


def names() -> list[str]:
    """Every lab that has a folder, complete or not."""
    if not RUN.is_dir():
        return []
    return sorted(path.name for path in RUN.iterdir() if path.is_dir())


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold the lock on a folder (made if missing) and yield its descriptor.

    A process that inherits the descriptor holds the lock too. The folder may be removed while the lock is
    held; whoever waited for it then makes a new one.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if _try_lock(descriptor) and _still(path, descriptor):
            break
        os.close(descriptor)
        if time.monotonic() > deadline:
            raise HostFailed(
                f"another bpfleet lab command has been working on this for {LOCK_SECONDS:.0f} s",
                file=str(path),
                remedy=f"Wait for it, or see who it is: fuser -v {path}",
            )
        time.sleep(0.02)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _still(path: Path, descriptor: int) -> bool:
    """Whether the path still names the folder that the descriptor holds."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False

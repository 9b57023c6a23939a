"""A host with agents as processes of their own: what the tests of the agent talk to."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import pytest

from bpfleet.agent import wire
from bpfleet.loader.rows import is_index
from bpfleet.model.document import Document
from tests import fleet
from tests.agent.agent_process import KeptKernel

GUARD_SECONDS = 120.0
SCRIPT = Path(__file__).with_name("agent_process.py")


class Connection:
    """One agent process: what a connection is to a local channel."""

    def __init__(self, command: Sequence[str], env: Optional[Mapping[str, str]] = None) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=env)
        self._number = 0
        # A test that waits for an answer that never comes fails instead of hanging.
        self._guard = threading.Timer(GUARD_SECONDS, self.process.kill)
        self._guard.daemon = True
        self._guard.start()

    def send(self, method: str, params: Optional[Mapping[str, Any]] = None) -> int:
        self._number += 1
        self.write(wire.request(self._number, method, params or {}))
        return self._number

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def receive(self) -> Dict[str, Any]:
        """The next message; EOFError if the agent ended instead."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise EOFError
        return wire.decode(line)

    def call(self, method: str, **params: Any) -> Any:
        """The result of a request; raises the error of its answer."""
        number = self.send(method, params)
        message = self.receive()
        assert message["id"] == number, message
        return wire.result_of(message)

    def close(self) -> str:
        """End it; what it said on stderr."""
        try:
            _, complaint = self.process.communicate(timeout=60)
        except BrokenPipeError:
            complaint = b""
        self._guard.cancel()
        return complaint.decode()


class Host:
    """A state root and a kernel; agents are started on it one after the other or side by side."""

    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        self.root = folder / "state"
        self.kernel_file = folder / "kernel"
        self.python = python
        self._connections: List[Connection] = []

    def connect(self, *options: str) -> Connection:
        connection = Connection([self.python, "-S", str(SCRIPT), str(self.root), str(self.kernel_file), *options])
        self._connections.append(connection)
        return connection

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    @property
    def kernel(self) -> KeptKernel:
        """The kernel as it is now."""
        return KeptKernel(self.kernel_file)

    def change_kernel(self, **attributes: Any) -> None:
        """Set attributes of the kernel, as somebody else on the host would."""
        kernel = self.kernel
        for name, value in attributes.items():
            setattr(kernel, name, value)
        kernel.keep()

    def digests(self) -> Tuple[str, str]:
        """What is in the kernel and on the disk, as two texts that are equal where those are."""
        kernel = self.kernel
        names = {device.index: name for name, device in kernel._devices.items()}
        ours = sorted(name for name, device in kernel._devices.items() if device.device is not None)
        tables = {
            table: {_named(key, names): _named(tuple(row.items()), names) for key, row in rows.items()}
            for table, rows in kernel._tables.items()
        }
        hooks = sorted((hook, link.program.object) for hook, link in kernel.links.items())
        routes = sorted(kernel._routes)
        programs = sorted(kernel._programs, key=repr)
        in_kernel = repr((programs, _sorted(tables), _sorted(kernel._nested), routes, hooks, ours))
        on_disk = repr(sorted((str(path), path.stat().st_mtime_ns) for path in self.root.rglob("*")))
        return in_kernel, on_disk

    def commit(self, **change: Any) -> Dict[str, Any]:
        """Stage, apply, and confirm over a new connection."""
        first = self.connect()
        staged = first.call("stage", **change)
        assert "refused" not in staged, staged
        first.call("apply", transaction=staged["transaction"])
        second = self.connect()
        confirmed: Dict[str, Any] = second.call("confirm", transaction=staged["transaction"])
        first.close()
        second.close()
        return confirmed


def _named(record: Tuple[Tuple[str, Any], ...], names: Mapping[int, str]) -> Tuple[Tuple[str, Any], ...]:
    """A record with devices' names for their indexes, which are others when a device is made again."""
    return tuple((field, names.get(value, value) if is_index(field) else value) for field, value in record)


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return sorted((repr(key), _sorted(item)) for key, item in value.items())
    return repr(value)


def items(documents: Sequence[Document], owner: str = "pulumi:p/s") -> List[Dict[str, Any]]:
    return [{"document": document.to_json(), "owner": owner, "metadata": {}} for document in documents]


def quickstart(*more: Document) -> Dict[str, Any]:
    """The parameters of a stage that makes host h1 a member of the quickstart fleet."""
    return {"node": "h1", "owner": "pulumi:p/s", "puts": items([*fleet.quickstart(), *more])}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.close()

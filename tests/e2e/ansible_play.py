"""Running playbooks against lab hosts: the collection as it is built, and results as data."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bpfleet.agent.wire import Hello
from bpfleet.lab import Lab
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.target import Target

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "examples" / "quickstart-ansible"
COMMAND_SECONDS = 300.0


@dataclass(frozen=True)
class Result:
    """What became of one task on one host. outcome: "ok", "failed" or "unreachable"."""

    task: str
    action: str
    host: str
    outcome: str
    result: Mapping[str, Any]

    @property
    def changed(self) -> bool:
        return bool(self.result.get("changed"))

    @property
    def message(self) -> str:
        return str(self.result.get("msg", ""))


@dataclass(frozen=True)
class Played:
    """One run of ansible-playbook."""

    code: int
    results: Sequence[Result]
    text: str

    def of(self, action: str) -> dict[str, Result]:
        """The last result of tasks with this action, by host."""
        return {result.host: result for result in self.results if result.action == f"bpfleet.fleet.{action}"}

    @property
    def changed(self) -> set[tuple[str, str]]:
        """(host, task) of everything that changed something."""
        return {(result.host, result.task) for result in self.results if result.changed}


def descendants(pid: int) -> list[int]:
    """Children of a process and theirs. Ansible's forks are sessions of their own, so no process group has them all."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found = list(children.get(pid, []))
    for child in found:
        found.extend(children.get(child, []))
    return found


def kill_with_descendants(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started, at once. One that ends by itself meanwhile is no matter."""
    for pid in [process.pid, *descendants(process.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


class Controller:
    """Ansible on this machine, with nothing of its user's: for one lab."""

    def __init__(self, lab: Lab, collections: Path, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        self.inventory = lab.directory / "inventory.yml"
        # A control socket's path may have about 100 characters: pytest's own folders are too deep.
        (folder / "ansible.cfg").touch()
        self._sockets = Path(tempfile.mkdtemp(prefix="bfa"))
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder),
            "ANSIBLE_HOME": str(folder / "ansible"),
            "ANSIBLE_CONFIG": str(folder / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(collections),
            "ANSIBLE_CALLBACK_PLUGINS": str(Path(__file__).parent / "ansible_recorder"),
            "ANSIBLE_CALLBACKS_ENABLED": "bpfleet_recorder",
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self._sockets),
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_FORKS": "20",
            "ANSIBLE_TIMEOUT": "60",  # on a machine that is busy with other tests, a login may take long
            "ANSIBLE_RETRY_FILES_ENABLED": "0",
            "ANSIBLE_LOCALHOST_WARNING": "0",
        }

    def disconnect(self) -> None:
        """End the kept connections."""
        for socket in self._sockets.iterdir():
            subprocess.run(["ssh", "-o", f"ControlPath={socket}", "-O", "exit", "x"], capture_output=True, check=False)

    def close(self) -> None:
        """End the kept connections, and keep no more."""
        self.disconnect()
        for socket in self._sockets.iterdir():
            socket.unlink(missing_ok=True)  # a connection that ends removes its own, a moment after it said so
        self._sockets.rmdir()

    def play(
        self,
        playbook: Path | Sequence[Mapping[str, Any]],
        *options: str,
        ok: bool = True,
        inventory: Path | None = None,
        environment: Mapping[str, str] | None = None,
        **variables: Any,
    ) -> Played:
        """Run a playbook, in a file or as data; fails the test unless its success is `ok`."""
        record = self.folder / "record.jsonl"
        record.unlink(missing_ok=True)
        if not isinstance(playbook, Path):
            written = self.folder / "playbook.yml"
            written.write_text(json.dumps(playbook))
            playbook = written
        given = [argument for item in variables.items() for argument in ("-e", json.dumps(dict([item])))]
        done = subprocess.run(
            ["ansible-playbook", "-i", str(inventory or self.inventory), str(playbook), *given, *options],
            env={**self.environment, "BPFLEET_RECORD": str(record), **(environment or {})},
            cwd=self.folder,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=COMMAND_SECONDS,
        )
        lines = record.read_text().splitlines() if record.exists() else []
        results = [Result(**json.loads(line)) for line in lines]
        text = done.stdout + done.stderr
        assert (done.returncode == 0) is ok, text
        return Played(done.returncode, results, text)

    def quickstart(self, *options: str, ok: bool = True, **variables: Any) -> Played:
        """The example's playbook; without files of other services, which are the role's own test."""
        return self.play(QUICKSTART / "playbook.yml", *options, ok=ok, bpfleet_host_files=False, **variables)

    def kill_while_playing(
        self, playbook: Sequence[Mapping[str, Any]], environment: Mapping[str, str], wait: Callable[[], None]
    ) -> None:
        """Begin to run a playbook, and kill it when `wait` returns."""
        written = self.folder / "killed.json"
        written.write_text(json.dumps(playbook))
        process = subprocess.Popen(
            ["ansible-playbook", "-i", str(self.inventory), str(written)],
            env={**self.environment, **environment, "BPFLEET_RECORD": str(self.folder / "killed.jsonl")},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait()
        finally:
            kill_with_descendants(process)

    def nodes(self) -> list[dict[str, Any]]:
        """A document for every host of the lab."""
        return [{"kind": "node", "name": host.name, "spec": host.node_spec} for host in self.lab.hosts.values()]

    # Past Ansible

    def target(self, name: str) -> Target:
        host = self.lab.host(name)
        return Target(name, host.address, private_key_file=str(self.lab.private_key), host_key=host.host_key)

    def hellos(self) -> dict[str, Hello]:
        """What each host's agent says of itself."""
        with Fleet() as fleet:
            return {name: fleet.install(self.target(name)) for name in self.lab.hosts}

    def digests(self) -> dict[str, tuple[str, str | None]]:
        """(documents, NodeState) by host."""
        return {name: (hello["documents_digest"], hello["state_digest"]) for name, hello in self.hellos().items()}

    def items(self, name: str) -> dict[str, dict[str, Any]]:
        """A host's stored items by key."""
        with Fleet() as fleet:
            items = fleet.call(self.target(name), "documents")["items"]
        return {f"{item['document']['kind']}/{item['document']['name']}": item for item in items}

    def clear(self) -> None:
        """Nothing of bpfleet on any host."""
        with Fleet() as fleet:
            for name in self.lab.hosts:
                hello = fleet.installed(self.target(name))
                if hello is not None:
                    fleet.call(self.target(name), "wipe", {"node": hello["node"]} if hello["node"] else {})
                    fleet.remove_agent(self.target(name))


def tasks(*actions: tuple[str, Mapping[str, Any]], **play: Any) -> list[dict[str, Any]]:
    """A play of these tasks on all hosts."""
    listed = [{f"bpfleet.fleet.{name}": dict(arguments)} for name, arguments in actions]
    return [{"hosts": "all", "gather_facts": False, "tasks": listed, **play}]


def inventory_with(controller: Controller, **hosts: Mapping[str, Any]) -> Path:
    """The lab's inventory and more hosts."""
    data = yaml.safe_load(controller.inventory.read_text())
    data["all"]["children"]["lab"]["hosts"].update({name: dict(values) for name, values in hosts.items()})
    path = controller.folder / "inventory.yml"
    path.write_text(json.dumps(data))
    return path

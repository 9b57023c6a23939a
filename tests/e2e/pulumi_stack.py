"""A Pulumi stack for tests: the real CLI and plugin, a YAML program made of data, a backend in a folder."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bpfleet.lab import Host

ROOT = Path(__file__).resolve().parents[2]
COMMAND_SECONDS = 300.0


def cli_folder() -> str:
    """The folder of the Pulumi CLI; built on first use (see tools/pulumi/ensure.sh)."""
    done = subprocess.run([ROOT / "tools/pulumi/ensure.sh"], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


@dataclass
class Run:
    """What one command did. ops: by resource name, without `same`; messages: (resource name, severity, text)."""

    code: int
    ops: dict[str, str] = field(default_factory=dict)
    messages: list[tuple[str, str, str]] = field(default_factory=list)
    text: str = ""

    def errors(self, name: str) -> str:
        """Errors about a resource, as one text."""
        return "\n".join(text for about, severity, text in self.messages if about == name and severity == "error")

    def warnings(self, name: str) -> str:
        """Warnings about a resource, as one text."""
        return "\n".join(text for about, severity, text in self.messages if about == name and severity == "warning")

    @property
    def all_errors(self) -> str:
        """Errors about anything."""
        return "\n".join(text for _, severity, text in self.messages if severity == "error")


def name_of(urn: str) -> str:
    """The resource's own name in its program."""
    return urn.rsplit("::", 1)[-1]


class Stack:
    """One stack. `resources` is the program: change it, then call `up`."""

    def __init__(
        self, folder: Path, cli: str, name: str = "test", parallel: int | None = 64, meeting: Path | None = None
    ) -> None:
        """`parallel`: how many operations at once; None for Pulumi's own choice. `meeting`: the folder where its plugin
        comes by, under the stack's name (meeting.py)."""
        self.folder = folder
        self.resources: dict[str, dict[str, Any]] = {}
        (folder / "state").mkdir(parents=True)
        self._environment = {
            **os.environ,
            "PATH": f"{cli}:{os.environ['PATH']}",
            "HOME": str(folder),  # no keys, no known_hosts, no Pulumi login of whoever runs the tests
            "PULUMI_HOME": str(folder / "pulumi"),
            "PULUMI_BACKEND_URL": f"file://{folder}/state",
            "PULUMI_CONFIG_PASSPHRASE": "x",
            "PULUMI_SKIP_UPDATE_CHECK": "1",
        }
        self._environment.pop("SSH_AUTH_SOCK", None)
        self._environment.pop("PULUMI_PARALLEL", None)
        if parallel is not None:
            self._environment["PULUMI_PARALLEL"] = str(parallel)
        self._plugin = ROOT / "provider"
        if meeting is not None:
            self._plugin = ROOT / "tests" / "e2e" / "met_plugin"
            self._environment.update(MEETING=str(meeting), MEETING_WHO=name)
        self._write()
        self._run("stack", "init", name)

    def _write(self) -> None:
        program = {
            "name": "e2e",
            "runtime": "yaml",
            "plugins": {"providers": [{"name": "bpfleet", "path": str(self._plugin)}]},
            "resources": self.resources,
        }
        (self.folder / "Pulumi.yaml").write_text(json.dumps(program))

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["pulumi", *arguments, "--non-interactive"],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=COMMAND_SECONDS,
        )

    @contextlib.contextmanager
    def begun_up(self) -> Iterator[subprocess.Popen[bytes]]:
        """The engine of a `pulumi up` that goes on meanwhile, and is killed afterwards if it still does."""
        self._write()
        with subprocess.Popen(
            ["pulumi", "up", "--yes", "--skip-preview", "--non-interactive"],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as engine:
            try:
                yield engine
            finally:
                engine.kill()

    def cancel(self) -> None:
        """`pulumi cancel`: what a killed engine has locked."""
        done = self._run("cancel", "--yes")
        assert done.returncode == 0, done.stdout + done.stderr

    def up(self, *options: str, ok: bool = True) -> Run:
        """`pulumi up`; fails the test unless its success is `ok`."""
        return self._events("up", "--yes", "--skip-preview", "--json", *options, ok=ok)

    def refresh(self, *options: str, ok: bool = True) -> Run:
        """`pulumi refresh`."""
        return self._events("refresh", "--yes", "--skip-preview", "--json", *options, ok=ok)

    def destroy(self, ok: bool = True) -> Run:
        """`pulumi destroy`."""
        return self._events("destroy", "--yes", "--skip-preview", "--json", ok=ok)

    def preview(self, ok: bool = True) -> Run:
        """`pulumi preview`: what an update would do."""
        self._write()
        done = self._run("preview", "--json")
        run = Run(done.returncode, text=done.stdout + done.stderr)
        assert (done.returncode == 0) is ok, run.text
        report = json.loads(done.stdout)
        for step in report.get("steps", []):
            if step["op"] != "same" and not step["urn"].endswith("::e2e-test"):
                run.ops[name_of(step["urn"])] = step["op"]
        for message in report.get("diagnostics", []):
            run.messages.append((name_of(message.get("urn", "")), message["severity"], message["message"]))
        return run

    def _events(self, *arguments: str, ok: bool) -> Run:
        self._write()
        done = self._run(*arguments)
        run = Run(done.returncode, text=done.stdout + done.stderr)
        for line in done.stdout.splitlines():
            event = json.loads(line) if line.startswith("{") else {}
            step = event.get("resOutputsEvent", event.get("resOpFailedEvent", {})).get("metadata")
            if step is not None and step["op"] != "same" and step["type"] != "pulumi:pulumi:Stack":
                run.ops[name_of(step["urn"])] = step["op"]
            message = event.get("diagnosticEvent")
            if message is not None and not message.get("ephemeral"):
                run.messages.append((name_of(message.get("urn", "")), message["severity"], message["message"]))
        assert (done.returncode == 0) is ok, run.all_errors + done.stderr
        return run

    def state(self) -> dict[str, dict[str, Any]]:
        """Resources of the state by name, with id, inputs, outputs and initErrors."""
        deployment = json.loads(self._run("stack", "export").stdout)["deployment"]
        return {name_of(entry["urn"]): entry for entry in deployment.get("resources", []) if entry.get("custom")}

    def import_resource(self, kind: str, name: str, identifier: str) -> subprocess.CompletedProcess[str]:
        """`pulumi import` of one resource."""
        self._write()
        return self._run("import", f"bpfleet:index:{kind}", name, identifier, "--yes", "--generate-code=false")


def node(host: Host, key: Path, **changes: Any) -> dict[str, Any]:
    """A Node resource for a lab's host."""
    ssh = {"privateKeyFile": str(key), "hostKey": host.host_key, **changes.pop("ssh", {})}
    properties = {
        "address": host.address,
        "devices": [{"name": host.device}],
        "workloadCidrs": list(host.workload_cidrs),
        "ssh": ssh,
        **changes,
    }
    return {"type": "bpfleet:Node", "properties": properties}


def cluster(*nodes: str, **changes: Any) -> dict[str, Any]:
    """A Cluster resource of these Node resources."""
    members = {name: f"${{{name}.handle}}" for name in nodes}
    return {"type": "bpfleet:Cluster", "properties": {"id": 7, "members": members, **changes}}


def inside(kind: str, properties: Mapping[str, Any], of: str = "fleet") -> dict[str, Any]:
    """A resource of the cluster `of`."""
    return {"type": f"bpfleet:{kind}", "properties": {"cluster": f"${{{of}.handle}}", **properties}}

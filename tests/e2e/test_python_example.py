"""The quickstart in Python against lab hosts, run as its README says: the fleet is that of the quickstart in YAML."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bpfleet.lab import Lab
from tests.e2e.pulumi_stack import COMMAND_SECONDS, ROOT, cli_folder

pytestmark = [pytest.mark.root, pytest.mark.lab]

Reached = dict[tuple[str, str], bool]

# The README's table: who is let through to whom (`client` and `monitor` are open to everybody).
ALLOWED = {
    *((source, open_to_all) for source in ("web", "api", "db", "batch") for open_to_all in ("client", "monitor")),
    *(("monitor", other) for other in ("web", "client", "api", "batch", "db")),
    ("client", "monitor"),
    ("client", "web"),
    ("web", "api"),
    ("batch", "api"),
    ("api", "db"),
}


class Examples:
    """Copies of both examples, with the lab's description beside them and one backend."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.folder = folder / "examples"
        for name in ("quickstart-python", "quickstart-pulumi"):
            shutil.copytree(
                ROOT / "examples" / name,
                self.folder / name,
                ignore=shutil.ignore_patterns("Pulumi.*.yaml", "__pycache__"),
            )
        (folder / "provider").symlink_to(ROOT / "provider")
        (folder / "state").mkdir()
        (folder / ".lab").mkdir()
        (folder / ".lab" / "lab.json").write_text(json.dumps(lab.describe()))
        self._environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{cli_folder()}:{os.environ['PATH']}",
            "HOME": str(folder),
            "PULUMI_HOME": str(folder / "pulumi"),
            "PULUMI_BACKEND_URL": f"file://{folder}/state",
            "PULUMI_CONFIG_PASSPHRASE": "",
            "PULUMI_SKIP_UPDATE_CHECK": "1",
        }

    def start(self, example: str, *command: str) -> subprocess.CompletedProcess[str]:
        """A command in the folder of an example."""
        return subprocess.run(
            command,
            cwd=self.folder / example,
            env=self._environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=COMMAND_SECONDS,
        )

    def run(self, example: str, *command: str) -> str:
        """A command that goes well; what it printed."""
        done = self.start(example, *command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def python(self, *arguments: str) -> str:
        return self.run("quickstart-python", "./run.py", *arguments)

    def outputs(self, example: str) -> dict[str, Any]:
        """The stack's outputs: where the workloads are."""
        found: dict[str, Any] = json.loads(self.run(example, "pulumi", "stack", "output", "--json", "--stack", "lab"))
        return found

    def status(self) -> dict[str, Any]:
        """`bpfleet status` of a seed, by node."""
        host = self.lab.host("h1")
        asked = ("--seed", f"root@{host.address}", "--identity-file", str(self.lab.private_key))
        known = ("--known-hosts", str(self.lab.directory / "known_hosts"))
        text = self.run("quickstart-python", "bpfleet", "status", *asked, *known, "-o", "json")
        found: dict[str, Any] = json.loads(text)["nodes"]
        return found

    def digests(self) -> dict[str, tuple[str, str]]:
        """Documents and NodeState of every node."""
        return {name: (node["documents_digest"], node["state_digest"]) for name, node in self.status().items()}


@pytest.fixture
def examples(lab: Lab, tmp_path: Path) -> Iterator[Examples]:
    made = Examples(lab, tmp_path)
    yield made
    for example in ("quickstart-python", "quickstart-pulumi"):
        # A test that failed halfway leaves a stack up; one that went through has none left.
        if list(made.folder.parent.glob(f"state/.pulumi/stacks/{example}/*.json")):
            made.run(example, "pulumi", "destroy", "--yes", "--skip-preview", "--stack", "lab")


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    """examples/demo.py, which knows how to try out who reaches whom."""
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def left_on(lab: Lab) -> dict[str, list[str]]:
    """Files and pins of bpfleet on the hosts."""
    command = ["find", "/var/lib/bpfleet", "/sys/fs/bpf", "-mindepth", "1"]
    found = {name: host.run(command, check=False).stdout.splitlines() for name, host in lab.hosts.items()}
    return {name: [line for line in lines if not line.endswith(".debug")] for name, lines in found.items()}


def test_the_fleet_in_python_is_the_fleet_in_yaml(examples: Examples, demo: ModuleType) -> None:
    lab = examples.lab
    assert "+ 22 to create" in examples.python("preview")
    assert left_on(lab) == {"h1": [], "h2": [], "h3": []}, "a preview asks no host"

    assert "+ 22 created" in examples.python("up")
    outputs, by_python = examples.outputs("quickstart-python"), examples.digests()
    assert sorted(by_python) == ["h1", "h2", "h3"] and len({documents for documents, _ in by_python.values()}) == 1
    with demo.serving(lab, outputs["workloads"], int(outputs["port"])):
        reached: Reached = demo.probe(lab, outputs["workloads"], int(outputs["port"]))
        assert {ends for ends, passed in reached.items() if passed} == ALLOWED
        assert "22 unchanged" in examples.python("up")
        assert "~ 1 updated" in examples.python("up", "--batch-to-db", "allow")
        changed: Reached = demo.probe(lab, outputs["workloads"], int(outputs["port"]))
        assert {ends for ends in changed if changed[ends] != reached[ends]} == {("batch", "db")}
    assert "- 22 deleted" in examples.python("destroy")
    assert left_on(lab) == {"h1": [], "h2": [], "h3": []}

    examples.run("quickstart-pulumi", "pulumi", "stack", "init", "lab")
    examples.run("quickstart-pulumi", "./configure.py")
    examples.run("quickstart-pulumi", "pulumi", "up", "--yes", "--skip-preview")
    assert examples.digests() == by_python, "the same documents, and the same NodeState on every node"
    assert examples.outputs("quickstart-pulumi") == outputs
    examples.run("quickstart-pulumi", "pulumi", "destroy", "--yes", "--skip-preview")


def test_what_the_plugin_refuses_is_said_without_a_traceback(examples: Examples) -> None:
    file = examples.folder.parent / ".lab" / "lab.json"
    described = json.loads(file.read_text())
    described["hosts"]["h2"]["address"] = "192.0.2.300"
    file.write_text(json.dumps(described))
    done = examples.start("quickstart-python", "./run.py", "preview")
    said = done.stdout + done.stderr
    assert done.returncode == 1 and "Traceback" not in said
    assert "192.0.2.300" in said and "address" in said

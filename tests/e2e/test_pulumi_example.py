"""The quickstart program: its configuration from a lab, and that it is what its README says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bpfleet.lab import Lab
from tests.e2e.pulumi_stack import ROOT, cli_folder

pytestmark = [pytest.mark.root, pytest.mark.lab]

EXAMPLE = ROOT / "examples" / "quickstart-pulumi"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The example, in a place where it may be changed."""
    copy = tmp_path / "examples" / "quickstart-pulumi"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("Pulumi.*.yaml"))
    (tmp_path / "provider").symlink_to(ROOT / "provider")
    return copy


def preview(folder: Path, lab: Lab) -> dict[str, Any]:
    (folder / "state").mkdir()
    environment = {
        **os.environ,
        "PATH": f"{cli_folder()}:{os.environ['PATH']}",
        "PULUMI_HOME": str(folder / "pulumi"),
        "PULUMI_BACKEND_URL": f"file://{folder}/state",
        "PULUMI_CONFIG_PASSPHRASE": "x",
        "PULUMI_SKIP_UPDATE_CHECK": "1",
    }
    (folder / "lab.json").write_text(json.dumps(lab.describe()))
    for command in (["pulumi", "stack", "init", "lab"], ["./configure.py", "lab.json"]):
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    done = subprocess.run(["pulumi", "preview", "--json"], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_the_example_previews_with_a_labs_configuration(folder: Path, lab: Lab) -> None:
    report = preview(folder, lab)
    steps = {step["urn"].rsplit("::", 1)[-1]: step for step in report["steps"]}
    kinds = [step["urn"].split("::")[2] for step in report["steps"]]
    assert {
        kind: kinds.count(f"bpfleet:index:{kind}") for kind in ("Node", "Identity", "Endpoint", "Policy", "Service")
    } == {
        "Node": 3,
        "Identity": 6,
        "Endpoint": 6,
        "Policy": 4,
        "Service": 1,
    }
    inputs = steps["db-from-backend"]["newState"]["inputs"]
    assert inputs["ingress"][1]["action"] == "deny"
    assert steps["db-1"]["newState"]["inputs"]["addresses"] == [
        lab.host("h3").workload_cidrs[0].replace("0/24", "10"),
        lab.host("h3").workload_cidrs[1].replace("/64", "10"),
    ]

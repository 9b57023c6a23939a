"""The committed Python SDK is what the generator makes of provider/schema.json, and has the plugin's version."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pulumi_bpfleet

import bpfleet
from bpfleet.emit.shapes import SHAPES

ROOT = Path(__file__).resolve().parents[2]
SDK = ROOT / "provider" / "sdk" / "python"


def files_of(folder: Path) -> dict[str, str]:
    """What git would keep of a folder, by path: the SDK's own .gitignore names the rest."""
    return {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".pyc" and ".egg-info" not in str(path)
    }


def test_the_committed_sdk_is_what_the_generator_writes(tmp_path: Path) -> None:
    stale = tmp_path / "pulumi_bpfleet" / "gone.py"
    stale.parent.mkdir()
    stale.touch()
    subprocess.run([ROOT / "tools/pulumi/sdk.sh", tmp_path], check=True)
    made, committed = files_of(tmp_path), files_of(SDK)
    differing = sorted(path for path in made.keys() | committed.keys() if made.get(path) != committed.get(path))
    assert differing == [], "run `make generate`"
    unmarked = [path for path, text in made.items() if path.endswith(".py") and "file was generated" not in text]
    assert unmarked == []


def test_there_is_one_version() -> None:
    """bpfleet.__version__, which packages that cannot import it repeat."""
    schema = json.loads((ROOT / "provider/schema.json").read_text())
    assert schema["version"] == bpfleet.__version__
    assert json.loads((SDK / "pulumi_bpfleet/pulumi-plugin.json").read_text())["version"] == bpfleet.__version__
    for file, pattern in {
        "provider/sdk/python/pyproject.toml": r'^\s*version = "(.+)"$',
        "pyproject.toml": r'^version = "(.+)"$',
        "ansible_collection/galaxy.yml": r"^version: (.+)$",
    }.items():
        assert re.findall(pattern, (ROOT / file).read_text(), re.MULTILINE) == [bpfleet.__version__], file


def test_the_installed_sdk_declares_every_resource_under_the_plugins_version() -> None:
    assert importlib.metadata.version("pulumi_bpfleet") == bpfleet.__version__
    assert pulumi_bpfleet._utilities.get_version() == bpfleet.__version__
    for token, shape in SHAPES.items():
        resource = getattr(pulumi_bpfleet, shape.resource.type_name)
        assert resource.pulumi_type == token
        assert all(hasattr(resource, field.name) for field in shape.fields)


def test_the_quickstart_without_hosts_says_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples/quickstart-python/run.py"), "preview"]
    done = subprocess.run(
        [*command, "--hosts", str(tmp_path / "lab.json")], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert f"there is no {tmp_path}/lab.json" in done.stderr and "--hosts" in done.stderr
    assert "Traceback" not in done.stderr

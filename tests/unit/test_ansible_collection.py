"""What the collection is made of: generated documentation, licences, what it carries, and that it builds."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import bpfleet
from bpfleet.emit.ansible import ansible_files, resource_options
from bpfleet.model.resources import RESOURCES
from bpfleet.model.state import DEVICE_PREFIX, TUNNEL_DEVICE
from tests.unit.collection import module
from tools.build_collection import SOURCE, archive, files

MODULES = sorted(path.stem for path in (SOURCE / "plugins" / "modules").glob("*.py"))


def constants(path: Path) -> dict[str, Any]:
    """The module's DOCUMENTATION, EXAMPLES and RETURN."""
    tree = ast.parse(path.read_text())
    found = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            found[statement.targets[0].id] = yaml.safe_load(ast.literal_eval(statement.value))
    return found


def test_there_is_a_module_and_an_action_for_each_resource_and_no_stale_one() -> None:
    assert set(RESOURCES) <= set(MODULES)
    assert sorted(path.stem for path in (SOURCE / "plugins" / "action").glob("*.py")) == MODULES
    generated = {Path(name).stem for name in ansible_files() if "/modules/" in name}
    assert generated == set(MODULES)
    assert yaml.safe_load((SOURCE / "meta" / "runtime.yml").read_text())["action_groups"]["fleet"] == MODULES


@pytest.mark.parametrize("name", MODULES)
def test_documentation_examples_and_argument_spec_agree(name: str) -> None:
    texts = constants(SOURCE / "plugins" / "modules" / f"{name}.py")
    assert texts["DOCUMENTATION"]["module"] == name
    spec = module("argument_specs").ARGUMENT_SPECS[name]["argument_spec"]
    assert set(texts["DOCUMENTATION"]["options"]) == set(spec)
    assert texts["RETURN"]
    used = [task for play in texts["EXAMPLES"] for task in play.get("tasks", [play])]
    mine = [task[f"bpfleet.fleet.{name}"] or {} for task in used if f"bpfleet.fleet.{name}" in task]
    assert mine, "an example uses it"
    for arguments in mine:
        assert set(arguments) <= set(spec)


def test_every_field_of_the_model_that_is_declared_is_an_option() -> None:
    for resource in RESOURCES.values():
        declared = {field.name for field in resource.spec_fields if not field.computed}
        assert declared <= set(resource_options(resource)), resource.kind
    assert "number" not in resource_options(RESOURCES["identity"])
    assert "ssh" in resource_options(RESOURCES["node"])


def test_every_plugin_says_its_licence() -> None:
    for path in (SOURCE / "plugins").rglob("*.py"):
        assert "SPDX-License-Identifier: GPL-3.0-or-later" in path.read_text(), path


def test_the_role_keeps_other_services_off_the_devices_that_the_loader_makes() -> None:
    variables = yaml.safe_load((SOURCE / "roles" / "node" / "vars" / "main.yml").read_text())
    assert variables["bpfleet_devices"] == [f"{DEVICE_PREFIX}*", TUNNEL_DEVICE]
    carried = {name for name in files() if name.startswith("roles/node/templates/")}
    assert {Path(name).name for name in carried} == {entry["template"] for entry in variables["bpfleet_files"]}


def test_version_is_the_packages() -> None:
    assert yaml.safe_load((SOURCE / "galaxy.yml").read_text())["version"] == bpfleet.__version__


def test_what_it_carries_of_bpfleet_imports_nothing_from_outside_the_collection() -> None:
    for name, data in files().items():
        if name.endswith(".py"):
            assert not re.search(rb"^\s*(from|import) bpfleet\b", data, re.MULTILINE), name


def test_the_built_archive_holds_all_and_works_without_the_checkout(tmp_path: Path) -> None:
    built = archive(tmp_path, tmp_path / "tree")
    with tarfile.open(built) as tar:
        names = set(tar.getnames())
    assert {"files/agent.pyz", "roles/node/tasks/main.yml", "plugins/action/documents.py"} <= names
    assert not [name for name in names if "__pycache__" in name]
    elsewhere = tmp_path / "elsewhere"
    galaxy = Path(sys.executable).with_name("ansible-galaxy")
    subprocess.run(
        [str(galaxy), "collection", "install", str(built), "-p", str(elsewhere)],
        check=True,
        capture_output=True,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "ANSIBLE_COLLECTIONS_PATH": str(elsewhere)},
    )
    # A Python with ansible-core but without bpfleet.
    script = (
        "import sys; checkout, elsewhere = sys.argv[1:]\n"
        "sys.path[:] = [elsewhere, *(path for path in sys.path if path not in ('', checkout))]\n"
        "from ansible_collections.bpfleet.fleet.plugins.plugin_utils import channel\n"
        "import ansible_collections.bpfleet.fleet.plugins.action.documents\n"
        "assert 'bpfleet' not in sys.modules\n"
        "print(channel.Artefact.carried().digest)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(SOURCE.parent), str(elsewhere)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(built) as tar:
        member = tar.extractfile("files/agent.pyz")
        assert member is not None
        assert done.stdout.strip() == module("channel").install.digest_of(io.BytesIO(member.read()).getvalue())

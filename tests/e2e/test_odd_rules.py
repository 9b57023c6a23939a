"""Odd rules through a real playbook in check mode and a real preview: each is refused with its path.

The rows are those of tests/unit/test_policy_checks.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfleet.lab import Lab
from bpfleet.model.schema import camel
from tests.e2e.ansible_play import Controller, tasks
from tests.e2e.pulumi_stack import Stack, cli_folder, inside
from tests.unit.test_policy_checks import EMPTY, REFUSED, camelled, whole
from tools.build_collection import assemble

pytestmark = [pytest.mark.root, pytest.mark.lab]

PREVIEWED = ("expressions[0].values", "ingress[0].peers[1].except", "egress[0].ports[1].end_port", "ingress[1]")
OF_A_PATH = {path: spec for spec, path in reversed(REFUSED) if path in PREVIEWED}
"""A row for each of some paths: a preview stops at the first resource that is refused."""
HANDLE = {"cluster": "fleet", "seeds": {"h1": {"name": "h1", "address": "192.0.2.1", "ssh": {}}}}


def test_a_playbook_in_check_mode_names_the_path_of_each(lab: Lab, tmp_path: Path) -> None:
    assemble(tmp_path / "collections")
    controller = Controller(lab, tmp_path / "collections", tmp_path)
    rows = [(whole(spec), path) for spec, path in REFUSED] + [({"selector": {}, **spec}, path) for spec, path in EMPTY]
    documents = [{"kind": "policy", "name": f"p{number}", "spec": spec} for number, (spec, _) in enumerate(rows)]
    try:
        played = controller.play(
            tasks(("documents", {"cluster": "fleet", "documents": documents})), "--check", ok=False
        )
        (result, *_) = played.of("documents").values()
        for number, (_, path) in enumerate(rows):
            wanted = f"resource policy/p{number}, field spec.{path}, file documents[{number}]:"
            assert wanted.replace("spec.", "") in result.message.replace("spec.", ""), (wanted, result.message)
        assert all(one.outcome == "failed" for one in played.of("documents").values())
    finally:
        controller.close()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    return Stack(tmp_path_factory.mktemp("stack") / "stack", cli_folder())


@pytest.mark.parametrize("path", dict(OF_A_PATH))
def test_a_preview_names_the_path(stack: Stack, path: str) -> None:
    policy = inside("Policy", camelled(whole(OF_A_PATH[path])))
    policy["properties"]["cluster"] = HANDLE
    stack.resources = {"odd": policy}
    run = stack.preview(ok=False)
    assert f"property {'.'.join(map(camel, path.split('.')))} " in run.errors("odd"), run.text

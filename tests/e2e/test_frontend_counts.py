"""How many transactions and connections a fleet takes by either front end, counted on the hosts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import frontends_fleet as fleet
from bench.frontends_nodes import between, look
from bpfleet.lab import Lab
from tests.e2e.ansible_play import Controller
from tests.e2e.pulumi_stack import Stack, cli_folder
from tools.build_collection import assemble

pytestmark = [pytest.mark.root, pytest.mark.lab]


@pytest.fixture
def emptied(lab: Lab, tmp_path: Path) -> Iterator[Controller]:
    """The lab, and nothing of bpfleet on its hosts afterwards."""
    assemble(tmp_path / "collections")
    controller = Controller(lab, tmp_path / "collections", tmp_path)
    yield controller
    controller.close()
    controller.clear()


def test_pulumi_changes_the_datapath_once_and_connects_twice_a_transaction_at_most(
    emptied: Controller, tmp_path: Path
) -> None:
    lab = emptied.lab
    stack = Stack(tmp_path / "stack", cli_folder(), parallel=256)
    for port, enrolment in ((80, 2), (8080, 0)):
        documents = fleet.documents(lab, port)
        stack.resources = fleet.resources(lab, documents)
        before = look(lab)
        stack.up()
        for node in between(before, look(lab), len(documents)):
            assert (node.enrolment, node.transactions - node.enrolment) == (enrolment, 1)
            assert node.connections_per_transaction <= 2
    before = look(lab)
    stack.up()
    assert {node.connections for node in between(before, look(lab), len(documents))} == {0}
    before = look(lab)
    stack.refresh()
    *others, teller = sorted(node.bytes for node in between(before, look(lab), len(documents)))
    assert max(others) - min(others) < (teller - max(others)) / 2, "one tells all, the others that they hold the same"


def test_a_play_takes_one_transaction_and_two_connections(emptied: Controller) -> None:
    """The deciding host takes one more of each, if another host's task has new identities and comes first."""
    for port in (80, 8080):
        documents = fleet.documents(emptied.lab, port)
        before = look(emptied.lab)
        emptied.play(fleet.playbook(documents))
        emptied.disconnect()
        took = between(before, look(emptied.lab), len(documents))
        counts = sorted((node.transactions, node.connections) for node in took)
        assert counts[:-1] == [(1, 2)] * (len(counts) - 1)
        assert counts[-1] == (1, 2) or (port == 80 and counts[-1] == (2, 3)), "identities are new only at first"

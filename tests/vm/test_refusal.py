"""A host whose kernel is too old is refused by name, before anything is changed there."""

from __future__ import annotations

import pytest

from bpfleet.errors import HostUnfit
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.outcome import Changes, Failed
from tests.fleet import document
from tests.vm.conftest import changes, snapshot, target
from tools.vm.machine import Machine


def test_a_kernel_without_tcx_is_refused(bookworm: Machine, fleet: Fleet) -> None:
    reached = target(bookworm, "bookworm")
    before = snapshot(bookworm)
    try:
        fleet.install(reached)
        installed = snapshot(bookworm)
        node = document(
            "node", "bookworm", address=bookworm.address, devices=[{"name": "eth0"}], workload_cidrs=["10.99.1.0/24"]
        )
        change = Changes(puts=[{"document": node.to_json(), "owner": "test:vm", "metadata": {}}], owner="test:vm")
        outcome = fleet.transact({"bookworm": reached}, change)["bookworm"]
        assert isinstance(outcome, Failed), outcome
        with pytest.raises(HostUnfit) as refused:
            raise outcome.error
        assert refused.value.where["node"] == "bookworm"
        assert "6.1." in refused.value.what
        assert "6.6" in refused.value.remedy
        hello = fleet.call(reached, "hello")
        assert (hello["node"], hello["generation"], hello["writes"], hello["pending"]) == (None, 0, 0, None)
        # Taking the node's lock makes its file; the agent that is removed takes it along.
        assert set(changes(installed, snapshot(bookworm))) <= {"+   /var/lib/bpfleet/lock"}
    finally:
        if fleet.installed(reached):
            fleet.remove_agent(reached)
    assert changes(before, snapshot(bookworm)) == []

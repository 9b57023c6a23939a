"""On which nodes packets of established flows pass the host's stack by."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Sequence

import pytest

from bpfleet.compile.compiler import Compiler
from bpfleet.model.document import DocumentSet
from tests import fleet


@pytest.mark.parametrize(
    ("devices", "address", "shows", "routing", "direct"),
    [
        (("eth0",), "192.168.77.1", True, {}, True),
        (("eth0",), "192.168.77.1", True, {"direct_delivery": False}, False),
        (("eth0",), "192.168.77.1", False, {}, False),  # a kernel that does not say whether there is IPsec
        (("eth0",), "2001:db8::1", True, {}, False),
        # Only the stack knows by which of them a member's packets may come.
        (("eth0", "eth1"), "192.168.77.1", True, {}, False),
    ],
)
def test_where_they_do(devices: Sequence[str], address: str, shows: bool, routing: Any, direct: bool) -> None:
    node = fleet.document(
        "node",
        "h1",
        address=address,
        devices=[{"name": name} for name in devices],
        workload_cidrs=["10.77.1.0/24"],
    )
    cluster = fleet.document("cluster", "fleet", id=1, members=["h1"], routing=routing)
    facts = replace(fleet.facts(1), kernel_contexts=shows)
    state = Compiler().compile(DocumentSet([cluster, node]), facts).state
    programs = {name: program.constants.get("direct_delivery", 0) for name, program in state.programs.items()}
    assert set(programs.values()) == {int(direct)}
    assert [hook for hook, name in state.attachments.items() if name == "to_underlay"] == (
        [("eth0", "egress")] if direct else []
    ), "which sees how packets leave"


def test_where_there_are_services_they_know_which_copies_count() -> None:
    """As those who made them do: a flow that goes to a frontend from now on has none (connection_copy.h)."""
    facts = replace(fleet.facts(1), kernel_contexts=True)
    for services in ([], [fleet.service("s", ["10.96.0.1:53/udp"], [])]):
        programs = Compiler().compile(DocumentSet([*fleet.quickstart(), *services]), facts).state.programs
        assert programs["from_underlay"].constants["direct_delivery"]
        with_copies = ("from_endpoint", "to_endpoint", "from_tunnel", "from_underlay")
        found = {programs[name].constants.get("services_at_tc", 0) for name in with_copies}
        assert found == {len(services)}

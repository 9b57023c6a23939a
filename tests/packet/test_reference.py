"""The programs in the kernel say what policies mean: compiled documents, real packets, the reference judge."""

from __future__ import annotations

import struct
from typing import Any, Dict, List, Tuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpfleet.compile.compiler import Compiler
from bpfleet.loader.generated.layouts import MAPS
from bpfleet.model.document import Document, DocumentSet
from bpfleet.model.state import NodeState, Table
from tests import fleet
from tests.packet import frames as f
from tests.packet.kernel import Datapath, Result
from tests.packet.world import ADDRESSES, DEVICES, IDENTITIES
from tests.reference import fleets
from tests.reference.judge import AUDIT, Flow, Verdict, judge

pytestmark = pytest.mark.root

SUBJECT = "a"
PEERS = {"identity/b": "b", "identity/c": "c", "host": "host", "remote-node": "node2"}
NUMBERS = {name: IDENTITIES[name] for name in fleets.IDENTITIES}
# Where the stack says that a forwarded packet came in; the host's own came in nowhere.
VIA = {"identity/c": "vxlan", "remote-node": "vxlan", "host": ""}
REPLIES = {("icmp", 0), ("icmpv6", 129)}


def load(datapath: Datapath, state: NodeState) -> None:
    """The policies of one identity as the compiler made them, and nothing else, into the maps."""
    for name in ("policies", "prefix_sets", "port_sets"):
        datapath.maps[name].clear()
        key = MAPS[name]["key"]["fields"][0]["name"]
        for number, table in state.nested[name].items():
            if name != "policies" or number == IDENTITIES[SUBJECT]:
                datapath.set_inner(name, {key: number}, rows(table))


def rows(table: Table) -> List[Tuple[Dict[str, Any], Dict[str, Any]]]:
    """A table's rows as records."""
    return [(dict(zip(table.key, key)), dict(zip(table.value, value))) for key, value in table.rows.items()]


def packet(flow: Flow, source: str, destination: str) -> bytes:
    """The first packet of a flow."""
    if flow.protocol in ("icmp", "icmpv6"):
        kind, code = flow.port
        return f.icmp(source, destination, kind, struct.pack("!HH", 7, 1), code=code)
    return {"tcp": f.tcp, "udp": f.udp, "sctp": f.sctp}[flow.protocol](source, destination, (40000, flow.port))


def send(datapath: Datapath, flow: Flow) -> Result:
    """The packet at the hook where the subject's policy judges it."""
    family = 6 if ":" in flow.peer or (flow.peer in PEERS and flow.protocol == "icmpv6") else 4
    here = ADDRESSES[family][SUBJECT]
    peer = ADDRESSES[family][PEERS[flow.peer]] if flow.peer in PEERS else flow.peer
    if flow.direction == "egress":
        return datapath.run("from_endpoint", f.ether(packet(flow, here, peer)), DEVICES[SUBJECT])
    frame = f.ether(packet(flow, peer, here))
    if flow.peer == "identity/b":
        return datapath.run("from_endpoint", frame, DEVICES["b"])
    return datapath.run("to_endpoint", frame, DEVICES[SUBJECT], DEVICES.get(VIA.get(flow.peer, "eth0"), 0))


def can_be(flow: Flow) -> bool:
    """Whether there is such a packet, and policy is asked about it."""
    if flow.subject != SUBJECT or flow.peer == "identity/a":
        return False
    if flow.protocol in ("icmp", "icmpv6"):
        family = "icmpv6" if ":" in flow.peer else "icmp"
        return (flow.peer in PEERS or flow.protocol == family) and (flow.protocol, flow.port[0]) not in REPLIES
    return True


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fleets.clusters(NUMBERS), st.lists(fleets.flows(subject=SUBJECT).filter(can_be), min_size=1, max_size=10))
def test_programs_say_what_policies_mean(datapath: Datapath, documents: List[Document], asked: List[Flow]) -> None:
    load(datapath, Compiler().compile(DocumentSet(documents), fleet.facts(1)).state)
    for flow in asked:
        datapath.maps["connections"].clear()
        result = send(datapath, flow)
        wanted = judge(documents, flow)
        event = next(event for event in result.events if event["direction"] == flow.direction)
        assert Verdict(event["verdict"], event["rule_id"]) == wanted, flow
        assert (result.action == "shot") == wanted.drops, flow
        assert result.counters.get("audited", 0) == (wanted.verdict == AUDIT)

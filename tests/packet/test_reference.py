"""The programs in the kernel say what policies mean: compiled documents, real packets, the reference judge."""

from __future__ import annotations

import struct
from collections import Counter
from typing import Any, Dict, List, Tuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bpfleet.compile.compiler import Compiler
from bpfleet.loader.generated.layouts import MAPS
from bpfleet.model.document import Document, DocumentSet
from bpfleet.model.resources import PROTOCOL_NUMBERS
from bpfleet.model.state import NodeState, RuleName, Table
from tests import fleet
from tests.packet import frames as f
from tests.packet.kernel import Datapath, Result
from tests.packet.world import ADDRESSES, DEVICES, IDENTITIES
from tests.reference import fleets, semantics
from tests.reference.judge import AUDIT, Flow, Verdict, is_failsafe, judge

pytestmark = pytest.mark.root

SUBJECT = "a"
HOST_PEERS = {"identity/a": "a", "identity/b": "b", "identity/c": "c", "remote-node": "node2"}
ETH0 = DEVICES["eth0"]
PEERS = {"identity/b": "b", "identity/c": "c", "host": "host", "remote-node": "node2"}
NUMBERS = {name: IDENTITIES[name] for name in fleets.IDENTITIES}
# Where the stack says that a forwarded packet came in; the host's own came in nowhere.
VIA = {"identity/c": "vxlan", "remote-node": "vxlan", "host": ""}
REPLIES = {("icmp", 0), ("icmpv6", 129)}


def load(datapath: Datapath, state: NodeState, subject: int = NUMBERS[SUBJECT]) -> None:
    """The policies of one subject as the compiler made them, and nothing else, into the maps."""
    for name in ("policies", "prefix_sets", "port_sets"):
        datapath.maps[name].clear()
        key = MAPS[name]["key"]["fields"][0]["name"]
        for number, table in state.nested[name].items():
            if name != "policies" or number == subject:
                datapath.set_inner(name, {key: number}, rows(table))
    datapath.next_generation()


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


def send_host(datapath: Datapath, flow: Flow) -> Result:
    """The packet at the hook where the policies that select the node judge it. What comes out of the tunnel cannot be
    made here: test_tunnel.py has it."""
    family = 6 if ":" in flow.peer or (flow.peer in HOST_PEERS and flow.protocol == "icmpv6") else 4
    here = ADDRESSES[family]["host"]
    peer = ADDRESSES[family][HOST_PEERS[flow.peer]] if flow.peer in HOST_PEERS else flow.peer
    name = HOST_PEERS.get(flow.peer, "")
    if flow.direction == "ingress":
        frame = f.ether(packet(flow, peer, here))
        return datapath.run("from_endpoint" if name in DEVICES else "from_underlay", frame, DEVICES.get(name, ETH0))
    frame = f.ether(packet(flow, here, peer))
    if name in DEVICES:
        return datapath.run("to_endpoint", frame, DEVICES[name])
    if name == "c":
        return datapath.run("to_tunnel", frame, DEVICES["vxlan"])
    return datapath.run("to_underlay", frame, ETH0)


def can_be_of_host(flow: Flow) -> bool:
    """Whether there is such a packet, and its hook can be fed here."""
    if flow.direction == "ingress" and flow.peer == "identity/c":
        return False
    return can_be(flow)


def can_be(flow: Flow) -> bool:
    """Whether there is such a packet, and policy is asked about it."""
    if flow.protocol in ("icmp", "icmpv6"):
        family = "icmpv6" if ":" in flow.peer else "icmp"
        return (flow.peer in (*PEERS, *HOST_PEERS) or flow.protocol == family) and (
            flow.protocol,
            flow.port[0],
        ) not in REPLIES
    return True


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fleets.clusters(NUMBERS), st.lists(fleets.flows(subject=SUBJECT).filter(can_be), min_size=1, max_size=10))
def test_programs_say_what_policies_mean(datapath: Datapath, documents: List[Document], asked: List[Flow]) -> None:
    load(datapath, Compiler().compile(DocumentSet(documents), fleet.facts(1)).state)
    for name in ("flow_slots", "flows", "flow_counts", "flow_cursors"):
        datapath.maps[name].clear()
    history: Counter[Tuple[str, str, int, int, int]] = Counter()
    for flow in asked:
        datapath.maps["connections"].clear()
        result = send(datapath, flow)
        wanted = judge(documents, flow)
        port = flow.port[0] << 8 | flow.port[1] if isinstance(flow.port, tuple) else flow.port
        history[wanted.verdict, flow.direction, PROTOCOL_NUMBERS[flow.protocol], port, wanted.rule_id] += 1
        event = next(event for event in result.events if event["direction"] == flow.direction)
        assert Verdict(event["verdict"], event["rule_id"]) == wanted, flow
        assert (result.action == "shot") == wanted.drops, flow
        assert result.counters.get("audited", 0) == (wanted.verdict == AUDIT)
    assert recorded(datapath) == history


def recorded(datapath: Datapath) -> Counter[Tuple[str, str, int, int, int]]:
    """Packets that the subject judged, as the history has them, over all its peers."""
    found: Counter[Tuple[str, str, int, int, int]] = Counter()
    for flow in datapath.flows():
        subject = flow["destination_identity" if flow["direction"] == "ingress" else "source_identity"]
        if subject == IDENTITIES[SUBJECT]:
            key = (flow["verdict"], flow["direction"], flow["protocol"], flow["port"], flow["rule_id"])
            found[key] += flow["packets"]
    return found


@example(
    fleets.world({"failsafe_ports": [{"protocol": "udp", "port": 443, "direction": "ingress"}]}, NUMBERS),
    [Flow("ingress", "host", "identity/a", "udp", 443)],
).via("a datagram to a failsafe port")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fleets.clusters(NUMBERS), st.lists(fleets.flows(subject="host").filter(can_be_of_host), min_size=1, max_size=10))
def test_programs_say_what_node_policies_mean(
    host_datapath: Datapath, documents: List[Document], asked: List[Flow]
) -> None:
    """The host itself as the subject, at every hook where its own traffic passes; failsafe ports before any policy."""
    state = Compiler().compile(DocumentSet(documents), fleet.facts(1)).state
    load(host_datapath, state, IDENTITIES["host"])
    host_datapath.maps["failsafe"].clear()
    for key, value in rows(state.tables["failsafe"]):
        host_datapath.maps["failsafe"].update(key, value)
    for flow in asked:
        host_datapath.maps["connections"].clear()
        result = send_host(host_datapath, flow)
        wanted = judge(documents, flow)
        assert (result.action == "shot") == wanted.drops, (flow, result)
        assert result.counters.get("audited", 0) == (wanted.verdict == AUDIT), flow
        events = [event for event in result.events if event["direction"] == flow.direction]
        if is_failsafe(documents[0].spec, flow):
            # Only what opens a connection has an event: without a record no other packet is known to be a first one.
            is_opening = flow.protocol == "tcp" and flow.direction == "ingress"
            assert [event["reason"] for event in events] == ["failsafe"][:is_opening], flow
            continue
        assert Verdict(events[0]["verdict"], events[0]["rule_id"]) == wanted, flow


@pytest.mark.parametrize("row", semantics.ROWS, ids=str)
def test_each_statement_by_hand(request: pytest.FixtureRequest, row: semantics.Row) -> None:
    """Real packets of every flow whose hook can be fed here, by the policies as they are compiled."""
    documents = fleets.world(row.settings, NUMBERS)
    documents += [fleet.document("policy", name, **spec) for name, spec in row.policies.items()]
    compiled = Compiler().compile(DocumentSet(documents), fleet.facts(1))
    for flow, answer in row.flows:
        of_host = flow.subject == "host"
        datapath = request.getfixturevalue("host_datapath" if of_host else "datapath")
        load(datapath, compiled.state, IDENTITIES["host"] if of_host else NUMBERS[SUBJECT])
        datapath.maps["failsafe"].clear()
        for key, value in rows(compiled.state.tables["failsafe"]):
            datapath.maps["failsafe"].update(key, value)
        datapath.maps["connections"].clear()
        result = (send_host if of_host else send)(datapath, flow)
        events = [event for event in result.events if event["direction"] == flow.direction]
        assert (result.action == "shot") == answer.startswith(("deny", "default_deny")), (flow, result)
        for event in events:
            rule = compiled.rules[event["rule_id"]] if event["rule_id"] else RuleName("", "", "", "")
            assert " ".join(part for part in (event["verdict"], rule.policy, rule.rule) if part) == answer, flow
        assert events or is_failsafe(documents[0].spec, flow), flow

"""Copies of judgements: which new connections go by them, and that none answers another question than its own.

A policy that is exchanged behind its copies, without a new generation as no writer does it, shows which of the two a
packet went by.
"""

from __future__ import annotations

import time
from typing import Callable, Dict, List, Tuple

import pytest

from bpfleet.loader.generated.layouts import ENUMS
from tests.packet import frames as f
from tests.packet import world
from tests.packet.kernel import Datapath, Result
from tests.packet.test_copies import TICK_NS, within_a_tick
from tests.packet.test_flows import did_not_fit
from tests.packet.test_tunnel import Wire, wire
from tests.packet.world import ADDRESSES, CONSTANTS, DEVICES, IDENTITIES, UNDERLAY_2, Policy, Rule

__all__ = ["wire"]

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("one_cpu")]

BEFORE, BEHIND = 51, 52
"""The rule that judged, and the one that would now."""


def every(rule_id: int, direction: str = "egress") -> Tuple[Rule, ...]:
    return (Rule(direction, rule_id, 0),)


def exchange_behind(datapath: Datapath, name: str, direction: str = "egress") -> None:
    """Another rule without another generation."""
    entries = world.entries(every(BEHIND, direction), (direction,))
    datapath.set_policy(IDENTITIES[name], entries)


def send(datapath: Datapath, packet: bytes, at: str = "a") -> Result:
    return datapath.run("from_endpoint", f.ether(packet), DEVICES[at])


def rules(result: Result, direction: str = "egress") -> List[int]:
    return [event["rule_id"] for event in result.events if event["direction"] == direction]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("to", ["c", "d", "b"])
def test_the_next_connection_to_a_port_goes_by_the_copy(datapath: Datapath, family: int, to: str) -> None:
    """In the tunnel, to a node with an IPv6 address, and on this node; with its event, its record and its counts."""
    x = ADDRESSES[family]
    world.apply(datapath, Policy("a", every(BEFORE), ("egress",)))
    first = send(datapath, f.tcp(x["a"], x[to], (40000, 80)))
    exchange_behind(datapath, "a")
    for port in (40001, 40002):
        second = send(datapath, f.tcp(x["a"], x[to], (port, 80)))
        assert rules(second) == [BEFORE]
        assert (second.action, second.counters) == (first.action, first.counters)
        assert second.events[0]["destination_identity"] == IDENTITIES[to]
        assert send(datapath, f.tcp(x["a"], x[to], (port, 80), f.ACK)).events == [], "it has a record"
    (counted,) = [one["packets"] for one in datapath.flows() if one["rule_id"] == BEFORE]
    assert counted == 5
    datapath.forget_judgements()
    assert rules(send(datapath, f.tcp(x["a"], x[to], (40003, 80)))) == [BEHIND]


OTHERS: Dict[str, Callable[[Dict[str, str]], Tuple[str, bytes]]] = {
    "port": lambda x: ("a", f.tcp(x["a"], x["c"], (40000, 81))),
    "protocol": lambda x: ("a", f.udp(x["a"], x["c"], (40000, 80))),
    "peer": lambda x: ("a", f.tcp(x["a"], x["d"], (40000, 80))),
    "subject": lambda x: ("b", f.tcp(x["b"], x["c"], (40000, 80))),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_question_is_asked(other: str) -> None:
    """Though all of them have the same one place."""
    datapath = Datapath({**CONSTANTS, "copies_mask": 0})
    x = ADDRESSES[4]
    try:
        world.build(datapath)
        for name in ("a", "b"):
            world.apply(datapath, Policy(name, every(BEFORE), ("egress",)))
        assert rules(send(datapath, f.tcp(x["a"], x["c"], (40000, 80)))) == [BEFORE]
        for name in ("a", "b"):
            exchange_behind(datapath, name)
        at, packet = OTHERS[other](x)
        assert rules(send(datapath, packet, at)) == [BEHIND]
        assert rules(send(datapath, f.tcp(x["a"], x["c"], (40001, 80)))) == [BEHIND], "its copy had to go"
    finally:
        datapath.close()


def test_two_questions_that_have_the_same_places_keep_both_copies() -> None:
    """The third of them takes one."""
    datapath = Datapath({**CONSTANTS, "copies_mask": 1})
    x = ADDRESSES[4]

    def asked(port: int) -> List[int]:
        return rules(send(datapath, f.tcp(x["a"], x["c"], (40000, port))))

    def work() -> None:
        for port in range(80, 96, 2):
            world.apply(datapath, Policy("a", every(BEFORE), ("egress",)))
            datapath.forget_judgements()
            asked(port), asked(port + 1)
            exchange_behind(datapath, "a")
            assert (asked(port), asked(port + 1)) == ([BEFORE], [BEFORE])
            assert asked(70) == [BEHIND]
            assert sorted(asked(port) + asked(port + 1)) == [BEFORE, BEHIND]

    try:
        world.build(datapath)
        within_a_tick(work)
    finally:
        datapath.close()


def test_ingress_and_egress_are_two_questions(datapath: Datapath) -> None:
    """From b to a and from a to b: to the endpoint a the same peer, protocol and port."""
    x = ADDRESSES[4]
    world.apply(datapath, Policy("a", every(BEFORE), ("egress",)))
    send(datapath, f.tcp(x["a"], x["b"], (40000, 80)))
    world.apply(datapath, Policy("a", every(BEFORE), ("egress", "ingress")))
    assert send(datapath, f.tcp(x["a"], x["b"], (40001, 80))).action == "redirect"
    assert send(datapath, f.tcp(x["b"], x["a"], (40000, 80)), "b").counters == {"denied_by_default": 1}


@pytest.mark.parametrize("change", ["policy", "addresses"])
def test_no_copy_outlives_its_revision(datapath: Datapath, change: str) -> None:
    x = ADDRESSES[4]
    world.apply(datapath, Policy("a", (Rule("egress", BEFORE, IDENTITIES["c"]),), ("egress",)))
    send(datapath, f.tcp(x["a"], x["c"], (40000, 80)))
    if change == "policy":
        world.apply(datapath, Policy("a", (), ("egress",)))
    else:
        datapath.maps["addresses"].update({"address": x["c"]}, world.address_record("d"))
        datapath.maps["node"].update({"index": 0}, world.node_record(addresses_revision=2))
    result = send(datapath, f.tcp(x["a"], x["c"], (40001, 80)))
    assert result.counters == {"denied_by_default": 1}
    (event,) = result.events
    assert event["destination_identity"] == IDENTITIES["c" if change == "policy" else "d"]


def test_a_copy_is_of_the_peer_that_it_names(datapath: Datapath) -> None:
    """In the middle of a change a peer is somebody else already, and its address still the one who it was."""
    x = ADDRESSES[4]
    world.apply(datapath, Policy("b", (Rule("ingress", BEFORE, IDENTITIES["a"]),), ("ingress",)))
    assert rules(send(datapath, f.tcp(x["a"], x["b"], (40000, 80))), "ingress") == [BEFORE]
    datapath.maps["endpoints"].update(
        {"ifindex": DEVICES["a"]}, {**world.endpoint_record("a"), "identity": IDENTITIES["t"]}
    )
    result = send(datapath, f.tcp(x["a"], x["b"], (40001, 80)))
    assert result.counters == {"denied_by_default": 1}
    assert result.events[-1]["source_identity"] == IDENTITIES["t"]


def test_a_copy_vouches_for_no_source(datapath: Datapath) -> None:
    x = ADDRESSES[4]
    send(datapath, f.tcp(x["a"], x["c"], (40000, 80)))
    assert send(datapath, f.tcp(x["a"], x["c"], (40001, 80)), "b").counters == {"spoofed_source": 1}


@pytest.mark.parametrize("to", ["host", "world", "node2"])
def test_who_is_no_endpoint_has_no_copy(datapath: Datapath, to: str) -> None:
    """The stack says whose an address is, and may say something else the next time."""
    x = ADDRESSES[4]
    world.apply(datapath, Policy("a", every(BEFORE), ("egress",)))
    assert rules(send(datapath, f.tcp(x["a"], x[to], (40000, 80)))) == [BEFORE]
    exchange_behind(datapath, "a")
    assert rules(send(datapath, f.tcp(x["a"], x[to], (40001, 80)))) == [BEHIND]


def test_traffic_to_oneself_is_nobody_elses(datapath: Datapath) -> None:
    """Two endpoints of one identity: what one sends to itself is not judged, what the other one sends there is."""
    x = ADDRESSES[4]
    twin = {**world.endpoint_record("b"), "identity": IDENTITIES["a"]}
    datapath.maps["endpoints"].update({"ifindex": DEVICES["b"]}, twin)
    record = {**world.address_record("b"), "identity": IDENTITIES["a"]}
    datapath.maps["addresses"].update({"address": x["b"]}, record)
    datapath.maps["node"].update({"index": 0}, world.node_record(addresses_revision=2))
    world.apply(datapath, Policy("a", (), ("egress",)))
    for port in (40000, 40001):
        assert send(datapath, f.tcp(x["a"], x["a"], (port, 80))).action == "redirect"
        assert send(datapath, f.tcp(x["b"], x["a"], (port, 80)), "b").counters == {"denied_by_default": 1}


@pytest.mark.parametrize("verdict", ["deny", "default_deny"])
def test_a_copied_drop_is_counted_and_told_each_time(datapath: Datapath, verdict: str) -> None:
    x = ADDRESSES[4]
    denies = (Rule("egress", BEFORE, 0, action="deny"),) if verdict == "deny" else ()
    world.apply(datapath, Policy("a", denies, ("egress",)))
    first = send(datapath, f.udp(x["a"], x["c"], (40000, 80)))
    exchange_behind(datapath, "a")
    second = send(datapath, f.udp(x["a"], x["c"], (40001, 80)))
    assert (second.action, second.counters) == (first.action, first.counters)
    assert [(one["verdict"], one["rule_id"]) for one in second.events] == [
        (one["verdict"], one["rule_id"]) for one in first.events
    ]
    (counted,) = [one["packets"] for one in datapath.flows() if one["verdict"] == verdict]
    assert counted == 2


def test_what_audit_lets_pass_is_told_each_time(datapath: Datapath) -> None:
    x = ADDRESSES[4]
    header = {
        "peer": ENUMS["policy_peer"]["header"],
        "direction": ENUMS["direction"]["egress"],
        "protocol": 0,
        "port": 0,
    }
    would_be = {**header, "direction": header["direction"] | ENUMS["policy_part"]["audit"]}
    actions, has_audit = ENUMS["policy_action"], ENUMS["policy_flag"]["audit"]
    entries = [
        (header, world.entry(0, actions["allow"], flags=has_audit)),
        (would_be, world.entry(BEFORE, actions["deny"])),
    ]
    datapath.set_policy(IDENTITIES["a"], entries)
    for port in (40000, 40001, 40002):
        result = send(datapath, f.tcp(x["a"], x["c"], (port, 80)))
        assert (result.action, result.counters) == ("redirect", {"to_tunnel": 1, "audited": 1})
        assert [(one["verdict"], one["rule_id"]) for one in result.events] == [("audit", BEFORE)]


@pytest.mark.parametrize("family", [4, 6])
def test_a_forged_tunnel_packet_gains_nothing_by_a_copy(wire: Wire, family: int) -> None:
    x = ADDRESSES[family]
    world.apply(wire.datapath, Policy("a", every(BEFORE, "ingress"), ("ingress",)))
    assert rules(wire.receive(UNDERLAY_2, IDENTITIES["c"], f.tcp(x["c"], x["a"], (40000, 80))), "ingress") == [BEFORE]
    exchange_behind(wire.datapath, "a", "ingress")
    again = f.tcp(x["c"], x["a"], (40001, 80))
    assert wire.receive(UNDERLAY_2, IDENTITIES["b"], again).counters == {"tunnel_forged_identity": 1}
    assert wire.receive("192.0.2.66", IDENTITIES["c"], again).counters == {"tunnel_unknown_node": 1}
    assert rules(wire.receive(UNDERLAY_2, IDENTITIES["c"], again), "ingress") == [BEFORE], "by its copy"


def test_a_slot_is_believed_within_a_tick_only(datapath: Datapath) -> None:
    """After that it may be another flow's: each counts for itself."""
    x = ADDRESSES[4]
    flows = datapath.maps["flows"]
    world.apply(datapath, Policy("a", every(BEFORE), ("egress",)))
    send(datapath, f.tcp(x["a"], x["c"], (40000, 80)))
    (found,) = datapath.flows()
    slot = {"index": found["slot"]}
    kept = flows.lookup(slot)
    time.sleep(1.2 * TICK_NS / 1e9)
    flows.after_write = lambda: None
    try:
        flows.update(slot, {**kept, "port": 81})
        send(datapath, f.tcp(x["a"], x["c"], (40001, 80)))
        assert did_not_fit(datapath, "passed") == 1
        flows.update(slot, kept)
    finally:
        flows.after_write = datapath.forget_judgements
    assert [one["packets"] for one in datapath.flows() if one["port"] == 80] == [1]
    send(datapath, f.tcp(x["a"], x["c"], (40002, 80)))
    assert [one["packets"] for one in datapath.flows() if one["port"] == 80] == [2]


def test_a_flow_that_goes_on_by_copies_is_not_idle(datapath: Datapath) -> None:
    x = ADDRESSES[4]
    seen = []
    for port in (40000, 40001):
        send(datapath, f.tcp(x["a"], x["c"], (port, 80)))
        (found,) = datapath.flows()
        seen.append(found["last_seen"])
        time.sleep(1.2 * TICK_NS / 1e9)
    assert seen[1] > seen[0]

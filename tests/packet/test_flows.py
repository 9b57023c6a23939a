"""The history of flows: what is counted where, what does not fit, and that nothing ever names another rule."""

from __future__ import annotations

import os
import threading
import time
from typing import Any, Dict, List, Optional, Tuple

import pytest

from bpfleet.loader.generated.layouts import ENUMS
from tests.packet import frames as f
from tests.packet.kernel import Datapath
from tests.packet.world import ADDRESSES, CONSTANTS, DEFAULT_DENY, DEVICES, IDENTITIES, Policy, Rule, apply

pytestmark = pytest.mark.root

X = ADDRESSES[4]
TIMES, SLOTS = ENUMS["flow_time"], ENUMS["flow_slot"]
PASSED, DROPPED = CONSTANTS["flows_passed"], CONSTANTS["flows_dropped"]
FLOW = ("source_identity", "destination_identity", "direction", "protocol", "port", "verdict", "rule_id", "reason")
COUNTS = ("packets", "bytes", "answer_packets", "answer_bytes")


def send(datapath: Datapath, packet: bytes, at: str = "a") -> List[Dict[str, Any]]:
    """The events of a packet that an endpoint sends."""
    return datapath.run("from_endpoint", f.ether(packet), DEVICES[at]).events


def answer(datapath: Datapath, packet: bytes, to: str = "a") -> List[Dict[str, Any]]:
    """The events of a packet that comes by the tunnel."""
    return datapath.run("to_endpoint", f.ether(packet), DEVICES[to], DEVICES["vxlan"]).events


def flows(datapath: Datapath) -> Dict[Tuple[Any, ...], Tuple[int, ...]]:
    """What the history says: (a flow's key) -> (packets, bytes, and those of answers)."""
    return {
        tuple(flow[name] for name in FLOW): tuple(flow[name] for name in COUNTS)
        for flow in datapath.flows()
        if flow["slot"] >= SLOTS["first"]
    }


def did_not_fit(datapath: Datapath, slot: str) -> int:
    """Packets of flows that did not fit."""
    return datapath.flow_count(SLOTS[slot])["packets"]


def flow(
    verdict: str = "allow",
    rule: int = 0,
    port: int = 80,
    ends: str = "ac",
    direction: str = "egress",
    protocol: int = f.TCP,
    reason: str = "none",
) -> Tuple[Any, ...]:
    """A flow's key."""
    source, destination = (IDENTITIES[name] for name in ends)
    return source, destination, direction, protocol, port, verdict, rule, reason


def test_a_connection_counts_both_ways(datapath: Datapath) -> None:
    """Each packet once, the first included, and that of another connection of the same flow."""
    before = time.monotonic_ns()
    there, back = f.tcp(X["a"], X["c"], (40000, 80)), f.tcp(X["c"], X["a"], (80, 40000), f.SYN | f.ACK)
    data = f.ip(X["a"], X["c"], f.TCP, f.tcp_header(40000, 80, f.ACK) + b"x" * 100)
    send(datapath, there)
    answer(datapath, back)
    for _ in range(3):
        send(datapath, data)
    send(datapath, f.tcp(X["a"], X["c"], (40001, 80)))
    sizes = [len(f.ether(one)) for one in (there, data, back)]
    assert flows(datapath) == {flow(): (5, 2 * sizes[0] + 3 * sizes[1], 1, sizes[2])}
    (found,) = datapath.flows()
    assert before <= found["first_seen"] <= time.monotonic_ns()
    assert abs((time.monotonic_ns() >> TIMES["tick_shift"]) - found["last_seen"]) <= 2


def test_last_seen_follows_an_established_connection(datapath: Datapath) -> None:
    send(datapath, f.tcp(X["a"], X["c"], (40000, 80)))
    ((key, record),) = datapath.maps["connections"].items()
    (slot,) = [{"index": one["slot"]} for one in datapath.flows()]
    kept = datapath.maps["flows"].lookup(slot)
    now = kept["last_seen"]
    datapath.maps["connections"].update(key, {**record, "last_seen": now - 20})
    datapath.maps["flows"].update(slot, {**kept, "last_seen": now - 20})
    send(datapath, f.tcp(X["a"], X["c"], (40000, 80), f.ACK))
    assert abs(datapath.maps["flows"].lookup(slot)["last_seen"] - now) <= 2
    assert datapath.maps["flows"].lookup(slot)["first_seen"] == kept["first_seen"]


def test_both_ends_here_are_two_judgements(datapath: Datapath) -> None:
    apply(datapath, Policy("b", (Rule("ingress", 21, 0, f.TCP, 80),), ("ingress",)))
    send(datapath, f.tcp(X["a"], X["b"], (40000, 80)))
    send(datapath, f.tcp(X["a"], X["b"], (40000, 81)))
    size = len(f.ether(f.tcp(X["a"], X["b"], (40000, 80))))
    once = (1, size, 0, 0)
    assert flows(datapath) == {
        flow(ends="ab"): once,
        flow(ends="ab", direction="ingress", rule=21): once,
        flow(ends="ab", port=81): once,
        flow("default_deny", DEFAULT_DENY["ingress"], 81, "ab", "ingress"): once,
    }


def test_protocols_and_messages(datapath: Datapath) -> None:
    send(datapath, f.udp(X["a"], X["c"], (40000, 53)))
    send(datapath, f.echo(X["a"], X["c"], 7))
    send(datapath, f.echo(X["a"], X["c"], 8))
    found = {key: counts[0] for key, counts in flows(datapath).items()}
    assert found == {flow(port=53, protocol=f.UDP): 1, flow(port=8 << 8, protocol=f.ICMP): 2}


def test_what_is_dropped_for_another_reason(datapath: Datapath) -> None:
    for _ in range(2):
        send(datapath, f.tcp(X["b"], X["c"], (40000, 80)))
    ((key, counts),) = flows(datapath).items()
    assert key[2:] == ("egress", f.TCP, 80, "drop", 0, "spoofed_source")
    assert counts[0] == 2


def test_a_changed_policy_leaves_what_was_as_it_was(datapath: Datapath) -> None:
    """Allowed, then denied, then allowed by another rule: three flows, each with the packets that it had."""
    syn, data = f.tcp(X["a"], X["c"], (40000, 80)), f.tcp(X["a"], X["c"], (40000, 80), f.ACK)
    apply(datapath, Policy("a", (Rule("egress", 31),), ("egress",)))
    for packet in (syn, data, data):
        send(datapath, packet)
    apply(datapath, Policy("a", (Rule("egress", 41, 0, f.TCP, 0, "deny"),), ("egress",)))
    for _ in range(4):
        (event,) = send(datapath, data)
        assert (event["verdict"], event["rule_id"]) == ("deny", 41)
    apply(datapath, Policy("a", (Rule("egress", 32, 0, f.TCP),), ("egress",)))
    send(datapath, data)
    found = {key: counts[0] for key, counts in flows(datapath).items()}
    assert found == {flow(rule=31): 3, flow("deny", 41): 4, flow(rule=32): 1}


def fill(datapath: Datapath, count: int, first: int = 1000) -> None:
    """As many flows that pass."""
    for port in range(first, first + count):
        send(datapath, f.tcp(X["a"], X["c"], (40000, port)))


def test_what_does_not_fit_is_counted(datapath: Datapath) -> None:
    """Those that are kept go on counting, the others count together."""
    fill(datapath, PASSED + 5)
    assert {key[4] for key in flows(datapath)} == set(range(1000, 1000 + PASSED))
    assert did_not_fit(datapath, "passed") == 5
    send(datapath, f.tcp(X["a"], X["c"], (40000, 1000), f.ACK))
    send(datapath, f.tcp(X["a"], X["c"], (40000, 1000 + PASSED), f.ACK))
    assert flows(datapath)[flow(port=1000)][0] == 2
    assert (did_not_fit(datapath, "passed"), did_not_fit(datapath, "dropped")) == (6, 0)


def test_a_scan_displaces_nothing_that_passed(datapath: Datapath) -> None:
    fill(datapath, 3)
    apply(datapath, Policy("b", (), ("egress",)))
    for port in range(1, DROPPED + 8):
        send(datapath, f.tcp(X["b"], X["c"], (40000, port)), "b")
    assert did_not_fit(datapath, "dropped") == 7
    fill(datapath, 3, 2000)
    passed = {key[4] for key in flows(datapath) if key[5] == "allow"}
    assert passed == {1000, 1001, 1002, 2000, 2001, 2002}
    assert did_not_fit(datapath, "passed") == 0


def test_a_denied_connection_without_a_slot_still_names_its_rule(datapath: Datapath) -> None:
    data = f.tcp(X["a"], X["c"], (40000, 80), f.ACK)
    send(datapath, f.tcp(X["a"], X["c"], (40000, 80)))
    apply(datapath, Policy("b", (), ("egress",)))
    for port in range(1, DROPPED + 1):
        send(datapath, f.tcp(X["b"], X["c"], (40000, port)), "b")
    for verdict, rules, rule in (
        ("deny", (Rule("egress", 41, 0, f.TCP, 0, "deny"),), 41),
        ("default_deny", (), DEFAULT_DENY["egress"]),
    ):
        apply(datapath, Policy("a", rules, ("egress",)))
        for _ in range(3):
            (event,) = send(datapath, data)
            assert (event["verdict"], event["rule_id"]) == (verdict, rule)
            (event,) = answer(datapath, f.tcp(X["c"], X["a"], (80, 40000), f.ACK))
            assert (event["verdict"], event["rule_id"]) == (verdict, rule)


def age(datapath: Datapath, port: int, ticks: int) -> None:
    """Make one flow older."""
    (found,) = [one for one in datapath.flows() if one["port"] == port]
    slot = {"index": found["slot"]}
    now = time.monotonic_ns() >> TIMES["tick_shift"]
    kept = datapath.maps["flows"].lookup(slot)
    datapath.maps["flows"].update(slot, {**kept, "last_seen": (now - ticks) & 0xFFFFFFFF})


def age_dropped(datapath: Datapath, ticks: int) -> None:
    """Make all flows older that were dropped: when they began and when they were seen."""
    for found in datapath.flows():
        if found["slot"] >= SLOTS["first"] and found["verdict"] not in ("allow", "audit"):
            slot = {"index": found["slot"]}
            kept = datapath.maps["flows"].lookup(slot)
            seen = (kept["last_seen"] - ticks) & 0xFFFFFFFF
            began = (kept["first_seen"] - (ticks << TIMES["tick_shift"])) % (1 << 64)
            datapath.maps["flows"].update(slot, {**kept, "last_seen": seen, "first_seen": began})


def scan(datapath: Datapath, first: int, count: int) -> None:
    """As many flows of the endpoint b that are dropped."""
    for port in range(first, first + count):
        send(datapath, f.tcp(X["b"], X["c"], (40000, port)), "b")


def test_a_scan_is_soon_forgotten(datapath: Datapath) -> None:
    """It takes all the room of what is dropped, and what is dropped later takes it back after a minute or so."""
    fill(datapath, PASSED)
    apply(datapath, Policy("b", (), ("egress",)))
    scan(datapath, 1, DROPPED + 7)
    assert did_not_fit(datapath, "dropped") == 7
    age_dropped(datapath, TIMES["dropped_idle_ticks"] - 9)
    scan(datapath, 1000, 3)
    assert did_not_fit(datapath, "dropped") == 10
    age_dropped(datapath, 18)
    scan(datapath, 2000, DROPPED + 4)
    found = flows(datapath)
    assert {key[4] for key in found if key[5] == "default_deny"} == set(range(2000, 2000 + DROPPED))
    assert {counts[0] for counts in found.values()} == {1}, "they start from nothing"
    assert did_not_fit(datapath, "dropped") == 14
    assert datapath.maps["flow_cursors"].lookup({"index": SLOTS["dropped"]})["retired"] == DROPPED
    assert {key[4] for key in found if key[5] == "allow"} == set(range(1000, 1000 + PASSED))


class Denied:
    """A connection of the endpoint a to port 80 that the rule 41 denies."""

    def __init__(self, datapath: Datapath) -> None:
        self.datapath = datapath
        send(datapath, f.tcp(X["a"], X["c"], (40000, 80)))
        answer(datapath, f.tcp(X["c"], X["a"], (80, 40000), f.SYN | f.ACK))
        apply(datapath, Policy("a", (Rule("egress", 41, 0, f.TCP, 0, "deny"),), ("egress",)))
        self.says_so()

    def says_so(self) -> None:
        """Both ways, and again."""
        for _ in range(2):
            (sent,) = send(self.datapath, f.tcp(X["a"], X["c"], (40000, 80), f.ACK))
            (answered,) = answer(self.datapath, f.tcp(X["c"], X["a"], (80, 40000), f.ACK))
            assert [(event["verdict"], event["rule_id"]) for event in (sent, answered)] == [("deny", 41)] * 2

    def be_silent(self, ticks: int) -> None:
        """Everything that was dropped, and the connection, was last seen so much earlier."""
        age_dropped(self.datapath, ticks)
        connections = self.datapath.maps["connections"]
        for key, kept in connections.items():
            if key["destination_port"] == 80:
                connections.update(key, {**kept, "last_seen": (kept["last_seen"] - ticks) & 0xFFFFFFFF})

    def slot(self) -> int:
        """Where its record says its flow is."""
        (found,) = [
            one["flow"] for key, one in self.datapath.maps["connections"].items() if key["destination_port"] == 80
        ]
        return int(found)


def test_a_denied_connection_whose_slot_is_taken_names_its_own_rule(datapath: Datapath) -> None:
    """It gets another slot when there is one, and leaves the flow that has its old one alone."""
    apply(datapath, Policy("b", (), ("egress",)))
    denied = Denied(datapath)
    before = denied.slot()
    denied.be_silent(TIMES["dropped_idle_ticks"] + 9)
    scan(datapath, 1, DROPPED)
    taken = flows(datapath)
    assert flow("deny", 41) not in taken and len(taken) == 1 + DROPPED
    denied.says_so()
    assert denied.slot() == SLOTS["dropped"]
    assert flows(datapath) == taken and did_not_fit(datapath, "dropped") == 2
    age_dropped(datapath, TIMES["dropped_idle_ticks"] + 9)
    denied.says_so()
    assert denied.slot() >= SLOTS["first"] and flows(datapath)[flow("deny", 41)][0] == 2
    assert before >= SLOTS["first"]


def test_a_denied_connection_is_not_misled_by_a_flow_like_its_own(datapath: Datapath) -> None:
    """Between the same ends, to the same port, by another rule: addresses of the world, for one, are one identity."""
    denied = Denied(datapath)
    for seen in (0, time.monotonic_ns() >> TIMES["tick_shift"]):  # while it changes hands, and after that
        denied.be_silent(TIMES["dropped_idle_ticks"] + 9)
        slot = {"index": denied.slot()}
        datapath.maps["flow_slots"].clear()
        changed = {**datapath.maps["flows"].lookup(slot), "rule_id": 42, "last_seen": seen}
        changed["first_seen"] = time.monotonic_ns()
        datapath.maps["flows"].update(slot, changed)
        (event,) = send(datapath, f.tcp(X["a"], X["c"], (40000, 80), f.ACK))
        assert (event["verdict"], event["rule_id"]) == ("deny", 41)
        assert datapath.maps["flows"].lookup(slot) == changed


def test_a_denied_connection_that_was_silent_keeps_a_slot_that_nobody_took(datapath: Datapath) -> None:
    denied = Denied(datapath)
    before = denied.slot()
    denied.be_silent(TIMES["dropped_idle_ticks"] + 9)
    denied.says_so()
    assert denied.slot() == before and flows(datapath)[flow("deny", 41)][:1] == (4,)


def test_an_idle_flow_gives_its_slot_to_a_new_one(datapath: Datapath) -> None:
    """But none that a record may still name; and one that comes again before that keeps it."""
    fill(datapath, PASSED)
    # As after an uptime in which it could have been idle: the machine may have started just now.
    age(datapath, 1000, TIMES["idle_ticks"] + 9)
    age(datapath, 1001, TIMES["idle_ticks"] - 9)
    send(datapath, f.tcp(X["a"], X["c"], (40000, 3000)))
    found = flows(datapath)
    assert flow(port=1000) not in found and flow(port=1001) in found
    assert found[flow(port=3000)][0] == 1, "it starts from nothing"
    assert datapath.maps["flow_cursors"].lookup({"index": SLOTS["passed"]})["retired"] == 1
    age(datapath, 1002, TIMES["idle_ticks"] + 9)
    send(datapath, f.tcp(X["a"], X["c"], (40000, 1002)))
    send(datapath, f.tcp(X["a"], X["c"], (40000, 3001)))
    assert flows(datapath)[flow(port=1002)][0] == 2
    assert did_not_fit(datapath, "passed") == 1


def test_a_slot_that_was_taken_for_nothing_is_the_next_flows(datapath: Datapath) -> None:
    """As by a CPU that found another one to have been first. Nobody was retired for it."""
    slots = datapath.maps["flow_slots"]
    key = dict.fromkeys(("source_identity", "destination_identity", "rule_id", "protocol", "direction"), 0)
    others = [{**key, "port": port, "verdict": 1, "reason": 0} for port in range(PASSED + DROPPED + SLOTS["first"])]
    for other in others:
        slots.update(other, {"index": 0})
    fill(datapath, PASSED)
    assert flows(datapath) == {} and did_not_fit(datapath, "passed") == PASSED
    slots.clear()
    fill(datapath, PASSED, 3000)
    assert {key[4] for key in flows(datapath)} == set(range(3000, 3000 + PASSED))
    assert did_not_fit(datapath, "passed") == PASSED
    assert datapath.maps["flow_cursors"].lookup({"index": SLOTS["passed"]})["retired"] == 0


def test_a_slot_in_other_hands_is_not_counted_into(datapath: Datapath) -> None:
    """Whoever finds a slot while, or after, it changes its owner: the packet counts with those that did not fit."""
    send(datapath, f.tcp(X["a"], X["c"], (40000, 80)))
    (found,) = datapath.flows()
    slot = {"index": found["slot"]}
    kept = datapath.maps["flows"].lookup(slot)
    for changed in ({"last_seen": 0}, {"port": 81}):
        datapath.maps["flows"].update(slot, {**kept, **changed})
        send(datapath, f.tcp(X["a"], X["c"], (40000, 80)))
    datapath.maps["flows"].update(slot, kept)
    assert flows(datapath)[flow()][0] == 1
    assert did_not_fit(datapath, "passed") == 2


EVERY_C = Rule("egress", 31, IDENTITIES["c"])


@pytest.mark.parametrize("peer", ["c", ""])
def test_flows_of_one_entry_count_for_themselves(datapath: Datapath, peer: str) -> None:
    apply(datapath, Policy("a", (Rule("egress", 31, IDENTITIES.get(peer, 0)),), ("egress",)))
    for number in range(4):
        for to in ("c", "d") if not peer else ("c",):
            for port in range(80, 90):
                send(datapath, f.tcp(X["a"], X[to], (40000 + number, port)))
                send(datapath, f.udp(X["a"], X[to], (40000 + number, port)))
    found = flows(datapath)
    assert {counts[0] for counts in found.values()} == {4}
    assert len(found) == 20 * (1 if peer else 2) and did_not_fit(datapath, "passed") == 0


@pytest.mark.parametrize(
    "rules",
    [None, (Rule("egress", 31),), (EVERY_C, *(Rule("egress", 32, IDENTITIES["c"], f.TCP, 1000 + n) for n in range(9)))],
    ids=("open", "any peer", "this peer and ports"),
)
def test_cpus_at_once_lose_no_packet(datapath: Datapath, rules: Optional[Tuple[Rule, ...]]) -> None:
    """The same new flows on all CPUs: one slot each, whoever is first, and every packet in it or among those that did
    not fit."""
    if rules is not None:
        apply(datapath, Policy("a", rules, ("egress",)))
    ports = range(1000, 1000 + PASSED + 4)
    rounds = 20

    def hammer(cpu: int) -> None:
        os.sched_setaffinity(0, {cpu})  # of this thread alone
        context = bytearray(192)
        context[40:44] = DEVICES["a"].to_bytes(4, "little")
        for number in range(rounds):
            for port in ports:
                frame = f.ether(f.tcp(X["a"], X["c"], (30000 + cpu * rounds + number, port)))
                datapath.run_raw("from_endpoint", frame, bytes(context))

    cpus = sorted(os.sched_getaffinity(0))
    threads = [threading.Thread(target=hammer, args=(cpu,)) for cpu in cpus]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = flows(datapath)
    sent = len(cpus) * rounds
    assert len(found) <= PASSED and len({key[4] for key in found}) == len(found)
    assert sum(counts[0] for counts in found.values()) + did_not_fit(datapath, "passed") == sent * len(ports)
    assert all(counts[0] <= sent for counts in found.values())


def test_a_slot_that_programs_with_other_sizes_took_is_left_alone(datapath: Datapath) -> None:
    send(datapath, f.tcp(X["a"], X["c"], (40000, 80)))
    ((slot, kept),) = [(one, value) for one, value in datapath.maps["flows"].items() if value["verdict"]]
    taken = {"index": slot["index"] + 1}
    datapath.maps["flows"].update(taken, {**kept, "port": 81})
    fill(datapath, 2)
    assert datapath.maps["flows"].lookup(taken)["port"] == 81
    assert flows(datapath)[flow(port=80)][0] == 1
    assert flows(datapath)[flow(port=1001)][0] == 1
    assert did_not_fit(datapath, "passed") == 1  # the number was that slot's, and no other is idle


def test_what_the_host_sends_counts_too(host_datapath: Datapath) -> None:
    """Its own traffic is judged by its own policies."""
    apply(host_datapath, Policy("host", (Rule("egress", 51, 0, f.UDP, 123),), ("egress",)))
    for port in (123, 123, 124):
        packet = f.udp(X["host"], X["world"], (40000, port))
        host_datapath.run("to_underlay", f.ether(packet), DEVICES["eth0"])
    found = {key: counts[0] for key, counts in flows(host_datapath).items()}
    ends = (IDENTITIES["host"], IDENTITIES["world"], "egress", f.UDP)
    assert found == {
        (*ends, 123, "allow", 51, "none"): 2,
        (*ends, 124, "default_deny", DEFAULT_DENY["egress"], "none"): 1,
    }

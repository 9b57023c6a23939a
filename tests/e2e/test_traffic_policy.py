"""Who reaches whom: every pair of endpoints, on one host and across hosts, TCP, UDP and ICMP, IPv4 and IPv6."""

from __future__ import annotations

import ipaddress
import time
from collections import Counter
from collections.abc import Sequence

import pytest

from bpfleet.model.document import Document
from tests.e2e.traffic import matrix, packets
from tests.e2e.traffic.ground import FAMILIES, LABELS, Ground, eventually
from tests.e2e.traffic.judge import judge
from tests.fleet import policy

pytest_plugins = ["tests.e2e.traffic.fixtures"]

WEB = {"labels": {"app": "web"}}
DB = {"labels": {"app": "db"}}
POLICIES = (
    # Default deny with allows by protocol and port; an explicit deny that beats an allow of everybody.
    policy(
        "db",
        {"app": "db"},
        ingress=[
            {"peers": [WEB], "ports": [{"protocol": "tcp", "port": 7001}]},
            {"peers": [{"labels": {"tier": "front"}}], "ports": [{"protocol": "udp", "port": 7002}]},
            {"peers": [WEB], "ports": [{"protocol": "icmp"}, {"protocol": "icmpv6"}]},
            {"peers": [{"labels": {}}], "ports": [{"port": 7003}]},
            {"action": "deny", "peers": [{"labels": {"app": "free"}}], "ports": [{"protocol": "tcp", "port": 7003}]},
        ],
    ),
    # The sender's side, with a deny of one service among all.
    policy(
        "free",
        {"app": "free"},
        egress=[
            {"peers": [DB]},
            {"action": "deny", "peers": [{"labels": {}}], "ports": [{"protocol": "udp", "port": 7003}]},
        ],
    ),
    # One family's ICMP only, and one service of one protocol.
    policy(
        "web",
        {"tier": "front"},
        ingress=[
            {"peers": [DB], "ports": [{"protocol": "tcp", "port": 7002}]},
            {"peers": [{"entity": "cluster"}], "ports": [{"protocol": "icmpv6"}]},
        ],
    ),
)
PAIRS = [("web-1", "db-1"), ("web-1", "db-2")]  # on one host, and across hosts


def test_without_policies_everybody_reaches_everybody(ground: Ground) -> None:
    ground.declare(*ground.base())
    assert matrix.wrong(ground, (), ground.reached(matrix.flows(ground), 3.0)) == []


def test_the_matrix_under_policies_is_the_reference_judges(ground: Ground) -> None:
    ground.declare(*ground.base(), *POLICIES)
    ground.silence()
    begun, before = time.time(), ground.all_drops()
    reached = ground.reached(matrix.flows(ground))
    assert matrix.wrong(ground, POLICIES, reached) == []
    verdicts = Counter(matrix.expected(ground, POLICIES, *key)[:2] for key in reached)
    assert {(True, ""), (False, "egress"), (False, "ingress")} == set(verdicts)  # the case is worth its name
    # Each denied probe was one packet, denied once, on the judging node, and under the right reason.
    after = ground.all_drops()
    for host, wanted in matrix.denials(ground, POLICIES, reached).items():
        found = {reason: after[host][reason] - before[host][reason] for reason in wanted}
        assert found == dict(wanted), (host, matrix.strangers(ground, host, begun, reached))


def test_events_name_policy_and_rule_of_every_denial(ground: Ground) -> None:
    ground.declare(*ground.base(), *POLICIES)
    services = [("tcp", 7003), ("udp", 7003), ("udp", 7001), ("icmp", 0)]
    begun = time.time()
    reached = ground.reached(matrix.flows(ground, services, sources=["free-1", "web-3"]))
    said = {
        matrix.ends_of(event): event for host in ground.targets for event in matrix.denied_since(ground, host, begun)
    }
    for (source, flow), _ in reached.items():
        verdict = matrix.expected(ground, POLICIES, source, flow)
        if verdict.passes:
            continue
        denial = said.get(matrix.ends(ground, source, flow))
        assert denial is not None, f"no event for {source} to {flow}"
        destination = matrix.owner(ground, flow.address)
        assert denial["direction"] == verdict.direction, denial
        assert denial["policy"] == ", ".join(verdict.policies), denial
        assert (denial["rule"] == "default deny") is (not verdict.by_rule), denial
        assert denial["source"]["identity_name"] == ground.workloads[source].identity, denial
        assert denial["destination"]["identity_name"] == ground.workloads[destination].identity, denial
        assert denial["source"]["endpoint"] == source and denial["destination"]["endpoint"] == destination, denial


def test_the_history_counts_each_packet_on_the_node_that_judged_it(ground: Ground) -> None:
    ground.declare(*ground.base(), *POLICIES)
    ground.silence()
    before = ground.history()
    reached = ground.reached(matrix.flows(ground, [("udp", 7002), ("udp", 7003)], sources=["free-1", "web-3"]))
    wanted: Counter[tuple[str, str, str, str, int, str, str]] = Counter()
    for source, flow in reached:
        verdict = matrix.expected(ground, POLICIES, source, flow)
        destination = matrix.owner(ground, flow.address)
        ends = (ground.workloads[source].identity, ground.workloads[destination].identity)
        for direction, judging in (("egress", source), ("ingress", destination)):
            key = (ground.workloads[judging].host, *ends, direction, flow.port)
            if verdict.passes:
                wanted[(*key, "allowed", "packets")] += 1
                wanted[(*key, "allowed", "answer_packets")] += 1
            elif verdict.direction == direction:
                wanted[(*key, "denied", "packets")] += 1
                break
            else:
                wanted[(*key, "allowed", "packets")] += 1
    assert ground.history() - before == wanted


def test_explain_agrees_with_what_packets_meet(ground: Ground) -> None:
    ground.declare(*ground.base(), *POLICIES)
    services = [("tcp", 7001), ("tcp", 7003), ("udp", 7002), ("udp", 7003), ("icmp", 0)]
    reached = ground.reached(matrix.flows(ground, services, sources=["web-1", "db-2", "free-3"]))
    for (source, flow), seen in reached.items():
        destination = matrix.owner(ground, flow.address)
        verdict = matrix.expected(ground, POLICIES, source, flow)
        protocol, port = matrix.protocol_of(flow), flow.port or None
        answer = ground.explain(ground.workloads[source].host, source, destination, protocol, port)
        assert (answer["verdict"] == "allowed") is (seen is not None), (source, flow, answer)
        denying = [entry for entry in answer["judged"] if entry["verdict"] == "denied"]
        assert [(entry["direction"], entry["policy"]) for entry in denying[:1]] == (
            [] if verdict.passes else [(verdict.direction, ", ".join(verdict.policies))]
        ), (source, flow, answer)


def test_explain_agrees_where_no_document_has_the_address(ground: Ground) -> None:
    """The gateway is the host, and nobody has an address of another node's workloads: explain names what drops it."""
    ground.declare(*ground.base(), policy("web", {"app": "web"}, egress=[{"peers": [{"entity": "world"}]}]))
    web = ground.workloads["web-1"]
    nodes = {one.name: one for one in ground.base() if one.kind == "node"}
    there = next(name for name in sorted(nodes) if name != web.host)
    holes = [str(ipaddress.ip_network(cidr)[250]) for cidr in nodes[there].spec["workload_cidrs"]]
    for address, reason in (("169.254.1.1", "denied_by_default"), *((hole, "not_host_source") for hole in holes)):
        before = ground.drops(web.host)[reason]
        ground.at("web-1").do("datagram", address=address, port=7001, payloads=[b"odd".hex()])
        eventually(lambda: ground.drops(web.host)[reason], lambda count: count > before)  # noqa: B023
        answer = ground.explain(web.host, "web-1", address, "udp", 7001)
        ending = next(entry for entry in answer["judged"] if entry["verdict"] in ("denied", "dropped"))
        assert ending.get("reason", "denied_by_default") == reason, (address, answer)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("initiator", "responder"), PAIRS)
def test_replies_pass_and_nothing_else_does(ground: Ground, initiator: str, responder: str, family: int) -> None:
    """The responder may answer what it was asked; what only looks like an answer is judged as new and denied."""
    closed = policy("nobody", {"app": "web"}, ingress=[])
    ground.declare(*ground.base(), closed)
    us, them = (ground.address(name, family) for name in (initiator, responder))
    asking, answering = ground.at(initiator), ground.at(responder)
    asking.do("report", clear=True)

    def deny_all(source_port: int, port: int, count: int) -> None:
        payloads = [b"unasked".hex()] * count
        before = ground.drops(ground.workloads[initiator].host)
        answering.do("datagram", address=us, port=port, payloads=payloads, source_port=source_port)
        after = eventually(
            lambda: ground.drops(ground.workloads[initiator].host),
            lambda drops: drops["denied_by_default"] - before["denied_by_default"] >= count,
        )
        assert after["denied_by_default"] - before["denied_by_default"] == count

    # 7009 to 40000: before the question nothing passes; after it exactly the reversed tuple does.
    deny_all(7009, 7001, 3)
    asking.do("datagram", address=them, port=7009, payloads=[b"question".hex()], source_port=7001)
    answering.do("datagram", address=us, port=7001, payloads=[b"answer".hex()] * 3, source_port=7009)
    heard = eventually(lambda: asking.do("report")["datagrams"], lambda all_heard: len(all_heard) >= 3)
    assert [(one["address"], one["port"], one["data"]) for one in heard] == [(them, 7009, "answer")] * 3
    deny_all(7008, 7001, 2)
    deny_all(7009, 7002, 2)
    assert len(asking.do("report")["datagrams"]) == 3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("initiator", "responder"), PAIRS)
def test_what_can_only_be_a_reply_needs_a_connection(
    ground: Ground, initiator: str, responder: str, family: int
) -> None:
    """A SYN+ACK or echo reply out of the blue is dropped where it leaves, even where every policy would allow it."""
    ground.declare(*ground.base())
    us, them = (ground.address(name, family) for name in (initiator, responder))
    forged = [
        packets.tcp(them, us, 7001, 40001, packets.SYN | packets.ACK),
        packets.echo(them, us, reply=True, identifier=4242),
    ]
    sender = ground.at(responder)
    mac = sender.do("device", name="eth0")["mac"]
    host = ground.workloads[responder].host
    ground.at(initiator).do("sniff", name="replies", device="eth0")
    before = ground.drops(host)["no_connection"]
    sender.do("frames", device="eth0", frames=[packets.ethernet(one, mac, "02:00:00:00:00:99").hex() for one in forged])
    after = eventually(lambda: ground.drops(host)["no_connection"], lambda drops: drops >= before + 2)
    assert after == before + 2
    frames = [packets.read(bytes.fromhex(frame)) for _, frame in ground.at(initiator).do("sniffed", name="replies")]
    assert [frame for frame in frames if frame is not None and frame.source == them] == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("initiator", "responder"), PAIRS)
def test_errors_about_a_connection_pass_and_others_do_not(
    ground: Ground, initiator: str, responder: str, family: int
) -> None:
    """A closed port is refused at once, through default deny; an ICMP error about nothing is denied like any ICMP."""
    ground.declare(*ground.base(), policy("nobody", {"app": "web"}, ingress=[]))
    us, them = (ground.address(name, family) for name in (initiator, responder))
    closed = [ground.flow("tcp", responder, 7009, family), ground.flow("udp", responder, 7009, family)]
    for seen in ground.reached({initiator: closed}).values():
        assert seen is not None and seen.startswith("refused: [Errno 111]"), seen
    sender, host = ground.at(responder), ground.workloads[initiator].host
    mac = sender.do("device", name="eth0")["mac"]
    forged = packets.unreachable(them, us, packets.udp(us, them, 40999, 7010))
    ground.at(initiator).do("sniff", name="errors", device="eth0")
    before = ground.drops(host)["denied_by_default"]
    sender.do("frames", device="eth0", frames=[packets.ethernet(forged, mac, "02:00:00:00:00:99").hex()] * 3)
    after = eventually(lambda: ground.drops(host)["denied_by_default"], lambda drops: drops >= before + 3)
    assert after == before + 3
    seen_there = [packets.read(bytes.fromhex(frame)) for _, frame in ground.at(initiator).do("sniffed", name="errors")]
    assert [one for one in seen_there if one is not None and one.source == them] == []


@pytest.mark.parametrize(("initiator", "responder"), PAIRS)
def test_fragments_go_the_way_of_their_first_one(ground: Ground, initiator: str, responder: str) -> None:
    """A later fragment has no ports: where ports decide it passes if its first one did, and is dropped and counted if
    that was denied."""
    rules = [{"peers": [WEB], "ports": [{"protocol": "udp", "port": 7001}]}]
    ground.declare(*ground.base(), policy("db", {"app": "db"}, ingress=rules))
    receiver, host = ground.at(responder), ground.workloads[responder].host

    def dropped() -> int:
        # Where the same program judged the sender, the later ones are known as of a denied port.
        drops = ground.drops(host)
        return drops["fragment"] + drops["denied_by_default"]

    for family in FAMILIES:
        receiver.do("report", clear=True)
        before = dropped()
        sender, to = ground.at(initiator), ground.address(responder, family)
        sender.do("datagram", address=to, port=7002, payloads=["00" * 4000])
        sender.do("datagram", address=to, port=7001, payloads=["31" * 4000, b"whole".hex()])
        heard = eventually(lambda: receiver.do("report")["datagrams"], lambda found: len(found) > 1)
        assert [one["data"] for one in heard] == ["1" * 64, "whole"]  # the first bytes of each
        assert dropped() == before + 3  # at an MTU of 1450


def test_the_reference_judge_can_be_wrong(ground: Ground) -> None:
    """The matrix's comparison finds a difference where there is one."""
    ground.declare(*ground.base())
    reached = ground.reached(matrix.flows(ground, [("tcp", 7001)], sources=["free-1"]))
    assert matrix.wrong(ground, POLICIES, reached) != []


def test_judge_by_hand() -> None:
    """The reference judge against verdicts written down by hand."""

    def passes(source: str, destination: str, protocol: str, port: int, some: Sequence[Document] = POLICIES) -> bool:
        return judge(some, LABELS[source], LABELS[destination], protocol, port).passes

    assert passes("web", "db", "tcp", 7001) and not passes("web", "db", "tcp", 7002)
    assert passes("web", "db", "udp", 7002) and not passes("db", "db", "udp", 7002)
    assert passes("db", "db", "tcp", 7003) and not passes("free", "db", "tcp", 7003)
    assert not passes("free", "web", "tcp", 7002) and not passes("free", "db", "udp", 7003)
    assert passes("db", "web", "icmpv6", 0) and not passes("db", "web", "icmp", 0)
    assert passes("web", "free", "udp", 7001) and passes("web", "free", "icmp", 0)

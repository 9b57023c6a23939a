"""Cases at an endpoint's device: from the workload, and from the host's stack to it."""

# ruff: noqa: E501 - a row of a table is read as one line
from __future__ import annotations

from typing import Any, Dict, List, Mapping, Tuple, Union

from tests.packet import frames as f
from tests.packet.modelled import LATE
from tests.packet.world import (
    ADDRESSES,
    DEFAULT_DENY,
    DEVICES,
    IDENTITIES,
    MACS,
    TUNNEL_PORT,
    Case,
    Move,
    Policy,
    Rule,
    Send,
    icmp_of,
    node_record,
)

Step = Union[Send, Policy, Move]
PORTS, BACK = (40000, 80), (80, 40000)


def allowed(direction: str, rule: int = 0, **more: Any) -> Dict[str, Any]:
    """The event of a new connection that passes."""
    return {"verdict": "allow", "direction": direction, "rule_id": rule, **more}


def dropped(reason: str, **more: Any) -> Tuple[Mapping[str, Any], ...]:
    """The event of a drop before policy."""
    return ({"verdict": "drop", "reason": reason, "rule_id": 0, **more},)


def shot(program: str, at: str, packet: bytes, reason: str, *, via: str = "", kind: int = 0, **event: Any) -> Send:
    """A frame that is dropped before policy, with exactly that reason."""
    return Send(program, f.ether(packet, kind=kind), "shot", {reason: 1}, at, via, events=dropped(reason, **event))


def denied(program: str, at: str, packet: bytes, rule: int, direction: str, *, via: str = "") -> Send:
    """A frame that policy denies: by that rule, or by default if it is a default-deny rule."""
    default = rule in DEFAULT_DENY.values()
    reason = "denied_by_default" if default else "denied_by_rule"
    event = {
        "verdict": "default_deny" if default else "deny",
        "rule_id": rule,
        "direction": direction,
        "reason": reason,
    }
    return Send(program, f.ether(packet), "shot", {reason: 1}, at, via, events=(event,))


def local(at: str, to: str, packet: bytes, delivered: bytes, *events: Mapping[str, Any]) -> Send:
    """A frame of one endpoint that reaches another of this node, as `delivered` with the right MACs."""
    workload, device = MACS[to]
    return Send(
        "from_endpoint",
        f.ether(packet),
        "redirect",
        {"to_endpoint": 1},
        at,
        out=f.ether(delivered, device, workload),
        events=events,
    )


def tunnelled(at: str, packet: bytes, sent: bytes, *events: Mapping[str, Any]) -> Send:
    """A frame that goes into the tunnel with its MACs as they were."""
    return Send("from_endpoint", f.ether(packet), "redirect", {"to_tunnel": 1}, at, out=f.ether(sent), events=events)


def to_stack(at: str, packet: bytes, *events: Mapping[str, Any]) -> Send:
    """A frame handed to the host's stack untouched."""
    frame = f.ether(packet)
    return Send("from_endpoint", frame, "pass", {"to_stack": 1}, at, out=frame, events=events)


def from_stack(at: str, packet: bytes, *events: Mapping[str, Any], via: str = "") -> Send:
    """A frame of the stack that reaches the endpoint untouched."""
    frame = f.ether(packet)
    return Send("to_endpoint", frame, "pass", {"to_endpoint": 1}, at, via, out=frame, events=events)


def local_cases(family: int) -> List[Case]:
    """Between two endpoints of this node."""
    x = ADDRESSES[family]
    a, b = x["a"], x["b"]
    both = (allowed("egress"), allowed("ingress"))
    opened = local("a", "b", f.tcp(a, b, PORTS), f.tcp(a, b, PORTS, hops=63), *both)
    answer = local("b", "a", f.tcp(b, a, BACK, f.SYN | f.ACK), f.tcp(b, a, BACK, f.SYN | f.ACK, hops=63))
    data = local("a", "b", f.tcp(a, b, PORTS, f.ACK), f.tcp(a, b, PORTS, f.ACK, hops=63))
    reply = local("b", "a", f.tcp(b, a, BACK, f.ACK), f.tcp(b, a, BACK, f.ACK, hops=63))
    in_http = Rule("ingress", 11, peer=IDENTITIES["a"], protocol=f.TCP, port=80)
    shut = Policy("b", (), ("ingress", "egress"))
    default_in, default_out = DEFAULT_DENY["ingress"], DEFAULT_DENY["egress"]
    cases: List[Tuple[str, Tuple[Step, ...]]] = [
        ("without policy everything passes, with an event for each side", (opened, answer, data, reply)),
        (
            "the rule that allows is named; the answer passes a receiver that may send nothing",
            (
                Policy("b", (in_http,), ("ingress", "egress")),
                local("a", "b", f.tcp(a, b, PORTS), f.tcp(a, b, PORTS, hops=63), allowed("egress"), allowed("ingress", 11)),
                answer,
                data,
                reply,
            ),
        ),
        (
            "egress default deny",
            (Policy("a", (), ("egress",)), denied("from_endpoint", "a", f.tcp(a, b, PORTS), default_out, "egress")),
        ),
        (
            "ingress default deny, after the sender's allow",
            (
                Policy("b", (in_http,), ("ingress",)),
                Send(
                    "from_endpoint",
                    f.ether(f.tcp(a, b, (40000, 81))),
                    "shot",
                    {"denied_by_default": 1},
                    "a",
                    events=(
                        allowed("egress", reason="to_endpoint"),
                        {"verdict": "default_deny", "rule_id": default_in, "direction": "ingress", "destination_port": 81},
                    ),
                ),
            ),
        ),
        (
            "a removed allow ends the connection both ways, and the server cannot revive it",
            (
                Policy("b", (in_http,), ("ingress",)),
                local("a", "b", f.tcp(a, b, PORTS), f.tcp(a, b, PORTS, hops=63), allowed("egress"), allowed("ingress", 11)),
                answer,
                Policy("b", (), ("ingress",)),
                denied("from_endpoint", "a", f.tcp(a, b, PORTS, f.ACK), default_in, "ingress"),
                denied("from_endpoint", "b", f.tcp(b, a, BACK, f.ACK), default_in, "ingress"),
                denied("from_endpoint", "b", f.tcp(b, a, BACK, f.ACK), default_in, "ingress"),
                Policy("b", (in_http,), ("ingress",)),
                data,
                reply,
            ),
        ),
        (
            "of the connections that either end opened and policy denies, a packet's own says why",
            (
                opened,
                local("b", "a", f.tcp(b, a, BACK), f.tcp(b, a, BACK, hops=63), *both),
                Policy("a", (), ("ingress", "egress")),
                denied("from_endpoint", "b", f.tcp(b, a, BACK, f.ACK), default_out, "egress"),
                denied("from_endpoint", "b", f.tcp(b, a, BACK, f.ACK), default_in, "ingress"),
                denied("from_endpoint", "b", f.tcp(b, a, BACK, f.ACK), default_in, "ingress"),
                denied("from_endpoint", "a", f.tcp(a, b, PORTS, f.ACK), default_out, "egress"),
            ),
        ),
        (
            "the server's next packet ends it as well",
            (opened, answer, shut, denied("from_endpoint", "b", f.tcp(b, a, BACK, f.ACK), default_in, "ingress")),
        ),
        (
            "an unrelated change lets it go on without a new event",
            (opened, answer, Policy("b", (in_http,), ("ingress",)), data, reply, data),
        ),
        (
            "a change of addresses judges anew, and the new place is used",
            (
                opened,
                answer,
                Move("addresses", {"address": b}, {"identity": IDENTITIES["b"], "ifindex": DEVICES["t"], "tunnel_endpoint": ""}),
                data,
                Move("node", {"index": 0}, node_record(addresses_revision=2)),
                Send("from_endpoint", f.ether(f.tcp(a, b, PORTS, f.ACK)), "redirect", {}, "a",
                     out=f.ether(f.tcp(a, b, PORTS, f.ACK, hops=63))),
            ),
        ),
        (
            "a SYN in a connection's ports is judged by policy",
            (opened, answer, Policy("a", (), ("egress",)), denied("from_endpoint", "a", f.tcp(a, b, PORTS), default_out, "egress")),
        ),
        ("TCP in mid-stream without a record is judged as new", (
            local("a", "b", f.tcp(a, b, PORTS, f.ACK), f.tcp(a, b, PORTS, f.ACK, hops=63), *both), data)),
        ("a SYN and its answer that ask for ECN (RFC 3168 6.1.1), and a SYN with data", (
            local("a", "b", f.tcp(a, b, PORTS, f.SYN | 0xC0), f.tcp(a, b, PORTS, f.SYN | 0xC0, hops=63), *both),
            local("b", "a", f.tcp(b, a, BACK, f.SYN | f.ACK | 0x40), f.tcp(b, a, BACK, f.SYN | f.ACK | 0x40, hops=63)),
            local("a", "b", f.tcp(a, b, (40001, 80), f.SYN | 0x08), f.tcp(a, b, (40001, 80), f.SYN | 0x08, hops=63), *both),
        )),
        ("SYN+ACK without a connection", (shot("from_endpoint", "b", f.tcp(b, a, BACK, f.SYN | f.ACK), "no_connection"),)),
        ("UDP, and its reply", (
            Policy("b", (Rule("ingress", 12, protocol=f.UDP),), ("ingress", "egress")),
            local("a", "b", f.udp(a, b, PORTS), f.udp(a, b, PORTS, hops=63), allowed("egress"), allowed("ingress", 12)),
            local("b", "a", f.udp(b, a, BACK), f.udp(b, a, BACK, hops=63)),
            denied("from_endpoint", "b", f.udp(b, a, (80, 40001)), default_out, "egress"),
        )),
        ("SCTP by port", (
            Policy("b", (Rule("ingress", 13, protocol=f.SCTP, port=80),), ("ingress",)),
            local("a", "b", f.sctp(a, b, PORTS), f.ip(a, b, f.SCTP, f.sctp(a, b, PORTS)[-12:], hops=63),
                  allowed("egress"), allowed("ingress", 13)),
        )),
        ("an echo by its identifier, and only its own reply", (
            Policy("b", (Rule("ingress", 14, protocol=icmp_of(family)),), ("ingress", "egress")),
            local("a", "b", f.echo(a, b, 7), f.echo(a, b, 7, hops=63), allowed("egress"), allowed("ingress", 14)),
            local("b", "a", f.echo(b, a, 7, reply=True), f.echo(b, a, 7, reply=True, hops=63)),
            shot("from_endpoint", "b", f.echo(b, a, 8, reply=True), "no_connection"),
            denied("from_endpoint", "b", f.echo(b, a, 7), default_out, "egress"),
        )),
        ("a message that is no echo opens nothing: an answer to an echo without a number answers none", (
            local("a", "b", f.icmp(a, b, 139 if family == 6 else 13, bytes(4)),
                  f.icmp(a, b, 139 if family == 6 else 13, bytes(4), hops=63), *both),
            shot("from_endpoint", "b", f.echo(b, a, 0, reply=True), "no_connection"),
        )),
        ("an error about a connection is related to it, another one is not", (
            Policy("b", (Rule("ingress", 15, protocol=f.UDP),), ("ingress", "egress")),
            local("a", "b", f.udp(a, b, PORTS), f.udp(a, b, PORTS, hops=63), allowed("egress"), allowed("ingress", 15)),
            local("b", "a", f.unreachable(b, a, f.udp(a, b, PORTS)),
                  f.ip(b, a, icmp_of(family), f.unreachable(b, a, f.udp(a, b, PORTS))[(20 if family == 4 else 40):], hops=63)),
            denied("from_endpoint", "b", f.unreachable(b, a, f.udp(a, b, (40000, 81))), default_out, "egress"),
        )),
        ("what is an error in the other family only is judged as ICMP", (
            Policy("b", (Rule("ingress", 15, protocol=f.UDP),), ("ingress", "egress")),
            local("a", "b", f.udp(a, b, PORTS), f.udp(a, b, PORTS, hops=63), allowed("egress"), allowed("ingress", 15)),
            *(denied("from_endpoint", "b", f.icmp(b, a, kind, bytes(4) + f.udp(a, b, PORTS)), default_out, "egress")
              for kind in ((0, 5, 11, 12) if family == 6 else (1, 2, 4))),
        )),
        ("every error of the family is related", (
            Policy("b", (Rule("ingress", 15, protocol=f.UDP),), ("ingress", "egress")),
            local("a", "b", f.udp(a, b, PORTS), f.udp(a, b, PORTS, hops=63), allowed("egress"), allowed("ingress", 15)),
            *(local("b", "a", *(f.icmp(b, a, kind, bytes(4) + f.udp(a, b, PORTS), hops=hops) for hops in (64, 63)))
              for kind in ((1, 2, 3, 4) if family == 6 else (3, 11, 12))),
        )),
        ("an error is related only for the sender of what it is about", (
            Policy("b", (), ("egress",)),
            local("a", "b", f.udp(a, b, PORTS), f.udp(a, b, PORTS, hops=63), *both),
            denied("from_endpoint", "b", f.unreachable(b, x["c"], f.udp(a, b, PORTS)), default_out, "egress"),
        )),
        ("an error about a connection from an address that is not the sender's own", (
            local("a", "b", f.udp(a, b, PORTS), f.udp(a, b, PORTS, hops=63), *both),
            shot("from_endpoint", "b", f.unreachable(x["t"], a, f.udp(a, b, PORTS)), "spoofed_source"),
        )),
        ("an error about a neighbour's connection", (
            local("a", "b", f.udp(a, b, PORTS), f.udp(a, b, PORTS, hops=63), *both),
            Policy("t", (), ("egress",)),
            denied("from_endpoint", "t", f.unreachable(x["t"], b, f.udp(b, a, BACK)), default_out, "egress"),
            local("a", "b", f.udp(a, b, PORTS), f.udp(a, b, PORTS, hops=63)),
        )),
        ("spoofed source, of a neighbour", (shot("from_endpoint", "a", f.tcp(b, a, PORTS), "spoofed_source"),)),
        ("spoofed source, within a neighbour's connection",
         (opened, answer, shot("from_endpoint", "t", f.tcp(a, b, PORTS, f.ACK), "spoofed_source"))),
        ("spoofed source, of nobody", (shot("from_endpoint", "a", f.tcp(x["world"], b, PORTS), "spoofed_source"),)),
        ("a waiting endpoint sends nothing", (shot("from_endpoint", "q", f.tcp(x["q"], b, PORTS), "waiting"),)),
        ("a waiting endpoint receives nothing", (Send(
            "from_endpoint", f.ether(f.tcp(a, x["q"], PORTS)), "shot", {"waiting": 1}, "a",
            events=(allowed("egress", destination_identity=5), *dropped("waiting", direction="ingress"))),)),
        ("a device without an endpoint", (shot("from_endpoint", "nobody", f.tcp(a, b, PORTS), "no_endpoint"),)),
        ("to an endpoint that is not attached", (shot("from_endpoint", "a", f.tcp(a, x["u"], PORTS), "no_endpoint"),)),
        ("to a device without a peer, by the neighbour table", (Send(
            "from_endpoint", f.ether(f.udp(a, x["t"], PORTS)), "redirect", {}, "a",
            out=f.ether(f.udp(a, x["t"], PORTS, hops=63)), events=both),)),
        ("a later fragment passes where no ports could decide", (local(
            "a", "b", f.ip(a, b, f.UDP, b"x" * 16, fragment=1480), f.ip(a, b, f.UDP, b"x" * 16, fragment=1480, hops=63)),)),
        ("a later fragment passes by a rule without ports", (
            Policy("b", (Rule("ingress", 16, peer=IDENTITIES["a"]),), ("ingress",)),
            local("a", "b", f.ip(a, b, f.UDP, b"x" * 16, fragment=1480), f.ip(a, b, f.UDP, b"x" * 16, fragment=1480, hops=63)),
        )),
        ("a later fragment is dropped where ports decide", (
            Policy("b", (in_http, Rule("ingress", 16, peer=IDENTITIES["a"])), ("ingress",)),
            shot("from_endpoint", "a", f.ip(a, b, f.UDP, b"x" * 16, fragment=1480), "fragment", direction="ingress"),
        )),
        ("a first fragment has its ports", (
            Policy("b", (Rule("ingress", 12, protocol=f.UDP, port=80),), ("ingress",)),
            local("a", "b", f.udp(a, b, PORTS, more=True), f.udp(a, b, PORTS, more=True, hops=63),
                  allowed("egress"), allowed("ingress", 12)),
        )),
    ]  # fmt: skip
    return [Case(name, steps, family) for name, steps in cases]


def policy_cases(family: int) -> List[Case]:
    """Each shape of entry, and which of two decides."""
    x = ADDRESSES[family]
    a, b = x["a"], x["b"]
    peer = IDENTITIES["a"]
    shapes = [
        Rule("ingress", 21, peer, f.TCP, 80),
        Rule("ingress", 22, peer, f.TCP),
        Rule("ingress", 23, peer),
        Rule("ingress", 24, 0, f.TCP, 80),
        Rule("ingress", 25, 0, f.TCP),
        Rule("ingress", 26),
    ]
    other = [Rule("ingress", 31, 99), Rule("ingress", 32, 0, f.UDP), Rule("ingress", 33, 0, f.TCP, 81)]
    passes = local("a", "b", f.tcp(a, b, PORTS), f.tcp(a, b, PORTS, hops=63), allowed("egress"), allowed("ingress", 0))
    found: List[Case] = []

    def case(name: str, rules: Tuple[Rule, ...], step: Send) -> None:
        found.append(Case(name, (Policy("b", rules, ("ingress",)), step), family))

    def by(rule: int) -> Send:
        return Send(passes.program, passes.frame, "redirect", {"to_endpoint": 1}, "a", out=passes.out,
                    events=(allowed("egress"), allowed("ingress", rule)))  # fmt: skip

    def not_by(rule: int, default: bool = False) -> Send:
        reason = "denied_by_default" if default else "denied_by_rule"
        event = {"verdict": "default_deny" if default else "deny", "rule_id": rule, "direction": "ingress"}
        return Send(passes.program, passes.frame, "shot", {reason: 1}, "a", events=(allowed("egress"), event))

    for index, rule in enumerate(shapes):
        case(f"entry {rule.rule_id} alone allows", (rule, *other), by(rule.rule_id))
        deny = Rule("ingress", 40 + index, rule.peer, rule.protocol, rule.port, "deny")
        rest = tuple(one for one in shapes if one is not rule)
        case(f"a deny of the shape of {rule.rule_id} beats every allow", (deny, *rest), not_by(40 + index))
        named = min(shapes[index:], key=lambda one: (not one.port, not one.protocol, one.rule_id))
        case(
            f"of the allows from {rule.rule_id} on the most exact port is named",
            tuple(shapes[index:]),
            by(named.rule_id),
        )
    for low, high in ((True, False), (False, True)):
        exact, every = Rule("ingress", 20 + high, peer, f.TCP, 80), Rule("ingress", 20 + low, 0, f.TCP, 80)
        case(f"of two allows of one port the lower id is named, {20 + low}, {20 + high}", (exact, every), by(20))
        denies = tuple(Rule("ingress", one.rule_id + 20, one.peer, f.TCP, 80, "deny") for one in (exact, every))
        case(f"of two denies of one port the lower id is named, {20 + low}, {20 + high}", denies, not_by(40))
    case(
        "a deny of a wider shape beats an allow of a narrower, which is not looked up again",
        (*shapes, Rule("ingress", 46, 0, f.TCP, 0, "deny"), Rule("ingress", 47, 0, 0, 0, "deny")),
        not_by(46),
    )
    case(
        "an allow of a wider shape, looked up for a deny of somebody else, takes nothing from the narrower",
        (*shapes[:3], Rule("ingress", 48, 99, f.TCP, 0, "deny"), Rule("ingress", 49, 99, 0, 0, "deny")),
        by(21),
    )
    case("entries for others allow nothing", tuple(other), not_by(DEFAULT_DENY["ingress"], default=True))
    case(
        "the other direction's entries do not count",
        (Rule("egress", 50),),
        not_by(DEFAULT_DENY["ingress"], default=True),
    )
    return found


def outward_cases(family: int) -> List[Case]:
    """From an endpoint to other nodes, to this host and to the world."""
    x = ADDRESSES[family]
    a, b, c, d = x["a"], x["b"], x["c"], x["d"]
    cases: List[Tuple[str, Tuple[Step, ...]]] = [
        ("to another node's endpoint", (
            tunnelled("a", f.tcp(a, c, PORTS), f.tcp(a, c, PORTS, hops=63),
                      allowed("egress", reason="to_tunnel", source_identity=IDENTITIES["a"], destination_identity=IDENTITIES["c"],
                              source=a, destination=c, source_port=40000, destination_port=80, protocol=6, tcp_flags=2,
                              hook="from_endpoint", ifindex=DEVICES["a"], length=len(f.ether(f.tcp(a, c, PORTS))))),
            tunnelled("a", f.tcp(a, c, PORTS, f.ACK), f.tcp(a, c, PORTS, f.ACK, hops=63)),
        )),
        ("to a node with an IPv6 underlay", (tunnelled("a", f.udp(a, d, PORTS), f.udp(a, d, PORTS, hops=63), allowed("egress")),)),
        ("to another node itself: through the tunnel", (tunnelled(
            "a", f.udp(a, x["node2"], PORTS), f.udp(a, x["node2"], PORTS, hops=63), allowed("egress", destination_identity=6)),)),
        ("the tunnel device is not known", (
            Move("node", {"index": 0}, node_record(tunnel_ifindex=0)),
            Send("from_endpoint", f.ether(f.udp(a, c, PORTS)), "shot", {"no_tunnel_device": 1}, "a",
                 events=(allowed("egress"), *dropped("no_tunnel_device"))),
        )),
        ("to this host", (to_stack("a", f.tcp(a, x["host"], PORTS), allowed("egress", destination_identity=1)),
                          from_stack("a", f.tcp(x["host"], a, BACK, f.SYN | f.ACK)))),
        ("to this host, denied", (Policy("a", (Rule("egress", 61, 2),), ("egress",)),
                                  denied("from_endpoint", "a", f.tcp(a, x["host"], PORTS), DEFAULT_DENY["egress"], "egress"))),
        ("to the world, and back from an underlay device", (
            Policy("a", (Rule("egress", 61, 2),), ("egress", "ingress")),
            to_stack("a", f.tcp(a, x["world"], PORTS), allowed("egress", 61, destination_identity=2, reason="to_stack")),
            from_stack("a", f.tcp(x["world"], a, BACK, f.SYN | f.ACK), via="eth0"),
            to_stack("a", f.tcp(a, x["world"], PORTS, f.ACK)),
            denied("to_endpoint", "a", f.tcp(x["world"], a, (80, 40001)), DEFAULT_DENY["ingress"], "ingress", via="eth0"),
        )),
        ("an answer that this host gives in the world's name is the world's, also when all is judged anew", (
            Policy("a", (Rule("egress", 61, 2),), ("egress", "ingress")),
            to_stack("a", f.udp(a, x["world"], PORTS), allowed("egress", 61)),
            from_stack("a", f.udp(x["world"], a, BACK)),
            Policy("a", (Rule("egress", 64, 2),), ("egress", "ingress")),
            from_stack("a", f.udp(x["world"], a, BACK)),
        )),
        ("an ICMP error of a router on the way is related", (
            Policy("a", (Rule("egress", 61, 2),), ("egress", "ingress")),
            to_stack("a", f.udp(a, x["world"], PORTS), allowed("egress", 61)),
            from_stack("a", f.too_big(x["gateway"], a, f.udp(a, x["world"], PORTS))),
            denied("to_endpoint", "a", f.too_big(x["gateway"], a, f.udp(a, x["world"], (40001, 80))), DEFAULT_DENY["ingress"], "ingress"),
        )),
        ("an ICMP error about a connection, forwarded with a workload's source", (
            to_stack("a", f.udp(a, x["world"], PORTS), allowed("egress")),
            shot("to_endpoint", "a", f.unreachable(c, a, f.udp(a, x["world"], PORTS)), "spoofed_source", via="eth0"),
        )),
        ("a router's error about a connection that is to be judged anew leaves it as it is", (
            Policy("a", (Rule("egress", 61, IDENTITIES["c"]),), ("egress", "ingress")),
            tunnelled("a", f.udp(a, c, PORTS), f.udp(a, c, PORTS, hops=63), allowed("egress", 61)),
            Policy("a", (Rule("egress", 61, IDENTITIES["c"]), Rule("egress", 64, 99)), ("egress", "ingress")),
            from_stack("a", f.too_big(x["world"], a, f.udp(a, c, PORTS)), via="eth0"),
            tunnelled("a", f.udp(a, c, PORTS), f.udp(a, c, PORTS, hops=63)),
            Policy("a", (), ("egress", "ingress")),
            denied("to_endpoint", "a", f.too_big(x["world"], a, f.udp(a, c, PORTS)), DEFAULT_DENY["egress"], "egress", via="eth0"),
        )),
        ("a workload's own tunnel packet to this host",
         (shot("from_endpoint", "a", f.udp(a, x["host"], (40000, TUNNEL_PORT)), "own_tunnel"),)),
        ("a workload's own tunnel packet to another member",
         (shot("from_endpoint", "a", f.udp(a, x["node2"], (40000, TUNNEL_PORT)), "own_tunnel"),)),
        ("a workload's own tunnel packet to anybody else, who may be a member as well", (
            shot("from_endpoint", "a", f.udp(a, x["world"], (40000, TUNNEL_PORT)), "own_tunnel"),
            shot("from_endpoint", "a", f.udp(a, LATE[family], (40000, TUNNEL_PORT)), "own_tunnel"),
        )),
        ("an address of this host that nobody told of is the host", (
            Policy("a", (Rule("egress", 61, 1, action="deny"), Rule("egress", 62)), ("egress",)),
            *(denied("from_endpoint", "a", f.udp(a, to, PORTS), 61, "egress")
              for to in ((LATE[4], "192.0.2.255") if family == 4 else (LATE[6], "2001:db8::"))),
            to_stack("a", f.udp(a, x["world"], PORTS), allowed("egress", 62)),
        )),
        ("the tunnel's port towards a workload is nothing special", (tunnelled(
            "a", f.udp(a, c, (40000, TUNNEL_PORT)), f.udp(a, c, (40000, TUNNEL_PORT), hops=63), allowed("egress")),)),
        ("from the host's stack", (
            Policy("a", (Rule("ingress", 62, 1),), ("ingress", "egress")),
            from_stack("a", f.tcp(x["gateway"], a, PORTS), allowed("ingress", 62, source_identity=1)),
            to_stack("a", f.tcp(a, x["gateway"], BACK, f.SYN | f.ACK)),
        )),
        ("from the host's stack by an address nobody knows: still the host", (
            Policy("a", (Rule("ingress", 62, 1),), ("ingress", "egress")),
            from_stack("a", f.tcp(x["world"], a, PORTS), allowed("ingress", 62, source_identity=1)),
            Policy("a", (Rule("ingress", 62, 1), Rule("ingress", 63, 99)), ("ingress", "egress")),
            to_stack("a", f.tcp(a, x["world"], BACK, f.SYN | f.ACK)),
        )),
        ("from the host's stack by another node's address: the answer goes back to who asked", (
            from_stack("a", f.tcp(c, a, PORTS), allowed("ingress", source_identity=1)),
            to_stack("a", f.tcp(a, c, BACK, f.SYN | f.ACK)),
        )),
        ("forwarded from the world", (
            Policy("a", (Rule("ingress", 62, 1),), ("ingress",)),
            denied("to_endpoint", "a", f.tcp(x["world"], a, PORTS), DEFAULT_DENY["ingress"], "ingress", via="eth0"),
        )),
        ("forwarded with a workload's source, from elsewhere", (
            shot("to_endpoint", "a", f.tcp(b, a, PORTS), "spoofed_source", via="eth0"),
            shot("to_endpoint", "a", f.tcp(c, a, PORTS), "spoofed_source", via="eth0"),
            from_stack("a", f.tcp(c, a, PORTS), allowed("ingress", source_identity=IDENTITIES["c"]), via="vxlan"),
            from_stack("a", f.tcp(b, a, PORTS), allowed("ingress", source_identity=IDENTITIES["b"]), via="b"),
        )),
        ("forwarded with the host's own source", (shot("to_endpoint", "a", f.tcp(x["host"], a, PORTS), "spoofed_source", via="eth0"),)),
        ("forwarded with the host's own source, within the host's connection", (
            from_stack("a", f.tcp(x["host"], a, PORTS), allowed("ingress")),
            shot("to_endpoint", "a", f.tcp(x["host"], a, PORTS, f.ACK), "spoofed_source", via="eth0"),
        )),
        ("not the endpoint's address", (shot("to_endpoint", "a", f.tcp(x["world"], b, PORTS), "unknown_destination", via="eth0"),)),
        ("to a waiting endpoint", (shot("to_endpoint", "q", f.tcp(x["host"], x["q"], PORTS), "waiting"),)),
        ("to a device without an endpoint", (shot("to_endpoint", "nobody", f.tcp(x["host"], a, PORTS), "no_endpoint"),)),
    ]  # fmt: skip
    return [Case(name, steps, family) for name, steps in cases]

"""Cases of packets in parts, and of errors about packets with extension headers."""

# ruff: noqa: E501 - a row of a table is read as one line
from __future__ import annotations

from typing import Any, List, Tuple, Union

from tests.packet import frames as f
from tests.packet.cases_endpoint import BACK, PORTS, allowed, denied, from_stack, local, shot, to_stack
from tests.packet.world import ADDRESSES, DEFAULT_DENY, IDENTITIES, Case, Move, Policy, Rule, Send

Step = Union[Send, Policy, Move]
FROM = "from_endpoint"
PAD = b"\x00\x01\x04\x00\x00\x00\x00"  # rest of an options header of 8 bytes
WEB = Rule("ingress", 12, IDENTITIES["a"], f.UDP, 80)


def fragment_cases(family: int) -> List[Case]:
    """Later fragments are what their first one was, once that was let through."""
    x = ADDRESSES[family]
    a, b, t = x["a"], x["b"], x["t"]
    both = (allowed("egress"), allowed("ingress", 12))
    closed = Policy("b", (WEB,), ("ingress", "egress"))

    def first(ports: Tuple[int, int] = PORTS, **more: Any) -> Tuple[bytes, bytes]:
        return f.udp(a, b, ports, more=True, **more), f.udp(a, b, ports, more=True, hops=63, **more)

    def later(one: str = a, other: str = b, at: int = 1480, protocol: int = f.UDP, **more: Any) -> Tuple[bytes, bytes]:
        made = [f.ip(one, other, protocol, b"x" * 16, fragment=at, hops=hops, **more) for hops in (64, 63)]
        return made[0], made[1]

    def lost(packet: bytes, at: str = "a", direction: str = "ingress", reason: str = "fragment") -> Send:
        return shot(FROM, at, packet, reason, direction=direction)

    icmp = f.ICMP6 if family == 6 else f.ICMP
    stranger = "2001:db8:9::9" if family == 6 else "203.0.113.9"
    cases: List[Tuple[str, Tuple[Step, ...]]] = [
        ("a later fragment has the ports of its first", (
            closed, local("a", "b", *first(), *both), local("a", "b", *later()), local("a", "b", *later(at=2960)),
        )),
        ("a later fragment that comes before its first has no ports", (
            closed, lost(later()[0]), local("a", "b", *first(), *both), local("a", "b", *later()),
        )),
        ("a later fragment of another datagram", (closed, local("a", "b", *first(), *both), lost(later(number=8)[0]))),
        ("a later fragment of another protocol", (
            closed, local("a", "b", *first(), *both), lost(later(protocol=f.SCTP)[0]),
        )),
        ("a later fragment for another receiver, or of another sender", (
            closed, Policy("t", (WEB,), ("ingress",)),
            local("a", "b", *first(), *both), lost(later(other=t)[0]),
            Policy("a", (Rule("ingress", 15, 2, f.UDP, 80),), ("ingress",)),
            from_stack("a", f.udp(x["world"], a, PORTS, more=True), allowed("ingress", 15), via="eth0"),
            shot("to_endpoint", "a", later(stranger, a)[0], "fragment", via="eth0", direction="ingress"),
            from_stack("a", later(x["world"], a)[0], via="eth0"),
        )),
        ("a first fragment that is denied lets none follow", (
            closed,
            Send(FROM, f.ether(first((40000, 81))[0]), "shot", {"denied_by_default": 1}, "a", events=(
                allowed("egress"), {"verdict": "default_deny", "rule_id": DEFAULT_DENY["ingress"], "direction": "ingress"})),
            Send(FROM, f.ether(later()[0]), "shot", {"denied_by_default": 1}, "a", events=(
                {"verdict": "default_deny", "rule_id": DEFAULT_DENY["ingress"], "direction": "ingress"},)),
        )),
        ("a datagram's number used again: the new first fragment counts", (
            closed,
            local("a", "b", *first(), *both),
            Send(FROM, f.ether(first((40000, 81))[0]), "shot", {"denied_by_default": 1}, "a", events=None),
            Send(FROM, f.ether(later()[0]), "shot", {"denied_by_default": 1}, "a", events=None),
        )),
        ("a first fragment that another device claims says nothing", (
            closed,
            shot(FROM, "t", first()[0], "spoofed_source"),
            lost(later()[0]),
        )),
        ("the allow of a first fragment is removed before the rest comes", (
            closed,
            local("a", "b", *first(), *both),
            Policy("b", (), ("ingress", "egress")),
            Send(FROM, f.ether(later()[0]), "shot", {"denied_by_default": 1}, "a", events=(
                {"verdict": "default_deny", "rule_id": DEFAULT_DENY["ingress"], "direction": "ingress"},)),
        )),
        ("fragments of an answer", (
            closed,
            Policy("a", (Rule("egress", 13, IDENTITIES["b"]),), ("ingress", "egress")),
            local("a", "b", f.udp(a, b, PORTS), f.udp(a, b, PORTS, hops=63), allowed("egress", 13), allowed("ingress", 12)),
            local("b", "a", f.udp(b, a, BACK, more=True), f.udp(b, a, BACK, more=True, hops=63)),
            local("b", "a", *later(b, a)),
            lost(later(b, a, number=8)[0], "b", "egress"),
        )),
        ("fragments of an echo", (
            Policy("b", (Rule("ingress", 14, IDENTITIES["a"], icmp),), ("ingress",)),
            local("a", "b", f.echo(a, b, 7, more=True), f.echo(a, b, 7, more=True, hops=63),
                  allowed("egress"), allowed("ingress", 14)),
            local("a", "b", *later(protocol=icmp)),
        )),
        ("a first fragment too short for its ports", (
            shot(FROM, "a", f.ip(a, b, f.UDP, bytes(7), more=True), "truncated"),
            shot(FROM, "a", f.ip(a, b, f.TCP, bytes(16), more=True), "truncated"),
        )),
        ("a later fragment over a TCP header", (
            local("a", "b", f.tcp(a, b, PORTS, more=True), f.tcp(a, b, PORTS, more=True, hops=63),
                  allowed("egress"), allowed("ingress")),
            shot(FROM, "a", later(protocol=f.TCP, at=8)[0], "malformed"),
            shot(FROM, "a", later(protocol=f.TCP, at=16, number=8)[0], "malformed"),
            local("a", "b", *later(protocol=f.TCP, at=24)),
        )),
        ("a later fragment from no address of the endpoint", (
            closed, local("a", "b", *first(), *both), shot(FROM, "t", later()[0], "spoofed_source"),
            shot(FROM, "t", later(one=b, other=t)[0], "spoofed_source"),
        )),
        ("an error about a later fragment is about no connection, whatever that holds where ports would be", (
            Policy("b", (), ("egress",)),
            local("a", "b", f.udp(a, b, PORTS), f.udp(a, b, PORTS, hops=63), allowed("egress"), allowed("ingress")),
            denied(FROM, "b", f.unreachable(b, a, f.ip(a, b, f.UDP, f.udp_header(*PORTS, 2) + b"hi", fragment=1480)), DEFAULT_DENY["egress"], "egress"),
            denied(FROM, "b", f.unreachable(b, a, f.ip(a, b, f.UDP, f.udp_header(*PORTS, 2) + b"hi", fragment=8)), DEFAULT_DENY["egress"], "egress"),
        )),
        ("an error about a first fragment is one about its connection", (
            Policy("b", (), ("egress",)),
            local("a", "b", *first(), allowed("egress"), allowed("ingress")),
            local("b", "a", f.unreachable(b, a, first()[0]), f.icmp(b, a, 1 if family == 6 else 3, bytes(4) + first()[0][:64], code=1, hops=63)),
        )),
        ("IPv6 that the stack put together and took apart, of which the kernel has forgotten where it came in, is not the host's", (
            Policy("a", (Rule("ingress", 37, peer=1),), ("ingress",)),
            from_stack("a", f.udp(x["host"], a, PORTS, more=True), allowed("ingress", 37, source_identity=1)),
            *((
                denied("to_endpoint", "a", f.udp(x["world"], a, PORTS, more=True), DEFAULT_DENY["ingress"], "ingress"),
                shot("to_endpoint", "a", f.udp(b, a, PORTS, more=True), "spoofed_source"),
                shot("to_endpoint", "a", f.udp(x["c"], a, PORTS, more=True), "spoofed_source"),
                denied("to_endpoint", "a", f.udp(x["world"], a, (547, 546), more=True), DEFAULT_DENY["ingress"], "ingress"),
            ) if family == 6 else (
                from_stack("a", f.udp(x["world"], a, PORTS, more=True), allowed("ingress", 37, source_identity=1)),
            )),
            to_stack("a", f.udp(a, x["world"], (40001, 53)), allowed("egress")),
            from_stack("a", f.udp(x["world"], a, (53, 40001), more=True)),
        )),
        ("what policy said of port 0 says nothing of a fragment without ports", (
            Policy("b", (Rule("ingress", 15, IDENTITIES["a"], f.UDP), Rule("ingress", 16, 0, f.TCP, 80)), ("ingress",)),
            local("a", "b", f.udp(a, b, (40000, 0)), f.udp(a, b, (40000, 0), hops=63), allowed("egress"), allowed("ingress", 15)),
            local("a", "b", f.udp(a, b, (40001, 0)), f.udp(a, b, (40001, 0), hops=63), allowed("egress"), allowed("ingress", 15)),
            lost(later()[0]),
        )),
    ]  # fmt: skip
    if family == 4:
        sent, out = (f.udp(a, b, PORTS, options=b"\x01" * 8, hops=hops) for hops in (64, 63))
        cases.append(("an error about a packet with options is related", (
            Policy("b", (), ("egress",)),
            local("a", "b", sent, out, allowed("egress"), allowed("ingress")),
            local("b", "a", f.unreachable(b, a, sent), f.icmp(b, a, 3, bytes(4) + sent[:64], code=1, hops=63)),
            denied(FROM, "b", f.unreachable(b, a, f.udp(a, b, (40000, 81), options=b"\x01" * 8)), DEFAULT_DENY["egress"], "egress"),
        )))  # fmt: skip
    if family == 6:
        options = [(60, PAD)]
        cases += [
            ("a fragment that begins with an extension header", (
                closed,
                local("a", "b", _behind(a, b, f.udp_header(*PORTS, 2) + b"hi", 64), _behind(a, b, f.udp_header(*PORTS, 2) + b"hi", 63), *both),
                local("a", "b", *later(protocol=60)),
            )),
            ("an error about a packet with extension headers is related", (
                Policy("b", (), ("egress",)),
                local("a", "b", f.udp(a, b, PORTS, extensions=options), f.udp(a, b, PORTS, extensions=options, hops=63),
                      allowed("egress"), allowed("ingress")),
                local("b", "a", f.unreachable(b, a, f.udp(a, b, PORTS, extensions=options)),
                      f.icmp(b, a, 1, (bytes(4) + f.udp(a, b, PORTS, extensions=options)[:64]), code=1, hops=63)),
                denied(FROM, "b", f.unreachable(b, a, f.udp(a, b, (40000, 81), extensions=options)),
                       DEFAULT_DENY["egress"], "egress"),
                denied(FROM, "b", f.unreachable(b, a, f.udp(a, b, PORTS, extensions=[(60, PAD)] * 6)),
                       DEFAULT_DENY["egress"], "egress"),
                denied(FROM, "b", f.unreachable(b, a, f.ip(a, b, f.UDP, b"x" * 16, fragment=8)),
                       DEFAULT_DENY["egress"], "egress"),
            )),
        ]  # fmt: skip
    return [Case(f"fragments: {name}", steps, family) for name, steps in cases]


def _behind(source: str, destination: str, transport: bytes, hops: int) -> bytes:
    """A first fragment whose fragmentable part begins with destination options."""
    body = bytes([f.UDP]) + PAD + transport
    return f.ip(source, destination, 60, body, more=True, hops=hops)

"""Cases of packets that have no hop left where bpfleet routes them: their senders are told, by their gateway."""

# ruff: noqa: E501 - a row of a table is read as one line
from __future__ import annotations

from typing import Any, List, Mapping, Tuple, Union

from tests.packet import frames as f
from tests.packet.cases_endpoint import PORTS, allowed, denied, dropped, local, shot, to_stack, tunnelled
from tests.packet.cases_services import BACKEND, CLIENT, FRONTENDS, PORT, icmp_error, tcp, udp
from tests.packet.world import ADDRESSES, DEFAULT_DENY, Case, Change, Frontend, Policy, Send, icmp_of

Step = Union[Send, Change]
GROUP_MAC = "33:33:00:00:00:01"


def time_exceeded(destination: str, about: bytes) -> bytes:
    """What the sender of a packet is told."""
    v6 = f.is_v6(destination)
    return icmp_error(ADDRESSES[6 if v6 else 4]["gateway"], destination, 3 if v6 else 11, 0, about)


def expired(at: str, source: str, packet: bytes, *events: Mapping[str, Any]) -> Send:
    """A frame that has no hop left: dropped and told of as such, and answered."""
    answer = f.ether(time_exceeded(source, packet), f.HOST_MAC, f.WORKLOAD_MAC)
    return Send("from_endpoint", f.ether(packet), "redirect", {"hop_limit": 1}, at, out=answer,
                events=(*events, *dropped("hop_limit")))  # fmt: skip


def unanswered(packet: bytes, destination: str = f.HOST_MAC, *events: Mapping[str, Any]) -> Send:
    """A frame of a that has no hop left, about which nothing is said."""
    frame = f.ether(packet, destination=destination)
    return Send("from_endpoint", frame, "shot", {"hop_limit": 1}, "a", events=(*events, *dropped("hop_limit")))


def expiry_cases(family: int) -> List[Case]:
    """Who is told what."""
    x = ADDRESSES[family]
    a, b, c, t, world, front, gateway = x["a"], x["b"], x["c"], x["t"], x["world"], FRONTENDS[family], x["gateway"]
    both, out = (allowed("egress"), allowed("ingress")), (allowed("egress"),)
    to_front, to_b = (CLIENT, PORT), (CLIENT, BACKEND)
    timestamp = f.icmp(a, b, 13 if family == 4 else 139, bytes(12), hops=1)
    reports = (3, 4, 5, 11, 12) if family == 4 else (1, 2, 3, 4, 100, 127, 137)
    shut = Policy("b", (), ("ingress",))
    cases: List[Tuple[str, Tuple[Step, ...]]] = [
        ("UDP, to an endpoint of this node", (expired("a", a, f.udp(a, b, PORTS, hops=1), *both),)),
        ("UDP, to another node", (expired("a", a, f.udp(a, c, PORTS, hops=1), *out),)),
        ("UDP, to another node itself", (expired("a", a, f.udp(a, x["node2"], PORTS, hops=1), *out),)),
        ("TCP", (expired("a", a, f.tcp(a, b, PORTS, hops=1), *both), expired("a", a, f.tcp(a, c, PORTS, hops=1), *out))),
        ("SCTP", (expired("a", a, f.ip(a, b, f.SCTP, f.sctp(a, b, PORTS)[-12:], hops=1), *both),)),
        ("an echo request", (expired("a", a, f.echo(a, c, 7, hops=1), *out),)),
        ("another question of ICMP", (expired("a", a, timestamp, *both),)),
        ("a protocol without ports", (expired("a", a, f.ip(a, c, 47, b"12345678", hops=1), *out),)),
        ("a hop limit of 0", (expired("a", a, f.udp(a, c, PORTS, hops=0), *out),)),
        ("in a connection, whose next packet with more hops arrives", (
            tunnelled("a", f.udp(a, c, PORTS), f.udp(a, c, PORTS, hops=63), *out),
            *(expired("a", a, f.udp(a, c, PORTS, hops=1)) for _ in range(3)),
            tunnelled("a", f.udp(a, c, PORTS, hops=2), f.udp(a, c, PORTS, hops=1)),
        )),
        ("each of many: nothing limits the rate", tuple(expired("a", a, f.udp(a, c, (40000 + n, 80), hops=1), *out) for n in range(100))),
        ("a first fragment", (expired("a", a, f.udp(a, c, PORTS, more=True, hops=1), *out),) if family == 4 else ()),
        ("to the stack it is the stack's to tell", (to_stack("a", f.udp(a, world, PORTS, hops=1), *out),)),
        ("what policy denies is denied", (
            shut, Send("from_endpoint", f.ether(f.udp(a, b, PORTS, hops=1)), "shot", {"denied_by_default": 1}, "a", events=None),
            Policy("a", (), ("egress",)), denied("from_endpoint", "a", f.udp(a, c, PORTS, hops=1), DEFAULT_DENY["egress"], "egress"),
        )),
        ("an answer by a workload that may send nothing", (
            Policy("b", (), ("egress",)), local("a", "b", f.udp(a, b, PORTS), f.udp(a, b, PORTS, hops=63), *both),
            expired("b", b, f.udp(b, a, PORTS[::-1], hops=1)),
        )),
        ("at a tap: the answer is let through there, from there only", (
            Policy("t", (), ("ingress",)),
            expired("t", t, f.udp(t, c, PORTS, hops=1), *out),
            Send("to_endpoint", f.ether(time_exceeded(t, f.udp(t, c, PORTS, hops=1))), "pass", {"to_endpoint": 1}, "t", "t"),
            shot("to_endpoint", "t", time_exceeded(t, f.udp(t, c, (40001, 80), hops=1)), "spoofed_source", via="eth0"),
            shot("to_endpoint", "t", time_exceeded(t, f.udp(t, c, (40001, 80), hops=1)), "spoofed_source", via="a"),
            shot("to_endpoint", "t", icmp_error(gateway, t, *((1, 4) if family == 6 else (3, 3)), f.udp(t, c, (40001, 80))), "spoofed_source", via="t"),
        )),
        ("no workload passes for the gateway", (shot("from_endpoint", "a", time_exceeded(b, f.udp(b, a, PORTS, hops=1)), "spoofed_source") if family == 4 else
            Send("from_endpoint", f.ether(f.ip(gateway, b, f.ICMP6, time_exceeded(b, f.udp(b, a, PORTS))[40:])), "shot", {"spoofed_source": 1}, "a", events=None),)),
        ("UDP to a frontend: about what was sent there", (
            Frontend(front, PORT, f.UDP, ((b, BACKEND),)), expired("a", a, udp(a, front, to_front, hops=1), *both),
            local("a", "b", udp(a, front, to_front), udp(a, b, to_b, hops=63)),
            expired("a", a, udp(a, front, to_front, hops=1)),
        )),
        ("TCP to a frontend: about what was sent there", (
            Frontend(front, PORT, f.TCP, ((c, BACKEND),)), expired("a", a, tcp(a, front, to_front, hops=1), *out),
        )),
        ("a first fragment to a frontend", (
            Frontend(front, PORT, f.UDP, ((c, BACKEND),)), expired("a", a, udp(a, front, to_front, hops=1, more=True), *out),
        ) if family == 4 else ()),
        ("nothing is said about a later fragment", (unanswered(f.ip(a, c, f.UDP, b"x" * 16, fragment=1480, hops=1)),)),
        ("nothing is said about an error", (
            tunnelled("a", f.udp(a, c, PORTS), f.udp(a, c, PORTS, hops=63), *out),
            unanswered(f.ip(a, c, icmp_of(family), f.unreachable(a, c, f.udp(c, a, PORTS[::-1]))[20 if family == 4 else 40:], hops=1)),
        )),
        *((f"nothing is said about a message of type {kind}", (unanswered(f.icmp(a, c, kind, bytes(12), hops=1), f.HOST_MAC, *out),)) for kind in reports),
        ("nothing is said about what was sent to all of a link", (unanswered(f.udp(a, c, PORTS, hops=1), GROUP_MAC, *out),)),
        ("nothing is said about what has no 8 bytes to quote", (unanswered(f.ip(a, c, 47, b"1234567", hops=1), f.HOST_MAC, *out),)),
    ]  # fmt: skip
    if family == 4:
        for words in (1, 10):
            options = b"\x01" * 4 * words
            cases.append(
                (f"{words} words of options", (expired("a", a, f.udp(a, c, PORTS, hops=1, options=options), *out),))
            )
    else:
        pad = [(60, b"\x00\x01\x04\x00\x00\x00\x00")]
        cases.append(
            (
                "nothing is said about what has extension headers",
                (unanswered(f.udp(a, c, PORTS, hops=1, extensions=pad), f.HOST_MAC, *out),),
            )
        )
    return [Case(f"no hop left: {name}", steps, family) for name, steps in cases if steps]

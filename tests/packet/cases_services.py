"""Cases of services: what passed no hooked socket is balanced at the endpoint's device, and its answers there again.

The frontend F:80 stands for backends at port 8080. Frames have true checksums, as they must still have afterwards.
"""

# ruff: noqa: E501 - a row of a table is read as one line
from __future__ import annotations

import ipaddress
import struct
from typing import Any, Callable, List, Mapping, Tuple, Union

from tests.packet import frames as f
from tests.packet.cases_endpoint import allowed, denied, dropped, local, shot, to_stack, tunnelled
from tests.packet.world import (
    ADDRESSES,
    DEFAULT_DENY,
    IDENTITIES,
    MACS,
    Case,
    Change,
    Forget,
    Frontend,
    Policy,
    Rule,
    Send,
)

Step = Union[Send, Change]
FRONTENDS = {4: "10.96.0.1", 6: "fd96::1"}
SECOND = {4: "10.96.0.2", 6: "fd96::2"}
"""Frontends as well."""
CLIENT, PORT, BACKEND = 40000, 80, 8080
TO, FROM = (CLIENT, PORT), (PORT, CLIENT)
"""Ports towards the frontend, and of its answers."""
TO_B, FROM_B = (CLIENT, BACKEND), (BACKEND, CLIENT)
"""The same with the backend."""


def tcp(source: str, destination: str, ports: Tuple[int, int], flags: int = f.SYN, **more: Any) -> bytes:
    """A TCP packet with its checksum."""
    return f.summed(f.tcp(source, destination, ports, flags, **more))


def udp(source: str, destination: str, ports: Tuple[int, int], **more: Any) -> bytes:
    """A UDP packet with its checksum."""
    return f.summed(f.udp(source, destination, ports, **more))


def port_unreachable(source: str, destination: str, about: bytes, hops: int = 64) -> bytes:
    """As a program makes it."""
    kind, code = (1, 4) if f.is_v6(source) else (3, 3)
    return icmp_error(source, destination, kind, code, about, hops)


def icmp_error(source: str, destination: str, kind: int, code: int, about: bytes, hops: int = 64) -> bytes:
    """As a program makes it: the packet's IP header and 8 bytes more, no identification."""
    v6 = f.is_v6(source)
    quoted = about[: (40 if v6 else (about[0] & 15) * 4) + 8]
    packet = f.icmp(source, destination, kind, bytes(4) + quoted, code=code, hops=hops)
    return f.summed(packet if v6 else _without_identification(packet))


def refusal(source: str, destination: str, about: bytes) -> bytes:
    """What says that there is no backend: a reset of what is TCP, else an error."""
    v6 = f.is_v6(source)
    if about[6 if v6 else 9] != f.TCP:
        return port_unreachable(source, destination, about)
    there, here, number, answers, _, flags = struct.unpack_from("!HHIIBB", about, 40 if v6 else 20)
    acked = flags & f.ACK
    fields = (here, there, answers if acked else 0, 0 if acked else number + 1, 0x50, f.RST if acked else f.RST | f.ACK)
    packet = f.ip(source, destination, f.TCP, struct.pack("!HHIIBBHHH", *fields, 0, 0, 0))
    return f.summed(packet if v6 else _without_identification(packet))


def _without_identification(packet: bytes) -> bytes:
    head = packet[:4] + bytes(2) + packet[6:10] + bytes(2) + packet[12:20]
    return head[:10] + struct.pack("!H", f.checksum(head)) + head[12:] + packet[20:]


def refused(at: str, packet: bytes, **event: Any) -> Send:
    """A frame to a frontend without backends: sent back as an error."""
    v6 = packet[0] >> 4 == 6
    source, destination = (
        str(ipaddress.ip_address(packet[a:b])) for a, b in (((8, 24), (24, 40)) if v6 else ((12, 16), (16, 20)))
    )
    answer = f.ether(refusal(destination, source, packet), f.HOST_MAC, f.WORKLOAD_MAC)
    return Send("from_endpoint", f.ether(packet), "redirect", {"service_no_backend": 1}, at, out=answer,
                events=dropped("service_no_backend", direction="egress", source=source, destination=destination, **event))  # fmt: skip


def answered(at: str, sent: bytes, got: bytes, *events: Mapping[str, Any], via: str = "") -> Send:
    """A frame of the stack to an endpoint, changed."""
    return Send("to_endpoint", f.ether(sent), "pass", {"to_endpoint": 1}, at, via, out=f.ether(got), events=events)


def later_part(source: str, destination: str, **more: Any) -> bytes:
    """A later fragment, of the datagram that all others are of."""
    return f.ip(source, destination, f.UDP, b"x" * 16, fragment=1480, **more)


def flow_cases(family: int) -> List[Case]:
    """There and back, wherever the backend is; TCP and UDP alike."""
    x = ADDRESSES[family]
    a, b, c, t, world, host, front = x["a"], x["b"], x["c"], x["t"], x["world"], x["host"], FRONTENDS[family]
    second = SECOND[family]
    cases: List[Tuple[str, Tuple[Step, ...]]] = []
    makers: Tuple[Tuple[str, int, Callable[..., bytes]], ...] = (("TCP", f.TCP, tcp), ("UDP", f.UDP, udp))
    for name, protocol, make in makers:
        acked: Tuple[Any, ...] = (f.SYN | f.ACK,) if protocol == f.TCP else ()
        later: Tuple[Any, ...] = (f.ACK,) if protocol == f.TCP else ()

        def to(address: str, protocol: int = protocol) -> Frontend:
            return Frontend(front, PORT, protocol, ((address, BACKEND),))

        cases += [
            (f"{name}: a backend of this node, which policy and events know only; answers come from the frontend", (
                to(b),
                Policy("a", (Rule("egress", 11, IDENTITIES["b"], protocol, BACKEND),), ("egress", "ingress")),
                Policy("b", (Rule("ingress", 12, IDENTITIES["a"], protocol, BACKEND),), ("egress", "ingress")),
                local("a", "b", make(a, front, TO), make(a, b, TO_B, hops=63),
                      allowed("egress", 11, destination=b, destination_port=BACKEND, destination_identity=IDENTITIES["b"]),
                      allowed("ingress", 12, destination=b, destination_port=BACKEND)),
                local("b", "a", make(b, a, FROM_B, *acked), make(front, a, FROM, *acked, hops=63)),
                local("a", "b", make(a, front, TO, *later), make(a, b, TO_B, *later, hops=63)),
                local("b", "a", make(b, a, FROM_B, *later), make(front, a, FROM, *later, hops=63)),
            )),
            (f"{name}: a backend of another node, whose answers the stack forwards", (
                to(c),
                Policy("a", (Rule("egress", 11, IDENTITIES["c"]),), ("egress", "ingress")),
                tunnelled("a", make(a, front, TO), make(a, c, TO_B, hops=63), allowed("egress", 11, reason="to_tunnel")),
                answered("a", make(c, a, FROM_B, *acked), make(front, a, FROM, *acked), via="vxlan"),
                tunnelled("a", make(a, front, TO, *later), make(a, c, TO_B, *later, hops=63)),
            )),
            (f"{name}: a backend in the world, through the stack", (
                to(world),
                Policy("a", (Rule("egress", 11, IDENTITIES["world"]),), ("egress", "ingress")),
                Send("from_endpoint", f.ether(make(a, front, TO)), "pass", {"to_stack": 1}, "a",
                     out=f.ether(make(a, world, TO_B)), events=(allowed("egress", 11, destination=world),)),
                answered("a", make(world, a, FROM_B, *acked), make(front, a, FROM, *acked), via="eth0"),
            )),
            (f"{name}: a backend that is this host", (
                to(host),
                Send("from_endpoint", f.ether(make(a, front, TO)), "pass", {"to_stack": 1}, "a",
                     out=f.ether(make(a, host, TO_B)), events=(allowed("egress", destination_identity=1),)),
                answered("a", make(host, a, FROM_B, *acked), make(front, a, FROM, *acked)),
            )),
            (f"{name}: a client at a tap gets the frontend back at its own device, once", (
                to(b),
                Send("from_endpoint", f.ether(make(t, front, TO)), "redirect", {"to_endpoint": 1}, "t",
                     out=f.ether(make(t, b, TO_B, hops=63), *reversed(MACS["b"])), events=None),
                Send("from_endpoint", f.ether(make(b, t, FROM_B, *acked)), "redirect", {}, "b",
                     out=f.ether(make(b, t, FROM_B, *acked, hops=63)), events=()),
                answered("t", make(b, t, FROM_B, *acked), make(front, t, FROM, *acked), via="b"),
            )),
            (f"{name}: without backends it is refused at once, at a tap as well", (
                Frontend(front, PORT, protocol),
                Policy("a", (), ("egress", "ingress")),
                refused("a", make(a, front, TO), destination_port=PORT),
                refused("t", make(t, front, TO)),
                Send("to_endpoint", f.ether(refusal(front, t, make(t, front, TO))), "pass", {"service": 1}, "t", "t"),
            )),
            (f"{name}: nobody else passes off as such a refusal", (
                Frontend(front, PORT, protocol),
                Policy("t", (), ("ingress",)),
                denied("to_endpoint", "t", refusal(front, t, make(t, front, TO)), DEFAULT_DENY["ingress"], "ingress", via="eth0"),
                denied("to_endpoint", "t", refusal(front, t, make(t, front, (CLIENT, 81))), DEFAULT_DENY["ingress"], "ingress", via="eth0"),
                shot("from_endpoint", "t", refusal(front, t, make(t, front, TO)), "spoofed_source"),
            )),
            (f"{name}: the client alone is no backend of itself", (to(a), refused("a", make(a, front, TO)))),
            (f"{name}: a client among the backends is given another", (
                Frontend(front, PORT, protocol, (*((a, BACKEND + n) for n in range(63)), (b, BACKEND))),
                *(local("a", "b", make(a, front, (CLIENT + n, PORT)), make(a, b, (CLIENT + n, BACKEND), hops=63), allowed("egress"), allowed("ingress"))
                  for n in range(20)),
            )),
            (f"{name}: a frontend's other ports and protocols are nobody's", (
                to(b),
                to_stack("a", make(a, front, (CLIENT, PORT + 1)), allowed("egress", destination_identity=2)),
                to_stack("a", (udp if make is tcp else tcp)(a, front, TO), allowed("egress", destination_identity=2)),
            )),
            (f"{name}: the policy of the backend, and of the client, drop", (
                to(b),
                Policy("b", (Rule("ingress", 12, IDENTITIES["a"], protocol, PORT),), ("ingress",)),
                Send("from_endpoint", f.ether(make(a, front, TO)), "shot", {"denied_by_default": 1}, "a", events=None),
                Policy("a", (Rule("egress", 13, IDENTITIES["b"], action="deny"),), ("egress",)),
                denied("from_endpoint", "a", make(a, front, TO), 13, "egress"),
            )),
            (f"{name}: from an address that is not the sender's, nothing is chosen and nobody told", (
                to(b),
                shot("from_endpoint", "t", make(a, front, TO), "spoofed_source"),
                Frontend(front, PORT, protocol),
                shot("from_endpoint", "t", make(a, front, TO), "spoofed_source"),
            )),
            (f"{name}: a lost translation costs an answer, until the client's next packet", (
                to(b),
                local("a", "b", make(a, front, TO), make(a, b, TO_B, hops=63), allowed("egress"), allowed("ingress")),
                local("b", "a", make(b, a, FROM_B, *acked), make(front, a, FROM, *acked, hops=63)),
                Forget("translations"),
                shot("from_endpoint", "b", make(b, a, FROM_B, *later), "service_flow"),
                local("a", "b", make(a, front, TO, *later), make(a, b, TO_B, *later, hops=63)),
                local("b", "a", make(b, a, FROM_B, *later), make(front, a, FROM, *later, hops=63)),
            )),
            (f"{name}: two frontends with one backend, by turns: answers come from where the latest packet was sent", (
                to(b), Frontend(front, PORT + 1, protocol, ((b, BACKEND),)),
                local("a", "b", make(a, front, TO), make(a, b, TO_B, hops=63), allowed("egress"), allowed("ingress")),
                *(step for port in (PORT, PORT + 1, PORT, PORT, PORT + 1) for step in (
                    local("a", "b", make(a, front, (CLIENT, port), *later), make(a, b, TO_B, *later, hops=63)),
                    local("b", "a", make(b, a, FROM_B, *later), make(front, a, (port, CLIENT), *later, hops=63)),
                )),
            )),
            (f"{name}: a backend that is still listed is kept, one that is not loses its flows", (
                to(b),
                local("a", "b", make(a, front, TO), make(a, b, TO_B, hops=63), allowed("egress"), allowed("ingress")),
                Frontend(front, PORT, protocol, ((b, BACKEND), *((x["q"], n) for n in range(1, 30)), *((t, n) for n in range(1, 30))), 2),
                local("a", "b", make(a, front, TO, *later), make(a, b, TO_B, *later, hops=63)),
                Frontend(front, PORT, protocol, ((c, BACKEND),), 3),
                tunnelled("a", make(a, front, TO, *later), make(a, c, TO_B, *later, hops=63), allowed("egress")),
                Frontend(front, PORT, protocol),
                refused("a", make(a, front, TO, *later)),
            )),
            (f"{name}: judged anew, it stays translated", (
                to(b),
                local("a", "b", make(a, front, TO), make(a, b, TO_B, hops=63), allowed("egress"), allowed("ingress")),
                Policy("a", (Rule("egress", 14),), ("egress", "ingress")),
                local("b", "a", make(b, a, FROM_B, *acked), make(front, a, FROM, *acked, hops=63)),
                local("b", "a", make(b, a, FROM_B, *later), make(front, a, FROM, *later, hops=63)),
                Policy("a", (), ("egress", "ingress")),
                denied("from_endpoint", "a", make(a, front, TO, *later), DEFAULT_DENY["egress"], "egress"),
                Send("from_endpoint", f.ether(make(b, a, FROM_B, *later)), "shot", {"denied_by_default": 1}, "b", events=None),
                Policy("a", (Rule("egress", 14),), ("egress", "ingress")),
                local("b", "a", make(b, a, FROM_B, *later), make(front, a, FROM, *later, hops=63)),
            )),
            (f"{name}: what the backend is sent directly, it answers itself", (
                to(b),
                local("a", "b", make(a, front, TO), make(a, b, TO_B, hops=63), allowed("egress"), allowed("ingress")),
                local("a", "b", make(a, b, (CLIENT + 1, BACKEND)), make(a, b, (CLIENT + 1, BACKEND), hops=63), allowed("egress"), allowed("ingress")),
                local("b", "a", make(b, a, (BACKEND, CLIENT + 1), *acked), make(b, a, (BACKEND, CLIENT + 1), *acked, hops=63)),
                local("b", "a", make(b, a, FROM_B, *acked), make(front, a, FROM, *acked, hops=63)),
            )),
        ]  # fmt: skip
    cases += [
        ("a UDP flow that was there before the frontend stays, its next one does not", (
            to_stack("a", udp(a, front, TO), allowed("egress")),
            Frontend(front, PORT, f.UDP, ((b, BACKEND),)),
            to_stack("a", udp(a, front, TO)),
            local("a", "b", udp(a, front, (CLIENT + 1, PORT)), udp(a, b, (CLIENT + 1, BACKEND), hops=63), allowed("egress"), allowed("ingress")),
        )),
        ("one port, by turns to the backend itself and to the frontend: answered as the latest packet was sent", (
            Frontend(front, PORT, f.UDP, ((b, BACKEND),)),
            local("a", "b", udp(a, b, TO_B), udp(a, b, TO_B, hops=63), allowed("egress"), allowed("ingress")),
            local("b", "a", udp(b, a, FROM_B), udp(b, a, FROM_B, hops=63)),
            local("a", "b", udp(a, front, TO), udp(a, b, TO_B, hops=63)),
            local("b", "a", udp(b, a, FROM_B), udp(front, a, FROM, hops=63)),
            local("a", "b", udp(a, b, TO_B), udp(a, b, TO_B, hops=63)),
            local("b", "a", udp(b, a, FROM_B), udp(b, a, FROM_B, hops=63)),
        )),
        ("another endpoint that poses as the client changes nothing in how that is answered", (
            Frontend(front, PORT, f.UDP, ((c, BACKEND),)),
            Frontend(second, PORT, f.UDP, ((c, BACKEND),)),
            tunnelled("a", udp(a, front, TO), udp(a, c, TO_B, hops=63), allowed("egress")),
            tunnelled("a", udp(a, second, TO), udp(a, c, TO_B, hops=63)),
            answered("a", udp(c, a, FROM_B), udp(second, a, FROM), via="vxlan"),
            *(shot("from_endpoint", "b", udp(a, c, TO_B), "spoofed_source") for _ in range(2)),
            answered("a", udp(c, a, FROM_B), udp(second, a, FROM), via="vxlan"),
            shot("from_endpoint", "b", udp(a, front, TO), "spoofed_source"),
            answered("a", udp(c, a, FROM_B), udp(second, a, FROM), via="vxlan"),
            tunnelled("a", udp(a, c, TO_B), udp(a, c, TO_B, hops=63)),
            shot("from_endpoint", "b", udp(a, second, TO), "spoofed_source"),
            answered("a", udp(c, a, FROM_B), udp(c, a, FROM_B), via="vxlan"),
        )),
        ("what was denied as a frontend's and is allowed again as the backend's own is answered by that", (
            Frontend(front, PORT, f.UDP, ((b, BACKEND),)),
            local("a", "b", udp(a, front, TO), udp(a, b, TO_B, hops=63), allowed("egress"), allowed("ingress")),
            Policy("a", (), ("egress",)),
            denied("from_endpoint", "a", udp(a, front, TO), DEFAULT_DENY["egress"], "egress"),
            Policy("a", (), ()),
            local("a", "b", udp(a, b, TO_B), udp(a, b, TO_B, hops=63)),
            local("b", "a", udp(b, a, FROM_B), udp(b, a, FROM_B, hops=63)),
        )),
        ("a datagram in parts, there and back", (
            Frontend(front, PORT, f.UDP, ((b, BACKEND),)),
            Policy("b", (Rule("ingress", 12, IDENTITIES["a"], f.UDP, BACKEND),), ("egress", "ingress")),
            local("a", "b", f.udp(a, front, TO, more=True), f.udp(a, b, TO_B, more=True, hops=63), allowed("egress"), allowed("ingress", 12)),
            local("a", "b", later_part(a, front), later_part(a, b, hops=63)),
            local("b", "a", f.udp(b, a, FROM_B, more=True), f.udp(front, a, FROM, more=True, hops=63)),
            local("b", "a", later_part(b, a), later_part(front, a, hops=63)),
            local("a", "b", later_part(a, front), later_part(a, b, hops=63)),
        )),
        ("a datagram in parts to another node, and its answer by the stack", (
            Frontend(front, PORT, f.UDP, ((c, BACKEND),)),
            Policy("a", (Rule("egress", 12, IDENTITIES["c"], f.UDP, BACKEND),), ("egress", "ingress")),
            tunnelled("a", f.udp(a, front, TO, more=True), f.udp(a, c, TO_B, more=True, hops=63), allowed("egress", 12)),
            tunnelled("a", later_part(a, front), later_part(a, c, hops=63)),
            answered("a", f.udp(c, a, FROM_B, more=True), f.udp(front, a, FROM, more=True), via="vxlan"),
            answered("a", later_part(c, a), later_part(front, a), via="vxlan"),
        )),
        ("a later fragment before its first is nobody's; without backends none is answered", (
            Frontend(front, PORT, f.UDP, ((b, BACKEND),)),
            Policy("a", (Rule("egress", 12, IDENTITIES["b"]),), ("egress",)),
            shot("from_endpoint", "a", later_part(a, front), "fragment"),
            local("a", "b", f.udp(a, front, TO, more=True), f.udp(a, b, TO_B, more=True, hops=63), allowed("egress", 12), allowed("ingress")),
            local("a", "b", later_part(a, front), later_part(a, b, hops=63)),
            Frontend(front, PORT, f.UDP),
            shot("from_endpoint", "a", later_part(a, front), "service_no_backend"),
        )),
        ("a reset to a frontend without backends is answered by nothing", (
            Frontend(front, PORT, f.TCP),
            shot("from_endpoint", "a", tcp(a, front, TO, f.RST), "service_no_backend"),
        )),
    ]  # fmt: skip
    return [Case(name, steps, family) for name, steps in cases]


def error_cases(family: int) -> List[Case]:
    """ICMP errors about a translated flow are about the frontend."""
    x = ADDRESSES[family]
    a, b, c, gateway, front = x["a"], x["b"], x["c"], x["gateway"], FRONTENDS[family]
    start = 40 if family == 6 else 20

    def error(source: str, about: bytes, hops: int = 64, size: int = 64, to: str = a) -> bytes:
        kind, code = (1, 4) if family == 6 else (3, 3)
        return f.summed(f.icmp(source, to, kind, bytes(4) + about[:size], code=code, hops=hops))

    cases: List[Tuple[str, Tuple[Step, ...]]] = []
    for name, protocol, make in (("TCP", f.TCP, tcp), ("UDP", f.UDP, udp)):
        service = Frontend(front, PORT, protocol, ((b, BACKEND),))
        opened = local("a", "b", make(a, front, TO), make(a, b, TO_B, hops=63), allowed("egress"), allowed("ingress"))
        remote = tunnelled("a", make(a, front, TO), make(a, c, TO_B, hops=63), allowed("egress"))
        sent, meant = make(a, b, TO_B), make(a, front, TO)
        cases += [
            (f"{name}: of the backend", (
                service, opened, local("b", "a", error(b, sent), error(front, meant, hops=63)),
            )),
            (f"{name}: that carries no more than 8 bytes of it", (
                service, opened,
                local("b", "a", error(b, sent, size=start + 8), error(front, meant, hops=63, size=start + 8)),
            )),
            (f"{name}: of a router on the way, which stays its sender", (
                Frontend(front, PORT, protocol, ((c, BACKEND),)), remote,
                answered("a", error(gateway, make(a, c, TO_B)), error(gateway, meant)),
            )),
            (f"{name}: of the client about an answer", (
                service, opened,
                local("a", "b", error(a, make(front, a, FROM), to=front), error(a, make(b, a, FROM_B), to=b, hops=63)),
            )),
            (f"{name}: of the client about an answer from another node", (
                Frontend(front, PORT, protocol, ((c, BACKEND),)), remote,
                tunnelled("a", error(a, make(front, a, FROM), to=front), error(a, make(c, a, FROM_B), to=c, hops=63)),
            )),
            (f"{name}: of the client about an answer to nothing it sent", (
                service, opened,
                Policy("a", (Rule("egress", 13, IDENTITIES["b"]),), ("egress",)),
                denied("from_endpoint", "a", error(a, make(front, a, (PORT, CLIENT + 1)), to=front), DEFAULT_DENY["egress"], "egress"),
                local("a", "b", error(a, make(front, a, FROM), to=front), error(a, make(b, a, FROM_B), to=b, hops=63)),
            )),
            (f"{name}: about another flow, untouched", (
                service, opened,
                local("a", "b", make(a, b, (CLIENT + 1, BACKEND)), make(a, b, (CLIENT + 1, BACKEND), hops=63), allowed("egress"), allowed("ingress")),
                local("b", "a", error(b, make(a, b, (CLIENT + 1, BACKEND))), error(b, make(a, b, (CLIENT + 1, BACKEND)), hops=63)),
            )),
            (f"{name}: whose translation is lost", (
                service, opened, Forget("translations"), shot("from_endpoint", "b", error(b, sent), "service_flow"),
            )),
        ]  # fmt: skip
    # A UDP checksum of 0 says that there is none: it stays so, in a packet and in one that an error carries.
    if family == 4:
        service, bare = Frontend(front, PORT, f.UDP, ((b, BACKEND),)), f.udp
        cases.append(("UDP without a checksum", (
            service,
            local("a", "b", bare(a, front, TO), bare(a, b, TO_B, hops=63), allowed("egress"), allowed("ingress")),
            local("b", "a", bare(b, a, FROM_B), bare(front, a, FROM, hops=63)),
            local("b", "a", error(b, bare(a, b, TO_B)), error(front, bare(a, front, TO), hops=63)),
        )))  # fmt: skip
    return [Case(f"an error, {name}", steps, family) for name, steps in cases]


def odd_cases() -> List[Case]:
    """Headers longer than usual."""
    a, b, front = ADDRESSES[4]["a"], ADDRESSES[4]["b"], FRONTENDS[4]
    a6, front6 = ADDRESSES[6]["a"], FRONTENDS[6]
    options = bytes([1] * 40)
    destination = [(60, bytes(7))]
    found = [
        Case("IPv4 options: refused with all of them", (Frontend(front, PORT, f.UDP), refused("a", f.udp(a, front, TO, options=options)))),
        Case("IPv4 options: balanced", (
            Frontend(front, PORT, f.UDP, ((b, BACKEND),)),
            local("a", "b", f.udp(a, front, TO, options=options), f.udp(a, b, TO_B, options=options, hops=63), allowed("egress"), allowed("ingress")),
        )),
        Case("IPv6 extension headers: not answered", (
            Frontend(front6, PORT, f.UDP),
            shot("from_endpoint", "a", f.udp(a6, front6, TO, extensions=destination), "service_no_backend"),
        ), 6),
        Case("IPv6 extension headers: balanced", (
            Frontend(front6, PORT, f.UDP, ((ADDRESSES[6]["b"], BACKEND),)),
            local("a", "b", f.udp(a6, front6, TO, extensions=destination),
                  f.udp(a6, ADDRESSES[6]["b"], TO_B, extensions=destination, hops=63), allowed("egress"), allowed("ingress")),
        ), 6),
    ]  # fmt: skip
    return found

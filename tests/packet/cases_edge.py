"""Cases at the edges: what cannot be parsed, what always passes, and the underlay's and tunnel's devices."""

# ruff: noqa: E501 - a row of a table is read as one line
from __future__ import annotations

import struct
from typing import List, Tuple

from tests.packet import frames as f
from tests.packet.cases_endpoint import PORTS, allowed, denied, dropped, local, shot
from tests.packet.world import ADDRESSES, DEFAULT_DENY, DEVICES, IDENTITIES, TUNNEL_PORT, Case, Policy, Send

FROM = "from_endpoint"


def _passes(name: str, program: str, at: str, frame: bytes, reason: str, via: str = "") -> Case:
    return Case(name, (Send(program, frame, "pass", {reason: 1}, at, via, out=frame),))


def _one_more(packet: bytes) -> bytes:
    """The same IPv4 packet with a checksum greater by one."""
    return packet[:10] + struct.pack("!H", (struct.unpack("!H", packet[10:12])[0] + 1) & 0xFFFF) + packet[12:]


def malformed_v4() -> List[Case]:
    """IPv4 headers that lie."""
    x = ADDRESSES[4]
    a, b = x["a"], x["b"]
    good = f.tcp(a, b, PORTS)

    def patched(at: int, data: bytes) -> bytes:
        return good[:at] + data + good[at + len(data) :]

    def lying(at: int, data: bytes) -> bytes:
        return f.with_ip_checksum(patched(at, data))

    with_options = f.udp(a, b, PORTS, options=b"\x01" * 40)
    cases: List[Tuple[str, bytes, str]] = [
        ("version 5", patched(0, b"\x55"), "malformed"),
        ("header of 4 words", patched(0, b"\x44"), "malformed"),
        ("total length less than the header", lying(2, struct.pack("!H", 19)), "malformed"),
        ("total length 0, which only the kernel's own may say", lying(2, bytes(2)), "malformed"),
        ("total length beyond the frame", lying(2, struct.pack("!H", len(good) + 1)), "truncated"),
        ("options beyond the packet", lying(0, b"\x4f"), "malformed"),
        ("no checksum", patched(10, bytes(2)), "malformed"),
        ("a TTL that the checksum does not know", patched(8, b"\x3f"), "malformed"),
        ("a source that the checksum does not know", patched(15, b"\xfe"), "malformed"),
        ("options that the checksum does not know", with_options[:59] + b"\0" + with_options[60:], "malformed"),
        ("a later fragment with a wrong checksum", _one_more(f.ip(a, b, f.UDP, b"x" * 16, fragment=8)), "malformed"),
        ("no room for TCP", f.ip(a, b, f.TCP, bytes(19)), "truncated"),
        ("TCP header of 4 words", f.ip(a, b, f.TCP, bytes(12) + b"\x40" + bytes(7)), "malformed"),
        ("TCP options beyond the packet", f.ip(a, b, f.TCP, bytes(12) + b"\xf0\x02" + bytes(6)), "truncated"),
        ("no room for UDP", f.ip(a, b, f.UDP, bytes(7)), "truncated"),
        ("no room for SCTP", f.ip(a, b, f.SCTP, bytes(11)), "truncated"),
        ("no room for ICMP", f.ip(a, b, f.ICMP, bytes(7)), "truncated"),
        ("ICMPv6 in IPv4", f.ip(a, b, f.ICMP6, b"\x80" + bytes(7)), "malformed"),
        ("an option of length 0", f.udp(a, b, PORTS, options=b"\x07\x00\x04\x00"), "malformed"),
        ("an option of length 1", f.udp(a, b, PORTS, options=b"\x01\x07\x01\x00"), "malformed"),
        ("an option beyond the header", f.udp(a, b, PORTS, options=b"\x01\x07\x04\x00"), "malformed"),
        ("an option without a length", f.udp(a, b, PORTS, options=b"\x01\x01\x01\x07"), "malformed"),
        ("the 40th byte an option", f.udp(a, b, PORTS, options=b"\x01" * 39 + b"\x07"), "malformed"),
        *_transports(a, b),
    ]
    found = [Case(name, (shot(FROM, "a", packet, reason, kind=0x0800),)) for name, packet, reason in cases]
    found.append(
        Case(
            "options are skipped",
            (
                local(
                    "a",
                    "b",
                    f.udp(a, b, PORTS, options=b"\x01" * 8),
                    f.udp(a, b, PORTS, options=b"\x01" * 8, hops=63),
                    allowed("egress", destination_port=80),
                    allowed("ingress", destination_port=80),
                ),
            ),
        )
    )
    for name, options in [
        ("an option as long as the header", b"\x07\x27" + bytes(38)),
        ("options of every kind", b"\x01\x94\x04\x00\x00\x01\x82\x02"),
        ("what follows the end of options", b"\x01\x00\x07\x00"),
    ]:
        events = [allowed(direction, protocol=f.UDP, destination_port=80) for direction in ("egress", "ingress")]
        sent, out = (f.udp(a, b, PORTS, options=options, hops=hops) for hops in (64, 63))
        found.append(Case(f"{name}: skipped", (local("a", "b", sent, out, *events),)))
    return found


def _transports(a: str, b: str) -> List[Tuple[str, bytes, str]]:
    """Transport headers that lie, or say what no stack does. Of either family."""

    def udp(length: int, **more: object) -> bytes:
        return f.ip(a, b, f.UDP, struct.pack("!HHHH", *PORTS, length, 0) + b"12345678", **more)  # type: ignore[arg-type]

    flags = {"none": 0, "SYN and FIN": 3, "SYN and RST": 6, "FIN alone": 1, "all": 0x3F, "PSH and URG": 0x28}
    return [
        ("UDP of length 0", udp(0), "malformed"),
        ("UDP of length 7", udp(7), "malformed"),
        ("UDP longer than its packet", udp(17), "truncated"),
        ("UDP longer than its packet, though not than its frame", udp(17) + bytes(18), "truncated"),
        ("no room for TCP in the packet, though in the frame", f.ip(a, b, f.TCP, bytes(19)) + bytes(18), "truncated"),
        ("a first fragment of UDP of length 7", udp(7, more=True), "malformed"),
        ("a fragment that ends beyond 65535", f.ip(a, b, f.UDP, b"x" * 16, fragment=65528), "malformed"),
        *((f"TCP with flags: {name}", f.tcp(a, b, PORTS, value), "malformed") for name, value in flags.items()),
    ]


def sound_transports(family: int) -> List[Case]:
    """Lengths that are no lie: of a datagram in parts, and with bytes behind the datagram."""
    a, b = ADDRESSES[family]["a"], ADDRESSES[family]["b"]
    events = [allowed(direction, protocol=f.UDP, destination_port=80) for direction in ("egress", "ingress")]
    found = []
    for name, length, more in (("a first fragment has the length of all", 3000, True), ("padded", 12, False)):
        body = struct.pack("!HHHH", *PORTS, length, 0) + b"12345678"
        sent, out = (f.ip(a, b, f.UDP, body, more=more, hops=hops) for hops in (64, 63))
        found.append(Case(f"UDP, {name}", (local("a", "b", sent, out, *events),), family))
    last = f.ether(f.ip(a, b, f.UDP, b"x" * 7, fragment=65528))
    step = Send(FROM, last, "redirect", {"to_endpoint": 1}, "a", out=None, events=None)
    found.append(Case("a fragment that ends at 65535", (step,), family))
    return found


def malformed_v6() -> List[Case]:
    """IPv6 headers that lie, and extension headers."""
    x = ADDRESSES[6]
    a, b = x["a"], x["b"]
    good = f.tcp(a, b, PORTS)
    pad = b"\x00\x01\x04\x00\x00\x00\x00"  # rest of an options header of 8 bytes
    cases: List[Tuple[str, bytes, str]] = [
        ("version 4 under IPv6's type", b"\x45" + good[1:], "malformed"),
        ("payload of 0, which only the kernel's own may say", good[:4] + bytes(2) + good[6:], "truncated"),
        ("payload beyond the frame", good[:4] + struct.pack("!H", len(good) - 39) + good[6:], "truncated"),
        ("mapped source", f.ip("::ffff:10.1.0.1", b, f.UDP, f.udp_header(*PORTS)), "malformed"),
        ("mapped destination", f.ip(a, "::ffff:10.1.0.2", f.UDP, f.udp_header(*PORTS)), "malformed"),
        ("ICMP in IPv6", f.ip(a, b, f.ICMP, b"\x08" + bytes(7)), "malformed"),
        ("extension beyond the packet", f.ip(a, b, 0, bytes([f.UDP, 3]) + bytes(6)), "truncated"),
        ("extension without an end", f.ip(a, b, 60, bytes([f.UDP])), "truncated"),
        (
            "more extensions than are looked at",
            f.ip(a, b, f.UDP, f.udp_header(*PORTS), extensions=[(60, pad)] * 6),
            "extension_headers",
        ),
        (
            "no room for TCP behind extensions",
            f.ip(a, b, f.TCP, bytes(19), extensions=[(0, pad), (43, pad)]),
            "truncated",
        ),
        *_transports(a, b),
    ]
    found = [Case(name, (shot(FROM, "a", packet, reason, kind=0x86DD),), 6) for name, packet, reason in cases]
    authentication = b"\x04" + bytes(22)  # 4 + 2 words, less the first byte
    for name, extensions in [
        ("hop-by-hop, routing and destination options", [(0, pad), (43, pad), (60, pad)]),
        ("five extensions", [(60, pad)] * 5),
        ("authentication", [(51, authentication)]),
        ("a fragment header with offset 0", [(44, bytes(7))]),
    ]:
        packet = f.udp(a, b, PORTS, extensions=extensions)
        sent = f.udp(a, b, PORTS, extensions=extensions, hops=63)
        events = [allowed(direction, protocol=f.UDP, destination_port=80) for direction in ("egress", "ingress")]
        found.append(Case(f"{name}: skipped", (local("a", "b", packet, sent, *events),), 6))
    return found


def always_cases() -> List[Case]:
    """Between a workload and its gateway; and what only looks like it."""
    x4, x6 = ADDRESSES[4], ADDRESSES[6]
    arp = f.ether(bytes(28), kind=0x0806)
    solicit = bytes(4) + bytes(16)

    def nd(source: str, destination: str, kind: int = 135, hops: int = 255) -> bytes:
        return f.icmp(source, destination, kind, solicit, hops=hops)

    gateway_ll, own_ll = "fe80::1", "fe80::a"
    found = [
        _passes("ARP from a workload", FROM, "a", arp, "neighbour"),
        _passes("ARP from a waiting workload", FROM, "q", arp, "neighbour"),
        _passes("ARP to a workload", "to_endpoint", "a", arp, "neighbour"),
        _passes("solicitation to the group", FROM, "a", f.ether(nd(x6["a"], "ff02::1:ff00:1")), "neighbour"),
        _passes("solicitation of the waiting", FROM, "q", f.ether(nd("::", "ff02::1:ff00:1")), "neighbour"),
        _passes("router solicitation", FROM, "a", f.ether(nd(own_ll, "ff02::2", 133)), "neighbour"),
        _passes("advertisement to the gateway", FROM, "a", f.ether(nd(own_ll, gateway_ll, 136)), "neighbour"),
        _passes("solicitation to the gateway", FROM, "a", f.ether(nd(x6["a"], x6["gateway"])), "neighbour"),
        _passes("solicitation by the host", "to_endpoint", "a", f.ether(nd(gateway_ll, x6["a"])), "neighbour"),
        _passes(
            "DHCP discovery",
            FROM,
            "q",
            f.ether(f.udp("0.0.0.0", "255.255.255.255", (68, 67))),
            "neighbour",
        ),
        _passes("DHCP renewal", FROM, "a", f.ether(f.udp(x4["a"], x4["gateway"], (68, 67))), "neighbour"),
        _passes("DHCPv6", FROM, "a", f.ether(f.udp(own_ll, "ff02::1:2", (546, 547))), "neighbour"),
        _passes("DHCP offer", "to_endpoint", "a", f.ether(f.udp(x4["gateway"], x4["a"], (67, 68))), "neighbour"),
    ]
    drops: List[Tuple[str, Send]] = [
        ("solicitation with a used hop limit", shot(FROM, "a", nd(own_ll, "ff02::1:ff00:1", hops=254), "multicast")),
        ("solicitation to the world, from no own address", shot(FROM, "a", nd(own_ll, x6["world"]), "spoofed_source")),
        ("DHCP to the world, from no own address", shot(FROM, "a", f.udp("0.0.0.0", x4["world"], (68, 67)), "spoofed_source")),
        ("a router's advertisement to all", shot(FROM, "a", nd(own_ll, "ff02::1", 134), "multicast")),
        ("a router's advertisement to the gateway", shot(FROM, "a", nd(own_ll, gateway_ll, 134), "spoofed_source")),
        *((f"ICMPv6 type {kind}, beside discovery's", shot(FROM, "a", nd(own_ll, gateway_ll, kind), "spoofed_source")) for kind in (132, 138)),
        ("a redirect by a workload", shot(FROM, "a", nd(own_ll, gateway_ll, 137), "spoofed_source")),
        ("DHCP by a neighbour's address", shot(FROM, "a", f.udp(x4["b"], "255.255.255.255", (68, 67)), "multicast")),
        ("DHCPv6 by a neighbour's address", shot(FROM, "a", f.udp(x6["b"], "ff02::1:2", (546, 547)), "multicast")),
        ("DHCP's ports the other way round", shot(FROM, "a", f.udp("0.0.0.0", "255.255.255.255", (67, 68)), "multicast")),
        ("a multicast group", shot(FROM, "a", f.udp(x4["a"], "224.0.0.251", (5353, 5353)), "multicast")),
        ("an IPv6 multicast group", shot(FROM, "a", f.udp(x6["a"], "ff02::fb", (5353, 5353)), "multicast")),
        ("multicast to a workload", shot("to_endpoint", "a", f.udp(x4["host"], "224.0.0.1", PORTS), "multicast")),
        ("another protocol", shot(FROM, "a", bytes(60), "unsupported", kind=0x88CC)),
        ("a VLAN tag", shot(FROM, "a", b"\x00\x05\x08\x00" + f.tcp(x4["a"], x4["b"], PORTS), "unsupported", kind=0x8100)),
    ]  # fmt: skip
    found += [Case(name, (step,)) for name, step in drops]
    closed, out = Policy("a", (), ("egress",)), DEFAULT_DENY["egress"]
    judged = [
        ("DHCP to a workload, here or elsewhere", [f.udp(x4["a"], x4[to], (68, 67)) for to in ("b", "c")]),
        ("DHCPv6 to a workload, here or elsewhere", [f.udp(x6["a"], x6[to], (546, 547)) for to in ("b", "c")]),
        ("a solicitation to a workload, here or elsewhere", [nd(x6["a"], x6[to]) for to in ("b", "c")]),
        ("DHCP's ports of another protocol", [f.tcp(x4["a"], x4["gateway"], (68, 67), f.ACK)]),
        ("DHCPv6's ports of another protocol", [f.sctp(x6["a"], x6["gateway"], (546, 547))]),
        ("DHCP's ports of another family", [f.udp(x6["a"], x6["gateway"], (68, 67)), f.udp(x4["a"], x4["gateway"], (546, 547))]),
        ("from a client's port of DHCP, to another; to the server's, from another", [
            f.udp(x4["a"], x4["gateway"], (68, 68)), f.udp(x4["a"], x4["gateway"], (67, 67)),
        ]),
    ]  # fmt: skip
    found += [
        Case(f"{name}: judged", (closed, *(denied(FROM, "a", packet, out, "egress") for packet in packets)))
        for name, packets in judged
    ]
    forwarded = f.ether(nd(gateway_ll, x6["a"]))
    event = {"verdict": "allow", "source_identity": 2, "protocol": f.ICMP6}
    found.append(
        Case(
            "a forwarded solicitation is judged as ICMPv6 from the world",
            (Send("to_endpoint", forwarded, "pass", {"to_endpoint": 1}, "a", "eth0", events=(event,)),),
            6,
        )
    )
    return found


def device_cases(family: int) -> List[Case]:
    """At the underlay and at the tunnel's egress."""
    x = ADDRESSES[family]
    node2 = x["node2"]

    def at(program: str, device: str, packet: bytes, action: str, reason: str, **event: object) -> Send:
        frame = f.ether(packet)
        events = dropped(reason, **event) if action == "shot" else ()
        return Send(program, frame, action, {reason: 1}, device, out=frame, events=events)

    vxlan = (f.TUNNEL_SOURCE, TUNNEL_PORT)
    under, tunnel = "from_underlay", "to_tunnel"
    cases: List[Tuple[str, Send]] = [
        ("a member's tunnel packet", at(under, "eth0", f.udp(node2, x["host"], vxlan), "pass", "underlay")),
        ("from the lowest port of a tunnel device", at(under, "eth0", f.udp(node2, x["host"], (665, TUNNEL_PORT)), "pass", "underlay")),
        ("from the highest", at(under, "eth0", f.udp(node2, x["host"], (1023, TUNNEL_PORT)), "pass", "underlay")),
        ("a tunnel packet of a member's process", at(under, "eth0", f.udp(node2, x["host"], (50000, TUNNEL_PORT)), "shot",
                                                     "tunnel_source_port", source_identity=6)),
        ("from a port just below a tunnel device's", at(under, "eth0", f.udp(node2, x["host"], (664, TUNNEL_PORT)), "shot", "tunnel_source_port")),
        ("from a port just above", at(under, "eth0", f.udp(node2, x["host"], (1024, TUNNEL_PORT)), "shot", "tunnel_source_port")),
        ("a stranger's tunnel packet", at(under, "eth0", f.udp(x["world"], x["host"], vxlan), "shot", "underlay_tunnel",
                                          source_identity=2, hook="from_underlay", ifindex=DEVICES["eth0"])),
        ("a tunnel packet from a workload's address", at(under, "eth0", f.udp(x["c"], x["host"], vxlan), "shot", "underlay_tunnel")),
        ("a tunnel packet from this host's own address",
         at(under, "eth0", f.udp(x["gateway"], x["host"], vxlan), "shot", "underlay_tunnel")),
        ("bare, from a workload elsewhere", at(under, "eth0", f.tcp(x["c"], x["a"], PORTS), "shot", "underlay_workload",
                                               source_identity=IDENTITIES["c"])),
        ("bare, from a workload here", at(under, "eth0", f.tcp(x["b"], x["a"], PORTS), "shot", "underlay_workload")),
        ("bare, from a waiting workload", at(under, "eth0", f.tcp(x["q"], x["a"], PORTS), "shot", "underlay_workload")),
        ("a bare fragment from a workload", at(under, "eth0", f.ip(x["c"], x["a"], f.UDP, b"x" * 8, fragment=8), "shot", "underlay_workload")),
        ("bare, from a member", at(under, "eth0", f.tcp(node2, x["host"], PORTS), "pass", "underlay")),
        ("bare, from the world", at(under, "eth0", f.tcp(x["world"], x["host"], PORTS), "pass", "underlay")),
        ("bare, from this host's own address, which in the tunnel would be a node's",
         at(under, "eth0", f.udp(x["host"], x["c"], PORTS), "shot", "spoofed_source", source_identity=1)),
        ("bare, from this host's own address, to itself", at(under, "eth0", f.tcp(x["host"], x["host"], PORTS), "pass", "underlay")),
        ("the host's own packet", at(tunnel, "vxlan", f.tcp(x["host"], x["c"], PORTS), "pass", "to_tunnel")),
        ("a packet that the host forwards", at(tunnel, "vxlan", f.tcp(x["world"], x["c"], PORTS), "shot", "not_host_source")),
        ("a workload's packet that took the stack", at(tunnel, "vxlan", f.tcp(x["a"], x["c"], PORTS), "shot", "not_host_source")),
        ("to nowhere in the tunnel", at(tunnel, "vxlan", f.tcp(x["host"], x["world"], PORTS), "shot", "unknown_destination")),
        ("to an endpoint here, into the tunnel", at(tunnel, "vxlan", f.tcp(x["host"], x["a"], PORTS), "shot", "unknown_destination")),
    ]  # fmt: skip
    found = [Case(name, (step,), family) for name, step in cases]
    broken = f.ether(f.tcp(node2, x["host"], PORTS)[:45], kind=0x86DD if family == 6 else 0x0800)
    found.append(_passes("what is broken is the stack's to refuse", under, "eth0", broken, "underlay"))
    lie = struct.pack("!HHHH", *vxlan, 0, 0) + b"12345678"  # a stack may take IPv6's for a jumbogram's
    found += [
        Case(
            "a stranger's tunnel packet that lies about its length",
            (at(under, "eth0", f.ip(x["world"], x["host"], f.UDP, lie), "shot", "underlay_tunnel"),),
            family,
        ),
        Case(
            "a tunnel packet of a member's process that lies about its length",
            (at(under, "eth0", f.ip(node2, x["host"], f.UDP, b"\xc3\x50" + lie[2:]), "shot", "tunnel_source_port"),),
            family,
        ),
        Case(
            "the start of one that comes in fragments",
            (
                at(
                    under,
                    "eth0",
                    f.ip(node2, x["host"], f.UDP, b"\xc3\x50" + lie[2:4] + b"\x10\0\0\0" + lie[8:], more=True),
                    "shot",
                    "tunnel_source_port",
                ),
            ),
            family,
        ),
        Case(
            "bare, from a workload, with flags that no stack takes",
            (at(under, "eth0", f.tcp(x["c"], x["a"], PORTS, 0), "shot", "underlay_workload"),),
            family,
        ),
    ]
    if family == 6:
        hidden = f.udp(x["world"], x["host"], vxlan, extensions=[(60, b"\x00\x01\x04\x00\x00\x00\x00")])
        step = at(under, "eth0", hidden, "shot", "underlay_tunnel")
        found.append(Case("a stranger's tunnel packet behind an extension header", (step,), 6))
        mapped = f.ip("::ffff:10.2.0.1", x["host"], f.UDP, f.udp_header(*PORTS))
        found.append(Case("a mapped source is no workload's", (at(under, "eth0", mapped, "pass", "underlay"),), 6))
    return found

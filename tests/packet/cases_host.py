"""Cases of a node that a policy selects: what its own stack receives and sends, at every hook where that passes."""

# ruff: noqa: E501 - a row of a table is read as one line
from __future__ import annotations

from typing import Any, List, Mapping, Tuple

from tests.packet import frames as f
from tests.packet.cases_endpoint import BACK, PORTS, Step, allowed, denied, from_stack, shot, to_stack
from tests.packet.modelled import LATE
from tests.packet.world import (
    ADDRESSES,
    DEFAULT_DENY,
    IDENTITIES,
    TUNNEL_PORT,
    Case,
    Move,
    Policy,
    Rule,
    Send,
    address_record,
    icmp_of,
)

IN, OUT = DEFAULT_DENY["ingress"], DEFAULT_DENY["egress"]
CLOSED = Policy("host", (), ("ingress", "egress"))
FROM, TO = "from_underlay", "to_underlay"
OTHER_DEVICE = "nobody"


def only(*rules: Rule) -> Policy:
    """A host that is closed both ways but for these rules."""
    return Policy("host", rules, ("ingress", "egress"))


def came(packet: bytes, *events: Mapping[str, Any], kind: int = 0) -> Send:
    """A frame of the network that the stack gets untouched."""
    frame = f.ether(packet, kind=kind)
    return Send(FROM, frame, "pass", {"underlay": 1}, "eth0", out=frame, events=events)


def left(packet: bytes, *events: Mapping[str, Any], reason: str = "underlay", via: str = "", kind: int = 0) -> Send:
    """A frame that leaves untouched; `via`: it came in by that device and is only forwarded."""
    frame = f.ether(packet, kind=kind)
    return Send(TO, frame, "pass", {reason: 1}, "eth0", via, out=frame, events=events)


def no_entry(packet: bytes, rule: int = IN) -> Send:
    """Denied on its way in."""
    return denied(FROM, "eth0", packet, rule, "ingress")


def no_exit(packet: bytes, rule: int = OUT) -> Send:
    """Denied on its way out."""
    return denied(TO, "eth0", packet, rule, "egress")


def underlay_cases(family: int) -> List[Case]:
    """With the world and with other nodes, by an underlay device."""
    x = ADDRESSES[family]
    me, world, member, a, c = x["host"], x["world"], x["node2"], x["a"], x["c"]
    icmp = icmp_of(family)
    http_in = Rule("ingress", 71, 2, f.TCP, 80)
    echo_in = Rule("ingress", 72, 2, icmp)
    udp_out = Rule("egress", 73, 2, f.UDP, 80)
    cases: List[Tuple[str, Tuple[Step, ...]]] = [
        ("open where no policy selects a direction, with an event", (
            came(f.tcp(world, me, PORTS), allowed("ingress", reason="to_stack", source_identity=2, destination_identity=1, hook=FROM)),
            left(f.tcp(me, world, BACK, f.SYN | f.ACK)),
            left(f.tcp(me, world, PORTS), allowed("egress", reason="underlay", source_identity=1, destination_identity=2, hook=TO)),
        )),
        ("by identity, protocol and port; replies follow", (
            only(http_in),
            came(f.tcp(world, me, PORTS), allowed("ingress", 71)),
            left(f.tcp(me, world, BACK, f.SYN | f.ACK)),
            came(f.tcp(world, me, PORTS, f.ACK)),
            left(f.tcp(me, world, BACK, f.FIN | f.ACK)),
            no_entry(f.tcp(world, me, (40000, 81))),
            no_entry(f.udp(world, me, PORTS)),
            no_entry(f.tcp(member, me, PORTS)),
        )),
        ("another node is remote-node", (
            only(Rule("ingress", 74, 6), Rule("egress", 75, 6)),
            came(f.tcp(member, me, PORTS), allowed("ingress", 74, source_identity=6)),
            left(f.udp(me, member, PORTS), allowed("egress", 75, destination_identity=6)),
            no_entry(f.tcp(world, me, PORTS)),
            no_exit(f.udp(me, world, PORTS)),
        )),
        ("outward; replies follow, other answers do not", (
            only(udp_out),
            left(f.udp(me, world, PORTS), allowed("egress", 73)),
            came(f.udp(world, me, BACK)),
            no_entry(f.udp(world, me, (81, 40000))),
            no_exit(f.udp(me, world, (40000, 81))),
        )),
        ("an answer to nothing", (only(http_in), shot(FROM, "eth0", f.tcp(world, me, BACK, f.SYN | f.ACK), "no_connection"))),
        ("echo, and its reply", (
            only(echo_in), came(f.echo(world, me, 7), allowed("ingress", 72)), left(f.echo(me, world, 7, reply=True)),
            shot(TO, "eth0", f.echo(me, world, 8, reply=True), "no_connection"),
        )),
        ("a deny beats", (only(http_in, Rule("ingress", 76, 0, f.TCP, 80, "deny")), no_entry(f.tcp(world, me, PORTS), 76))),
        ("a policy that changes ends what it had allowed", (
            only(http_in), came(f.tcp(world, me, PORTS), allowed("ingress", 71)),
            only(), no_entry(f.tcp(world, me, PORTS, f.ACK)), no_exit_of_reply(me, world),
            only(http_in), came(f.tcp(world, me, PORTS, f.ACK)), left(f.tcp(me, world, BACK, f.ACK)),
        )),
        ("TCP in mid-stream is judged as new", (
            only(http_in), came(f.tcp(world, me, PORTS, f.ACK), allowed("ingress", 71)), left(f.tcp(me, world, BACK, f.ACK)),
            no_entry(f.tcp(world, me, (40000, 81), f.ACK)), no_exit(f.tcp(me, world, (81, 40000), f.ACK)),
        )),
        ("a stray reset passes by a rule and opens nothing", (
            only(http_in), came(f.tcp(world, me, PORTS, f.RST), allowed("ingress", 71)), no_exit(f.tcp(me, world, BACK, f.ACK)),
        )),
        ("an ICMP error of any router about the host's own connection", (
            only(udp_out), left(f.udp(me, world, PORTS), allowed("egress", 73)),
            came(f.too_big(c_router(family), me, f.udp(me, world, PORTS))),
            no_entry(f.too_big(c_router(family), me, f.udp(me, world, (40001, 80)))),
            no_entry(f.unreachable(world, me, f.udp(a, world, PORTS))),
        )),
        ("the host reports about what it received, not about what it did not let in", (
            only(http_in), came(f.tcp(world, me, PORTS), allowed("ingress", 71)),
            left(f.unreachable(me, world, f.tcp(world, me, PORTS))),
            no_exit(f.unreachable(me, world, f.tcp(world, me, (40000, 81)))),
        )),
        ("the host reports about what it forwards", (CLOSED, left(f.too_big(me, world, f.udp(world, a, PORTS))))),
        ("what comes for others is not the host's", (
            CLOSED,
            came(f.tcp(world, a, PORTS)), came(f.tcp(world, c, PORTS)), came(f.tcp(world, x["node2"], PORTS)),
        )),
        ("a source of this host's own from the network", (
            only(Rule("ingress", 77)), shot(FROM, "eth0", f.tcp(x["gateway"], me, PORTS), "spoofed_source"),
            shot(FROM, "eth0", f.tcp(me, me, PORTS), "spoofed_source"),
        )),
        ("a source of this host's own from the network, to others: what posed as masqueraded would get answers let in", (
            CLOSED, shot(FROM, "eth0", f.udp(me, world, PORTS), "spoofed_source"),
            shot(FROM, "eth0", f.udp(me, a, PORTS), "spoofed_source"), shot(FROM, "eth0", f.udp(me, c, PORTS), "spoofed_source"),
            shot(FROM, "eth0", f.udp(x["gateway"], member, PORTS), "spoofed_source"),
            no_entry(f.udp(world, me, BACK)),
        )),
        ("a source of this host's own from the network, of an error about its connection", (
            only(udp_out), left(f.udp(me, world, PORTS), allowed("egress", 73)),
            shot(FROM, "eth0", f.too_big(me, me, f.udp(me, world, PORTS)), "spoofed_source"),
            shot(FROM, "eth0", f.too_big(x["gateway"], me, f.udp(me, world, PORTS)), "spoofed_source"),
            came(f.too_big(world, me, f.udp(me, world, PORTS))),
        )),
        ("a neighbour with an address of the link that is our workloads' gateway's as well", (
            Move("addresses", {"address": of_link(family)}, address_record("gateway")),
            only(Rule("ingress", 93, 2, f.UDP, 53), Rule("egress", 94, 2, f.TCP, 53)),
            came(f.udp(of_link(family), me, (40000, 53)), allowed("ingress", 93, source_identity=2)),
            left(f.tcp(me, of_link(family), (40000, 53)), allowed("egress", 94, destination_identity=2)),
            no_entry(f.tcp(of_link(family), me, PORTS)), no_entry(f.tcp(world, of_link(family), PORTS)),
            *((came(f.tcp(of_link(4), world, PORTS)),) if family == 4 else ()),
        )),
        ("a workload's source from the network", (only(Rule("ingress", 77)), shot(FROM, "eth0", f.tcp(c, me, PORTS), "underlay_workload"))),
        ("from another of the host's addresses, known or not: still the host", (
            only(udp_out), left(f.udp(x["gateway"], world, PORTS), allowed("egress", 73)),
            left(f.udp(far(family), world, PORTS), allowed("egress", 73, source_identity=1)),
        )),
        ("multicast and broadcast are the host's", (
            CLOSED, no_entry(f.udp(world, group(family), (5353, 5353))), no_exit(f.udp(me, group(family), (5353, 5353))),
            only(Rule("ingress", 78, 2, f.UDP, 5353), Rule("egress", 79, 2, f.UDP, 5353)),
            came(f.udp(world, group(family), (5353, 5353)), allowed("ingress", 78)),
            left(f.udp(me, group(family), (5353, 5353)), allowed("egress", 79)),
        )),
    ]  # fmt: skip
    return [Case(f"host: {name}", steps, family) for name, steps in cases]


def no_exit_of_reply(me: str, world: str) -> Send:
    """What the host still says in a connection that is no longer allowed: the ingress rule refuses."""
    return denied(TO, "eth0", f.tcp(me, world, BACK, f.ACK), IN, "ingress")


def far(family: int) -> str:
    """An address that nobody knows."""
    return "203.0.113.9" if family == 4 else "2001:db8:9::9"


def c_router(family: int) -> str:
    """A router on the way."""
    return "203.0.113.1" if family == 4 else "2001:db8:9::1"


def of_link(family: int) -> str:
    """A link-local address."""
    return "169.254.1.1" if family == 4 else "fe80::1"


def group(family: int) -> str:
    """A multicast group."""
    return "224.0.0.251" if family == 4 else "ff02::fb"


def always_cases(family: int) -> List[Case]:
    """What no policy can cut."""
    x = ADDRESSES[family]
    me, world, member = x["host"], x["world"], x["node2"]
    ssh, answer = (50000, 22), (22, 50000)
    vxlan = (f.TUNNEL_SOURCE, TUNNEL_PORT)
    told = {"verdict": "allow", "reason": "failsafe", "rule_id": 0}
    kind = 0x86DD if family == 6 else 0x0800
    deny_ssh = only(Rule("ingress", 81, 0, f.TCP, 22, "deny"), Rule("egress", 82, 0, 0, 0, "deny"))
    cases: List[Tuple[str, Tuple[Step, ...]]] = [
        ("a failsafe port under deny rules: new, in mid-stream, answers, with no record at all", (
            deny_ssh,
            came(f.tcp(world, me, ssh), told), left(f.tcp(me, world, answer, f.SYN | f.ACK)),
            came(f.tcp(world, me, ssh, f.ACK)), left(f.tcp(me, world, answer, f.ACK)),
            came(f.tcp(member, me, (50001, 22), f.ACK)), left(f.tcp(me, member, (22, 50002), f.ACK)),
            came(f.tcp(world, me, ssh, f.RST)), came(f.tcp(world, me, ssh, f.FIN | f.ACK)),
        )),
        ("errors about it", (
            deny_ssh, came(f.too_big(c_router(family), me, f.tcp(me, world, answer, f.ACK))),
            left(f.unreachable(me, world, f.tcp(world, me, ssh))),
        )),
        ("that port elsewhere, and its UDP, are no failsafe port", (
            CLOSED, no_exit(f.tcp(me, world, ssh)), no_entry(f.udp(world, me, ssh)), no_entry(f.tcp(world, me, answer, f.ACK)),
        )),
        ("a connection that was denied before its port became one", (
            only(Rule("ingress", 83, 2, f.TCP, 80)), came(f.tcp(world, me, ssh), told),
            only(), came(f.tcp(world, me, ssh, f.ACK)),
        )),
        ("a port that the host may always reach; only answers come back", (
            CLOSED,
            left(f.udp(me, world, (40000, 53))), came(f.udp(world, me, (53, 40000))),
            no_entry(f.udp(world, me, (53, 40001))), no_entry(f.udp(world, me, (40000, 53))),
            no_exit(f.tcp(me, world, (40000, 53))),
            only(), came(f.udp(world, me, (53, 40000))), left(f.udp(me, world, (40000, 53))),
            came(f.unreachable(world, me, f.udp(me, world, (40000, 53)))),
        )),
        ("such a port's answers, though policy had let them in or out before, and does no longer", (
            only(Rule("ingress", 89, 2, f.UDP)),
            came(f.udp(world, me, (53, 40000)), allowed("ingress", 89)), left(f.udp(me, world, (40000, 53))),
            came(f.udp(world, me, (53, 40001)), allowed("ingress", 89)),
            only(), left(f.udp(me, world, (40000, 53))), came(f.udp(world, me, (53, 40000))),
            no_entry(f.udp(world, me, (53, 40001))),
            left(f.udp(me, world, (40001, 53))), came(f.udp(world, me, (53, 40001))), left(f.udp(me, world, (40001, 53))),
            came(f.udp(world, me, (53, 40001))),
        )),
        ("tunnel packets of members, their fragments, errors about them", (
            CLOSED,
            came(f.udp(member, me, vxlan)), left(f.udp(me, member, vxlan)),
            left(f.ip(me, member, f.UDP, b"x" * 16, fragment=1480)), came(f.ip(member, me, f.UDP, b"x" * 16, fragment=1480)),
            came(f.too_big(c_router(family), me, f.udp(me, member, vxlan))),
            left(f.unreachable(me, member, f.udp(member, me, vxlan))),
        )),
        ("that port of no member is nothing special", (
            CLOSED, no_exit(f.udp(me, world, vxlan)), no_entry(f.too_big(c_router(family), me, f.udp(me, world, vxlan))),
            no_entry(f.udp(member, me, (TUNNEL_PORT, 81))), no_exit(f.udp(me, member, (TUNNEL_PORT, 81))),
        )),
        ("a VLAN's frames are its own device's", (CLOSED, came(b"\x00\x05\x08\x00" + f.tcp(world, me, PORTS), kind=0x8100),
                                                  left(b"\x00\x05\x08\x00" + f.tcp(me, world, PORTS), kind=0x8100))),
        ("what is not IP", (CLOSED, came(bytes(28), kind=0x0806), left(bytes(28), kind=0x0806), came(bytes(60), kind=0x88CC), left(bytes(60), kind=0x88CC))),
        ("what is broken is dropped if it is the host's", (
            CLOSED,
            shot(FROM, "eth0", f.ip(world, me, f.TCP, bytes(19)), "truncated", kind=kind),
            shot(TO, "eth0", f.ip(me, world, f.TCP, bytes(19)), "truncated", kind=kind),
            shot(FROM, "eth0", f.ip(member, me, f.UDP, f.udp_header(*vxlan, 2)), "truncated", kind=kind),
            came(f.ip(world, x["a"], f.TCP, bytes(19)), kind=kind),
            left(f.ip(world, x["a"], f.TCP, bytes(19)), kind=kind, via=OTHER_DEVICE),
        )),
        ("so is what has a broken IP header, for whomever if that does not say", (
            CLOSED,
            *(step for to in (me, x["a"]) for packet, reason in _without_addresses(world, to) for step in (
                shot(FROM, "eth0", packet, reason, kind=kind), shot(TO, "eth0", packet, reason, kind=kind),
                left(packet, kind=kind, via=OTHER_DEVICE))),
            *(shot(FROM, "eth0", packet, reason, kind=kind) for packet, reason in _with_addresses(world, me)),
            *(came(packet, kind=kind) for packet, _ in _with_addresses(world, x["a"])),
            *(shot(TO, "eth0", packet, reason, kind=kind) for packet, reason in _with_addresses(me, world)),
            *(left(packet, kind=kind, via=OTHER_DEVICE) for packet, _ in _with_addresses(me, world)),
        )),
        ("later fragments come in, as the first decides; they leave as the first one or where no port could decide", (
            only(Rule("egress", 84, 2, f.UDP, 80)),
            no_entry(f.udp(world, me, PORTS, more=True)), came(f.ip(world, me, f.UDP, b"x" * 16, fragment=1480)),
            left(f.udp(me, world, PORTS, more=True), allowed("egress", 84)),
            left(f.ip(me, world, f.UDP, b"x" * 16, fragment=1480)),
            shot(TO, "eth0", f.ip(me, world, f.UDP, b"x" * 16, fragment=1480, number=8), "fragment", direction="egress"),
            only(Rule("egress", 85, 2, f.UDP)),
            left(f.ip(me, world, f.UDP, b"x" * 16, fragment=1480, number=8)),
        )),
        ("what a failsafe port sends, and what is sent to one, may come in parts", (
            CLOSED,
            left(f.tcp(me, world, answer, f.ACK, more=True)), left(f.ip(me, world, f.TCP, b"x" * 16, fragment=1480)),
            left(f.udp(me, world, (40000, 53), more=True, number=8)),
            left(f.ip(me, world, f.UDP, b"x" * 16, fragment=1480, number=8)),
            shot(TO, "eth0", f.ip(me, world, f.UDP, b"x" * 16, fragment=1480, number=9), "fragment", direction="egress"),
        )),
    ]  # fmt: skip
    found = [Case(f"host, always: {name}", steps, family) for name, steps in cases]
    if family == 6:
        found += _discovery()
    else:
        dhcp = "0.0.0.0", "255.255.255.255"
        found.append(Case("host, always: DHCP as a client, not as a server", (
            CLOSED,
            left(f.udp(*dhcp, (68, 67)), reason="neighbour"), came(f.udp(world, dhcp[1], (67, 68))),
            left(f.udp(me, world, (68, 67)), reason="neighbour"), came(f.udp(world, me, (67, 68))),
            no_exit(f.udp(me, dhcp[1], (67, 68))), no_entry(f.udp(dhcp[0], dhcp[1], (68, 67))),
        )))  # fmt: skip
    return found


def _without_addresses(source: str, destination: str) -> List[Tuple[bytes, str]]:
    """Packets whose addresses are not looked at, as what is before them is wrong; and the reason."""
    good = f.udp(source, destination, PORTS)
    if f.is_v6(source):
        return [(b"\x45" + good[1:], "malformed"), (good[:4] + b"\x01" + good[5:], "truncated")]
    long = f.with_ip_checksum(good[:2] + b"\x01" + good[3:])
    return [(b"\x55" + good[1:], "malformed"), (b"\x44" + good[1:], "malformed"), (long, "truncated")]


def _with_addresses(source: str, destination: str) -> List[Tuple[bytes, str]]:
    """Packets with addresses, and something wrong behind those."""
    if f.is_v6(source):
        cut_off = f.ip(source, destination, 0, bytes([f.UDP, 3]) + bytes(6))
        many = f.udp(source, destination, PORTS, extensions=[(60, b"\x00\x01\x04\x00\x00\x00\x00")] * 6)
        return [(cut_off, "truncated"), (many, "extension_headers")]
    good = f.udp(source, destination, PORTS)
    options = f.udp(source, destination, PORTS, options=b"\x07\x00\x04\x00")
    return [(good[:8] + b"\x3f" + good[9:], "malformed"), (options, "malformed")]


def _discovery() -> List[Case]:
    pad = [(0, b"\x00\x05\x02\x00\x00\x01\x00")]  # router alert, as listener reports have it
    kinds = ((133, "ff02::2"), (134, "ff02::1"), (135, "ff02::1:ff00:1"), (136, "fe80::9"), (137, "fe80::9"))
    steps: List[Step] = [CLOSED]
    for kind, group_address in kinds:
        packet = f.icmp("fe80::1", group_address, kind, bytes(20), hops=255)
        steps += [came(packet), left(packet, reason="neighbour")]
    for kind in (130, 131, 132, 143):
        report = f.icmp("fe80::9", "ff02::16", kind, bytes(20), hops=1, extensions=pad)
        steps += [came(report), left(report, reason="neighbour")]
    steps += [
        no_entry(f.icmp("fe80::9", "ff02::1", 135, bytes(20), hops=254)),
        no_entry(f.icmp("fe80::9", "ff02::16", 143, bytes(20), hops=2)),
        left(f.udp("fe80::9", "ff02::1:2", (546, 547)), reason="neighbour"),
        came(f.udp("fe80::1", "fe80::9", (547, 546))),
    ]
    # A neighbour may have the link-local address that is our workloads' gateway: there it is the world.
    gateway = only(Rule("ingress", 86, 2, f.UDP, 53), Rule("egress", 87, 2, f.TCP, 53))
    neighbour: List[Step] = [
        gateway,
        came(f.udp("fe80::1", "fe80::9", (40000, 53)), allowed("ingress", 86, source_identity=2)),
        left(f.tcp("fe80::9", "fe80::1", (40000, 53)), allowed("egress", 87, destination_identity=2)),
    ]
    many = [(60, b"\x00\x01\x04\x00\x00\x00\x00")] * 7
    x = ADDRESSES[6]
    hidden = f.udp(x["world"], x["host"], PORTS, extensions=many)
    return [
        Case("host, always: discovery, listener reports, DHCPv6", tuple(steps), 6),
        Case("host: a neighbour with our gateway's address", tuple(neighbour), 6),
        Case("host: more extension headers than are looked at", (
            only(Rule("ingress", 88)), shot(FROM, "eth0", hidden, "extension_headers"),
        ), 6),
    ]  # fmt: skip


def forwarded_cases(family: int) -> List[Case]:
    """What the host only forwards."""
    x = ADDRESSES[family]
    me, world, a = x["host"], x["world"], x["a"]
    masqueraded = left(f.tcp(me, world, PORTS), via=OTHER_DEVICE)
    cases: List[Tuple[str, Tuple[Step, ...]]] = [
        ("a workload's or a stranger's source", (
            CLOSED, left(f.tcp(a, world, PORTS), via="a"), left(f.udp(far(family), world, PORTS), via=OTHER_DEVICE),
        )),
        ("a workload's connection is its own, whoever saw it leave", (
            CLOSED, left(f.tcp(a, world, PORTS, f.ACK), via="a"), to_stack("a", f.tcp(a, world, PORTS, f.ACK), allowed("egress")),
        )),
        ("a masqueraded answer opens nothing: what poses as its question is judged", (
            CLOSED, left(f.tcp(me, world, BACK, f.SYN | f.ACK), via=OTHER_DEVICE), no_entry(f.tcp(world, me, PORTS, f.ACK)),
            left(f.echo(me, world, 9, reply=True), via=OTHER_DEVICE), no_entry(f.echo(world, me, 9)),
        )),
        ("masqueraded as the host: answers pass, whatever the policy becomes, and nothing else does", (
            CLOSED, masqueraded, came(f.tcp(world, me, BACK, f.SYN | f.ACK)),
            left(f.tcp(me, world, PORTS, f.ACK), via=OTHER_DEVICE), came(f.tcp(world, me, BACK, f.ACK)),
            only(), came(f.tcp(world, me, BACK, f.ACK)),
            came(f.too_big(c_router(family), me, f.tcp(me, world, PORTS, f.ACK))),
            no_entry(f.tcp(world, me, (81, 40000), f.ACK)), no_entry(f.tcp(world, me, BACK)),
        )),
        ("an error about nothing is judged by who sends it, not by whom it names", (
            only(Rule("ingress", 92, 6, f.ICMP6 if family == 6 else f.ICMP)),
            no_entry(f.unreachable(world, me, f.udp(me, x["node2"], PORTS))),
            came(f.unreachable(x["node2"], me, f.udp(me, world, PORTS)), allowed("ingress", 92, source_identity=6)),
        )),
        ("a masqueraded reset opens nothing: what poses as its answer is none", (
            CLOSED, left(f.tcp(me, world, PORTS, f.RST), via=OTHER_DEVICE), no_entry(f.tcp(world, me, BACK, f.ACK)),
        )),
        ("masqueraded echo", (
            CLOSED, left(f.echo(me, world, 9), via=OTHER_DEVICE), came(f.echo(world, me, 9, reply=True)),
        )),
        ("the host's own process gains nothing from a masqueraded connection's ports", (
            CLOSED, left(f.udp(me, world, PORTS), via=OTHER_DEVICE), no_exit(f.udp(me, world, PORTS)),
        )),
        ("answers of what is forwarded inward (a published port) follow the connection that was let in", (
            only(Rule("ingress", 91, 2, f.TCP, 80)), came(f.tcp(world, me, PORTS), allowed("ingress", 91)),
            left(f.tcp(me, world, BACK, f.SYN | f.ACK), via=OTHER_DEVICE),
        )),
    ]  # fmt: skip
    return [Case(f"host, forwarded: {name}", steps, family) for name, steps in cases]


def endpoint_cases(family: int) -> List[Case]:
    """Between this node's endpoints and its own stack: both ends judge."""
    x = ADDRESSES[family]
    me, a, b, gateway, late = x["host"], x["a"], x["b"], x["gateway"], LATE[family]
    from_a = Rule("ingress", 95, IDENTITIES["a"], f.TCP, 80)
    to_a = Rule("egress", 96, IDENTITIES["a"], f.TCP, 80)
    cases: List[Tuple[str, Tuple[Step, ...]]] = [
        ("an endpoint is let in by its identity, with an event of each end; replies follow", (
            only(from_a),
            to_stack("a", f.tcp(a, me, PORTS), allowed("egress"), allowed("ingress", 95, source_identity=IDENTITIES["a"], destination_identity=1, reason="to_stack")),
            from_stack("a", f.tcp(me, a, BACK, f.SYN | f.ACK)), to_stack("a", f.tcp(a, me, PORTS, f.ACK)), from_stack("a", f.tcp(me, a, BACK, f.ACK)),
        )),
        ("another is not", (only(from_a), Send("from_endpoint", f.ether(f.tcp(b, gateway, PORTS)), "shot", {"denied_by_default": 1}, "b", events=(
            allowed("egress"), {"verdict": "default_deny", "rule_id": IN, "direction": "ingress", "source_identity": IDENTITIES["b"]}))),),
        ("nor with what follows, which its own policy passes as a connection's", (
            only(from_a), Send("from_endpoint", f.ether(f.udp(b, gateway, PORTS)), "shot", {"denied_by_default": 1}, "b", events=(
                allowed("egress"), {"verdict": "default_deny", "rule_id": IN, "direction": "ingress"})),
            *(denied("from_endpoint", "b", f.udp(b, gateway, PORTS), IN, "ingress"),) * 4,
        )),
        ("an endpoint elsewhere is reached by its identity", (
            only(Rule("egress", 90, IDENTITIES["c"], f.TCP, 80)),
            Send("to_tunnel", f.ether(f.tcp(me, x["c"], PORTS)), "pass", {"to_tunnel": 1}, "vxlan", events=(
                allowed("egress", 90, reason="to_tunnel", source_identity=1, destination_identity=IDENTITIES["c"]),)),
            Send("to_tunnel", f.ether(f.tcp(me, x["c"], (40000, 81))), "shot", {"denied_by_default": 1}, "vxlan", events=(
                {"verdict": "default_deny", "rule_id": OUT, "direction": "egress", "destination_identity": IDENTITIES["c"]},)),
        )),
        ("its own egress policy comes first", (
            only(from_a), Policy("a", (), ("egress",)), denied("from_endpoint", "a", f.tcp(a, me, PORTS), OUT, "egress"),
        )),
        ("the host reaches an endpoint by its identity; both ends judge; replies follow", (
            only(to_a), Policy("a", (Rule("ingress", 97, 1),), ("ingress", "egress")),
            from_stack("a", f.tcp(me, a, PORTS), allowed("egress", 96, reason="to_endpoint", source_identity=1, destination_identity=IDENTITIES["a"]), allowed("ingress", 97)),
            to_stack("a", f.tcp(a, me, BACK, f.SYN | f.ACK)), from_stack("a", f.tcp(me, a, PORTS, f.ACK)), to_stack("a", f.tcp(a, me, BACK, f.ACK)),
        )),
        ("the host may not reach another endpoint", (only(to_a), denied("to_endpoint", "b", f.tcp(me, b, PORTS), OUT, "egress"))),
        ("what is forwarded to an endpoint is not the host's", (CLOSED, from_stack("a", f.tcp(x["world"], a, PORTS), allowed("ingress"), via="eth0"))),
        ("an endpoint's traffic with the world is not the host's", (CLOSED, to_stack("a", f.tcp(a, x["world"], PORTS), allowed("egress")))),
        ("the answer to the host by an address that nobody knows is for the host, also when all is judged anew", (
            only(to_a), from_stack("a", f.tcp(x["world"], a, PORTS), allowed("egress", 96), allowed("ingress")),
            to_stack("a", f.tcp(a, x["world"], BACK, f.SYN | f.ACK)),
            Policy("a", (Rule("ingress", 98, 1),), ("ingress",)), to_stack("a", f.tcp(a, x["world"], BACK, f.ACK)),
            Policy("a", (Rule("ingress", 94, 1),), ("ingress",)), to_stack("a", f.tcp(a, x["world"], BACK, f.ACK)),
            only(), Policy("a", (), ()),
            denied("from_endpoint", "a", f.tcp(a, x["world"], BACK, f.ACK), OUT, "egress"),
        )),
        ("an address that the host was given since is the host's to its endpoints as well; replies follow", (
            only(from_a), to_stack("a", f.tcp(a, late, PORTS), allowed("egress", destination_identity=1), allowed("ingress", 95)),
            from_stack("a", f.tcp(late, a, BACK, f.SYN | f.ACK)), to_stack("a", f.tcp(a, late, PORTS, f.ACK)),
            Policy("a", (Rule("egress", 99, 1),), ("egress", "ingress")),
            from_stack("a", f.tcp(late, a, BACK, f.ACK)), to_stack("a", f.tcp(a, late, PORTS, f.ACK)),
            Send("from_endpoint", f.ether(f.tcp(a, late, (40000, 81))), "shot", {"denied_by_default": 1}, "a", events=(
                allowed("egress", 99), {"verdict": "default_deny", "rule_id": IN, "direction": "ingress"})),
        )),
        ("the tunnel's port of such an address is closed as well", (
            only(from_a), shot("from_endpoint", "a", f.udp(a, late, (40000, TUNNEL_PORT)), "own_tunnel"),
        )),
        ("an endpoint's SSH to the host is kept by failsafe, its own policy still counts", (
            CLOSED, to_stack("a", f.tcp(a, me, (50000, 22)), allowed("egress"), allowed("ingress", reason="failsafe")),
            from_stack("a", f.tcp(me, a, (22, 50000), f.SYN | f.ACK)),
            Policy("a", (), ("egress",)), denied("from_endpoint", "a", f.tcp(a, me, (50001, 22)), OUT, "egress"),
        )),
        ("what a failsafe port lets in is by no rule, whichever let the endpoint send it", (
            CLOSED, Policy("a", (Rule("egress", 97, 1),), ("egress",)),
            to_stack("a", f.tcp(a, me, (50000, 22)), allowed("egress", 97), allowed("ingress", 0, reason="failsafe")),
        )),
        ("an endpoint's error about somebody else's SSH is no error about a failsafe port", (
            CLOSED, Send("from_endpoint", f.ether(f.unreachable(a, me, f.tcp(me, x["world"], (22, 50000)))), "shot", {"denied_by_default": 1}, "a", events=(
                allowed("egress"), {"verdict": "default_deny", "rule_id": IN, "direction": "ingress"})),
            to_stack("a", f.unreachable(a, me, f.tcp(me, a, (22, 50000))), allowed("egress")),
        )),
        ("the host's error about an endpoint's traffic with the world", (
            CLOSED, to_stack("a", f.udp(a, x["world"], PORTS), allowed("egress")), from_stack("a", f.too_big(me, a, f.udp(a, x["world"], PORTS))),
        )),
        ("neighbour traffic of the host with an endpoint", (CLOSED, Send("to_endpoint", f.ether(bytes(28), kind=0x0806), "pass", {"neighbour": 1}, "a"))),
    ]  # fmt: skip
    return [Case(f"host, endpoint: {name}", steps, family) for name, steps in cases]

"""Cases of time: how long a connection counts, and a datagram's first fragment. In ticks of 2^30 ns, 1.07 s."""

# ruff: noqa: E501 - a row of a table is read as one line
from __future__ import annotations

from typing import Any, List, Mapping, Tuple, Union

from tests.packet import frames as f
from tests.packet.cases_endpoint import BACK, PORTS, allowed, denied, local
from tests.packet.cases_host import CLOSED, came, left, no_entry, only
from tests.packet.world import ADDRESSES, DEFAULT_DENY, IDENTITIES, Case, Change, Policy, Rule, Send, Wait

Step = Union[Send, Change]
OUT = DEFAULT_DENY["egress"]


def endpoint_cases(family: int) -> List[Case]:
    """Of a connection of a to b, which may send nothing but answers."""
    x = ADDRESSES[family]
    a, b = x["a"], x["b"]
    open_to = Policy("b", (Rule("ingress", 11, IDENTITIES["a"]),), ("ingress", "egress"))
    new = allowed("egress"), allowed("ingress", 11)

    def there(flags: int, *events: Mapping[str, Any]) -> Send:
        return local("a", "b", f.tcp(a, b, PORTS, flags), f.tcp(a, b, PORTS, flags, hops=63), *events)

    def back(flags: int) -> Send:
        return local("b", "a", f.tcp(b, a, BACK, flags), f.tcp(b, a, BACK, flags, hops=63))

    def gone(flags: int = f.ACK) -> Send:
        """The answer is that of no connection."""
        return denied("from_endpoint", "b", f.tcp(b, a, BACK, flags), OUT, "egress")

    asked = local("a", "b", f.udp(a, b, PORTS), f.udp(a, b, PORTS, hops=63), *new)
    again = local("a", "b", f.udp(a, b, PORTS), f.udp(a, b, PORTS, hops=63))
    told = local("b", "a", f.udp(b, a, BACK), f.udp(b, a, BACK, hops=63))
    untold = denied("from_endpoint", "b", f.udp(b, a, BACK), OUT, "egress")
    opened: Tuple[Step, ...] = (open_to, there(f.SYN, *new), back(f.SYN | f.ACK), there(f.ACK))
    first = local("a", "b", f.udp(a, b, PORTS, more=True), f.udp(a, b, PORTS, more=True, hops=63), *new)
    part = f.ip(a, b, f.UDP, b"x" * 16, fragment=1480)
    kind, about = 1 if family == 6 else 3, bytes(4) + f.tcp(a, b, PORTS)[:64]
    error = local("b", "a", f.icmp(b, a, kind, about, code=1), f.icmp(b, a, kind, about, code=1, hops=63))
    later = local("a", "b", part, f.ip(a, b, f.UDP, b"x" * 16, fragment=1480, hops=63))
    cases: List[Tuple[str, Tuple[Step, ...]]] = [
        ("TCP that was answered counts for 8000 s", (*opened, Wait(7448), back(f.ACK))),
        ("and no longer", (*opened, Wait(7454), gone())),
        ("each packet, of either side, begins that time anew", (*opened, Wait(5000), there(f.ACK), Wait(5000), back(f.ACK), Wait(5000), back(f.ACK))),
        ("TCP that was not answered counts for 60 s", (open_to, there(f.SYN, *new), Wait(54), back(f.SYN | f.ACK))),
        ("and no longer, so that its answer is none", (
            open_to, there(f.SYN, *new), Wait(59),
            Send("from_endpoint", f.ether(f.tcp(b, a, BACK, f.SYN | f.ACK)), "shot", {"no_connection": 1}, "b", events=None),
        )),
        ("an error about it is no answer: it counts for 60 s from then", (
            open_to, there(f.SYN, *new), error, Wait(54), error, Wait(54), error, Wait(59),
            Send("from_endpoint", f.ether(f.tcp(b, a, BACK, f.SYN | f.ACK)), "shot", {"no_connection": 1}, "b", events=None),
        )),
        ("UDP counts for 60 s, answered or not", (open_to, asked, told, Wait(54), told, Wait(54), again, Wait(59), untold)),
        ("one FIN ends nothing", (*opened, there(f.FIN | f.ACK), Wait(5000), back(f.ACK))),
        ("a reset of one side ends nothing: it may be a stranger's, that both ends ignore", (*opened, there(f.RST), there(f.RST | f.ACK), Wait(7448), back(f.ACK), Wait(7454), gone())),
        ("nor does one of the other", (*opened, back(f.RST), Wait(7448), there(f.ACK), back(f.ACK))),
        ("both end a connection in 10 s", (*opened, there(f.FIN | f.ACK), back(f.FIN | f.ACK), Wait(8), there(f.ACK), Wait(8), back(f.ACK), Wait(13), gone())),
        ("two FINs of one side are one", (*opened, there(f.FIN | f.ACK), there(f.FIN | f.ACK), Wait(5000), back(f.ACK))),
        ("a reset is its sender's FIN", (*opened, there(f.FIN | f.ACK), back(f.RST), Wait(8), back(f.ACK), Wait(13), gone())),
        ("resets of both sides end it in 10 s", (*opened, there(f.RST), back(f.RST), Wait(13), gone())),
        ("a reset is no answer, so what was refused counts for 60 s", (open_to, there(f.SYN, *new), back(f.RST | f.ACK), Wait(54), back(f.RST | f.ACK), Wait(59), gone(f.RST | f.ACK))),
        ("what ends it is not forgotten when it is judged anew", (
            *opened, there(f.FIN | f.ACK), Policy("a"), back(f.FIN | f.ACK), Policy("a"), there(f.ACK), Wait(13), gone(),
        )),
        ("nor is a reset", (*opened, there(f.FIN | f.ACK), back(f.RST), Policy("a"), back(f.ACK), Wait(13), gone())),
        ("a SYN begins it anew", (*opened, there(f.RST), there(f.SYN, *new), back(f.SYN | f.ACK), Wait(5000), back(f.ACK))),
        ("one that is no longer allowed is known for 8000 s, ended or not", (
            *opened, back(f.RST), Policy("b", (), ("ingress", "egress")), denied("from_endpoint", "a", f.tcp(a, b, PORTS, f.ACK), DEFAULT_DENY["ingress"], "ingress"),
            Wait(5000), Policy("b", (Rule("egress", 12),), ("ingress", "egress")), denied("from_endpoint", "b", f.tcp(b, a, BACK, f.ACK), DEFAULT_DENY["ingress"], "ingress"),
        )),
        ("also if both ended it", (
            *opened, there(f.FIN | f.ACK), back(f.FIN | f.ACK), Policy("b", (), ("ingress", "egress")), denied("from_endpoint", "a", f.tcp(a, b, PORTS, f.ACK), DEFAULT_DENY["ingress"], "ingress"),
            Wait(5000), Policy("b", (Rule("egress", 12),), ("ingress", "egress")), denied("from_endpoint", "b", f.tcp(b, a, BACK, f.ACK), DEFAULT_DENY["ingress"], "ingress"),
        )),
        ("a first fragment is known for 60 s", (open_to, first, Wait(54), later)),
        ("and no longer, so that a later one has no ports", (
            Policy("b", (Rule("ingress", 11, IDENTITIES["a"], f.UDP, 80),), ("ingress", "egress")), first, Wait(59),
            Send("from_endpoint", f.ether(part), "shot", {"fragment": 1}, "a", events=None),
        )),
    ]  # fmt: skip
    return [Case(f"time: {name}", steps, family) for name, steps in cases]


def host_cases(family: int) -> List[Case]:
    """Of what the host sends, or forwards as its own, without being judged: its answers."""
    x = ADDRESSES[family]
    me, world = x["host"], x["world"]
    question, answer = left(f.udp(me, world, (40000, 53))), came(f.udp(world, me, (53, 40000)))
    dial, dialled = (40000, 853), (853, 40000)
    masqueraded = left(f.tcp(me, world, PORTS), via="nobody")
    cases: List[Tuple[str, Tuple[Step, ...]]] = [
        ("the answer to a failsafe port may come for 60 s", (CLOSED, question, Wait(54), answer, Wait(54), answer)),
        ("from the latest question on", (CLOSED, question, Wait(54), question, Wait(54), answer)),
        ("and no longer", (CLOSED, question, Wait(59), no_entry(f.udp(world, me, (53, 40000))))),
        ("that of a connection to one, answered once, for 8000 s from the latest packet on", (
            CLOSED, left(f.tcp(me, world, dial)), came(f.tcp(world, me, dialled, f.SYN | f.ACK)), left(f.tcp(me, world, dial, f.ACK)),
            Wait(5000), left(f.tcp(me, world, dial, f.ACK)), Wait(5000), came(f.tcp(world, me, dialled, f.ACK)),
            Wait(7454), no_entry(f.tcp(world, me, dialled, f.ACK)),
        )),
        ("a masqueraded connection that was answered counts for 8000 s", (
            CLOSED, masqueraded, came(f.tcp(world, me, BACK, f.SYN | f.ACK)), Wait(7448), came(f.tcp(world, me, BACK, f.ACK)),
            Wait(7454), no_entry(f.tcp(world, me, BACK, f.ACK)),
        )),
        ("one that was refused for 60 s", (
            CLOSED, masqueraded, came(f.tcp(world, me, BACK, f.RST)), Wait(54), came(f.tcp(world, me, BACK, f.RST)), Wait(59), no_entry(f.tcp(world, me, BACK, f.ACK)),
        )),
        ("one that one side reset for 8000 s", (
            CLOSED, masqueraded, came(f.tcp(world, me, BACK, f.SYN | f.ACK)), came(f.tcp(world, me, BACK, f.RST)), Wait(7448), came(f.tcp(world, me, BACK, f.ACK)),
        )),
        ("the host's own connection counts as any", (
            only(Rule("ingress", 71, 2, f.TCP, 80)), came(f.tcp(world, me, PORTS), allowed("ingress", 71)), left(f.tcp(me, world, BACK, f.SYN | f.ACK)),
            Wait(7448), left(f.tcp(me, world, BACK, f.ACK)), Wait(7454), came(f.tcp(world, me, PORTS, f.ACK), allowed("ingress", 71)),
        )),
    ]  # fmt: skip
    return [Case(f"host, time: {name}", steps, family) for name, steps in cases]

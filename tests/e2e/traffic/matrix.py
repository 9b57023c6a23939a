"""Everybody to everybody: the flows, what should become of them, and what did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bpfleet.model.document import Document
from tests.e2e.traffic.ground import FAMILIES, LABELS, OPEN_PORTS, Ground, Reached
from tests.e2e.traffic.judge import Verdict, judge
from tests.e2e.traffic.station import Flow

SERVICES = (*(("tcp", port) for port in OPEN_PORTS), *(("udp", port) for port in OPEN_PORTS), ("icmp", 0))


def flows(
    ground: Ground,
    services: Iterable[tuple[str, int]] = SERVICES,
    families: Sequence[int] = FAMILIES,
    sources: Sequence[str] = (),
) -> dict[str, list[Flow]]:
    """Every service of every endpoint but its own, from every endpoint."""
    return {
        source: [
            ground.flow(protocol, destination, port, family)
            for destination in ground.workloads
            if destination != source
            for family in families
            for protocol, port in services
        ]
        for source in sources or ground.workloads
    }


def owner(ground: Ground, address: str) -> str:
    """The endpoint that has an address."""
    return next(name for name, workload in ground.workloads.items() if address in workload.addresses)


def protocol_of(flow: Flow) -> str:
    """The protocol as policies call it."""
    return "icmpv6" if flow.protocol == "icmp" and ":" in flow.address else flow.protocol


def expected(ground: Ground, policies: Sequence[Document], source: str, flow: Flow) -> Verdict:
    """What the reference judge says of a flow between endpoints."""
    subject, peer = (LABELS[ground.workloads[name].identity] for name in (source, owner(ground, flow.address)))
    return judge(policies, subject, peer, protocol_of(flow), flow.port)


def wrong(ground: Ground, policies: Sequence[Document], reached: Reached) -> list[str]:
    """What did not become of flows as it should, in words; also when the other end saw another source address."""
    found = []
    for (source, flow), seen in reached.items():
        verdict = expected(ground, policies, source, flow)
        own = ground.address(source, 6 if ":" in flow.address else 4)
        if seen != (own if verdict.passes else None):
            found.append(f"{source} to {owner(ground, flow.address)} {flow}: saw {seen}, should be {verdict}")
    return found


def ends(ground: Ground, source: str, flow: Flow) -> tuple[str, str, str, int]:
    """A probe as events name it; see `ends_of`."""
    return (ground.address(source, 6 if ":" in flow.address else 4), flow.address, protocol_of(flow), flow.port)


def ends_of(event: Mapping[str, Any]) -> tuple[str, str, str, int]:
    """(source's address, destination's address, protocol, destination's port or 0) of an event."""
    port = event["destination"].get("port", 0) if event["protocol"] in ("tcp", "udp") else 0
    return (event["source"]["address"], event["destination"]["address"], event["protocol"], port)


def denied_since(ground: Ground, host: str, begun: float) -> list[dict[str, Any]]:
    """A node's latest events of denials since a time of this clock; the reader's offset to it is exact to less."""
    return [event for event in ground.events(host, last=2000, verdict="denied") if event["time"] > begun - 0.1]


def strangers(ground: Ground, host: str, begun: float, reached: Reached) -> list[dict[str, Any]]:
    """Denials since then that no probe stands for, for a failed count to tell of."""
    probes = {ends(ground, source, flow) for source, flow in reached}
    return [event for event in denied_since(ground, host, begun) if ends_of(event) not in probes]


def denials(ground: Ground, policies: Sequence[Document], reached: Reached) -> dict[str, Counter[str]]:
    """Host -> how many packets it should have denied, by reason: one a flow, but for what TCP sent again."""
    found: dict[str, Counter[str]] = {host: Counter() for host in ground.targets}
    for source, flow in reached:  # all of them were sent, and nothing else
        verdict = expected(ground, policies, source, flow)
        if not verdict.passes:
            judging = source if verdict.direction == "egress" else owner(ground, flow.address)
            reason = "denied_by_rule" if verdict.by_rule else "denied_by_default"
            found[ground.workloads[judging].host][reason] += 1 + reached.again[(source, flow)]
    return found

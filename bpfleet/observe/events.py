"""From records of the packet path to events, and flows of the history, for people and programs. Pure."""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, Mapping, Tuple

from bpfleet.model.resources import PROTOCOL_NUMBERS
from bpfleet.model.state import RuleName
from bpfleet.observe.names import Names
from bpfleet.observe.past import seen_ns

VERDICTS: Dict[str, str] = {
    "allow": "allowed",
    "deny": "denied",
    "default_deny": "denied",
    "drop": "dropped",
    "audit": "audited",
}
"""The packet path's verdicts in the words of `--verdict`."""

PROTOCOL_NAMES: Dict[int, str] = {number: name for name, number in PROTOCOL_NUMBERS.items()}
NOT_CLOSED = "no policy closes this direction"
FAILSAFE = "a failsafe port, which no policy closes"
ITSELF = "an endpoint's traffic with itself is not judged"
"""Why what no rule allows passes."""

FIRST_DROP = 16
"""From this reason on a packet was dropped (bpf/include/bpfleet/reasons.h)."""

_ICMP = ("icmp", "icmpv6")
_DENIED = {"deny": "denied_by_rule", "default_deny": "denied_by_default"}


def event_of(
    record: Mapping[str, Any],
    names: Names,
    name_of: Callable[[str, int], str],
    boot_offset: float,
    older: Iterable[Mapping[int, RuleName]] = (),
) -> Dict[str, Any]:
    """A wire.VerdictEvent from one decoded slot.

    name_of: (enum, number) -> name, of the generated layouts. boot_offset: seconds from CLOCK_MONOTONIC to the epoch.
    """
    protocol = PROTOCOL_NAMES.get(record["protocol"], str(record["protocol"]))
    verdict = name_of("verdict", record["verdict"])
    event: Dict[str, Any] = {
        "time": round(record["time_ns"] / 1e9 + boot_offset, 6),
        "verdict": VERDICTS.get(verdict, verdict),
        "reason": name_of("reason", record["reason"]),
        "direction": name_of("direction", record["direction"]),
        "protocol": protocol,
        "hook": name_of("hook", record["hook"]),
        "length": record["length"],
    }
    if names.node is not None:
        event["node"] = names.node
    time_ns = record["time_ns"]
    source_port, destination_port = record["source_port"], record["destination_port"]
    if protocol in _ICMP:
        event["icmp"] = {"type": source_port, "code": destination_port}
        source_port = destination_port = 0
    source, destination = _addresses(record)
    event["source"] = names.end(source, source_port, record["source_identity"], time_ns)
    event["destination"] = names.end(destination, destination_port, record["destination_identity"], time_ns)
    if record["rule_id"]:
        event["rule_id"] = record["rule_id"]
        event.update(names.rule(record["rule_id"], time_ns, older))
    elif verdict == "allow":
        event["rule"] = _unjudged(event)
    return event


def _addresses(record: Mapping[str, Any]) -> Tuple[str, str]:
    """Both ends' addresses, empty where the packet has none that can be read. One that is zero beside another is the
    unspecified address, of who has none yet (RFC 4291 2.5.2)."""
    source, destination = record["source"], record["destination"]
    return (source or "::", destination or "::") if source or destination else ("", "")


def _unjudged(event: Mapping[str, Any]) -> str:
    if event["reason"] == "failsafe":
        return FAILSAFE
    endpoint = event["source"].get("endpoint")
    return ITSELF if endpoint and endpoint == event["destination"].get("endpoint") else NOT_CLOSED


def flow_of(
    record: Mapping[str, Any],
    counts: Mapping[str, int],
    names: Names,
    name_of: Callable[[str, int], str],
    boot_offset: float,
    older: Iterable[Mapping[int, RuleName]] = (),
) -> Dict[str, Any]:
    """A wire.Flow from one slot of the history and what all CPUs counted in it. The rest as in event_of."""
    protocol = PROTOCOL_NAMES.get(record["protocol"], str(record["protocol"]))
    verdict = name_of("verdict", record["verdict"])
    last_seen = seen_ns(record)
    flow: Dict[str, Any] = {
        "first_seen": round(record["first_seen"] / 1e9 + boot_offset, 6),
        "last_seen": round(last_seen / 1e9 + boot_offset, 6),
        "verdict": VERDICTS.get(verdict, verdict),
        "direction": name_of("direction", record["direction"]),
        "protocol": protocol,
        **{name: int(counts[name]) for name in ("packets", "bytes", "answer_packets", "answer_bytes")},
    }
    if names.node is not None:
        flow["node"] = names.node
    port = record["port"]
    if protocol in _ICMP:
        flow["icmp"] = {"type": port >> 8, "code": port & 0xFF}
        port = 0
    flow["source"] = names.party(record["source_identity"], 0, last_seen)
    flow["destination"] = names.party(record["destination_identity"], port, last_seen)
    reason = _DENIED.get(verdict) or (name_of("reason", record["reason"]) if record["reason"] else None)
    if reason is not None:
        flow["reason"] = reason
    if record["rule_id"]:
        flow["rule_id"] = record["rule_id"]
        flow.update(names.rule(record["rule_id"], last_seen, older))
    elif verdict == "allow":
        # Which endpoints they were is not kept: those of one identity may be one.
        is_alike = "labels" in flow["source"] and record["source_identity"] == record["destination_identity"]
        flow["rule"] = f"{NOT_CLOSED}, or {ITSELF}" if is_alike else NOT_CLOSED
    return flow

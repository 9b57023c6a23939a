"""From records of the packet path to events for people and programs; and filters over them. Pure."""

from __future__ import annotations

import difflib
import ipaddress
from typing import Any, Callable, Dict, Iterable, Mapping, Optional

from bpfleet.errors import InvalidInput
from bpfleet.model.document import DocumentSet
from bpfleet.model.identity import RESERVED_NAMES
from bpfleet.model.resources import PROTOCOL_NUMBERS
from bpfleet.model.state import RuleName
from bpfleet.observe.names import Names

VERDICTS: Dict[str, str] = {
    "allow": "allowed",
    "deny": "denied",
    "default_deny": "denied",
    "drop": "dropped",
    "audit": "audited",
}
"""The packet path's verdicts in the words of `--verdict`."""

PROTOCOL_NAMES: Dict[int, str] = {number: name for name, number in PROTOCOL_NUMBERS.items()}
NOT_CLOSED = "no policy selects this direction"
"""Why what no rule allows passes."""

_ICMP = ("icmp", "icmpv6")

Filter = Callable[[Mapping[str, Any]], bool]


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
    source_port, destination_port = record["source_port"], record["destination_port"]
    if protocol in _ICMP:
        event["icmp"] = {"type": source_port, "code": destination_port}
        source_port = destination_port = 0
    event["source"] = names.end(record["source"], source_port, record["source_identity"])
    event["destination"] = names.end(record["destination"], destination_port, record["destination_identity"])
    if record["rule_id"]:
        event["rule_id"] = record["rule_id"]
        event.update(names.rule(record["rule_id"], older))
    elif verdict == "allow":
        event["rule"] = NOT_CLOSED
    return event


def filter_of(params: Mapping[str, Any]) -> Filter:
    """The filter that wire.EventsParams describes; InvalidInput for what no event can match."""
    verdict = params.get("verdict")
    if verdict is not None and verdict not in VERDICTS.values():
        choices = ", ".join(sorted(set(VERDICTS.values())))
        raise InvalidInput(f"{verdict!r} is no verdict", field="verdict", remedy=f"Use one of {choices}.")
    wanted: Dict[str, Any] = {
        key: params[key] for key in ("verdict", "protocol", "policy") if params.get(key) is not None
    }
    source, destination, any_end = params.get("source"), params.get("destination"), params.get("any_end")
    port: Optional[int] = params.get("port")
    message = {key: params[key] for key in ("type", "code") if params.get(key) is not None}

    def keep(event: Mapping[str, Any]) -> bool:
        for key, value in wanted.items():
            if event.get(key) != value and not (key == "policy" and _is_policy(event, value)):
                return False
        if any(event.get("icmp", {}).get(key) != value for key, value in message.items()):
            return False
        if port is not None and event["destination"].get("port") != port:
            return False
        if source is not None and not _is(event["source"], source):
            return False
        if destination is not None and not _is(event["destination"], destination):
            return False
        return any_end is None or _is(event["source"], any_end) or _is(event["destination"], any_end)

    return keep


def unknown_end(documents: DocumentSet, name: str) -> Optional[str]:
    """What is wrong with a name to filter ends by, as `_is` takes it, and names like it; None if it may match."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        pass
    else:
        return None
    key, equals, value = name.partition("=")
    if equals:
        labels = {
            pair for identity in documents.of_kind("identity").values() for pair in identity.spec["labels"].items()
        }
        if (key, value) in labels:
            return None
        return _unknown(f"no identity has the label {name}", name, (f"{one}={two}" for one, two in labels))
    known = {*RESERVED_NAMES.values()}.union(*(documents.of_kind(kind) for kind in ("endpoint", "identity", "node")))
    if name in known:
        return None
    return _unknown(f"{name!r} is no address, endpoint, identity, node or label", name, known)


def unknown_policy(documents: DocumentSet, name: str) -> Optional[str]:
    """The same for a policy's name, or a label of one."""
    policies = documents.of_kind("policy")
    key, equals, value = name.partition("=")
    if equals:
        labels = {pair for policy in policies.values() for pair in policy.spec.get("labels", {}).items()}
        if (key, value) in labels:
            return None
        return _unknown(f"no policy has the label {name}", name, (f"{one}={two}" for one, two in labels))
    return None if name in policies else _unknown(f"there is no policy {name}", name, policies)


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), 1, 0.5)
    return f"{what} (did you mean {near[0]}?)" if near else what


def _is_policy(event: Mapping[str, Any], name: str) -> bool:
    """Whether a policy called so, or with such a label, decided; a default deny belongs to several."""
    if name in str(event.get("policy") or "").split(", "):
        return True
    key, equals, value = name.partition("=")
    return bool(equals) and event.get("policy_labels", {}).get(key) == value


def _is(end: Mapping[str, Any], name: str) -> bool:
    """Whether an end is called so: by address, endpoint, identity, node or a label "key=value"."""
    if name in (end.get("address"), end.get("endpoint"), end.get("identity_name"), end.get("node")):
        return True
    key, equals, value = name.partition("=")
    return bool(equals) and end.get("labels", {}).get(key) == value

"""Filters over events and flows of the history, as `bpfleet observe` and wire.EventsParams name them. Pure.

Filters of one key are alternatives, those of different keys must all match, and none of the negated may.
"""

from __future__ import annotations

import difflib
import ipaddress
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Set, Tuple

from bpfleet.errors import InvalidInput
from bpfleet.loader.generated.layouts import ENUMS
from bpfleet.model.document import DocumentSet
from bpfleet.model.identity import RESERVED_NAMES
from bpfleet.model.meaning import PORT_PROTOCOLS
from bpfleet.model.resources import PROTOCOL_NUMBERS
from bpfleet.observe.addresses import as_address, as_network
from bpfleet.observe.events import FIRST_DROP, PROTOCOL_NAMES, VERDICTS

Event = Mapping[str, Any]
Test = Callable[[Event], bool]

PORT_HELP = (
    "a port (443), of one protocol (443/tcp; of tcp, udp, sctp), a protocol (tcp, icmp), or a message's type, or type "
    "and code (8/icmp, 3.1/icmp)"
)
ENDS = ("ip", "port", "label", "identity", "endpoint", "any")
"""What an end can be known by; "any" is an address, endpoint, identity, node or label. Each with from- or to- before it
for one end, alone for either."""
KEYS = (
    *(f"{side}{kind}" for kind in ENDS for side in ("", "from-", "to-")),
    "from-node",
    "to-node",
    "verdict",
    "drop-reason",
    "protocol",
    "policy",
    "direction",
)
_NOT_IN_HISTORY = {
    "ip": ("addresses", "Filter by --identity or --label."),
    "endpoint": ("endpoints", "Filter by --identity or --label."),
    "node": ("the nodes of both ends", "--node chooses the nodes that are asked."),
    "from-port": ("the ports of senders", "Filter by --to-port."),
}
_OPTIONS = {"any": "with", "from-any": "from", "to-any": "to"}
_MESSAGES = ("icmp", "icmpv6")
DROP_REASONS = tuple(name for name, number in ENUMS["reason"].items() if number >= FIRST_DROP and name != "limit")


@dataclass(frozen=True)
class Filter:
    """One condition: a key of KEYS, what it is compared with, and whether it must not match."""

    key: str
    value: str
    negated: bool = False

    def to_json(self) -> Dict[str, Any]:
        """As in wire.EventsParams."""
        return {"key": self.key, "value": self.value, "not": self.negated}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Filter:
        """InvalidInput for what is none."""
        if not isinstance(data, Mapping) or not isinstance(data.get("value"), str):
            raise InvalidInput(f"{data!r} is no filter", field="filters")
        return cls(str(data.get("key")), data["value"], bool(data.get("not")))


def matcher(filters: Iterable[Filter]) -> Test:
    """The test that the filters make together; InvalidInput for a value that nothing can match."""
    wanted: Dict[str, List[Test]] = {}
    unwanted: List[Test] = []
    for one in filters:
        test = _test(one)
        if one.negated:
            unwanted.append(test)
        else:
            wanted.setdefault(one.key, []).append(test)
    groups = list(wanted.values())

    def keep(event: Event) -> bool:
        return all(any(test(event) for test in group) for group in groups) and not any(test(event) for test in unwanted)

    return keep


_NO_TIME = 1e18
"""Seconds since the epoch that nothing happens after: infinity, what is no number at all, and numbers of 300 digits."""


def span_of(params: Mapping[str, Any]) -> Tuple[Optional[float], Optional[float]]:
    """`since` and `until` of wire.EventsParams; InvalidInput for what is no time, and where nothing is between them."""
    since, until = params.get("since"), params.get("until")
    for name, value in (("since", since), ("until", until)):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (is_number and abs(value) < _NO_TIME):
            raise InvalidInput(f"{name} is no time", field=name, remedy="Give seconds since the epoch.")
    if since is not None and until is not None and since > until:
        raise InvalidInput(
            "nothing is both after --since and before --until",
            field="until",
            remedy="Give --until the later time: --since 1h --until 1m.",
        )
    return since, until


def last_of(params: Mapping[str, Any], default: int) -> int:
    """`last` of wire.EventsParams; InvalidInput for what is no number."""
    last = params.get("last", default)
    if not isinstance(last, int) or isinstance(last, bool):
        raise InvalidInput("last is no number", field="last", remedy="Give a whole number; -1 is all.")
    return last


def filters_of(params: Mapping[str, Any]) -> List[Filter]:
    """`filters` of wire.EventsParams; InvalidInput for what are none."""
    given = params.get("filters", ())
    if not isinstance(given, (list, tuple)):
        raise InvalidInput("filters are no list", field="filters", remedy="Give a list of filters.")
    return [Filter.from_json(one) for one in given]


def check_for_history(filters: Iterable[Filter], known: Optional[Known] = None) -> None:
    """InvalidInput for a filter by what the history does not keep. Whether "any" means an endpoint or a node is known
    only with the names that there are."""
    for one in filters:
        kind = one.key if one.key in _NOT_IN_HISTORY else one.key.rpartition("-")[2]
        if kind == "any":
            kind = _meant(one.value, known)
        if kind in _NOT_IN_HISTORY:
            what, remedy = _NOT_IN_HISTORY[kind]
            raise InvalidInput(
                f"the history does not keep {what} such as {one.value}",
                field=_OPTIONS.get(one.key, one.key),
                remedy=remedy,
            )


def _meant(value: str, known: Optional[Known]) -> str:
    """Which of _NOT_IN_HISTORY the value of a filter "any" is; "any" if it may be something that the history keeps."""
    if as_address(value, "with") is not None:
        return "ip"
    if known is None or value in known.identities or value in RESERVED_NAMES.values():
        return "any"
    return "endpoint" if value in known.endpoints else "node" if value in known.nodes else "any"


def _test(one: Filter) -> Test:
    side, dash, kind = one.key.rpartition("-")
    if one.key not in KEYS:
        raise InvalidInput(f"there is no filter {one.key!r}", field="filters", remedy=f"Filters: {', '.join(KEYS)}.")
    if one.key in _PLAIN:
        return _PLAIN[one.key](one.value)
    if kind == "port":
        return _port_test(side if dash else "", one.value)
    end_test = _any_test(one.value, _OPTIONS[one.key]) if kind == "any" else _END_TESTS[kind](one.value)
    if side == "from":
        return lambda event: end_test(event["source"])
    if side == "to":
        return lambda event: end_test(event["destination"])
    return lambda event: end_test(event["source"]) or end_test(event["destination"])


# -- ends --------------------------------------------------------------------------------------------------------------


def _ip_test(value: str) -> Test:
    network = as_network(value, "ip")
    if network is None:
        raise InvalidInput(
            f"{value!r} is no address and no CIDR", field="ip", remedy="Write it as 10.0.0.7 or fd00::/64."
        )
    return lambda end: bool(end.get("address")) and ipaddress.ip_address(end["address"]) in network


def _named(field: str, value: str, example: str) -> None:
    """InvalidInput for an empty name, which nothing has."""
    if not value:
        raise InvalidInput("the name is empty, and nothing is called so", field=field, remedy=f"Write {example}.")


def _label_test(value: str) -> Test:
    key, equals, wanted = value.partition("=")
    _named("label", key, "app=db, or the key alone")

    def test(end: Event) -> bool:
        labels = end.get("labels", {})
        return key in labels and (not equals or labels[key] == wanted)

    return test


def _identity_test(value: str) -> Test:
    _named("identity", value, "an identity's name or number")
    return lambda end: value in (end.get("identity_name"), str(end.get("identity")))


def _endpoint_test(value: str) -> Test:
    _named("endpoint", value, "an endpoint's name")
    return lambda end: end.get("endpoint") == value


def _node_test(value: str) -> Test:
    _named("node", value, "a node's name")
    return lambda end: end.get("node") == value


def _any_test(value: str, field: str) -> Test:
    address = as_address(value, field)
    if address is not None:
        return lambda end: bool(end.get("address")) and ipaddress.ip_address(end["address"]) == address
    if "=" in value:
        return _label_test(value)
    if as_network(value, field) is not None:
        raise InvalidInput(
            f"{value} is a CIDR, and no end is called so",
            field=field,
            remedy=f"Write --ip {value}, or --from-ip or --to-ip.",
        )
    _named(field, value, "a name, an address or a label")
    return lambda end: value in (end.get("endpoint"), end.get("identity_name"), end.get("node"))


_END_TESTS: Dict[str, Callable[[str], Test]] = {
    "ip": _ip_test,
    "label": _label_test,
    "identity": _identity_test,
    "endpoint": _endpoint_test,
    "node": _node_test,
}


def _port_test(side: str, value: str) -> Test:
    asked = parse_port(value)
    protocol, port = asked.get("protocol"), asked.get("port")
    message = {key: asked[key] for key in ("type", "code") if key in asked}

    def test(event: Event) -> bool:
        if protocol is not None and event.get("protocol") != protocol:
            return False
        if any(event.get("icmp", {}).get(key) != number for key, number in message.items()):
            return False
        if port is None:
            return True
        ends = {"from": ("source",), "to": ("destination",)}.get(side, ("source", "destination"))
        return any(event[end].get("port") == port for end in ends)

    return test


def parse_port(text: str) -> Dict[str, Any]:
    """ "80/tcp" -> {"protocol": "tcp", "port": 80}; "80" -> {"port": 80}; "icmp" -> {"protocol": "icmp"}.

    "3.1/icmp" -> {"protocol": "icmp", "type": 3, "code": 1}; the code may be left out.
    """
    number, slash, protocol = text.lower().partition("/")
    if protocol in _MESSAGES:
        return {"protocol": protocol, **_message(text, number)}
    if not slash and number in PROTOCOL_NUMBERS:
        return {"protocol": number}
    if not (number.isascii() and number.isdigit()):
        raise InvalidInput(f"{text!r} is no port", field="port", remedy="Write it as 80/tcp, or as icmp.")
    port = _number(number, 65535)
    if not port:
        raise InvalidInput(f"port {number[:20]} is out of range", field="port", remedy="Use 1 to 65535.")
    if slash and protocol not in PORT_PROTOCOLS:
        raise InvalidInput(
            f"{text!r} is no port: {protocol!r} is no protocol that has ports",
            field="port",
            remedy=f"Write {port} alone, or with one of {', '.join(PORT_PROTOCOLS)}: {port}/tcp.",
        )
    return {"protocol": protocol, "port": port} if slash else {"port": port}


def _message(text: str, numbers: str) -> Dict[str, int]:
    found = [_number(part, 255) for part in numbers.split(".")]
    known = [number for number in found if number is not None]
    if len(found) > 2 or len(known) < len(found):
        raise InvalidInput(f"{text!r} is no ICMP message", field="port", remedy="Write it as 8/icmp, or as 3.1/icmp.")
    return dict(zip(("type", "code"), known))


def _number(text: str, most: int) -> Optional[int]:
    """The number that digits are, up to `most`; None for what is none."""
    digits = text.lstrip("0") or text[-1:]
    if not (digits.isascii() and digits.isdigit()) or len(digits) > len(str(most)):
        return None
    return int(digits) if int(digits) <= most else None


# -- everything else ---------------------------------------------------------------------------------------------------


def _one_of(field: str, what: str, value: str, known: Iterable[str]) -> str:
    choices = list(known)
    if value not in choices:
        near = difflib.get_close_matches(value, choices, 1, 0.5)
        said = f" (did you mean {near[0]}?)" if near else ""
        raise InvalidInput(f"{value!r} is no {what}{said}", field=field, remedy=f"Use one of {', '.join(choices)}.")
    return value


def _verdict_test(value: str) -> Test:
    _one_of("verdict", "verdict", value, sorted(set(VERDICTS.values())))
    return lambda event: event.get("verdict") == value


def _reason_test(value: str) -> Test:
    name = _one_of("drop-reason", "reason to drop", value.lower().replace("-", "_").replace(" ", "_"), DROP_REASONS)
    return lambda event: event.get("reason") == name


def _protocol_test(value: str) -> Test:
    name = value.lower()
    number = _number(name, 255)
    if number is not None:
        name = PROTOCOL_NAMES.get(number, str(number))
    else:
        _one_of("protocol", "protocol", name, PROTOCOL_NUMBERS)
    return lambda event: event.get("protocol") == name


def _direction_test(value: str) -> Test:
    _one_of("direction", "direction", value, ENUMS["direction"])
    return lambda event: event.get("direction") == value


def _policy_test(value: str) -> Test:
    """A policy called so, or with such a label, decided; a default deny belongs to several."""
    key, equals, wanted = value.partition("=")
    _named("policy", key, "a policy's name, or a label of it such as team=shop")

    def test(event: Event) -> bool:
        if value in str(event.get("policy") or "").split(", "):
            return True
        held = event.get("policy_labels", {})
        return bool(equals) and key in held and wanted in held[key].split(", ")

    return test


_PLAIN: Dict[str, Callable[[str], Test]] = {
    "verdict": _verdict_test,
    "drop-reason": _reason_test,
    "protocol": _protocol_test,
    "direction": _direction_test,
    "policy": _policy_test,
}


# -- names that exist, and others --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """Names that there are; numbers: of identities, as text; labels: keys with values."""

    identities: Set[str] = field(default_factory=set)
    numbers: Set[str] = field(default_factory=set)
    labels: Set[Tuple[str, str]] = field(default_factory=set)
    endpoints: Set[str] = field(default_factory=set)
    nodes: Set[str] = field(default_factory=set)
    policies: Set[str] = field(default_factory=set)
    policy_labels: Set[Tuple[str, str]] = field(default_factory=set)


def known_in(documents: DocumentSet) -> Known:
    """What is declared."""
    identities, policies = documents.of_kind("identity"), documents.of_kind("policy")
    return Known(
        identities=set(identities),
        numbers={str(identity.spec["number"]) for identity in identities.values()},
        labels={pair for identity in identities.values() for pair in identity.spec["labels"].items()},
        endpoints=set(documents.of_kind("endpoint")),
        nodes=set(documents.of_kind("node")),
        policies=set(policies),
        policy_labels={pair for policy in policies.values() for pair in policy.spec.get("labels", {}).items()},
    )


def known_in_lines(lines: Iterable[Event]) -> Known:
    """What is named in recorded events and flows, whatever is declared now."""
    known = Known()
    for line in lines:
        if "node" in line:
            known.nodes.add(line["node"])
        if "verdict" not in line:
            continue
        known.policies.update(str(line.get("policy") or "").split(", "))
        for key, values in line.get("policy_labels", {}).items():
            known.policy_labels.update((key, value) for value in values.split(", "))
        for end in (line["source"], line["destination"]):
            known.labels.update(end.get("labels", {}).items())
            known.numbers.add(str(end.get("identity")))
            for names, key in (
                (known.identities, "identity_name"),
                (known.endpoints, "endpoint"),
                (known.nodes, "node"),
            ):
                if end.get(key):
                    names.add(end[key])
    return known


def unknown_names(known: Known, filters: Iterable[Filter]) -> List[str]:
    """What filters name and nothing has, with names like it: that they find nothing would say less."""
    found = (_unknown_name(known, one) for one in filters)
    return [said for said in found if said is not None]


def _unknown_name(known: Known, one: Filter) -> Optional[str]:
    kind = one.key.rpartition("-")[2]
    if kind == "any":
        return _unknown_end(known, one.value)
    if kind == "policy":
        return _unknown_policy(known, one.value)
    if kind == "label":
        return _unknown_label(known, one.value)
    if kind == "identity":
        names = {*known.identities, *RESERVED_NAMES.values()}
        if one.value in names or one.value in known.numbers or one.value in map(str, RESERVED_NAMES):
            return None
        return _unknown(f"there is no identity {one.value}", one.value, names)
    if kind in ("node", "endpoint"):
        named = known.nodes if kind == "node" else known.endpoints
        return None if one.value in named else _unknown(f"there is no {kind} {one.value}", one.value, named)
    return None


def _unknown_end(known: Known, name: str) -> Optional[str]:
    if as_address(name, "with") is not None:
        return None
    if "=" in name:
        return _unknown_label(known, name)
    names = {*RESERVED_NAMES.values(), *known.endpoints, *known.identities, *known.nodes}
    if name in names:
        return None
    return _unknown(f"{name!r} is no address, endpoint, identity, node or label", name, names)


def _unknown_policy(known: Known, name: str) -> Optional[str]:
    key, equals, value = name.partition("=")
    if equals:
        if (key, value) in known.policy_labels:
            return None
        return _unknown(f"no policy has the label {name}", name, (f"{one}={two}" for one, two in known.policy_labels))
    return None if name in known.policies else _unknown(f"there is no policy {name}", name, known.policies)


def _unknown_label(known: Known, name: str) -> Optional[str]:
    key, equals, value = name.partition("=")
    labels = known.labels
    if (key, value) in labels or (not equals and any(key == one for one, _ in labels)):
        return None
    like = (f"{one}={two}" for one, two in labels) if equals else {one for one, _ in labels}
    return _unknown(f"no identity has the label {name}", name, like)


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), 1, 0.5)
    return f"{what} (did you mean {near[0]}?)" if near else what

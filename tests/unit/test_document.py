"""Documents: canonical form, hashes, sets, and what is refused in a single one."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Tuple

import pytest

from bpfleet.errors import InvalidInput
from bpfleet.model.document import Document, DocumentSet, parse_document, problems_of
from bpfleet.model.identity import RESERVED_NAMES
from bpfleet.model.resources import RESOURCES
from bpfleet.model.schema import UNKNOWN, check
from tests import fleet


def test_equal_content_has_one_hash_however_it_is_written() -> None:
    common = {"node": "h1", "identity": "a", "attach": {"netns": "w1"}}
    one = parse_document(
        {"kind": "endpoint", "name": "a", "spec": {**common, "addresses": ["fd00:0:0::1", "10.0.0.1"]}}
    )
    other = parse_document({"spec": {"addresses": ["10.0.0.1", "fd00::1"], **common}, "name": "a", "kind": "endpoint"})
    assert one == other and one.hash == other.hash


def test_defaults_are_part_of_the_document() -> None:
    assert fleet.cluster(["h1"]).spec["routing"] == {"mode": "vxlan", "port": 8472, "direct_delivery": True}


def test_absent_and_empty_rules_differ() -> None:
    """Absent leaves the direction open; empty closes it."""
    absent, empty = fleet.policy("p", {}, egress=[]), fleet.policy("p", {}, egress=[], ingress=[])
    assert "ingress" not in absent.spec and empty.spec["ingress"] == []
    assert absent.hash != empty.hash


def _endpoint(**change: Any) -> Dict[str, Any]:
    spec = {"node": "h1", "identity": "a", "addresses": ["10.0.0.1"], "attach": {"netns": "w1"}, **change}
    return {"kind": "endpoint", "name": "a", "spec": spec}


def _node(**change: Any) -> Dict[str, Any]:
    spec = {"address": "10.0.0.1", "devices": [{"name": "eth0"}], "workload_cidrs": ["10.0.1.0/24"], **change}
    return {"kind": "node", "name": "n", "spec": spec}


def _policy(rule: Dict[str, Any]) -> Dict[str, Any]:
    return {"kind": "policy", "name": "p", "spec": {"selector": {}, "ingress": [rule]}}


def _service(**change: Any) -> Dict[str, Any]:
    spec = {"frontends": [{"address": "10.96.0.1", "port": 80}], "backends": [], **change}
    return {"kind": "service", "name": "s", "spec": spec}


BAD: List[Tuple[str, Dict[str, Any], str, str]] = [
    ("unknown field", _endpoint(adresses=[]), "adresses", "Did you mean addresses?"),
    ("not an address", _endpoint(addresses=["10.0.0.300"]), "addresses[0]", "10.0.0.300"),
    ("an address of one link", _endpoint(addresses=["fd77::5%eth0"]), "addresses[0]", "Write fd77::5."),
    ("IPv4 written as IPv6", _endpoint(addresses=["::ffff:10.77.1.1"]), "addresses[0]", "Write 10.77.1.1."),
    ("a node's address of one link", _node(address="fe80::1%eth0"), "address", "Write fe80::1."),
    ("a node's IPv4 written as IPv6", _node(address="::ffff:c0a8:4d03"), "address", "Write 192.168.77.3."),
    ("a network of one link", _node(workload_cidrs=["fe80::%eth0/64"]), "workload_cidrs[0]", "Write fe80::/64."),
    ("a peer of one link", _policy({"peers": [{"cidr": "fe80::%eth0/64"}]}), "ingress[0].peers[0].cidr", "fe80::/64"),
    ("a group's network of one link", {"kind": "cidr_group", "name": "g", "spec": {"cidrs": ["::/0", "fe80::%x/64"]}},
     "cidrs[1]", "Write fe80::/64."),
    ("a blocked network of one link", {"kind": "cluster", "name": "c", "spec": {"id": 1, "members": ["a"],
     "blocked_cidrs": ["fe80::7%2"]}}, "blocked_cidrs[0]", "Write fe80::7/128."),
    ("a frontend's IPv4 written as IPv6", _service(frontends=[{"address": "::ffff:10.96.0.1", "port": 80}]),
     "frontends[0].address", "Write 10.96.0.1."),
    ("a backend of one link", _service(backends=[{"address": "fe80::1%eth0"}]), "backends[0].address", "Write fe80::1"),
    ("repeated address", _endpoint(addresses=["10.0.0.1", "10.0.0.1"]), "addresses[1]", "Remove one"),
    ("no address", _endpoint(addresses=[]), "addresses", "at least 1"),
    ("a tap's owner without tap", _endpoint(attach={"netns": "w1", "owner": "qemu"}), "attach.owner", "tap"),
    ("a tap with a name of ours", _endpoint(attach={"tap": "bpf-vm1"}), "attach.tap", "not beginning with bpf-"),
    ("a tap whose name is a pattern", _endpoint(attach={"tap": "vm%d"}), "attach.tap", "without space"),
    ("both attachments", _endpoint(attach={"netns": "w1", "interface": "tap0"}), "attach", "exactly one"),
    ("no attachment", _endpoint(attach={}), "attach", "exactly one"),
    ("a path for a namespace", _endpoint(attach={"netns": "../etc"}), "attach.netns", "name of a network namespace"),
    ("port too large", _policy({"ports": [{"port": 65536}]}), "ingress[0].ports[0].port", "1 to 65535"),
    ("port 0", _policy({"ports": [{"port": 0}]}), "ingress[0].ports[0].port", "1 to 65535"),
    ("port as text", _policy({"ports": [{"port": "80"}]}), "ingress[0].ports[0].port", "whole number"),
    ("a port of ICMP", _policy({"ports": [{"protocol": "icmp", "port": 8}]}), "ingress[0].ports[0].port", "no ports"),
    ("a protocol in capitals", _policy({"ports": [{"protocol": "TCP", "port": 80}]}), "ingress[0].ports[0].protocol",
     "Use tcp, udp"),
    ("its number", _policy({"ports": [{"protocol": 1, "type": 8}]}), "ingress[0].ports[0].protocol", "string"),
    ("unknown entity", _policy({"peers": [{"entity": "moon"}]}), "ingress[0].peers[0].entity", "world"),
    ("unknown action", _policy({"action": "drop"}), "ingress[0].action", "allow or deny"),
    ("boolean for a number", {"kind": "cluster", "name": "c", "spec": {"id": True, "members": ["a"]}}, "id", "number"),
    ("cluster id 256", {"kind": "cluster", "name": "c", "spec": {"id": 256, "members": ["a"]}}, "id", "1 to 255"),
    ("host bits", _node(workload_cidrs=["10.0.1.1/24"]), "workload_cidrs[0]", "host bits"),
    ("missing field", {"kind": "identity", "name": "i", "spec": {"number": 70000}}, "labels", "missing"),
    ("bad name", {"kind": "identity", "name": "I!", "spec": {"labels": {}, "number": 70000}}, "name", "I!"),
    ("unknown kind", {"kind": "pod", "name": "x", "spec": {}}, "kind", "Use one of"),
    ("a line break", {"kind": "policy", "name": "p", "spec": {"selector": {}, "description": "ok\nh1: ALLOWED"}},
     "description", "as one line"),
    ("an escape code", {"kind": "policy", "name": "p", "spec": {"selector": {}, "description": "\x1b[2J"}},
     "description", "control character"),
    ("a name that turns the direction of writing", _endpoint(attach={"interface": "e\u202eth"}),
     "attach.interface", "control character"),
    ("extra beside spec", {**_endpoint(), "status": {}}, "status", "Remove it"),
]  # fmt: skip


def _named(kind: str, name: str) -> Dict[str, Any]:
    if kind == "identity":
        return {"kind": kind, "name": name, "spec": {"labels": {}, "number": 70000}}
    return {**(_node() if kind == "node" else _endpoint()), "name": name}


@pytest.mark.parametrize("kind", ["node", "identity", "endpoint"])
@pytest.mark.parametrize("name", [*RESERVED_NAMES.values(), "66130", "7", "10.0.0.1", "010.0.0.1"])
def test_what_means_another_end_names_no_end(kind: str, name: str) -> None:
    """Where an end is asked for by any of its names, and where it is shown, nothing would tell the two apart."""
    (problem,) = problems_of(_named(kind, name))
    assert (problem.resource, problem.field) == (f"{kind}/{name}", "name")
    assert name in problem.what and "number" in problem.remedy and "world" in problem.remedy


@pytest.mark.parametrize("kind", ["node", "identity", "endpoint"])
@pytest.mark.parametrize(
    "name", ["world-1", "hosts", "all", "host.1", "1a", "10.0.0.1.example", "10.0.0", "1-1", "a" * 63]
)
def test_what_only_looks_like_another_end_names_one(kind: str, name: str) -> None:
    assert problems_of(_named(kind, name)) == []


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (_endpoint(node="host"), "node"),
        (_endpoint(identity="world"), "identity"),
        ({"kind": "cluster", "name": "c", "spec": {"id": 1, "members": ["h1", "10.0.0.1"]}}, "members[1]"),
    ],
)
def test_nothing_refers_to_a_name_that_none_can_have(data: Dict[str, Any], field: str) -> None:
    """It would wait for ever."""
    assert [problem.field for problem in problems_of(data)] == [field]


@pytest.mark.parametrize("kind", ["policy", "service", "cidr_group", "cluster"])
def test_who_is_no_end_may_be_called_like_one(kind: str) -> None:
    spec: Dict[str, Dict[str, Any]] = {
        "policy": {"selector": {}, "ingress": []},
        "service": _service()["spec"],
        "cidr_group": {"cidrs": []},
        "cluster": {"id": 1, "members": ["h1"]},
    }
    assert problems_of({"kind": kind, "name": "world", "spec": spec[kind]}) == []


@pytest.mark.parametrize(("data", "field", "says"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_is_refused_at_its_leaf(data: Dict[str, Any], field: str, says: str) -> None:
    problems = problems_of(data)
    assert [problem.field for problem in problems] == [field]
    assert says in str(problems[0])
    with pytest.raises(InvalidInput):
        parse_document(data)


def _deep(of: Callable[[Any], Any], times: int = 5000) -> Any:
    found: Any = "x"
    for _ in range(times):
        found = of(found)
    return found


def _loop() -> Dict[str, Any]:
    found: Dict[str, Any] = {}
    found["again"] = [found, found]
    return found


DEEP = "nested deeper"
ODD: List[Tuple[str, Any, str]] = [
    ("lists without end", _deep(lambda inner: [inner]), DEEP),
    ("mappings without end", _deep(lambda inner: {"a": inner}), DEEP),
    ("what holds itself", _loop(), DEEP),
    ("a number that cannot be shown", 10**5000, "64 bits"),
    ("a negative one", -(10**5000), "64 bits"),
    ("such a number as a key", {10**5000: 1}, "key that is no text but int"),
    ("a key that is a list", {("a",): 1}, "key that is no text but tuple"),
]


@pytest.mark.parametrize(("odd", "says"), [case[1:] for case in ODD], ids=[case[0] for case in ODD])
@pytest.mark.parametrize(
    ("place", "field"),
    [
        (lambda odd: _policy({"peers": [odd]}), "ingress[0].peers[0]"),
        (lambda odd: _policy({"ports": [{"protocol": odd}]}), "ingress[0].ports[0].protocol"),
        (lambda odd: _endpoint(addresses=odd), "addresses"),
        (lambda odd: _endpoint(unknown=odd), "unknown"),
        (lambda odd: {**_endpoint(), "spec": odd}, "spec"),
        (lambda odd: {**_endpoint(), "name": odd}, "name"),
        (lambda odd: {**_endpoint(), "kind": odd}, "kind"),
        (lambda odd: {**_endpoint(), "status": odd}, "status"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_read_is_refused_where_it_is(
    place: Callable[[Any], Dict[str, Any]], field: str, odd: Any, says: str
) -> None:
    (problem,) = problems_of(place(odd))
    assert says in problem.what
    assert (problem.field or "").startswith(field if field != "spec" else ("spec", "[0]", "a"))
    with pytest.raises(InvalidInput):
        parse_document(place(odd))


def test_names_of_fields_may_be_of_any_kind_and_are_refused_all_the_same() -> None:
    found = problems_of({**_endpoint(), 1: "x", None: "y", "z": 2})  # type: ignore[dict-item]
    assert [problem.field for problem in found] == ["1", "None", "z"]


def test_what_a_field_needs_is_not_too_deep() -> None:
    peer = {"labels": {}, "expressions": [{"key": "a", "operator": "In", "values": ["b"]}]}
    assert problems_of(_policy({"peers": [peer]})) == []


def test_all_problems_are_told_at_once() -> None:
    found = problems_of(_endpoint(addresses=["x"], attach={}, extra=1))
    assert {problem.field for problem in found} == {"addresses[0]", "attach", "extra"}


def test_unknown_values_of_a_preview_fit_anywhere() -> None:
    spec, problems = check(
        RESOURCES["endpoint"].spec_fields,
        {"node": UNKNOWN, "identity": "a", "addresses": [UNKNOWN, "10.0.0.1"], "attach": UNKNOWN},
    )
    assert problems == [] and spec["node"] is UNKNOWN


def test_a_changed_set_shares_what_is_unchanged_and_keeps_its_fingerprints() -> None:
    whole = DocumentSet(fleet.quickstart())
    changed = whole.changed([fleet.policy("db", {"app": "db"}, egress=[])], ["policy/api", "policy/none"])
    assert changed.of_kind("endpoint") is whole.of_kind("endpoint")
    assert "policy/api" in whole and "policy/api" not in changed
    again = DocumentSet(changed)
    assert changed.fingerprint("policy") == again.fingerprint("policy") != whole.fingerprint("policy")
    assert changed.digest == again.digest != whole.digest


def test_digest_depends_on_content_only() -> None:
    documents = fleet.quickstart()
    assert DocumentSet(documents).digest == DocumentSet(reversed(documents)).digest
    moved = Document("endpoint", "api-1", {**documents[7].spec, "node": "h2"})
    assert DocumentSet(documents).changed([moved]).digest != DocumentSet(documents).digest

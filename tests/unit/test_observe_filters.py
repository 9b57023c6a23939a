"""Filters over events and flows: what each matches, and what is refused or said of them."""

from __future__ import annotations

import json
from typing import Any, Dict, List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfleet.errors import InvalidInput
from bpfleet.model.document import DocumentSet
from bpfleet.observe.explain import explain
from bpfleet.observe.filters import (
    KEYS,
    Filter,
    check_for_history,
    known_in,
    known_in_lines,
    matcher,
    parse_port,
    unknown_names,
)
from tests import fleet
from tests.unit.observe_support import DOCUMENTS, NUMBER, event, flow

YES_AND_NO: List[Tuple[str, str, str]] = [
    ("from-any", "web-1", "api-1"),
    ("from-any", "tier=front", "tier=back"),
    ("to-any", "api", "web"),
    ("any", "api-1", "db-1"),
    ("any", "h1", "h2"),
    ("ip", "10.77.1.2", "10.77.1.3"),
    ("ip", "10.77.1.1", "::1"),
    ("from-ip", "10.77.1.0/24", "10.77.2.0/24"),
    ("to-ip", "10.77.1.2", "10.77.1.1"),
    ("port", "80", "81"),
    ("port", "40000", "40001"),
    ("port", "80/tcp", "80/udp"),
    ("from-port", "40000", "80"),
    ("to-port", "80/tcp", "40000/tcp"),
    ("to-port", "tcp", "icmp"),
    ("label", "app=web", "app=db"),
    ("from-label", "tier", "role"),
    ("to-label", "app=api", "app=web"),
    ("identity", "web", "db"),
    ("identity", str(NUMBER["api"]), "7"),
    ("from-identity", "web", "api"),
    ("to-identity", "api", "web"),
    ("endpoint", "web-1", "db-1"),
    ("from-endpoint", "web-1", "api-1"),
    ("to-endpoint", "api-1", "web-1"),
    ("from-node", "h1", "h2"),
    ("to-node", "h1", "h2"),
    ("verdict", "allowed", "denied"),
    ("protocol", "tcp", "udp"),
    ("protocol", "6", "17"),
    ("protocol", "06", "017"),
    ("port", "080", "081"),
    ("policy", "api", "db"),
    ("direction", "ingress", "egress"),
]


@pytest.mark.parametrize(("key", "matching", "other"), YES_AND_NO)
def test_each_filter_and_its_negation(key: str, matching: str, other: str) -> None:
    assert matcher([Filter(key, matching)])(event())
    assert not matcher([Filter(key, other)])(event())
    assert not matcher([Filter(key, matching, negated=True)])(event())
    assert matcher([Filter(key, other, negated=True)])(event())


def test_every_key_is_tried_above_or_below() -> None:
    assert {key for key, _, _ in YES_AND_NO} | {"drop-reason"} == set(KEYS)


def test_reasons_and_messages() -> None:
    dropped = event(verdict=4, reason=26, rule_id=0)
    assert matcher([Filter("drop-reason", "spoofed-source")])(dropped)
    assert not matcher([Filter("drop-reason", "malformed")])(dropped)
    denied = flow(verdict=3)
    assert matcher([Filter("drop-reason", "denied_by_default")])(denied)
    error = event(protocol=1, source_port=3, destination_port=1)
    assert matcher([Filter("port", "3.1/icmp")])(error) and matcher([Filter("port", "3/icmp")])(error)
    assert not matcher([Filter("port", "3.4/icmp")])(error) and not matcher([Filter("port", "8/icmp")])(error)


FILTERS = st.lists(
    st.builds(
        lambda row, right, negated: Filter(row[0], row[1] if right else row[2], negated),
        st.sampled_from(YES_AND_NO), st.booleans(), st.booleans(),
    ),
    max_size=6,
)  # fmt: skip


@pytest.mark.parametrize("key", ["ip", "any", "from-any", "from-ip"])
@pytest.mark.parametrize("text", ["fd00:77:1::b", "FD00:77:1::B", "fd00:77:1:0:0:0:0:b", "fd00:0077:1::0.0.0.11"])
def test_an_address_is_the_same_however_it_is_written(key: str, text: str) -> None:
    assert matcher([Filter(key, text)])(event(source="fd00:77:1::b"))
    assert not matcher([Filter(key, text)])(event(source="fd00:77:1::c"))


@given(FILTERS)
def test_filters_together(filters: List[Filter]) -> None:
    """Alternatives within a key, all keys, none of the negated: said the long way."""
    alone = {one: matcher([Filter(one.key, one.value)])(event()) for one in filters}
    expected = not any(alone[one] for one in filters if one.negated)
    for key in {one.key for one in filters if not one.negated}:
        expected = expected and any(alone[one] for one in filters if one.key == key and not one.negated)
    assert matcher(filters)(event()) is expected
    assert matcher([Filter.from_json(json.loads(json.dumps(one.to_json()))) for one in filters])(event()) is expected


def test_a_protocol_without_a_name_is_known_by_its_number() -> None:
    for text in ("47", "047"):
        assert matcher([Filter("protocol", text)])(event(protocol=47))
        assert not matcher([Filter("protocol", text)])(event())


def test_a_default_deny_belongs_to_each_policy_that_closes() -> None:
    found = {**event(), "policy": "api, db", "policy_labels": {"team": "shop"}}
    assert matcher([Filter("policy", "db")])(found)
    assert matcher([Filter("policy", "team=shop")])(found)
    assert not matcher([Filter("policy", "d")])(found)


def test_a_default_deny_has_the_labels_of_each_policy_that_closes() -> None:
    """Those are found by a label as by their names, also in a recording."""
    documents = [fleet.cluster(["h1"]), fleet.node(1), fleet.identity("web"), fleet.endpoint("web-1", 1, 1, "web")]
    for name, closes, labels in (
        ("a", True, {"team": "shop", "tier": "1"}),
        ("b", True, {"team": "infra"}),
        ("c", False, {"team": "web"}),
    ):
        rules, switch = [{"ports": []}], {"ingress": closes}
        documents.append(fleet.document("policy", name, selector={}, ingress=rules, default_deny=switch, labels=labels))
    said = explain(DocumentSet(documents), "world", "web-1", "tcp", 80)["judged"][0]
    assert (said["policy"], said["rule"]) == ("a, b", "default deny")
    assert said["policy_labels"] == {"team": "infra, shop", "tier": "1"}
    found = {**event(), **said}
    for label, is_of in {"team=shop": True, "team=infra": True, "tier=1": True, "team=web": False, "x=": False}.items():
        assert matcher([Filter("policy", label)])(found) is is_of
        assert (unknown_names(known_in_lines([found]), [Filter("policy", label)]) == []) is is_of


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("verdict", "maybe", "is no verdict"),
        ("verdict", "dropt", "did you mean dropped"),
        ("drop-reason", "spoofed_sauce", "did you mean spoofed_source"),
        ("drop-reason", "to_stack", "is no reason to drop"),
        ("protocol", "tpc", "did you mean tcp"),
        ("protocol", "256", "is no protocol"),
        ("ip", "10.0.0", "is no address and no CIDR"),
        ("port", "http/tcp", "is no port"),
        ("to-port", "70000", "out of range"),
        ("direction", "up", "is no direction"),
        ("from-verdict", "x", "there is no filter"),
        ("port", "80/foo", "'foo' is no protocol that has ports"),
        ("port", "80/47", "'47' is no protocol that has ports"),
        ("port", "80/any", "'any' is no protocol that has ports"),
        ("from-port", "80/tcp/udp", "'tcp/udp' is no protocol that has ports"),
        ("to-port", "80/", "'' is no protocol that has ports"),
        ("port", "tcp/", "is no port"),
        ("port", "0", "out of range"),
        ("port", "9" * 5_000, "out of range"),
        ("port", f"{'9' * 5_000}/icmp", "is no ICMP message"),
        ("protocol", "9" * 5_000, "is no protocol"),
        ("protocol", "", "is no protocol"),
        ("ip", "::ffff:10.0.0.1", "is the IPv4 address 10.0.0.1 written as IPv6"),
        ("from-ip", "::ffff:10.0.0.0/104", "is the IPv4 address 10.0.0.0 written as IPv6"),
        ("to-any", "::ffff:a00:1", "is the IPv4 address 10.0.0.1 written as IPv6"),
        ("ip", "fe80::1%eth0", "has a zone"),
        ("any", "fe80::1%eth0", "has a zone"),
        ("ip", "", "is no address and no CIDR"),
        ("any", "10.0.0.0/8", "is a CIDR.*--ip 10.0.0.0/8"),
        ("from-any", "fd00::/8", "field from: fd00::/8 is a CIDR"),
        ("policy", "", "the name is empty"),
        ("policy", "=shop", "the name is empty"),
        ("identity", "", "the name is empty"),
        ("from-label", "=x", "the name is empty"),
        ("label", "", "the name is empty"),
        ("to-endpoint", "", "the name is empty"),
        ("from-node", "", "the name is empty"),
        ("any", "", "the name is empty"),
        ("any", "=x", "the name is empty"),
    ],
)
def test_what_nothing_can_match_is_refused(key: str, value: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as raised:
        matcher([Filter(key, value)])
    assert raised.value.remedy or "did you" in str(raised.value)


@pytest.mark.parametrize(
    "key", [key for key in KEYS if key.rpartition("-")[2] in ("ip", "endpoint", "node")] + ["from-port"]
)
def test_what_the_history_does_not_keep_is_no_filter_of_it(key: str) -> None:
    with pytest.raises(InvalidInput, match="the history does not keep"):
        check_for_history([Filter(key, "x")])


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("any", "10.77.1.1", "field with: the history does not keep addresses such as 10.77.1.1"),
        ("from-any", "FD00::1", "field from: the history does not keep addresses such as FD00::1"),
        ("to-any", "web-1", "field to: the history does not keep endpoints such as web-1"),
        ("from-any", "h1", "field from: the history does not keep the nodes of both ends such as h1"),
    ],
)
def test_an_end_that_the_history_does_not_keep_is_refused_by_name(key: str, value: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        check_for_history([Filter(key, value)], known_in(DOCUMENTS))
    for kept in ("web", "app=web", "world", "nobody"):
        check_for_history([Filter(key, kept)], known_in(DOCUMENTS))


@pytest.mark.parametrize(
    "key", ["port", "to-port", "label", "from-identity", "any", "verdict", "drop-reason", "policy"]
)
def test_the_other_filters_are_for_both(key: str) -> None:
    check_for_history([Filter(key, "x")])
    values = {row[0]: row[1] for row in YES_AND_NO}
    if key in ("to-port", "label", "from-identity", "policy", "verdict"):
        assert matcher([Filter(key, values[key])])(flow())


@pytest.mark.parametrize(
    ("key", "name", "says"),
    [
        ("any", "web", None),
        ("from-any", "web-1", None),
        ("any", "h1", None),
        ("any", "tier=front", None),
        ("to-any", "10.9.9.9", None),
        ("any", "2001:db8::9", None),
        ("any", "remote-node", None),
        ("any", "wep-1", "did you mean web-1?"),
        ("any", "app=wep", "no identity has the label app=wep (did you mean app=web?)"),
        ("any", "10.0.0", "is no address"),
        ("any", "zzzzzzzz", "'zzzzzzzz' is no address, endpoint, identity, node or label"),
        ("label", "tier", None),
        ("from-label", "tear", "no identity has the label tear (did you mean tier?)"),
        ("identity", "world", None),
        ("identity", str(NUMBER["api"]), None),
        ("identity", "appi", "there is no identity appi (did you mean api?)"),
        ("to-node", "h1", None),
        ("from-node", "h7", "there is no node h7 (did you mean h"),
        ("endpoint", "api-1", None),
        ("endpoint", "api", "there is no endpoint api (did you mean api-"),
        ("policy", "api", None),
        ("policy", "apj", "there is no policy apj (did you mean api?)"),
        ("policy", "team=x", "no policy has the label team=x"),
        ("ip", "10.0.0.1", None),
    ],
)
def test_names_that_nobody_has_are_said(key: str, name: str, says: Any) -> None:
    found = unknown_names(known_in(DOCUMENTS), [Filter(key, name)])
    if says is None:
        assert found == []
    else:
        assert says in found[0]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("80/tcp", {"protocol": "tcp", "port": 80}),
        ("53/UDP", {"protocol": "udp", "port": 53}),
        ("443", {"port": 443}),
        ("0443/tcp", {"protocol": "tcp", "port": 443}),
        ("icmp", {"protocol": "icmp"}),
        ("8/icmp", {"protocol": "icmp", "type": 8}),
        ("3.1/icmp", {"protocol": "icmp", "type": 3, "code": 1}),
    ],
)
def test_ports_on_the_command_line(text: str, found: Dict[str, Any]) -> None:
    assert parse_port(text) == found


@pytest.mark.parametrize(
    "text", ["0/tcp", "70000", "http/tcp", "3.1.1/icmp", "256/icmp", "/icmp", "/tcp", "٣", "8./icmp"]
)
def test_what_is_no_port(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_port(text)

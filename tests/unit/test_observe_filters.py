"""Filters over events and flows, recorded ones, many nodes' in one order; how the command line takes and shows them."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
import time
from typing import Any, Dict, List, Tuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpfleet.cli import merging, observe, observed, recording
from bpfleet.cli.main import main
from bpfleet.errors import InvalidInput
from bpfleet.loader.layout import layout, name_of
from bpfleet.model.document import DocumentSet
from bpfleet.observe.events import flow_of
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
from tests.unit.test_observe import DOCUMENTS, NAMES, NUMBER, event, rule_id

FLOW_BLANK: Dict[str, Any] = dict.fromkeys(layout("flows", "value").names, 0)
COUNTS = {"packets": 7, "bytes": 1500, "answer_packets": 6, "answer_bytes": 12_345_678}


def flow(**fields: Any) -> Dict[str, Any]:
    base = {
        "source_identity": NUMBER["web"],
        "destination_identity": NUMBER["api"],
        "rule_id": rule_id("api", "ingress[0]"),
        "port": 80,
        "protocol": 6,
        "verdict": 1,
        "first_seen": 2_500_000_000,
        "last_seen": 10,
    }
    return flow_of({**FLOW_BLANK, **base, **fields}, COUNTS, NAMES, name_of, 1000.0)


def test_a_flow_has_names_for_its_numbers() -> None:
    found = flow()
    assert found["first_seen"] == 1002.5
    assert found["last_seen"] == round(1000 + 10 * 2**30 / 1e9, 6)
    assert (found["verdict"], found["direction"], found["policy"], found["rule"]) == (
        "allowed", "ingress", "api", "ingress[0]",
    )  # fmt: skip
    assert found["source"] == {
        "identity": NUMBER["web"],
        "identity_name": "web",
        "labels": {"app": "web", "tier": "front"},
    }
    assert found["destination"]["port"] == 80
    assert {name: found[name] for name in COUNTS} == COUNTS
    assert "reason" not in found
    assert flow(last_seen=0)["last_seen"] == found["first_seen"], "never before it was first seen"
    assert flow(verdict=3)["reason"] == "denied_by_default"
    assert flow(verdict=4, reason=26, rule_id=0)["reason"] == "spoofed_source"
    assert flow(protocol=1, port=3 << 8 | 4)["icmp"] == {"type": 3, "code": 4}


def test_a_flow_between_endpoints_of_one_identity_may_be_that_of_one_with_itself() -> None:
    """Which passes whether or not policies select it, and the history has no addresses to tell."""
    alike = flow(destination_identity=NUMBER["web"], rule_id=0)
    assert alike["rule"] == "no policy selects this direction, or an endpoint's traffic with itself is not judged"
    assert flow(rule_id=0)["rule"] == "no policy selects this direction"
    host = flow(source_identity=1, destination_identity=1, rule_id=0)
    assert host["rule"] == "no policy selects this direction"


def test_a_flow_and_the_event_that_began_it_say_the_same() -> None:
    one, other = event(), flow()
    for name in ("verdict", "direction", "protocol", "rule_id", "policy", "rule", "node"):
        assert one[name] == other[name]


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


# -- in what order


def test_streams_of_several_nodes_are_merged_in_order_of_time() -> None:
    arrived: queue.Queue[Any] = queue.Queue()
    for at, node in ((2.0, "a"), (1.0, "b"), (3.0, "b"), (2.0, "b")):
        arrived.put({"time": at, "node": node})
    arrived.put(None)
    arrived.put(None)
    merged = list(merging.merge(arrived, 2, hold_seconds=60))
    assert [(found["time"], found["node"]) for found in merged] == [(1.0, "b"), (2.0, "a"), (2.0, "b"), (3.0, "b")]


@given(st.lists(st.lists(st.integers(0, 50), max_size=8).map(sorted), min_size=1, max_size=4), st.randoms())
def test_nothing_is_lost_or_doubled_in_a_merge(nodes: List[List[int]], chance: Any) -> None:
    """However the nodes' streams interleave, each in order of time."""
    arrived: queue.Queue[Any] = queue.Queue()
    left = [[{"time": float(at), "node": str(node)} for at in times] for node, times in enumerate(nodes)]
    while any(left):
        arrived.put(chance.choice([events for events in left if events]).pop(0))
    for _ in nodes:
        arrived.put(None)
    merged = [(line["time"], line["node"]) for line in merging.merge(arrived, len(nodes), hold_seconds=60)]
    assert [at for at, _ in merged] == sorted(at for at, _ in merged)
    assert sorted(merged) == sorted((float(at), str(node)) for node, times in enumerate(nodes) for at in times)


def test_a_busy_node_whose_clock_is_behind_keeps_no_other_waiting() -> None:
    """Its events are always the earliest of those that are held."""
    arrived: queue.Queue[Any] = queue.Queue()
    began = time.monotonic()

    def feed() -> None:
        arrived.put({"time": 5000.0, "node": "right"})
        for number in range(100):
            arrived.put({"time": 1000.0 + number, "node": "behind"})
            time.sleep(0.02)
        arrived.put(None)

    feeding = threading.Thread(target=feed)
    feeding.start()
    merged = merging.merge(arrived, 1, hold_seconds=0.1)
    came = {line["node"]: time.monotonic() - began for line in merged}
    feeding.join()
    assert came["right"] < 1, "held back until the other node was silent"


def test_the_newest_kept_by_all_nodes_come_before_what_follows() -> None:
    """However long one takes to answer; --last is of all together, losses are no events."""
    arrived: queue.Queue[Any] = queue.Queue()

    def feed() -> None:
        for at in (1.0, 4.0):
            arrived.put({"time": at, "node": "quick", "verdict": "allowed"})
        arrived.put({"time": 0.0, "node": "quick", "clock": 0.0})
        arrived.put({"time": 9.0, "node": "quick", "verdict": "denied"})
        time.sleep(0.3)
        for at in (2.0, 3.0):
            arrived.put({"time": at, "node": "slow", "verdict": "allowed"})
        arrived.put({"time": 3.5, "node": "slow", "lost": 7})
        arrived.put({"time": 0.0, "node": "slow", "clock": 0.0})
        arrived.put(None)
        arrived.put(None)

    feeding = threading.Thread(target=feed)
    feeding.start()
    merged = list(merging.merge(arrived, 2, hold_seconds=0.05, last=2))
    feeding.join()
    assert [(line["time"], line["node"]) for line in merged] == [
        (3.0, "slow"),
        (3.5, "slow"),
        (4.0, "quick"),
        (9.0, "quick"),
    ]


def test_a_node_that_does_not_answer_keeps_the_kept_ones_for_a_while_only() -> None:
    arrived: queue.Queue[Any] = queue.Queue()
    arrived.put({"time": 1.0, "node": "quick", "verdict": "allowed"})
    arrived.put({"time": 0.0, "node": "quick", "clock": 0.0})
    began = time.monotonic()
    merged = merging.merge(arrived, 2, hold_seconds=0.05, last=-1, patience_seconds=0.2)
    assert next(merged)["time"] == 1.0
    assert time.monotonic() - began < 2


# -- recorded ones


def at(seconds: float, **fields: Any) -> Dict[str, Any]:
    return {**event(**fields), "time": seconds}


def test_recorded_events_pass_the_same_filters() -> None:
    lines = [at(3.0), at(1.0, verdict=2), {"lost": 4, "time": 2.5, "node": "h2"}, {**at(2.0), "node": "h2"}]

    def found(filters: Any = (), since: Any = None, until: Any = None, last: int = -1) -> List[float]:
        return [line["time"] for line in recording.replayed(lines, list(filters), since, until, last)]

    assert found() == [1.0, 2.0, 2.5, 3.0]
    assert found([Filter("verdict", "denied")]) == [1.0, 2.5]
    assert found([Filter("verdict", "denied", True)]) == [2.0, 2.5, 3.0]
    assert found(since=2.0) == [2.0, 2.5, 3.0]
    assert found(until=2.0) == [1.0, 2.0], "nor is what was lost later a loss of that time"
    assert found(since=2.7) == [3.0]
    assert found(last=1) == [2.5, 3.0]
    assert found(last=0) == [2.5]


def test_recorded_flows_by_when_they_were_seen() -> None:
    lines = [flow()]  # from 1002.5 to 1010.7
    for since, until, kept in ((1010, None, 1), (1011, None, 0), (None, 1003, 1), (None, 1002, 0), (1005, 1006, 1)):
        assert len(recording.replayed(lines, [], since, until, -1)) == kept


def test_a_file_is_looked_at_without_nodes(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "events.json"
    file.write_text("".join(json.dumps(line) + "\n" for line in (at(1.0), at(2.0, verdict=2), flow())))
    assert main(["observe", "--input-file", str(file), "--verdict", "denied", "-o", "json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == at(2.0, verdict=2)
    assert main(["observe", "--input-file", str(file), "--history", "--not", "--verdict", "denied", "-o", "json"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [flow()]
    assert main(["observe", "--input-file", str(file), "--verdict", "audited"]) == 0
    assert "none of the 3 lines" in capsys.readouterr().err


def replay(tmp_path: Any, lines: Any, words: str) -> int:
    """`observe` of a recording called f. lines: of which those that are no text yet are made such."""
    file = tmp_path / "f"
    file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return main(["observe", "--input-file", str(file), *words.split()])


@pytest.mark.parametrize("history", ["", " --history"])
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--ip 10.0.0.1", "field ip: the history does not keep addresses"),
        ("--not --ip 10.0.0.1", "field ip: the history does not keep addresses"),
        ("--not --from-port 5", "field from-port: the history does not keep the ports of senders"),
        ("--not --to-node h2", "field to-node: the history does not keep the nodes of both ends"),
        ("--not --from 10.0.0.1", "field from: the history does not keep addresses"),
        ("--with h1", "field with: the history does not keep the nodes of both ends"),
    ],
)
def test_a_recorded_history_has_not_what_the_history_does_not_keep(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], words: str, says: str, history: str
) -> None:
    """However it is asked: an answer without it would be none, or all."""
    assert replay(tmp_path, [flow(), KEPT], words + history) == 2
    told = capsys.readouterr()
    assert says in told.err and not told.out
    assert replay(tmp_path, [at(1.0), {"lost": 1, "time": 2.0}], words) == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--from wep-1", "f: 'wep-1' is no address, endpoint, identity, node or label (did you mean web-1?)"),
        ("--label app=wep", "f: no identity has the label app=wep (did you mean app=web?)"),
        ("--not --policy apj", "f: there is no policy apj (did you mean api?)"),
        ("--identity 7", "f: there is no identity 7"),
        ("--to-endpoint web", "f: there is no endpoint web (did you mean web-1?)"),
        ("--node hh1", "f: there is no node hh1 (did you mean h1?)"),
        ("--not --node h9", "f: there is no node h9 (did you mean h1?)"),
        ("--from web-1 --to api --policy api --label tier --to-node h1 --identity world", ""),
        (f"--identity {NUMBER['api']}", ""),
        ("--policy team=shop", ""),
        ("--policy db", ""),
    ],
)
def test_names_that_no_recorded_line_has_are_said(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], words: str, says: str
) -> None:
    lines = [at(1.0), {**at(2.0), "policy": "web, db", "policy_labels": {"team": "shop"}}]
    assert replay(tmp_path, lines, words) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "none of the" not in line]
    assert [line.partition(str(tmp_path) + "/")[2] for line in said] == ([says] if says else [])


@pytest.mark.parametrize("words", ["--node h9", "--history", "--node h1 --port 9", "--policy nobody --node h2"])
def test_lines_of_which_none_matches_are_all_counted(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    assert replay(tmp_path, [at(1.0), at(2.0), {"lost": 1, "time": 2.0}], words) == 0
    assert capsys.readouterr().err.splitlines()[-1] == f"bpfleet: none of the 2 lines of {tmp_path}/f matches"


KEPT = {
    "clock": 9.0,
    "time": 9.0,
    "node": "h1",
    "kept": 1,
    "limit": 4,
    "did_not_fit": {"passed": {**COUNTS, "packets": 30}, "dropped": dict.fromkeys(COUNTS, 0)},
    "retired": {"passed": 0, "dropped": 2},
}
"""What ends the history of a node."""


@pytest.mark.parametrize("output", ["json", "compact", "table", "dict"])
def test_a_recorded_history_says_what_it_does_not_hold(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    file = tmp_path / "flows.json"
    file.write_text("".join(json.dumps(line) + "\n" for line in (flow(), KEPT, {**KEPT, "node": "h2", "limit": 8})))
    words = ["observe", "--input-file", str(file), "--history", "--last", "1", "--not", "--node", "h2", "-o", output]
    assert main(words) == 0
    told = capsys.readouterr()
    assert told.err.splitlines() == [
        f"bpfleet: h1: 36 packets ({COUNTS['bytes'] + COUNTS['answer_bytes']} bytes) that were passed are in no flow "
        "above: they did not fit among the 4 that the history keeps",
        "bpfleet: h1: 2 idle flows that were dropped gave their place to new ones",
    ]
    if output == "json":
        assert [json.loads(line) for line in told.out.splitlines()] == [KEPT, flow()]
    else:
        assert "did not fit" not in told.out


def test_not_before_a_node_leaves_out_what_it_judged(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "events.json"
    lines = [{**at(number, verdict=verdict), "node": node} for number, (node, verdict) in enumerate(
        [("h1", 1), ("h1", 2), ("h2", 1), ("h2", 2), ("h3", 1)])]  # fmt: skip
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def found(words: str) -> List[Tuple[str, str]]:
        assert main(["observe", "--input-file", str(file), "-o", "json", *words.split()]) == 0
        shown = map(json.loads, capsys.readouterr().out.splitlines())
        return [(line["node"], line["verdict"]) for line in shown]

    assert found("--not --node h1 --verdict allowed") == [("h2", "allowed"), ("h3", "allowed")]
    assert found("--node h1 --not --verdict allowed") == [("h1", "denied")]
    assert found("--not --node h1 --not --node h2") == [("h3", "allowed")]
    assert found("--node h1 --not --node h1") == []


@pytest.mark.parametrize("count", [1, 5_000])
def test_a_reader_who_has_seen_enough_is_no_error(tmp_path: Any, count: int) -> None:
    file = tmp_path / "events.json"
    file.write_text((json.dumps(at(1.0)) + "\n") * count)
    words = [sys.executable, "-m", "bpfleet.cli.main", "observe", "--input-file", str(file), "--last", str(count)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGPIPE


def without(line: Dict[str, Any], *names: str) -> Dict[str, Any]:
    return {name: value for name, value in line.items() if name not in names}


ODD: List[Tuple[Any, str]] = [
    ("no json", "no JSON"),
    ("[" * 100_000, "no JSON"),
    ("9" * 5_000, "no JSON"),
    ('{"time": 1, "lost": 1, "more": ' + "[" * 100 + "]" * 100 + "}", "too deep"),
    ("[]", "no JSON object"),
    ({}, "time is missing"),
    ({"time": "x"}, "time is"),
    ('{"time": NaN, "lost": 1}', "no JSON"),
    ({"time": 1e300, "lost": 1}, "time is"),
    ({"time": -1, "lost": 1}, "time is"),
    ({"time": True, "lost": 1}, "time is"),
    ({"time": 1, "lost": "1"}, "lost is"),
    ({"time": 1, "lost": 1, "node": 7}, "node is"),
    ({"time": 1, "verdict": "allowed"}, "is missing"),
    ({**KEPT, "did_not_fit": 3}, "did_not_fit is"),
    ({**KEPT, "did_not_fit": {"passed": {"packets": 1}}}, "did_not_fit.passed.bytes is missing"),
    (without(KEPT, "limit"), "limit is missing"),
    ({**KEPT, "retired": {"dropped": "2"}}, "retired.dropped is"),
    ({**at(1.0), "source": None}, "source is"),
    ({**at(1.0), "verdict": 7}, "verdict is"),
    ({**at(1.0), "source": {"address": "x"}}, "source.address is"),
    ({**at(1.0), "source": {"labels": ["app"]}}, "source.labels is"),
    ({**at(1.0), "destination": {"labels": {"app": 1}}}, "destination.labels.app is"),
    ({**at(1.0), "destination": {"port": "80"}}, "destination.port is"),
    (without(at(1.0), "direction"), "direction is missing"),
    (without(at(1.0), "protocol"), "protocol is missing"),
    (without(at(1.0), "rule"), "rule is missing"),
    (without(at(1.0, verdict=4, reason=26), "reason"), "reason is missing"),
    ({**at(1.0), "icmp": {"type": 8}}, "icmp.code is missing"),
    ({**at(1.0), "policy_labels": "x"}, "policy_labels is"),
    ({**at(1.0), "policy": "\ud800"}, "no text"),
    (without(flow(), "first_seen"), "first_seen is missing"),
    ({**flow(), "packets": "7"}, "packets is"),
    ({**flow(), "bytes": 10**400}, "bytes is"),
    (without(flow(), "answer_bytes"), "answer_bytes is missing"),
]


@pytest.mark.parametrize("words", ["", "-o json", "-o table --ip 10.0.0.1", "-o dict --until 1d", "--history"])
@pytest.mark.parametrize(("line", "says"), ODD, ids=range(len(ODD)))
def test_what_is_no_recording_is_refused_by_line(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], line: Any, says: str, words: str
) -> None:
    assert replay(tmp_path, [at(1.0), "", line], words) == 2
    told = capsys.readouterr()
    assert f"line 3 of {tmp_path}/f is no event" in told.err and says in told.err
    assert len(told.err) < 1_000 and not told.out


def test_what_is_no_text_is_refused_by_line(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "f"
    file.write_bytes(json.dumps(at(1.0)).encode() + b'\n{"node": "h\xff", "lost": 1, "time": 1}\n')
    assert main(["observe", "--input-file", str(file)]) == 2
    assert f"line 2 of {tmp_path}/f is no event" in capsys.readouterr().err


ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(("web-1", "10.77.1.1", "\ud800")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
EVERY_KIND = [at(1.0), at(1.0, verdict=2), at(1.0, verdict=4, reason=26, rule_id=0), at(1.0, protocol=1), flow(), KEPT]
SHOWN = [("-o", output, *more) for output in observed.OUTPUTS for more in (
    (), ("--history",), ("--since", "1d"), ("--until", "1d"), ("--ip", "10.0.0.0/8"), ("--not", "--with", "web"),
    ("--port", "8/icmp"), ("--not", "--label", "app"), ("--policy", "team=shop"), ("--protocol", "6"), ("--last", "1"),
)]  # fmt: skip


@st.composite
def changed_lines(draw: st.DrawFn) -> Dict[str, Any]:
    """A line of which something is left out, or is something else."""
    line = json.loads(json.dumps(draw(st.sampled_from(EVERY_KIND))))
    inside = [line, *(value for value in line.values() if isinstance(value, dict))]
    for _ in range(draw(st.integers(0, 2))):
        at_fault = draw(st.sampled_from(inside))
        name = draw(st.sampled_from((*at_fault, "more")))
        if draw(st.booleans()):
            at_fault[name] = draw(ANY_JSON)
        else:
            at_fault.pop(name, None)
    return line  # type: ignore[no-any-return]


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changed_lines(), st.sampled_from(SHOWN))
def test_a_line_is_shown_or_refused_whatever_it_holds(tmp_path: Any, line: Any, words: Tuple[str, ...]) -> None:
    file = tmp_path / "f"
    file.write_text(json.dumps(line))
    assert main(["observe", "--input-file", str(file), *words]) in (0, 2)


def test_what_newer_nodes_say_besides_is_shown(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    line = {**at(1.0), "more": {"list": [1, 2.5, None, True, "é"]}}
    assert replay(tmp_path, [line, {"time": 2.0, "clock": 2.0}], "-o json") == 0
    assert json.loads(capsys.readouterr().out) == line


# -- the command line


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--not", "--not stands before no filter"),
        ("--follow --history", "cannot be followed"),
        ("--history --from-ip 10.0.0.1", "does not keep addresses"),
        ("--ip 10.0", "is no address"),
        ("--drop-reason x", "is no reason to drop"),
        ("--input-file /nonexistent", "cannot be read"),
        ("--input-file x --follow", "a file cannot be followed"),
        ("--input-file x --since 1m --until 1h", "field until: nothing is both after"),
        ("--history --since 1m --until 1h", "field until: nothing is both after"),
        ("--since 9998-12-31T00:00:00", "field since: --since is still to come: 9998-12-31 00:00:00"),
        ("--history --since 999999999999", "field since: --since is still to come: 33658-09-27"),
        ("--lab --seed 192.0.2.1", "--lab and --seed name different nodes"),
        ("--lab --jump 192.0.2.1", "--jump leads to no seed"),
        ("--seed 192.0.2.1 --jump hop@", "field jump: 'hop@' is no host"),
        ("--seed 192.0.2.1 --jump hop:70000", "field jump: port 70000 is out of range"),
    ],
)
def test_what_cannot_be_asked(words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["observe", *words.split()]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    ["--since 1h", "--until 1h", "--last 3", "-f", "--follow", "--history", "--input-file x", "-o json", "--lab",
     "--seed h", "--jump h", "--identity-file x", "--known-hosts x", "--not"],
)  # fmt: skip
def test_not_before_what_is_no_filter_is_refused_by_name(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["observe", "--not", *option.split(), "--verdict", "allowed"])
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert option.split()[0] in said and "--not" in said


@pytest.mark.parametrize(
    "words",
    [
        "--since soon",
        f"--since {'9' * 5_000}",
        f"--last {'9' * 5_000}",
        "--last ²",
        "--last x",
        "--verdict maybe",
        "-o yaml",
    ],
)
def test_what_does_not_parse(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["observe", *words.split()])
    assert words.split()[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 10_000 - 90),
        ("1.5m", 10_000 - 90),
        ("2h", 10_000 - 7200),
        ("1d", 10_000 - 86400),
        ("1767225600.5", 1767225600.5),
        ("1970-01-01T02:00:00+00:00", 7200),
        ("1970-01-01T02:00:00Z", 7200),
    ],
)
def test_moments(text: str, seconds: float) -> None:
    assert observe.moment(text, 10_000.0) == seconds


def test_a_time_is_of_this_day() -> None:
    now = time.mktime((2026, 3, 4, 15, 0, 0, 0, 0, -1))
    assert observe.moment("13:05", now) == time.mktime((2026, 3, 4, 13, 5, 0, 0, 0, -1))
    assert observe.moment("9:05:07", now) == time.mktime((2026, 3, 4, 9, 5, 7, 0, 0, -1))


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["observe", "--help"])
    text = capsys.readouterr().out
    assert "--history" in text and "--not" in text and "examples:" in text
    for key in KEYS:
        if key.rpartition("-")[2] != "any":
            assert f"--{key} " in text, key


def test_losses_clocks_and_what_is_not_kept_are_said() -> None:
    streams = observe.Streams(None, [])  # type: ignore[arg-type]
    counts = {"packets": 2, "bytes": 100, "answer_packets": 1, "answer_bytes": 60}
    none = dict.fromkeys(counts, 0)
    streams.lost = {"h1": 3}
    streams._notices = {
        "h1": (1000.0, {"clock": 1004.0, "kept_from": 900.0}),
        "h2": (1000.0, {"clock": 1000.1, "kept": 9, "limit": 9, "did_not_fit": {"passed": counts, "dropped": none},
                        "retired": {"passed": 0, "dropped": 5}}),
    }  # fmt: skip
    said = streams.said(since=800.0)
    assert said[0] == "in all, h1: 3 events were overwritten before they were read"
    assert said[1] == "the clock of h1 is 4.0 s ahead of this machine's: so are its times"
    assert said[2].startswith("h1 no longer keeps all events from before ")
    assert said[3].startswith("h2: 3 packets (160 bytes) that were passed are in no flow above")
    assert said[4] == "h2: 5 idle flows that were dropped gave their place to new ones"
    assert len(streams.said(since=None)) == 4


def test_the_newest_of_many_keep_the_losses() -> None:
    lines = [{"time": float(n), "verdict": "allowed"} for n in range(4)]
    lines.insert(1, {"time": 0.5, "lost": 1})
    assert [line["time"] for line in recording.newest(lines, 2)] == [0.5, 2.0, 3.0]
    assert recording.newest(lines, -1) == lines


# -- for people


def test_events_for_people() -> None:
    assert observed.render(event()).endswith("tcp      web-1:40000 -> api-1:80  api ingress[0]")
    dropped = event(verdict=4, reason=26, rule_id=0)
    assert observed.render(dropped).endswith("spoofed source")
    assert "no longer declared" in observed.render({**event(), "gone": "yes"})
    assert observed.render({**event(), "changed": "yes"}).endswith("api ingress[0] (changed since)")
    assert "h1: 3 events were overwritten" in observed.lost({"lost": 3, "time": 1.0, "node": "h1"})
    assert observed.compact(event()).endswith("h1: web-1:40000 -> api-1:80 tcp ingress ALLOWED (api ingress[0])")


@pytest.mark.parametrize("output", ["compact", "table", "dict"])
def test_what_old_policies_say_of_themselves_stays_in_its_line(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    described = {**event(), "description": 'ok"\nNov 28: forged\x1b[2J\u2028\x9b1m', "policy_labels": {"a\r": "\x07"}}
    observed.Printer(output).show(described)
    told = capsys.readouterr().out
    assert "\\nNov 28: forged\\x1b[2J\\u2028\\x9b1m" in told
    assert not any(found for found in told.replace("\n", "") if not found.isprintable())
    observed.Printer("json").show(described)
    assert json.loads(capsys.readouterr().out) == described


def test_flows_for_people() -> None:
    columns = observed.render(flow()).split()
    assert columns[2:] == ["h1", "allowed", "ingress", "tcp", "7", "1.5k", "6", "12M", "web", "->", "api:80", "api",
                           "ingress[0]"]  # fmt: skip
    assert observed.header(flow()).split()[:2] == ["LAST", "SEEN"]
    assert "icmp 8.0" in observed.render(flow(protocol=1, port=8 << 8))
    text = observed.compact(flow())
    assert "7 packets, 1500 bytes; answers 6, 12345678; since " in text
    lines = observed.fields(flow()).splitlines()
    assert "packets: 7" in [line.strip() for line in lines]


def test_on_a_terminal_a_table_elsewhere_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    observed.Printer(None).show(event())
    assert capsys.readouterr().out == observed.compact(event()) + "\n"
    printer = observed.Printer("table")
    for line in (event(), {"lost": 2, "time": 1.0, "node": "h1"}, event()):
        printer.show(line)
    told = capsys.readouterr()
    assert told.out.startswith("TIME")
    assert len(told.out.splitlines()) == 3 and printer.shown == 2
    assert "2 events were overwritten" in told.err
    observed.Printer("json").show({"lost": 2, "time": 1.0, "node": "h1"})
    assert json.loads(capsys.readouterr().out)["lost"] == 2

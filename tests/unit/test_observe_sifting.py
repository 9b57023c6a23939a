"""Sifting many events gives what making an event of each would."""

from __future__ import annotations

import json
from typing import Any, Dict, List, Mapping, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfleet.agent import wire
from bpfleet.loader.generated.layouts import ENUMS
from bpfleet.loader.layout import decode_many, encode, layout, name_of
from bpfleet.model.document import DocumentSet
from bpfleet.model.state import RuleName
from bpfleet.observe.events import event_of
from bpfleet.observe.filters import Filter, matcher
from bpfleet.observe.names import Names
from bpfleet.observe.past import RULE, Meaning, Past
from bpfleet.observe.reader import Batch
from bpfleet.observe.sifting import Sifter, event_json
from tests import fleet

BLANK: Dict[str, Any] = dict.fromkeys(layout("events", "value").names, 0)
DOCUMENTS = DocumentSet(fleet.quickstart())
WEB = DOCUMENTS.of_kind("identity")["web"].spec["number"]
RULES = {7: RuleName("api", "ingress", "ingress[0]", "allow", "100% of it", {"team": "shop"})}
NAMES = Names(DOCUMENTS, RULES, "h1")
BOOT = 1_700_000_000.25

RECORDS = st.fixed_dictionaries(
    {
        "time_ns": st.integers(1, 1 << 40),
        "source": st.sampled_from(["10.77.1.1", "10.77.2.2", "fd77:0:0:1::1", "198.51.100.1"]),
        "destination": st.sampled_from(["10.77.1.1", "192.168.77.2", "198.51.100.9", ""]),
        "rule_id": st.sampled_from([0, 7, 9]),
        "source_identity": st.sampled_from([1, 2, WEB, 77777]),
        "destination_identity": st.sampled_from([1, 2, WEB]),
        "length": st.integers(0, 65535),
        "source_port": st.sampled_from([0, 8, 80, 40000, 40001]),
        "destination_port": st.sampled_from([0, 1, 80, 443]),
        "protocol": st.sampled_from([6, 17, 1, 58, 47]),
        "verdict": st.sampled_from(sorted(ENUMS["verdict"].values())),
        "direction": st.sampled_from([0, 1]),
        "reason": st.sampled_from([0, 16, 17]),
        "hook": st.sampled_from([0, 1]),
        "tcp_flags": st.integers(0, 255),
        "ifindex": st.integers(0, 9),
    }
)
FILTERS = st.lists(
    st.builds(
        lambda pair, negated: Filter(*pair, negated),
        st.sampled_from(
            [
                ("verdict", "denied"), ("port", "80"), ("port", "40000/tcp"), ("from-port", "40001"),
                ("to-port", "443"), ("port", "8/icmp"),
                ("protocol", "udp"), ("identity", "web"), ("from-ip", "10.77.0.0/16"),
                ("policy", "api"), ("any", "web-1"), ("to-node", "h2"), ("drop-reason", "policy_denied"),
                ("direction", "egress"), ("from-label", "app=web"),
            ]
        ),
        st.booleans(),
    ),
    max_size=3,
)  # fmt: skip


def data_of(records: List[Dict[str, Any]]) -> bytes:
    return b"".join(
        encode("events", "value", {**BLANK, **record, "sequence": number + 1}) for number, record in enumerate(records)
    )


def named(record: Mapping[str, Any]) -> Dict[str, Any]:
    return event_of(record, NAMES, name_of, BOOT)


def sifted(sifter: Sifter, records: List[Dict[str, Any]]) -> List[Any]:
    found = sifter.sift(Batch(data_of(records), 0), named, BOOT)
    lines = wire.event_lines(3, [event_json(one, BOOT) for one in found])
    messages = [wire.decode(line) for line in lines.splitlines()]
    assert all(message["id"] == 3 for message in messages)
    return [message["event"] for message in messages]


def expected(records: List[Dict[str, Any]], filters: List[Filter], since: Optional[float]) -> List[Any]:
    keep = matcher(filters)
    events = [named(record) for record in decode_many("events", "value", data_of(records))]
    events.sort(key=lambda event: float(event["time"]))
    kept = [event for event in events if keep(event) and (since is None or event["time"] >= since)]
    return [json.loads(json.dumps(event)) for event in kept]


def by_time(events: List[Any]) -> List[Any]:
    return sorted(events, key=lambda event: (event["time"], json.dumps(event, sort_keys=True)))


@given(st.lists(st.lists(RECORDS, max_size=12), min_size=1, max_size=3), FILTERS, st.sampled_from([None, BOOT + 500.0]))
def test_every_event_that_matches_and_no_other(
    batches: List[List[Dict[str, Any]]], filters: List[Filter], since: Optional[float]
) -> None:
    known = set(ENUMS["reason"])
    filters = [one for one in filters if one.key != "drop-reason" or one.value in known]
    sifter = Sifter(filters, since, None)
    for records in batches:
        found = sifted(sifter, records)
        assert by_time(found) == by_time(expected(records, filters, since))
        assert [event["time"] for event in found] == sorted(event["time"] for event in found)


def test_other_names_are_asked_for_after_it_forgot() -> None:
    sifter = Sifter([Filter("policy", "api")], None, None)
    record = {"source": "10.77.1.1", "destination": "10.77.1.2", "rule_id": 7, "protocol": 6, "verdict": 1}
    assert len(sifted(sifter, [record])) == 1

    def renamed(decoded: Mapping[str, Any]) -> Dict[str, Any]:
        return {**named(decoded), "policy": "other"}

    batch = Batch(data_of([record]), 0)
    assert len(sifter.sift(batch, renamed, BOOT)) == 1, "what it knows of this kind still holds"
    sifter.forget()
    assert sifter.sift(batch, renamed, BOOT) == []


@given(st.lists(st.integers(1, 40), max_size=20), st.lists(st.integers(1, 40), max_size=4).map(sorted))
def test_names_are_those_of_the_time(times: List[int], ends: List[int]) -> None:
    past = Past(Meaning(RULE, "7", end, {**vars(RULES[7]), "description": f"until {end}"}) for end in ends)
    names = Names(DOCUMENTS, RULES, "h1", past)
    record = {"source": "10.77.1.1", "destination": "10.77.1.2", "rule_id": 7, "protocol": 6, "verdict": 1}
    sifter = Sifter([], None, None)
    batch = Batch(data_of([{**record, "time_ns": time} for time in times]), 0)
    found = sifter.sift(batch, lambda one: event_of(one, names, name_of, 0.0), 0.0, past.ends)
    told = [json.loads(event_json(one, 0.0))["description"] for one in found]
    expected = [next((f"until {end}" for end in ends if end > time), "100% of it") for time in sorted(times)]
    assert told == expected


@pytest.mark.parametrize("filters", [[], [Filter("verdict", "allowed")]])
def test_events_of_one_kind_are_named_once(filters: List[Filter]) -> None:
    asked: List[Any] = []

    def counted(record: Mapping[str, Any]) -> Dict[str, Any]:
        asked.append(record)
        return named(record)

    sifter = Sifter(filters, None, None)
    records = [
        {
            "source": "10.77.1.1",
            "destination": "198.51.100.1",
            "protocol": 17,
            "verdict": 2,
            "source_port": 1024 + number,
        }
        for number in range(5000)
    ]
    sifter.sift(Batch(data_of(records), 0), counted, BOOT)
    assert len(asked) == 1


def test_what_it_remembers_is_bounded() -> None:
    sifter = Sifter([], None, None)
    records = [
        {"source": "10.77.1.1", "destination": "198.51.100.1", "rule_id": number, "protocol": 17}
        for number in range(1, (1 << 14) + 100)
    ]
    assert len(sifter.sift(Batch(data_of(records), 0), named, BOOT)) == len(records)
    assert len(sifter._kinds) <= 1 << 14


@pytest.mark.parametrize(
    ("key", "value", "ports"),
    [("from-port", "40001", [40001]), ("port", "40001/udp", [40001]), ("to-port", "53", [40000, 40001, 40002])],
)
@pytest.mark.parametrize("negated", [False, True])
def test_events_that_differ_in_the_senders_port_alone_are_told_apart_where_ports_are_asked_for(
    key: str, value: str, ports: List[int], negated: bool
) -> None:
    one = {"source": "10.77.1.1", "destination": "198.51.100.1", "destination_port": 53, "protocol": 17, "verdict": 1}
    every = [40000, 40001, 40002]
    found = sifted(Sifter([Filter(key, value, negated)], None, None), [{**one, "source_port": port} for port in every])
    wanted = [port for port in every if (port in ports) is not negated]
    assert [event["source"]["port"] for event in found] == wanted


@pytest.mark.parametrize(
    ("since", "until", "seen"),
    [(None, 2.0, [1.0, 2.0]), (2.0, None, [2.0, 3.0]), (2.0, 2.0, [2.0]), (1.5, 2.5, [2.0]), (None, 0.5, [])],
)
def test_events_of_a_span_have_both_its_ends(since: Optional[float], until: Optional[float], seen: List[float]) -> None:
    sifter = Sifter([], *(None if one is None else BOOT + one for one in (since, until)))
    record = {"source": "10.77.1.1", "destination": "198.51.100.1", "protocol": 17, "verdict": 1}
    found = sifted(sifter, [{**record, "time_ns": seconds * 10**9} for seconds in (1, 2, 3)])
    assert [event["time"] - BOOT for event in found] == seen

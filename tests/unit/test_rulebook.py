"""What rules, addresses and identities stood for: kept while something older asks for it, and no longer."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Dict

import pytest

from bpfleet.agent import rulebook, session
from bpfleet.agent.files import Files
from bpfleet.loader.layout import decode, encode, layout, name_of
from bpfleet.model.document import Document, DocumentSet
from bpfleet.model.state import RuleName
from bpfleet.observe.events import event_of
from bpfleet.observe.filters import Filter, matcher
from bpfleet.observe.history import seen_first
from bpfleet.observe.names import Names, short_end
from bpfleet.observe.past import ADDRESS, IDENTITY, RULE, Key, Known, Meaning, Past, said_by
from tests import fleet
from tests.unit.observe_support import DOCUMENTS, FLOW_BLANK, NUMBER, record

EMPTY = DocumentSet()


def rule(number: int, **change: Any) -> RuleName:
    said: Dict[str, Any] = {"description": "says so", "labels": {"team": "shop"}, **change}
    return RuleName(f"p{number}", "ingress", f"ingress[{number}]", "allow", **said)


def rules(*numbers: int, documents: DocumentSet = EMPTY, **change: Any) -> Known:
    return Known(documents, {number: rule(number, **change) for number in numbers})


class Book(rulebook.Rulebook):
    """With what events and flows name given by hand: when at the earliest."""

    def __init__(self, files: Files) -> None:
        super().__init__(files, None)
        self.named: Dict[Key, int] = {}

    def name(self, *numbers: int, at: int = 0) -> None:
        """Rules that are named from now on, and no others."""
        self.named = {(RULE, str(number)): at for number in numbers}

    def _named(self) -> Dict[Key, int]:
        return self.named


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(Files(tmp_path))


def kept(book: Book) -> Dict[int, str]:
    """Places of rules that are kept as gone."""
    past = book.read()
    found = {number: past.last(RULE, number) for number in range(20)}
    return {number: row["rule"] for number, row in found.items() if row is not None}


def test_what_went_stays_while_it_is_named(book: Book) -> None:
    book.name(1, 2)
    book.turn(rules(1, 2, 3), rules(3), 10)
    assert kept(book) == {1: "ingress[1]", 2: "ingress[2]"}
    book.name(2, 3)
    book.turn(rules(3), rules(4), 20)
    assert kept(book) == {2: "ingress[2]", 3: "ingress[3]"}, "1 is named by nothing any more"
    book.name(2, 3, 4, at=25)
    book.turn(rules(4), rules(3), 30)
    assert kept(book) == {2: "ingress[2]", 4: "ingress[4]"}, "3 is declared again, and named since alone"
    book.named = {}
    book.turn(rules(3), rules(), 40)
    assert kept(book) == {}
    assert not book.path.exists()


def test_each_time_has_its_text(book: Book) -> None:
    book.name(1, at=5)
    book.turn(rules(1, description="first"), rules(1, description="second"), 10)
    book.turn(rules(1, description="second"), rules(1, description="third"), 20)
    past = book.read()

    def at(time_ns: int) -> Any:
        row = past.at(RULE, 1, time_ns)
        return row and row["description"]

    assert [at(time_ns) for time_ns in (5, 9, 10, 19, 20, 99)] == ["first", "first", "second", "second", None, None]
    book.name(1, at=15)
    book.turn(rules(1, description="third"), rules(1, description="fourth"), 30)
    past = book.read()
    assert at(9) == "second", "what nothing asks for any more is forgotten"


def test_what_was_put_back_before_it_held_counts_where_it_is_gone_alone(book: Book) -> None:
    book.name(1, 2)
    book.turn(rules(1, 2, description="never in force"), rules(1), 10, only_gone=True)
    assert book.read().at(RULE, 1, 5) is None
    assert kept(book) == {2: "ingress[2]"}


def test_a_change_that_was_put_back_leaves_what_was_said_meanwhile(book: Book) -> None:
    book.name(1)
    book.turn(rules(1, description="kept"), rules(1, description="put back"), 10)
    book.turn(rules(1, description="put back"), rules(1, description="kept"), 20)
    names = Names(EMPTY, rules(1, description="kept").rules, "h1", book.read())
    told = [names.rule(1, time_ns) for time_ns in (5, 15, 25)]
    assert [one["description"] for one in told] == ["kept", "put back", "kept"]
    assert ["changed" in one for one in told] == [False, True, False]


def test_a_policy_that_selects_others_is_another_although_its_rule_says_the_same(book: Book) -> None:
    here, there = (DocumentSet([fleet.policy("p1", {"app": app}, ingress=[])]) for app in ("db", "free"))
    book.name(1)
    book.turn(rules(1, documents=here), rules(1, documents=there), 10)
    names = Names(there, rules(1).rules, "h1", book.read())
    assert names.rule(1, 5) == {**names.rule(1, 15), "changed": "yes"}
    back = Names(here, rules(1).rules, "h1", book.read())
    assert "changed" not in back.rule(1, 5), "it selects the same as then"


def test_of_flows_that_name_the_same_the_first_one_tells_enough() -> None:
    dice = random.Random(7)
    flows = [
        {
            **decode("flows", "value", bytes(layout("flows", "value").size)),
            "source_identity": dice.choice([2, 300]),
            "destination_identity": dice.choice([2, 300]),
            "rule_id": dice.choice([0, 5, 6]),
            "port": dice.randrange(1 << 16),
            "verdict": dice.choice([0, 1, 2]),
            "last_seen": dice.randrange(4),
            "first_seen": dice.randrange(4) << 30,
        }
        for _ in range(200)
    ]
    found = seen_first(b"".join(encode("flows", "value", flow) for flow in flows))
    assert said_by([], found) == said_by([], [flow for flow in flows if flow["verdict"] and flow["last_seen"]])
    assert len(found) <= 2 * 2 * 3


def test_nothing_is_written_where_nothing_went(tmp_path: Path) -> None:
    files = Files(tmp_path)
    book = Book(files)
    book.name(1, 2)
    book.turn(rules(1), rules(1, 2), 10)
    assert files.writes == 0
    book.turn(rules(1, 2), rules(1), 20)
    book.turn(rules(1), rules(1), 30)
    assert files.writes == 1
    book.turn(rules(1, 3), rules(1), 40)
    assert files.writes == 1, "nothing names 3"


def test_it_is_bounded(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rulebook, "MEANINGS_KEPT", 3)
    book.name(*range(6))
    for number in range(6):
        book.turn(rules(number), rules(), 10 + number)
    assert list(kept(book)) == [3, 4, 5], "those that went first are forgotten first"


DAMAGED = [
    "", "{", "[]", '{"rules": [{"id": 1}]}', '{"boot_id": "BOOT", "past": [1]}', '{"boot_id": "another", "past": []}',
    '{"boot_id": "BOOT", "past": [["rule", "1", 5, {"policy": "x"}]]}',
]  # fmt: skip


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_file_is_as_none(book: Book, text: str) -> None:
    book.path.write_text(text.replace("BOOT", session.boot_id()))
    assert kept(book) == {}
    book.name(7)
    book.turn(rules(7), rules(), 10)
    assert kept(book) == {7: "ingress[7]"}


def test_another_boot_has_another_clock(book: Book) -> None:
    book.name(1)
    book.turn(rules(1), rules(), 10)
    data = json.loads(book.path.read_text())
    book.path.write_text(json.dumps({**data, "boot_id": "another"}))
    assert kept(book) == {}


def test_without_a_kernel_nothing_is_named(tmp_path: Path) -> None:
    book = rulebook.Rulebook(Files(tmp_path), None)
    book.turn(rules(1), rules(), 10)
    assert not book.path.exists()


# -- what an event says afterwards


def changed(**puts: Dict[str, Any]) -> DocumentSet:
    """The documents with some endpoints otherwise."""
    endpoints = DOCUMENTS.of_kind("endpoint")
    return DOCUMENTS.changed(
        [Document("endpoint", name.replace("_", "-"), {**endpoints[name.replace("_", "-")].spec, **spec})
         for name, spec in puts.items()]
    )  # fmt: skip


def told(documents: DocumentSet, past: Past, **fields: Any) -> Dict[str, Any]:
    return event_of(record(rule_id=0, **fields), Names(documents, {}, "h1", past), name_of, 0.0)


def test_an_event_names_who_had_the_address_then(book: Book) -> None:
    assert DOCUMENTS.of_kind("endpoint")["web-1"].spec["addresses"][0] == "10.77.1.1"
    taken = changed(web_1={"addresses": ["10.77.9.9"]}, api_1={"addresses": ["10.77.1.1"]})
    before, after = record(time_ns=5, rule_id=0), {"source_identity": NUMBER["api"], "time_ns": 15}
    book.named = said_by([before], [])
    book.turn(Known(DOCUMENTS, {}), Known(taken, {}), 10)
    found = told(taken, book.read(), time_ns=5)
    assert (found["source"]["endpoint"], found["source"]["identity_name"]) == ("web-1", "web")
    assert found["destination"]["endpoint"] == "api-1"
    assert matcher([Filter("from-endpoint", "web-1")])(found) and not matcher([Filter("from-any", "api-1")])(found)
    assert told(taken, book.read(), **after)["source"]["endpoint"] == "api-1"


def test_an_endpoint_that_is_gone_keeps_its_name_for_what_it_did(book: Book) -> None:
    left = DOCUMENTS.changed(deletes=["endpoint/web-1", "identity/web"])
    book.named = said_by([record(time_ns=5)], [{**FLOW_BLANK, "source_identity": NUMBER["web"]}])
    book.turn(Known(DOCUMENTS, {}), Known(left, {}), 10)
    source = told(left, book.read(), time_ns=5)["source"]
    assert (source["endpoint"], source["identity_name"], source["labels"]["app"]) == ("web-1", "web", "web")
    assert Names(left, {}, "h1", book.read()).party(NUMBER["web"], 0, 5)["identity_name"] == "web"


def test_without_what_was_an_address_has_no_name_of_another_identity() -> None:
    taken = changed(web_1={"addresses": ["10.77.9.9"]}, api_1={"addresses": ["10.77.1.1"]})
    source = told(taken, Past(), time_ns=5)["source"]
    assert "endpoint" not in source and "node" not in source
    assert short_end(source) == "10.77.1.1:40000 (web)"
    for nobody in (0, 5):  # unknown, waiting: nothing contradicts
        assert told(taken, Past(), source_identity=nobody)["source"]["endpoint"] == "api-1"


def test_records_say_what_they_ask_for_and_since_when() -> None:
    flow = {**FLOW_BLANK, "rule_id": 7, "source_identity": 2, "first_seen": 3_000_000_000, "last_seen": 1}
    found = said_by([record(time_ns=9, rule_id=7), record(time_ns=8, rule_id=0)], [flow])
    assert found[RULE, "7"] == 9 and found[IDENTITY, "2"] == 3_000_000_000
    assert found[ADDRESS, "10.77.1.1"] == 8 and (RULE, "0") not in found


def test_of_many_meanings_the_one_of_its_time_is_found_without_a_look_at_all() -> None:
    looks = 0

    class Time(int):
        def __lt__(self, other: int) -> bool:
            nonlocal looks
            looks += 1
            return int(self) < int(other)

    past = Past(Meaning(RULE, "7", 10 * number, {"number": number}) for number in range(1, 10_001))
    assert past.at(RULE, 7, Time(0)) == {"number": 1}
    assert past.at(RULE, 7, Time(10)) == past.at(RULE, 7, Time(19)) == {"number": 2}
    assert past.at(RULE, 7, Time(99_999)) == {"number": 10_000}
    assert past.at(RULE, 7, Time(100_000)) is None
    assert past.at(RULE, 8, Time(0)) is None
    assert looks < 100

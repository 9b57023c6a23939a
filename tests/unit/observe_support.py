"""Events and flows of a small fleet, as the nodes tell them: what tests of `observe` start from."""

from __future__ import annotations

from typing import Any, Dict

from bpfleet.compile.compiler import Compiler
from bpfleet.loader.layout import layout, name_of
from bpfleet.model.document import DocumentSet
from bpfleet.observe.events import event_of, flow_of
from bpfleet.observe.names import Names
from tests import fleet

DOCUMENTS = DocumentSet(fleet.quickstart())
COMPILED = Compiler().compile(DOCUMENTS, fleet.facts(1))
NAMES = Names(DOCUMENTS, COMPILED.rules, "h1")
NUMBER = {name: document.spec["number"] for name, document in DOCUMENTS.of_kind("identity").items()}
BLANK: Dict[str, Any] = dict.fromkeys(layout("events", "value").names, 0)
FLOW_BLANK: Dict[str, Any] = dict.fromkeys(layout("flows", "value").names, 0)
COUNTS = {"packets": 7, "bytes": 1500, "answer_packets": 6, "answer_bytes": 12_345_678}


def rule_id(policy: str, rule: str) -> int:
    return next(number for number, name in COMPILED.rules.items() if (name.policy, name.rule) == (policy, rule))


def record(**fields: Any) -> Dict[str, Any]:
    base = {
        "source": "10.77.1.1",
        "destination": "10.77.1.2",
        "source_identity": NUMBER["web"],
        "destination_identity": NUMBER["api"],
        "protocol": 6,
        "source_port": 40000,
        "destination_port": 80,
        "verdict": 1,
        "reason": 1,
        "hook": 1,
        "time_ns": 2_500_000_000,
        "rule_id": rule_id("api", "ingress[0]"),
    }
    return {**BLANK, **base, **fields}


def event(**fields: Any) -> Dict[str, Any]:
    return event_of(record(**fields), NAMES, name_of, 1000.0)


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


def at(seconds: float, **fields: Any) -> Dict[str, Any]:
    return {**event(**fields), "time": seconds}

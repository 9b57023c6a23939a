"""What rules, addresses and identities stood for before, so that what was is told as it was. Pure.

Times are nanoseconds of CLOCK_MONOTONIC, as events and flows have them.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Set, Tuple

from bpfleet.loader.generated.layouts import ENUMS
from bpfleet.model.document import Document, DocumentSet
from bpfleet.model.state import RuleName

Row = Mapping[str, Any]
Key = Tuple[str, str]
"""RULE, ADDRESS or IDENTITY, and its id, text or number."""

RULE, ADDRESS, IDENTITY = "rule", "address", "identity"
_SELECTION = ("selector", "node_selector", "expressions")
_TICK_NS = 1 << int(ENUMS["flow_time"]["tick_shift"])


class Meaning(NamedTuple):
    """What a key stood for until a time."""

    kind: str
    key: str
    until_ns: int
    row: Row

    @property
    def of(self) -> Key:
        """Whose meaning it is."""
        return (self.kind, self.key)


class Known(NamedTuple):
    """What a generation says: its documents, and the compiler's table of rules."""

    documents: DocumentSet
    rules: Mapping[int, RuleName]

    def keys(self) -> Set[Key]:
        """All that has a meaning."""
        return {
            *((RULE, str(number)) for number in self.rules),
            *((ADDRESS, address) for address in addresses_of(self.documents)),
            *((IDENTITY, str(number)) for number in identities_of(self.documents)),
        }


class Past:
    """Meanings that have ended, oldest first."""

    def __init__(self, meanings: Iterable[Meaning] = ()) -> None:
        self._of: Dict[Key, Tuple[List[int], List[Row]]] = {}
        """Until when it was what, by key: a rule's text may have changed thousands of times."""
        for one in meanings:
            until, rows = self._of.setdefault(one.of, ([], []))
            until.append(one.until_ns)
            rows.append(one.row)

    def at(self, kind: str, key: object, time_ns: int) -> Optional[Row]:
        """What it stood for at that time; None if that is what it stands for now."""
        found = self._of.get((kind, str(key)))
        if found is None:
            return None
        until, rows = found
        at = bisect_right(until, time_ns)
        return rows[at] if at < len(rows) else None

    @property
    def ends(self) -> List[int]:
        """The times at which a meaning ended, in order: between two of them nothing changed."""
        return sorted({time for until, _ in self._of.values() for time in until})

    def last(self, kind: str, key: object) -> Optional[Row]:
        """What it stood for last, of what has no meaning now."""
        found = self._of.get((kind, str(key)))
        return found[1][-1] if found else None


def addresses_of(documents: DocumentSet) -> Dict[str, Row]:
    """Who has which address: an endpoint, with its identity's number, or a node."""
    numbers = {name: document.spec["number"] for name, document in documents.of_kind("identity").items()}
    found: Dict[str, Row] = {}
    for name, document in documents.of_kind("node").items():
        found[document.spec["address"]] = {"node": name}
    for name, document in documents.of_kind("endpoint").items():
        spec = document.spec
        row = {"endpoint": name, "node": spec["node"], "identity": numbers.get(spec["identity"])}
        found.update(dict.fromkeys(spec["addresses"], row))
    return found


def identities_of(documents: DocumentSet) -> Dict[int, Row]:
    """Names and labels of identities by number."""
    return {
        document.spec["number"]: {"identity_name": name, "labels": document.spec["labels"]}
        for name, document in documents.of_kind("identity").items()
    }


def said_by(events: Iterable[Mapping[str, Any]], flows: Iterable[Mapping[str, Any]]) -> Dict[Key, int]:
    """What records of events and flows name, with the earliest time of which they do."""
    found: Dict[Key, int] = {}

    def note(kind: str, key: object, time_ns: int) -> None:
        if key:
            known = found.setdefault((kind, str(key)), time_ns)
            found[kind, str(key)] = min(known, time_ns)

    for record in events:
        for end in ("source", "destination"):
            note(ADDRESS, record[end], record["time_ns"])
            note(IDENTITY, record[f"{end}_identity"], record["time_ns"])
        note(RULE, record["rule_id"], record["time_ns"])
    for record in flows:
        time_ns = seen_ns(record)
        for end in ("source", "destination"):
            note(IDENTITY, record[f"{end}_identity"], time_ns)
        note(RULE, record["rule_id"], time_ns)
    return found


def seen_ns(flow: Mapping[str, Any]) -> int:
    """When a flow was last seen; never before it was first."""
    return max(int(flow["first_seen"]), int(flow["last_seen"]) * _TICK_NS)


def ended(before: Known, now: Known, until_ns: int) -> Iterator[Meaning]:
    """The meanings of `before` that `now` has otherwise, or not at all."""
    old, new = before.documents.of_kind("policy"), now.documents.of_kind("policy")
    moved = {name for name, policy in old.items() if name in new and _selection(policy) != _selection(new[name])}
    for number, name in before.rules.items():
        if now.rules.get(number) != name or (moved and not moved.isdisjoint(name.policy.split(", "))):
            yield Meaning(RULE, str(number), until_ns, row_of_rule(before.documents, name))
    for kind, table in ((ADDRESS, addresses_of), (IDENTITY, identities_of)):
        have: Mapping[Any, Row] = table(now.documents)
        rows: Mapping[Any, Row] = table(before.documents)
        for key, row in rows.items():
            if have.get(key) != row:
                yield Meaning(kind, str(key), until_ns, row)


def row_of_rule(documents: DocumentSet, rule: RuleName) -> Row:
    """What a rule says of itself, and whom its policies select."""
    policies = documents.of_kind("policy")
    selects = [_selection(policies[name]) for name in rule.policy.split(", ") if name in policies]
    return {**vars(rule), "labels": dict(rule.labels), "selects": selects}


def rule_of_row(row: Row) -> RuleName:
    """What a rule said of itself; TypeError for what is none."""
    return RuleName(**{name: value for name, value in row.items() if name != "selects"})


def _selection(policy: Document) -> Dict[str, Any]:
    return {name: policy.spec[name] for name in _SELECTION if name in policy.spec}


def kept(meanings: Iterable[Meaning], now: Known, named: Mapping[Key, int], most: int) -> List[Meaning]:
    """Those that something which is kept asks for: it is older than their end, or they are the last that there is. At
    most `most`, those that ended last."""
    has = now.keys()
    found = [one for one in meanings if one.of in named]
    last = {one.of: one for one in found if one.of not in has}
    return [one for one in found if one.until_ns > named[one.of] or last.get(one.of) is one][-most:]

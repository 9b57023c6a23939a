"""What the agent tells about its node: status, flows as they happen, and which rule would decide one."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Tuple

from bpfleet import __version__
from bpfleet.agent.node import Agent, described
from bpfleet.agent.pending import in_force, pending
from bpfleet.errors import HostFailed, HostUnfit, InvalidInput
from bpfleet.model.json_text import compact_json

if TYPE_CHECKING:
    from bpfleet.agent import wire
    from bpfleet.agent.journal import Head, Journal
    from bpfleet.agent.serve import Emit
    from bpfleet.model.document import DocumentSet
    from bpfleet.model.state import NodeState, RuleName
    from bpfleet.observe.names import Names
    from bpfleet.observe.reader import Batch
    from bpfleet.observe.sifting import Found, Sifter

_POLL_SECONDS, _SOON_SECONDS = 0.1, 0.01
_AT_ONCE = 512
"""How many lines are written together: sshd makes a packet of each write."""
_CLOCK_MOVED_SECONDS = 0.001
DEFAULT_LAST = 20


def status(agent: Agent, artefact: Optional[str], log: str) -> Dict[str, Any]:
    """wire.StatusResult: what is confirmed, whether the kernel agrees, and what it counts."""
    from bpfleet.loader.capacity import kept_sizes
    from bpfleet.loader.plan import plan
    from bpfleet.model.state import NodeState

    journal = agent.journal()
    head = journal.confirmed
    fitness: List[Dict[str, Any]] = []
    drift: List[str] = []
    programs: List[Dict[str, str]] = []
    compiled = None
    warnings: List[str] = []
    want = have = NodeState()
    contents = agent.store.load(head)
    kinds = dict(Counter(stored.document.kind for stored in contents.items.values()))
    try:
        agent.kernel.check_fitness()
        if head.node is not None:
            compiled = agent.compiled(contents, head.node)
            want = compiled.state
            against = agent.compiler.conflicts(contents.documents, agent.kernel.facts(head.node))
            warnings = [*compiled.warnings, *map(str, against)]
        have = agent.kernel.read(want)
        if journal.transaction is None:
            drift = described(plan(want, have))
        programs = [
            {"device": device, "hook": hook, "object": name}
            for (device, hook), name in sorted(have.attachments.items())
        ]
    except HostUnfit as error:
        fitness.append(error.to_wire())
    return {
        "node": head.node,
        "cluster": head.cluster,
        "generation": head.generation,
        "documents_digest": head.documents_digest,
        "state_digest": head.state_digest,
        "documents": kinds,
        "programs": programs,
        "drift": drift,
        **(_measured(agent, want, have) if not fitness else {"maps": [], "counters": []}),
        "waiting": [{"document": item.document, "reason": item.reason} for item in compiled.waiting]
        if compiled
        else [],
        "services": [
            {"name": one.name, "frontends": [{"frontend": text, "backends": count} for text, count in one.frontends]}
            for one in (compiled.services if compiled else ())
        ],
        "warnings": [*warnings, *kept_sizes(want, have, head.cluster)],
        "pending": pending(journal),
        "writes": journal.writes,
        "fitness": fitness,
        "agent": {
            "version": __version__,
            "artefact": artefact,
            "python": ".".join(str(part) for part in sys.version_info[:3]),
            "kernel": os.uname().release,
            "log": log,
        },
    }


def _measured(agent: Agent, want: NodeState, have: NodeState) -> Dict[str, Any]:
    if agent.pins is None:
        return {"maps": [], "counters": []}
    from bpfleet.loader.capacity import usage
    from bpfleet.observe.usage import counters, fill_levels

    inner = [one for one in usage(want, have) if one.key is not None]
    return {"maps": fill_levels(agent.pins, inner), "counters": counters(agent.pins)}


def addresses(agent: Agent) -> wire.AddressesResult:
    """Those that the node takes in; none of a host that is no node yet."""
    node = agent.journal().confirmed.node
    if node is None:
        return {"held": [], "shared": []}
    facts = agent.kernel.facts(node)
    return {"held": [one for _, found in facts.devices.values() for one in found], "shared": list(facts.shared)}


def explain(agent: Agent, params: Mapping[str, Any]) -> Dict[str, Any]:
    """wire.ExplainResult from the confirmed documents."""
    from bpfleet.observe.explain import explain as decide

    for name in ("source", "destination", "protocol"):
        if not isinstance(params.get(name), str):
            raise InvalidInput(f"{name} is missing", field=name)
    head = agent.journal().confirmed
    if head.node is None:  # it must not be taken for a member that knows what is declared
        raise HostFailed("the host is no node, so it cannot tell", remedy="Ask a member, or declare the node.")
    documents = agent.store.load(head).documents
    known: Dict[str, wire.AddressesResult] = {**params.get("known", {}), head.node: addresses(agent)}
    held = {node: one["held"] for node, one in known.items()}
    shared = {node: one["shared"] for node, one in known.items()}
    message = (params.get("type"), params.get("code"))
    ends = params["source"], params["destination"]
    return decide(documents, *ends, params["protocol"], params.get("port"), message, held, shared)


def events(
    agent: Agent,
    params: Mapping[str, Any],
    emit: Emit,
    interrupted: Callable[[float], bool],
) -> Dict[str, Any]:
    """Stream wire.VerdictEvent: the last of those that are kept, then, if following, new ones as they come, until the
    time from which on none is wanted."""
    from bpfleet.observe.filters import filters_of, last_of, span_of
    from bpfleet.observe.reader import Reader, open_slots, renewed_slots
    from bpfleet.observe.sifting import Sifter, event_time

    since, until = span_of(params)
    sifter = Sifter(filters_of(params), since, until)
    last = last_of(params, DEFAULT_LAST)

    def follows() -> bool:
        return bool(params.get("follow")) and (until is None or time.time() <= until)

    totals = {"events": 0, "lost": 0}
    slots = open_slots(agent.pins) if agent.pins is not None else None
    is_awaited = slots is None
    while slots is None:
        if not follows() or interrupted(_POLL_SECONDS):
            return totals
        slots = open_slots(agent.pins) if agent.pins is not None else None
    try:
        reader = Reader(slots, from_first=is_awaited)
        book = _Book(agent)
        batch = reader.read()
        going = _send(book, book.sift(sifter, batch), batch.lost, emit, totals, -1 if is_awaited else last)
        if params.get("notices"):
            kept_from = reader.kept_from(batch)
            notice = _notice(None if kept_from is None else event_time(kept_from, book.boot_offset))
            going = emit([compact_json(notice)]) and going
        while going and follows() and not interrupted(_SOON_SECONDS if reader.crowded(batch) else _POLL_SECONDS):
            renewed = renewed_slots(agent.pins, slots) if agent.pins is not None else None
            batch = reader.read()
            going = _send(book, book.sift(sifter, batch), batch.lost, emit, totals)
            if renewed is not None:
                slots.close()
                slots, reader = renewed, Reader(renewed, from_first=True)
    finally:
        slots.close()
    return totals


def _notice(oldest: Optional[float]) -> Dict[str, Any]:
    """What a node says about itself among its events: its clock, and since when all its events are kept, if older
    ones were overwritten."""
    now = round(time.time(), 6)
    return {"clock": now, "time": now} if oldest is None else {"clock": now, "time": now, "kept_from": oldest}


def _history_filter(params: Mapping[str, Any], documents: DocumentSet) -> Callable[[Mapping[str, Any]], bool]:
    from bpfleet.observe.filters import check_for_history, filters_of, known_in, matcher, span_of

    filters = filters_of(params)
    check_for_history(filters, known_in(documents))
    matches = matcher(filters)
    since, until = span_of(params)

    def keep(flow: Mapping[str, Any]) -> bool:
        if (since is not None and flow["last_seen"] < since) or (until is not None and flow["first_seen"] > until):
            return False
        return matches(flow)

    return keep


def flows(agent: Agent, params: Mapping[str, Any], emit: Emit) -> Dict[str, Any]:
    """Stream wire.Flow: the history, those seen last at the end; then one line of what it does not hold."""
    from bpfleet.observe.filters import last_of
    from bpfleet.observe.history import read_history

    keep = _history_filter(params, agent.store.load(agent.journal().confirmed).documents)
    last = last_of(params, -1)
    if agent.pins is None:
        return {"flows": 0}
    book = _Book(agent)
    history = read_history(agent.pins)
    chosen = [flow for flow in (book.flow(record, counts) for record, counts in history.flows) if keep(flow)]
    chosen.sort(key=lambda flow: float(flow["last_seen"]))
    if last >= 0:
        chosen = chosen[-last:] if last else []
    for start in range(0, len(chosen), _AT_ONCE):
        if not emit(list(map(compact_json, chosen[start : start + _AT_ONCE]))):
            return {"flows": len(chosen)}
    told = {
        **_notice(None),
        "kept": len(history.flows),
        "limit": history.limit,
        "did_not_fit": history.did_not_fit,
        "retired": history.retired,
    }
    emit([compact_json(told)])
    return {"flows": len(chosen)}


def _send(book: _Book, found: List[Found], lost: int, emit: Emit, totals: Dict[str, int], last: int = -1) -> bool:
    """Send what was lost and what was found, of which the last ones only if `last` is not negative."""
    from bpfleet.observe.sifting import event_json

    going = True
    if lost:
        totals["lost"] += lost
        going = emit([compact_json({"lost": lost, "time": round(time.time(), 6)})])
    if last >= 0:
        found = found[-last:] if last else []
    for start in range(0, len(found), _AT_ONCE):
        chosen = [event_json(one, book.boot_offset) for one in found[start : start + _AT_ONCE]]
        totals["events"] += len(chosen)
        going = emit(chosen) and going
    return going


def _boot_offset() -> float:
    """Seconds from CLOCK_MONOTONIC to the epoch, by the node's clock as it is set now.

    Of several askings the shortest: who is put aside between two clocks would take that for a clock that was set.
    """
    return min(_asked_clocks() for _ in range(3))[1]


def _asked_clocks() -> Tuple[float, float]:
    """How long it took, and the offset."""
    before = time.clock_gettime(time.CLOCK_MONOTONIC)
    now = time.time()
    after = time.clock_gettime(time.CLOCK_MONOTONIC)
    return after - before, now - (before + after) / 2


class _Book:
    """Turns records into named events and flows; follows the documents as they change."""

    def __init__(self, agent: Agent) -> None:
        from bpfleet.loader.layout import name_of
        from bpfleet.observe.past import Past

        self._agent = agent
        self._name_of = name_of
        self._journal: Optional[Journal] = None
        self._names: Optional[Names] = None
        self._sifted_by: Optional[Names] = None
        self._past = Past()
        self._ends: List[int] = []
        self._older: Optional[List[Mapping[int, RuleName]]] = None
        self.boot_offset = _boot_offset()

    def sift(self, sifter: Sifter, batch: Batch) -> List[Found]:
        """The events of a batch that match. Their names are those of when they happened."""
        from bpfleet.observe.events import event_of

        names = self._current()
        if names is not self._sifted_by:
            sifter.forget()
            self._sifted_by = names

        def named(record: Mapping[str, Any]) -> Dict[str, Any]:
            return event_of(record, names, self._name_of, self.boot_offset, self._older_than(names, record["rule_id"]))

        return sifter.sift(batch, named, self.boot_offset, self._ends)

    def flow(self, record: Mapping[str, Any], counts: Mapping[str, int]) -> Dict[str, Any]:
        """The named flow of one slot of the history."""
        from bpfleet.observe.events import flow_of

        names = self._names or self._current()
        older = self._older_than(names, record["rule_id"])
        return flow_of(record, counts, names, self._name_of, self.boot_offset, older)

    def _older_than(self, names: Names, rule_id: int) -> List[Mapping[int, RuleName]]:
        """Tables for a rule that neither the generation nor the rulebook has."""
        from bpfleet.observe.past import RULE

        if not rule_id or rule_id in names.rules or self._past.last(RULE, rule_id) is not None:
            return []
        return self._older_rules()

    def _current(self) -> Names:
        from bpfleet.observe.names import Names

        offset = _boot_offset()
        if abs(offset - self.boot_offset) > _CLOCK_MOVED_SECONDS:  # less is in the asking, and would swap events
            self.boot_offset = offset
        journal = self._agent.journal()
        # Its revision alone says nothing: a node that was cleared counts from the start again.
        if self._names is None or journal != self._journal:
            head, documents, rules = self._in_force(journal)
            self._past = self._agent.rulebook.read()
            self._ends = self._past.ends
            self._names = Names(documents, rules, head.node, self._past)
            self._journal, self._older = journal, None
        return self._names

    def _in_force(self, journal: Journal) -> Tuple[Head, DocumentSet, Mapping[int, RuleName]]:
        """The generation that counts, its documents, and the rules that may decide."""
        transaction, head = journal.transaction, in_force(journal)
        try:
            # While one is being applied, rules of both decide.
            rules = {} if transaction is None else self._rules(transaction.head)
            return head, self._agent.store.load(head).documents, {**rules, **self._rules(head)}
        except HostFailed:
            if transaction is None:
                raise
        # It is just being put back: its file goes before the journal says so.
        head = journal.confirmed
        return head, self._agent.store.load(head).documents, self._rules(head)

    def _rules(self, head: Head) -> Mapping[int, RuleName]:
        return self._agent.compiled(self._agent.store.load(head), head.node).rules if head.node is not None else {}

    def _older_rules(self) -> List[Mapping[int, RuleName]]:
        """Those of the older generations that are kept: for what the rulebook does not have."""
        if self._older is None:
            self._older = []
            head = in_force(self._agent.journal())
            for contents in self._agent.store.older(head.generation):
                if head.node is not None:
                    self._older.append(self._agent.compiled(contents, head.node).rules)
        return self._older

"""What policies come to in maps is what they mean: the compiler against the reference judge."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Dict, List, Mapping, Tuple

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bpfleet.compile import lookup
from bpfleet.compile.compiler import Compiler
from bpfleet.compile.entries import DIRECTION_NUMBERS
from bpfleet.model import meaning
from bpfleet.model.document import Document, DocumentSet, problems_of
from bpfleet.model.resources import PROTOCOL_NUMBERS
from bpfleet.model.state import RuleName
from bpfleet.observe.events import VERDICTS
from bpfleet.observe.explain import explain
from tests import fleet
from tests.reference import fleets, semantics
from tests.reference.fleets import IDENTITIES, clusters, flows
from tests.reference.judge import Flow, is_failsafe, judge, rule_id

NUMBERS: Dict[str, int] = {"host": 1, "remote-node": 6}
ADDRESSES = {"host": "192.168.77.1", "remote-node": "192.168.77.2"}
SUBJECTS = {"host": "host", **{name: f"identity/{name}" for name in IDENTITIES}}
for _index, (_name, _labels) in enumerate(IDENTITIES.items(), 1):
    NUMBERS[f"identity/{_name}"] = fleet.identity(_name, _labels).spec["number"]
    ADDRESSES[f"identity/{_name}"] = f"10.77.1.{_index}"
WORLD = fleets.world({})
EVERY_PEER = (*(who for who in fleets.INSIDERS if who != "identity/a"), *fleets.OUTSIDE)


def question(flow: Flow) -> lookup.Question:
    """A flow in the numbers of maps."""
    port = flow.port[0] << 8 | flow.port[1] if isinstance(flow.port, tuple) else flow.port
    number = NUMBERS.get(flow.peer, 2)
    address = ADDRESSES.get(flow.peer, flow.peer)
    return lookup.Question(flow.direction, number, PROTOCOL_NUMBERS[flow.protocol], port, address)


@settings(max_examples=150, deadline=None)
@given(clusters(), st.lists(flows(), min_size=1, max_size=12))
def test_compiled_maps_say_what_policies_mean(documents: List[Document], asked: List[Flow]) -> None:
    compiled = Compiler().compile(DocumentSet(documents), fleet.facts(1))
    nested = compiled.state.nested
    cluster = documents[0].spec
    failsafe = compiled.state.tables["failsafe"].rows
    for flow in asked:
        listed = (flow.port, PROTOCOL_NUMBERS[flow.protocol], DIRECTION_NUMBERS[flow.direction]) in failsafe
        if flow.subject == "host":
            assert listed == is_failsafe(cluster, flow), flow
            if listed:  # never asked of the policy maps
                continue
        subject = nested["policies"].get(NUMBERS[SUBJECTS[flow.subject]])
        maps = lookup.Maps(subject.rows if subject else None, nested["prefix_sets"], nested["port_sets"])
        found = lookup.judge(maps, question(flow))
        wanted = judge(documents, flow)
        assert (found.verdict, found.rule_id) == (wanted.verdict, wanted.rule_id), flow
        assert not found.rule_id or found.rule_id in compiled.rules


@settings(max_examples=50, deadline=None)
@given(clusters(), st.lists(flows(), min_size=1, max_size=4))
def test_explain_says_what_policies_mean(documents: List[Document], asked: List[Flow]) -> None:
    for flow in asked:
        if is_echo_reply(flow) or not is_of_one_family(flow):  # never a new connection
            continue
        entry = explained(documents, flow)
        wanted = judge(documents, flow)
        assert (entry["verdict"], entry.get("rule_id", 0)) == (VERDICTS[wanted.verdict], wanted.rule_id), flow


def reworded(rule: Mapping[str, Any]) -> Dict[str, Any]:
    """The rule that says no more of another than what it is compared by."""
    found = {name: value for name, value in rule.items() if name == "action"}
    found["peers"] = [_peer_of(*one) for one in sorted(meaning.of_peers(rule.get("peers")), key=repr)]
    found["ports"] = [port for one in sorted(meaning.of_ports(rule.get("ports"))) for port in _ports_of(*one)]
    return found


def _peer_of(kind: str, what: Any) -> Dict[str, Any]:
    if kind == "labels":
        asked = [{"key": key, "operator": operator, "values": list(values)} for key, operator, values in sorted(what)]
        return {"labels": {}, "expressions": asked}
    return {"cidr": what[0], "except": list(what[1:])} if kind == "cidr" else {kind: what}


def _ports_of(protocol: str, first: int, last: int) -> List[Dict[str, Any]]:
    if first < 0:
        return [{"protocol": protocol}]
    if protocol.startswith("icmp"):
        return [{"protocol": protocol, "type": one >> 8, "code": one & 0xFF} for one in range(first, last + 1)]
    return [{"protocol": protocol, "port": first, "end_port": last}]


@settings(max_examples=150, deadline=None)
@given(fleets.rules(), st.lists(st.sampled_from(EVERY_PEER), min_size=1, max_size=4, unique=True))
def test_what_rules_are_compared_by_is_what_they_mean(rule: Dict[str, Any], peers: List[str]) -> None:
    """Rules that would be refused as the same match the same packets."""
    spec = {"selector": {}, "ingress": [rule], "default_deny": {"ingress": rule["action"] == "allow"}}
    assume(not problems_of({"kind": "policy", "name": "p", "spec": spec}))
    policy = fleet.document("policy", "p", **spec)
    again = Document("policy", "p", {**policy.spec, "ingress": [reworded(policy.spec["ingress"][0])]})
    for peer in peers:
        for protocol, port in fleets.EVERY_WIRE:
            flow = Flow("ingress", "a", peer, protocol, port)
            assert judge([*WORLD, again], flow).verdict == judge([*WORLD, policy], flow).verdict, flow


def is_echo_reply(flow: Flow) -> bool:
    """What test_explain.py asks about."""
    return (flow.protocol, flow.port) == ("icmp", (0, 0))


def is_of_one_family(flow: Flow) -> bool:
    """Whether an ICMP message is of its peer's family; what is not is no packet."""
    wrong = {"icmp": ":", "icmpv6": "."}.get(flow.protocol)
    return wrong is None or wrong not in flow.peer


def explained(documents: List[Document], flow: Flow) -> Dict[str, Any]:
    """What `explain` says of one end's judgement."""
    ends = ["h1" if flow.subject == "host" else flow.subject, flow.peer.rpartition("/")[2]]
    port, message = (None, flow.port) if isinstance(flow.port, tuple) else (flow.port, (None, None))
    if flow.direction == "ingress":
        ends.reverse()
    answer = explain(DocumentSet(documents), ends[0], ends[1], flow.protocol, port, message)
    entry: Dict[str, Any] = next(entry for entry in answer["judged"] if entry["direction"] == flow.direction)
    return entry


@settings(max_examples=100, deadline=None)
@given(clusters(), st.lists(st.tuples(st.permutations(sorted(IDENTITIES)), flows()), min_size=1, max_size=6))
def test_explain_says_who_decides_where(documents: List[Document], asked: List[Tuple[List[str], Flow]]) -> None:
    """Both ends of endpoints on two nodes: the node, the rule, the policies that close, and what comes of both."""
    moved = [fleet.endpoint("c", 2, 3, "c") if one.key == "endpoint/c" else one for one in documents]
    for (source, destination, *_), flow in asked:
        if is_echo_reply(flow):
            continue
        port, message = (None, flow.port) if isinstance(flow.port, tuple) else (flow.port, (None, None))
        answer = explain(DocumentSet(moved), source, destination, flow.protocol, port, message)
        wanted = [
            judge(moved, replace(flow, direction="egress", subject=source, peer=f"identity/{destination}")),
            judge(moved, replace(flow, direction="ingress", subject=destination, peer=f"identity/{source}")),
        ]
        found = answer["judged"]
        assert [(entry["direction"], entry["subject"]) for entry in found] == [
            ("egress", source),
            ("ingress", destination),
        ]
        assert [entry["node"] for entry in found] == ["h2" if name == "c" else "h1" for name in (source, destination)]
        assert [(entry["verdict"], entry.get("rule_id", 0)) for entry in found] == [
            (VERDICTS[verdict.verdict], verdict.rule_id) for verdict in wanted
        ], flow
        verdicts = {VERDICTS[verdict.verdict] for verdict in wanted}
        assert answer["verdict"] == next(word for word in ("denied", "audited", "allowed") if word in verdicts)
        for entry in found:
            if entry.get("rule") == "default deny":  # an id that covers who closes, so the names are all of them
                closing = entry["policy"].split(", ")
                assert entry["rule_id"] == rule_id("default deny", entry["direction"], *closing)


@pytest.mark.parametrize("row", semantics.ROWS, ids=str)
def test_each_statement_by_hand(row: semantics.Row) -> None:
    """The judge, the compiled maps and explain say what was written down by hand."""
    documents = fleets.world(row.settings)
    documents += [fleet.document("policy", name, **spec) for name, spec in row.policies.items()]
    compiled = Compiler().compile(DocumentSet(documents), fleet.facts(1))
    nested = compiled.state.nested
    for flow, answer in row.flows:
        wanted = judge(documents, flow)
        assert said(wanted.verdict, wanted.rule_id, compiled.rules) == answer, flow
        if not is_failsafe(documents[0].spec, flow):
            subject = nested["policies"].get(NUMBERS[SUBJECTS[flow.subject]])
            maps = lookup.Maps(subject.rows if subject else None, nested["prefix_sets"], nested["port_sets"])
            found = lookup.judge(maps, question(flow))
            assert said(found.verdict, found.rule_id, compiled.rules) == answer, flow
        entry = explained(documents, flow)
        assert (entry["verdict"], entry.get("rule_id", 0)) == (VERDICTS[wanted.verdict], wanted.rule_id), flow


def said(verdict: str, rule_id: int, rules: Mapping[int, RuleName]) -> str:
    """An answer as semantics.py writes it."""
    rule = rules[rule_id] if rule_id else RuleName("", "", "", "")
    return " ".join(part for part in (verdict, rule.policy, rule.rule) if part)


def test_sets_are_shared_by_what_they_hold() -> None:
    """A fleet-wide list of networks is kept once, however many identities and policies name it."""
    documents = [*_fleet(), fleet.document("cidr_group", "office", cidrs=["198.51.100.0/24", "203.0.113.0/24"])]
    for name in IDENTITIES:
        rule = {"peers": [{"cidr_group": "office"}], "ports": [{"protocol": "tcp", "port": 80, "end_port": 90}]}
        documents.append(fleet.policy(f"only-{name}", {"app": name}, ingress=[rule], egress=[rule]))
    nested = Compiler().compile(DocumentSet(documents), fleet.facts(1)).state.nested
    assert [len(nested[name]) for name in ("policies", "prefix_sets", "port_sets")] == [3, 1, 1]


def _fleet() -> List[Document]:
    documents = [fleet.cluster(["h1"]), fleet.node(1)]
    documents += [fleet.identity(name, labels) for name, labels in IDENTITIES.items()]
    return documents + [fleet.endpoint(name, 1, index, name) for index, name in enumerate(IDENTITIES, 1)]

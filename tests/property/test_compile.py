"""What compilation promises whatever the documents: no order, no history, no effect of what is unrelated."""

from __future__ import annotations

import random
from typing import Any, Dict, List

from hypothesis import given, settings
from hypothesis import strategies as st

from bpfleet.compile.compiler import Compiler
from bpfleet.compile.validate import validate
from bpfleet.model.document import Document, DocumentSet, problems_of
from bpfleet.model.identity import HOST, WAITING
from bpfleet.model.state import NodeState
from tests import fleet
from tests.reference.fleets import clusters

NAMES = ("web", "api", "db", "cache")

peers = st.one_of(
    st.sampled_from([{"entity": name} for name in ("world", "host", "remote-node", "cluster", "all", "none")]),
    st.sampled_from([{"labels": {"app": name}} for name in NAMES] + [{"labels": {}}, {"labels": {"app": "nobody"}}]),
)
ports = st.builds(
    lambda protocol, port: {
        "protocol": protocol,
        **({"port": port} if port and not protocol.startswith("icmp") else {}),
    },
    st.sampled_from(["tcp", "udp", "icmp", "icmpv6", "any"]),
    st.sampled_from([0, 53, 80, 443]),
)
rules = st.fixed_dictionaries(
    {"action": st.sampled_from(["allow", "deny"])},
    optional={
        "peers": st.lists(peers, max_size=3, unique_by=repr),
        "ports": st.lists(ports, max_size=3, unique_by=repr),
    },
)
about = st.lists(rules, max_size=3, unique_by=lambda rule: repr({**rule, "action": ""}))


def can_be_said(spec: Dict[str, Any]) -> bool:
    """What repeats or contradicts itself, perhaps in another order, is refused."""
    return bool(spec) and not problems_of({"kind": "policy", "name": "p", "spec": {"selector": {}, **spec}})


directions = st.fixed_dictionaries({}, optional={"ingress": about, "egress": about}).filter(can_be_said)


@st.composite
def fleets(draw: st.DrawFn) -> List[Document]:
    """A cluster of up to four nodes with endpoints and policies, some documents missing."""
    count = draw(st.integers(1, 4))
    documents = [fleet.cluster([f"h{index}" for index in range(1, count + 1)])]
    documents += [fleet.node(index, labels={"app": draw(st.sampled_from(NAMES))}) for index in range(1, count + 1)]
    documents += [fleet.identity(name) for name in NAMES]
    for index in range(1, count + 1):
        for host in range(1, draw(st.integers(0, 3)) + 1):
            documents.append(fleet.endpoint(f"e{index}-{host}", index, host, draw(st.sampled_from(NAMES))))
    for number, (name, spec) in enumerate(draw(st.lists(st.tuples(st.sampled_from(NAMES), directions), max_size=5))):
        make = draw(st.sampled_from([fleet.policy, fleet.policy, fleet.node_policy]))
        if make is fleet.node_policy and "'host'" in repr(spec):
            continue  # refused: a node does not judge what it says to itself
        documents.append(make(f"p{number}", {"app": name}, **spec))
    for number, of in enumerate(draw(st.lists(st.sampled_from(NAMES), max_size=2))):
        frontends = [f"10.96.0.{number}:80", f"[fd96::{number + 1}]:80/udp"]
        documents.append(fleet.service(f"s{number}", frontends, [{"labels": {"app": of}}]))
    missing = draw(st.sets(st.integers(0, len(documents) - 1), max_size=3))
    return [document for position, document in enumerate(documents) if position not in missing]


def fresh(documents: List[Document]) -> NodeState:
    return Compiler().compile(DocumentSet(documents), fleet.facts(1)).state


@given(fleets(), st.randoms(use_true_random=False))
def test_order_does_not_matter(documents: List[Document], chance: random.Random) -> None:
    expected = Compiler().compile(DocumentSet(documents), fleet.facts(1))
    shuffled = list(documents)
    chance.shuffle(shuffled)
    assert Compiler().compile(DocumentSet(shuffled), fleet.facts(1)) == expected


@st.composite
def clashing(draw: st.DrawFn) -> List[Document]:
    """Documents of which any two may be in conflict."""
    found = [fleet.cluster(["h1", "h2"]), fleet.node(1)]
    place = draw(st.sampled_from([1, 2, 3]))  # 1: the address and network of h1
    address, network = f"192.168.77.{place}", f"10.77.{place}.0/24"
    found.append(fleet.document("node", "h2", address=address, devices=[{"name": "eth0"}], workload_cidrs=[network]))
    for name in draw(st.sets(st.sampled_from(NAMES))):
        found.append(fleet.identity(name, {"app": draw(st.sampled_from(NAMES))}))
    for name in draw(st.sets(st.sampled_from(NAMES))):
        where = st.integers(1, 2)
        found.append(fleet.endpoint(name, draw(where), draw(where), netns=f"w{draw(where)}"))
    return found


@given(st.lists(clashing(), min_size=2, max_size=4))
def test_conflicts_depend_on_the_documents_alone(steps: List[List[Document]]) -> None:
    compiler = Compiler()
    for documents in steps:
        held, facts = DocumentSet(documents), fleet.facts(1)
        told = [error.to_wire() for error in compiler.conflicts(held, facts)]
        assert told == [error.to_wire() for error in validate(held, facts)]
        if not told:
            compiler.compile(held, facts)


@settings(max_examples=60)
@given(fleets(), fleets(), st.randoms(use_true_random=False))
def test_history_does_not_matter(documents: List[Document], detour: List[Document], chance: random.Random) -> None:
    """One compiler led through other states, in steps of any size, ends where a new one begins."""
    compiler = Compiler()
    held = DocumentSet()
    for goal in (detour, documents):
        wanted = {document.key: document for document in goal}
        changes = [*wanted, *(document.key for document in held if document.key not in wanted)]
        chance.shuffle(changes)
        while changes:
            step = [changes.pop() for _ in range(min(len(changes), chance.randint(1, 5)))]
            held = held.changed(
                [wanted[key] for key in step if key in wanted], [key for key in step if key not in wanted]
            )
            compiler.compile(held, fleet.facts(1))
    assert held == DocumentSet(documents)
    assert held.fingerprint("policy", "endpoint") == DocumentSet(documents).fingerprint("policy", "endpoint")
    assert compiler.compile(held, fleet.facts(1)) == Compiler().compile(DocumentSet(documents), fleet.facts(1))


BESIDES = (
    fleet.document("cidr_group", "missing", cidrs=["198.51.0.0/16", "2001:db8::/32"]),
    fleet.document("cidr_group", "office", cidrs=["203.0.113.0/24"]),
    fleet.node(1, labels={"rack": "b"}),
    fleet.identity("a", {"app": "b", "tier": "front"}),
    fleet.identity("late", {"app": "a"}),
)
"""What other documents' rules mean depends on these."""


@settings(max_examples=60)
@given(clusters(), clusters(), st.randoms(use_true_random=False))
def test_each_change_comes_to_what_there_is_then(
    documents: List[Document], others: List[Document], chance: random.Random
) -> None:
    """Documents come, go and change one by one: after each, a compiler that saw all says what a new one says."""
    held, compiler = DocumentSet(documents), Compiler()
    compiler.compile(held, fleet.facts(1))
    for _ in range(12):
        one = chance.choice([*documents, *others, *BESIDES])
        held = held.changed([], [one.key]) if held.get(one.key) == one else held.changed([one])
        assert compiler.compile(held, fleet.facts(1)) == Compiler().compile(held, fleet.facts(1)), one.key


@given(fleets())
def test_a_node_outside_the_cluster_changes_nothing(documents: List[Document]) -> None:
    assert fresh([*documents, fleet.node(9)]) == fresh(documents)


@given(fleets())
def test_a_node_pays_for_host_policy_only_where_one_closes_a_direction(documents: List[Document]) -> None:
    state = fresh(documents)
    held = DocumentSet(documents)
    if not state.programs:
        return
    own = held.of_kind("node")["h1"].spec["labels"]["app"]
    closing = [
        policy
        for policy in held.of_kind("policy").values()
        if policy.spec.get("node_selector") == {"app": own} and {"ingress", "egress"} & set(policy.spec)
    ]
    hooks = {hook for hook, name in state.attachments.items() if name == "to_underlay"}
    assert not closing or hooks == {("eth0", "egress")}
    assert {program.constants["host_policy"] for program in state.programs.values()} == {int(bool(closing))}
    assert (HOST in state.nested["policies"]) is bool(closing)


@given(fleets())
def test_an_unused_identity_adds_only_entries_for_itself(documents: List[Document]) -> None:
    stranger = fleet.identity("stranger", {"kind": "stranger"})
    before, after = fresh(documents), fresh([*documents, stranger])
    assert after.tables["addresses"] == before.tables["addresses"] if before.tables else not after.tables
    number = stranger.spec["number"]
    for outer, inner in before.nested.items():
        for subject, table in inner.items():
            grown = after.nested[outer][subject]
            assert {key: row[:2] for key, row in grown.rows.items() if key[0] != number} == {
                key: row[:2] for key, row in table.rows.items()
            }


@given(fleets())
def test_a_missing_document_waits_and_takes_effect_when_it_comes(documents: List[Document]) -> None:
    """Take away one identity that endpoints use: they wait and pass nothing; put it back: nothing remains of it."""
    whole = DocumentSet(documents)
    used = sorted({str(document.spec["identity"]) for document in whole.of_kind("endpoint").values()})
    present = [name for name in used if f"identity/{name}" in whole]
    if not present or not whole.of_kind("cluster") or "node/h1" not in whole:
        return
    compiler = Compiler()
    lacking = whole.changed(deletes=[f"identity/{present[0]}"])
    assert validate(lacking) == validate(whole) == []
    compiled = compiler.compile(lacking, fleet.facts(1))
    local = [
        document
        for document in lacking.of_kind("endpoint").values()
        if document.spec["identity"] == present[0] and document.spec["node"] == "h1"
    ]
    for document in local:
        assert any(waiting.document == document.key for waiting in compiled.waiting)
        assert compiled.state.tables["addresses"].rows[(document.spec["addresses"][0],)][0] == WAITING
    assert compiler.compile(whole, fleet.facts(1)) == Compiler().compile(whole, fleet.facts(1))

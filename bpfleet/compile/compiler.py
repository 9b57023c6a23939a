"""Documents and facts -> NodeState: the pure core of the agent.

The answer depends on the current input only. A `Compiler` kept from one call to the next gives the same answers as a
new one, but pays only for what changed (see memo.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Dict, Iterable, List, Mapping, Sequence, Tuple, Union

from bpfleet.compile import blocklist, entries, host, inner_cidrs, limits, lookup, policy, services, topology
from bpfleet.compile.entries import Settings, Side, Subject
from bpfleet.compile.inner_cidrs import OwnNetworks
from bpfleet.compile.memo import Memo
from bpfleet.compile.policy import Nodes, Resolved, Unmatched
from bpfleet.compile.rules import Content
from bpfleet.compile.selector import LabelIndex
from bpfleet.compile.services import Services
from bpfleet.compile.topology import Topology
from bpfleet.compile.validate import validate
from bpfleet.errors import BpfleetError
from bpfleet.model.document import Document, DocumentSet
from bpfleet.model.identity import HOST, RESERVED_NAMES
from bpfleet.model.state import (
    CGROUP_ROOT,
    SOCKET_HOOKS,
    TUNNEL_DEVICE,
    Compiled,
    Facts,
    NodeState,
    Program,
    Row,
    Table,
    Waiting,
)

OBJECTS = ("from_endpoint", "to_endpoint", "from_tunnel", "to_tunnel", "from_underlay")
"""One object for each hook: bpf/<name>.bpf.c."""
HOST_OBJECTS = ("to_underlay",)
"""Those that only a node needs which a policy selects."""
XDP_OBJECT = "xdp_underlay"
"""Only where a device has XDP."""
SOCKET_OBJECTS = {hook: f"socket_{hook}" for hook in SOCKET_HOOKS}
"""Those for sockets, which are there when there is a service."""
BALANCING_OBJECTS = ("from_endpoint", "to_endpoint", "from_tunnel")
"""Those that balance packets which passed no such socket."""
NO_CGROUP = (
    "the host has no cgroup2 hierarchy: services are there for what endpoints send, not for the host's own processes"
)

ENDPOINTS_KEY = ("ifindex",)
ENDPOINTS_VALUE = ("identity", "flags", "workload_mac", "device_mac")
PEER_DELIVERY = 1
_HINTS = 50
"""Selectors without a match that are told with the label most like theirs: looking for it is slow, and who has more of
them has not mistyped a label, but declared no identities yet."""

NODE_KEY = ("index",)
NODE_VALUE = ("addresses_revision", "tunnel_ifindex")


class Compiler:
    """Compiles, remembering its last answers part by part."""

    def __init__(self) -> None:
        self._memo = Memo()

    def conflicts(self, documents: DocumentSet, facts: Facts) -> List[BpfleetError]:
        """What keeps the documents from being compiled on this node: see validate.py."""
        return validate(documents, facts, self._memo)

    def compile(self, documents: DocumentSet, facts: Facts) -> Compiled:
        """The state of the node `facts.node`. The documents are valid together (see validate.py)."""
        clusters = documents.of_kind("cluster")
        own = documents.of_kind("node").get(facts.node)
        cluster = clusters[min(clusters)] if clusters else None
        if own is None or cluster is None or own.name not in cluster.spec["members"]:
            return Compiled(NodeState(), waiting=tuple(_all_waiting(documents, own, cluster, facts.node)))
        place = self._memo.get(
            "topology",
            (documents.fingerprint("cluster", "node", "identity", "endpoint"), facts_key(facts)),
            lambda: topology.build(documents, cluster, own, facts),
        )
        compiled = self._policies(documents, cluster, own, place, facts)
        self._memo.sweep()
        return compiled

    def _policies(
        self, documents: DocumentSet, cluster: Document, own: Document, place: Topology, facts: Facts
    ) -> Compiled:
        identities = documents.fingerprint("identity")
        index = self._memo.get("index", identities, lambda: _index(documents))
        members = documents.fingerprint("cluster", "node")
        nodes = self._memo.get("nodes", (members, own.name), lambda: Nodes.of(documents, own.name))
        resolved = self._resolved(documents, index, nodes)
        judged = place.subjects | {HOST}
        by_subject: Dict[int, List[Resolved]] = {number: [] for number in judged}
        for item in resolved:
            for number in item.subjects & judged:
                by_subject[number].append(item)
        settings = Settings.of(cluster)
        sides: Dict[int, Tuple[Side, ...]] = {
            number: self._memo.get(
                ("sides", number),
                (tuple(selected), settings),
                lambda number=number, selected=selected: entries.sides_of(number, selected, settings),  # type: ignore[misc]
            )
            for number, selected in by_subject.items()
        }
        every_side = [side for found in sides.values() for side in found]
        ids, names = entries.number_rules(resolved, every_side)
        set_ids = entries.number_sets(every_side)
        called = {
            **RESERVED_NAMES,
            **{document.spec["number"]: name for name, document in documents.of_kind("identity").items()},
        }
        subjects: Dict[int, Subject] = {}
        for number, found in sides.items():
            used = tuple(ids[content] for content in entries.contents_of(found))
            used_sets = tuple(set_ids[one.content] for side in found for one in side.sets)
            subjects[number] = self._memo.get(
                ("subject", number),
                (found, used, used_sets, settings),
                lambda number=number, found=found: entries.subject_table(  # type: ignore[misc]
                    number, found, ids, set_ids, settings.entries, called.get(number, "")
                ),
            )
        sets = self._sets(every_side, set_ids)
        balanced = self._memo.get(
            "services",
            documents.fingerprint("cluster", "node", "identity", "endpoint", "service"),
            lambda: services.build(documents, index),
        )
        hooked = bool(balanced.summaries) and facts.cgroup
        blocked = self._memo.get("blocked", cluster.hash, lambda: blocklist.blocked_table(cluster))
        state = self._memo.get(
            "state",
            (
                *(place, cluster.hash, balanced, hooked, facts.jiffy_ns, facts.kernel_contexts),
                tuple(sorted(subjects.items(), key=lambda item: item[0])),
            ),
            lambda: _state(cluster, own, place, subjects, sets, blocked, balanced, hooked, facts),
        )
        failsafe = self._memo.get(
            "failsafe warnings",
            (cluster.hash, own.name, subjects[HOST]),
            lambda: host.failsafe_warnings(own.name, cluster, _maps(subjects[HOST], sets), names),
        )
        of_policies = [warning for item in resolved for warning in item.warnings]
        warnings = self._worded((*of_policies, *balanced.warnings), index, nodes)
        warnings += self._cidr_warnings(resolved, documents, cluster)
        if balanced.summaries and not facts.cgroup:
            warnings.append(NO_CGROUP)
        return Compiled(
            state=state,
            rules=names,
            identities=called,
            waiting=(
                *place.waiting,
                *(Waiting(f"policy/{one.name}", text) for one in resolved for text in one.waiting),
            ),
            warnings=(
                *self._memo.get("blocked warnings", members, lambda: blocklist.warnings(documents, cluster)),
                *warnings,
                *failsafe,
            ),
            services=balanced.summaries,
        )

    def _resolved(self, documents: DocumentSet, index: LabelIndex, nodes: Nodes) -> List[Resolved]:
        """Every policy against the identities and CIDR groups, in order of name."""
        identities = documents.fingerprint("identity")
        groups = {
            name: self._memo.get(("group", name), document.hash, lambda document=document: policy.Group.of(document))  # type: ignore[misc]
            for name, document in documents.of_kind("cidr_group").items()
        }
        resolved: List[Resolved] = []
        for name, document in sorted(documents.of_kind("policy").items()):
            named = self._memo.get(
                ("groups", name),
                document.hash,
                lambda document=document: policy.groups_named(document),  # type: ignore[misc]
            )
            held = tuple(groups.get(group) for group in named)
            resolved.append(
                self._memo.get(
                    ("policy", name),
                    (document.hash, identities, held, nodes if "node_selector" in document.spec else None),
                    lambda document=document: policy.resolve(document, index, nodes, groups),  # type: ignore[misc]
                )
            )
        return resolved

    def _worded(self, warnings: Iterable[Union[str, Unmatched]], index: LabelIndex, nodes: Nodes) -> List[str]:
        """Warnings in words; the first of those of a selector without a match with the label most like theirs."""
        found: List[str] = []
        hinted = 0
        for warning in warnings:
            if isinstance(warning, str):
                found.append(warning)
                continue
            near, hinted = None, hinted + 1
            if hinted <= _HINTS:
                among = nodes.index if warning.of_nodes else index
                near = self._memo.get(
                    ("nearest", warning.of_nodes, warning.labels),
                    among,
                    lambda among=among, labels=warning.labels: among.nearest(dict(labels)),  # type: ignore[misc]
                )
            found.append(f"{warning.text}; the nearest label is {near}" if near else warning.text)
        return found

    def _cidr_warnings(self, resolved: Sequence[Resolved], documents: DocumentSet, cluster: Document) -> List[str]:
        nodes, members = documents.of_kind("node"), cluster.spec["members"]
        own = self._memo.get(
            "own networks",
            documents.fingerprint("cluster", "node"),
            lambda: OwnNetworks({name: nodes[name] for name in members if name in nodes}),
        )
        found: List[str] = []
        for item in resolved:
            if item.cidrs:
                found += self._memo.get(
                    ("cidr warnings", item.name),
                    (item.cidrs, own),
                    lambda item=item: inner_cidrs.policy_warnings(item, own),  # type: ignore[misc]
                )
        for name, group in sorted(documents.of_kind("cidr_group").items()):
            found += self._memo.get(
                ("group warnings", name),
                (group.hash, own),
                lambda group=group: inner_cidrs.group_warnings(group, own),  # type: ignore[misc]
            )
        return found

    def _sets(self, sides: Sequence[Side], ids: Mapping[Content, int]) -> Dict[str, Dict[int, Table]]:
        """The prefix sets and port sets that the sides name, each once."""
        found: Dict[str, Dict[int, Table]] = {"port_sets": {}, "prefix_sets": {}}
        for side in sides:
            for name, one in (("port_sets", side.ports), ("prefix_sets", side.prefixes)):
                if one is not None and ids[one.content] not in found[name]:
                    found[name][ids[one.content]] = self._memo.get((name, one.content), None, one.table)
        return {name: dict(sorted(tables.items())) for name, tables in found.items()}


def _maps(subject: Subject, sets: Mapping[str, Mapping[int, Table]]) -> lookup.Maps:
    """What decides about a subject, to look up in."""
    return lookup.Maps(subject.table.rows or None, sets["prefix_sets"], sets["port_sets"])


def facts_key(facts: Facts) -> Tuple[object, ...]:
    """Facts as a hashable value."""
    return (
        facts.node,
        tuple(sorted(facts.devices.items())),
        tuple(sorted(facts.namespaces)),
        facts.tcx,
        facts.cgroup,
        facts.jiffy_ns,
        facts.kernel_contexts,
        tuple(sorted(facts.link_types.items())),
    )


def _index(documents: DocumentSet) -> LabelIndex:
    return LabelIndex(
        (document.spec["number"], document.spec["labels"]) for document in documents.of_kind("identity").values()
    )


def _all_waiting(
    documents: DocumentSet, own: Document | None, cluster: Document | None, node: str
) -> Sequence[Waiting]:
    if own is None:
        reason = f"node {node} has no document yet"
    elif cluster is None:
        reason = "the cluster has no document yet"
    else:
        reason = f"node {node} is no member of {cluster.key}"
    return [Waiting(document.key, reason) for document in documents if document.kind != "node"]


def _goes_directly(cluster: Document, own: Document, facts: Facts) -> bool:
    """Whether packets of a node may pass its stack by (bpf/include/bpfleet/direct.h, direct_send.h).

    With several devices a packet may come by one that it must not, which only the stack knows (rp_filter).
    """
    allowed: bool = cluster.spec["routing"]["direct_delivery"]
    is_simple = len(own.spec["devices"]) == 1 and ":" not in own.spec["address"]
    return allowed and facts.kernel_contexts and is_simple


def _state(
    cluster: Document,
    own: Document,
    place: Topology,
    subjects: Mapping[int, Subject],
    sets: Mapping[str, Mapping[int, Table]],
    blocked: Table,
    balanced: Services,
    hooked: bool,
    facts: Facts,
) -> NodeState:
    endpoint_rows: Dict[Row, Row] = {}
    selected = subjects[HOST] is not entries.OPEN
    attachments: Dict[Tuple[str, str], str] = {
        (TUNNEL_DEVICE, "ingress"): "from_tunnel",
        (TUNNEL_DEVICE, "egress"): "to_tunnel",
    }
    modes = {device["name"]: device.get("xdp", "off") for device in own.spec["devices"]}
    direct = _goes_directly(cluster, own, facts)
    for device, mode in modes.items():
        attachments[(device, "ingress")] = "from_underlay"
        if selected or direct:
            attachments[(device, "egress")] = "to_underlay"
        if mode != "off":
            attachments[(device, f"xdp-{mode}")] = XDP_OBJECT
    for endpoint in place.local:
        endpoint_rows[(endpoint.device,)] = (
            endpoint.number,
            PEER_DELIVERY if endpoint.peer_delivery else 0,
            endpoint.workload_mac,
            endpoint.device_mac,
        )
        attachments[(endpoint.device, "ingress")] = "from_endpoint"
        attachments[(endpoint.device, "egress")] = "to_endpoint"
    # All objects hold the same constants (bpf/include/bpfleet/base.h).
    constants = {
        "tunnel_port": cluster.spec["routing"]["port"],
        "node_address": own.spec["address"],
        "gateway_v4": topology.GATEWAY_IPV4,
        "gateway_v6": topology.GATEWAY_IPV6,
        "host_policy": int(selected),
    }
    if facts.jiffy_ns:
        constants["jiffy_ns"] = facts.jiffy_ns
    if facts.kernel_contexts:
        constants["kernel_contexts"] = 1
    if direct:
        constants["direct_delivery"] = 1
    received = dict(constants)
    programs = {name: Program(name, constants) for name in (*OBJECTS, *(HOST_OBJECTS if selected or direct else ()))}
    if blocked.rows and "off" in modes.values():
        received["blocked_at_tc"] = 1
    if direct and balanced.summaries:
        received["services_at_tc"] = 1  # it goes by the copies of those that balance
    programs["from_underlay"] = Program("from_underlay", received)
    if balanced.summaries:
        programs.update({name: Program(name, {**constants, "services_at_tc": 1}) for name in BALANCING_OBJECTS})
    if set(modes.values()) != {"off"}:
        programs[XDP_OBJECT] = Program(XDP_OBJECT, constants)
    attachments = {hook: name for hook, name in attachments.items() if hook[0] in place.present}
    if hooked:
        programs.update({name: Program(name, constants) for name in SOCKET_OBJECTS.values()})
        attachments.update({(CGROUP_ROOT, hook): name for hook, name in SOCKET_OBJECTS.items()})
    sizes = limits.sizes_of(cluster)
    return NodeState(
        programs={name: replace(program, sizes=sizes) for name, program in programs.items()},
        attachments=attachments,
        tables={
            "addresses": place.addresses,
            "blocked": blocked,
            "endpoints": Table(ENDPOINTS_KEY, ENDPOINTS_VALUE, endpoint_rows),
            "failsafe": host.failsafe_table(cluster),
            "node": Table(NODE_KEY, NODE_VALUE, {(0,): (place.addresses_revision, TUNNEL_DEVICE)}),
            "services": balanced.frontends,
        },
        nested={
            "policies": {
                number: subject.table for number, subject in sorted(subjects.items()) if subject is not entries.OPEN
            },
            "policies_staged": {},
            **sets,
            "backends": balanced.backends,
        },
        devices=place.devices,
        routes=place.routes,
        sysctls=place.sysctls,
        sizes=sizes,
    )

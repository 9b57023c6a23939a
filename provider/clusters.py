"""Clusters: who the members are, on every member; a new member gets the whole store, one that left is cleared of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Union

from bpfleet.agent.wire import Item
from bpfleet.errors import BpfleetError, Conflict, Unreachable
from bpfleet.model.resources import CLUSTER
from bpfleet.transport.outcome import Changes, Committed, Failed, Outcome, Refused, Unchanged, Unreached
from bpfleet.transport.target import Target
from provider.directory import SEEDS, Directory, View, handle_target, view_of
from provider.nodes import inputs_of_node, node_handle
from provider.runtime import Runtime
from provider.writing import is_about, together

Store = Dict[str, Item]
"""One node's documents by key."""


@dataclass
class Applied:
    """What became of a cluster's change. lagging: members that did not take it. warnings: for the user."""

    lagging: Dict[str, BpfleetError] = field(default_factory=dict)
    warnings: List[str] = field(default_factory=list)


class Clusters:
    """Operations on clusters. Async methods are for the event loop."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def put(self, urn: str, owner: str, inputs: Mapping[str, Any], old: Optional[Mapping[str, Any]]) -> Applied:
        """Make the members what `inputs` says; `old`: the inputs of the last update, where there was one."""
        with self._runtime.shown_at(urn, list(inputs["members"])):
            applied = await self._runtime.run(self._put, owner, inputs, old or {})
        for warning in applied.warnings:
            self._runtime.engine.warn(urn, warning)
        for node, error in applied.lagging.items():
            self._runtime.engine.warn(urn, f"{node} did not take this change and will be tried again: {error}")
        return applied

    def _put(self, owner: str, inputs: Mapping[str, Any], old: Mapping[str, Any]) -> Applied:
        runtime, name = self._runtime, str(inputs["name"])
        targets = {node: handle_target(handle) for node, handle in inputs["members"].items()}
        stores, failures = stores_of(runtime.directory, runtime, targets, ["cluster", "node"])
        for node, store in stores.items():
            _must_be_free(name, node, store)
        nodes = {node: _node_item(node, stores, failures) for node in targets}
        document = {"kind": "cluster", "name": name, "spec": spec_of(inputs)}
        cluster: Item = {"document": document, "owner": owner, "metadata": {}}
        gone = sorted(set(_old_members(name, old, stores)) - set(targets))
        shared = [cluster, *nodes.values()]
        members = {node: targets[node] for node, store in stores.items() if f"cluster/{name}" in store}
        whole = self._seed_store(name, members, gone) if len(members) < len(targets) else {}
        changes: Dict[str, Changes] = {}
        for node in targets:
            store = stores.get(node, {})
            if node in members:
                deletes = [f"node/{other}" for other in gone if f"node/{other}" in store]
                changes[node] = _change(shared, deletes, owner, store)
            else:
                items = {**whole, **{_key(item): item for item in shared}}
                changes[node] = Changes(list(items.values()), (), owner, replace_all=True)
        outcomes = runtime.transact(targets, changes)
        applied = _conclude(outcomes, f"cluster/{name}")
        view = view_of(name, shared)
        assert view is not None
        runtime.directory.remember(view)
        self._clear_left(name, owner, gone, old, stores, applied)
        return applied

    def _seed_store(self, name: str, members: Mapping[str, Target], gone: List[str]) -> Store:
        """The whole store for a new member: that of the established member with the most documents."""
        stores, failures = stores_of(self._runtime.directory, self._runtime, members)
        if failures and not stores:
            raise together(failures, f"cluster/{name}")
        fullest = max(stores.values(), key=len, default={})
        return {key: item for key, item in fullest.items() if key not in {f"node/{node}" for node in gone}}

    def _clear_left(
        self,
        name: str,
        owner: str,
        gone: List[str],
        old: Mapping[str, Any],
        stores: Mapping[str, Store],
        applied: Applied,
    ) -> None:
        """Nodes that left keep their own document only. One that does not answer does not hold up the others."""
        targets = {node: handle_target(handle) for node, handle in old.get("members", {}).items() if node in gone}
        left, failures = stores_of(self._runtime.directory, self._runtime, targets, ["cluster", "node"])
        changes = {
            node: Changes([store[f"node/{node}"]], (), owner, replace_all=True)
            for node, store in left.items()
            if f"cluster/{name}" in store and f"node/{node}" in store
        }
        outcomes = self._runtime.transact({node: targets[node] for node in changes}, changes)
        for node, outcome in outcomes.items():
            if isinstance(outcome, (Failed, Unreached)):
                failures[node] = outcome.error
            elif isinstance(outcome, Refused):
                failures[node] = outcome.refusals[0].error
        for node, error in failures.items():
            applied.warnings.append(f"{node} left the cluster, but could not be told: {error}")

    async def delete(self, urn: str, owner: str, inputs: Mapping[str, Any]) -> None:
        """Take the cluster and all that is in it off its members; each keeps its own node document."""
        with self._runtime.shown_at(urn, list(inputs["members"])):
            warnings = await self._runtime.run(self._delete, owner, inputs)
        for warning in warnings:
            self._runtime.engine.warn(urn, warning)

    def _delete(self, owner: str, inputs: Mapping[str, Any]) -> List[str]:
        runtime, name = self._runtime, str(inputs["name"])
        key = f"cluster/{name}"
        targets = {node: handle_target(handle) for node, handle in inputs["members"].items()}
        stores, failures = stores_of(runtime.directory, runtime, targets)
        views = [view for store in stores.values() if (view := view_of(name, list(store.values()))) is not None]
        forget = {node for view in views for node, member in view.members.items() if member.forget}
        _must_be_ours(key, owner, stores)
        changes: Dict[str, Changes] = {}
        for node, store in stores.items():
            if key in store:
                own = [store[f"node/{node}"]] if f"node/{node}" in store else []
                changes[node] = Changes(own, (), owner, replace_all=True)
        outcomes = runtime.transact({node: targets[node] for node in changes}, changes)
        for node, outcome in outcomes.items():
            if isinstance(outcome, (Failed, Unreached)):
                failures[node] = outcome.error
            elif isinstance(outcome, Refused):
                failures[node] = outcome.refusals[0].error
        forgiven = {node for node, error in failures.items() if node in forget and isinstance(error, Unreachable)}
        bad = {node: error.at(node=node) for node, error in failures.items() if node not in forgiven}
        if bad:
            raise together(bad, key)
        runtime.directory.forget(name)
        return [f"{node} does not answer and is forgotten ({failures[node].what})" for node in sorted(forgiven)]


def stores_of(
    directory: Directory, runtime: Runtime, targets: Mapping[str, Target], kinds: Optional[List[str]] = None
) -> tuple[Dict[str, Store], Dict[str, BpfleetError]]:
    """The stores of these nodes, and why others did not give theirs. Blocking."""
    answers: Dict[str, Union[List[Item], BpfleetError]] = runtime.each(
        targets, lambda target: directory.ask(target, kinds)
    )
    stores: Dict[str, Store] = {}
    failures: Dict[str, BpfleetError] = {}
    for node, answer in answers.items():
        if isinstance(answer, BpfleetError):
            failures[node] = answer.at(node=node)
        else:
            stores[node] = {_key(item): item for item in answer}
    return stores, failures


def _key(item: Item) -> str:
    return f"{item['document']['kind']}/{item['document']['name']}"


def _must_be_free(cluster: str, node: str, store: Store) -> None:
    for key, item in store.items():
        if item["document"]["kind"] == "cluster" and item["document"]["name"] != cluster:
            raise Conflict(
                f"belongs to {key} (of {item['owner']})",
                node=node,
                resource=f"cluster/{cluster}",
                field=f"members.{node}",
                remedy="A node belongs to one cluster: take it out of that one first",
            )


def _must_be_ours(cluster: str, owner: str, stores: Mapping[str, Store]) -> None:
    """Others' documents must not vanish with a cluster that is not theirs."""
    strangers = sorted(
        {
            f"{key} (of {item['owner']})"
            for store in stores.values()
            if cluster in store
            for key, item in store.items()
            if item["owner"] != owner and item["document"]["kind"] != "node"
        }
    )
    if strangers:
        shown = ", ".join(strangers[:5]) + (f" and {len(strangers) - 5} more" if len(strangers) > 5 else "")
        raise Conflict(
            f"is still used by others: {shown}", resource=cluster, remedy="Have their owners delete them first"
        )


def _node_item(node: str, stores: Mapping[str, Store], failures: Mapping[str, BpfleetError]) -> Item:
    """A member's document: from its own store, or from another's if it does not answer."""
    key = f"node/{node}"
    for store in (stores.get(node, {}), *stores.values()):
        if key in store:
            return store[key]
    if node in failures:
        raise failures[node]
    raise Conflict(
        "the host holds no such node",
        node=node,
        resource=key,
        remedy="It was cleared by other means: run `pulumi refresh`, then `pulumi up`, to make it again",
    )


def _old_members(name: str, old: Mapping[str, Any], stores: Mapping[str, Store]) -> List[str]:
    """Who was a member: by the last update, and by what the nodes hold."""
    members = set(old.get("members", {}))
    for store in stores.values():
        item = store.get(f"cluster/{name}")
        if item is not None:
            members.update(item["document"]["spec"]["members"])
    return sorted(members)


def _change(items: List[Item], deletes: List[str], owner: str, store: Store) -> Changes:
    """What a member does not hold yet: an item of another owner that is there already is none of our business."""
    puts = [item for item in items if store.get(_key(item)) != item]
    return Changes(puts, deletes, owner)


def _conclude(outcomes: Mapping[str, Outcome], key: str) -> Applied:
    applied, taken = Applied(), 0
    said: Dict[str, List[str]] = {}
    for node, outcome in outcomes.items():
        if isinstance(outcome, Refused):
            for refusal in outcome.refusals:
                raise refusal.error
        elif isinstance(outcome, (Committed, Unchanged)):
            taken += 1
            for warning in outcome.warnings:
                if is_about(warning, key):
                    said.setdefault(warning, []).append(node)
        elif isinstance(outcome, (Failed, Unreached)):
            applied.lagging[node] = outcome.error.at(node=node)
    if not taken:
        raise together(applied.lagging, key)
    applied.warnings = [f"{', '.join(sorted(nodes))}: {warning}" for warning, nodes in said.items()]
    return applied


def spec_of(inputs: Mapping[str, Any]) -> Dict[str, Any]:
    """The cluster's document spec: its members by name."""
    spec = {field.name: inputs[field.name] for field in CLUSTER.spec_fields if field.name in inputs}
    spec["members"] = sorted(inputs["members"])
    return spec


def cluster_handle(inputs: Mapping[str, Any], old_handle: Any) -> Dict[str, Any]:
    """The output `handle`. Seeds stay those of `old_handle` that are members still, then it is filled up by name.

    It depends on inputs and the old output only, so a preview knows it, and a new member does not change it.
    """
    members = inputs["members"]
    old = list(old_handle.get("seeds", {})) if isinstance(old_handle, Mapping) else []
    kept = [name for name in old if name in members]
    seeds = (kept + [name for name in sorted(members) if name not in kept])[:SEEDS]
    return {"cluster": inputs["name"], "seeds": {name: members[name] for name in sorted(seeds)}}


def inputs_of_cluster(name: str, spec: Mapping[str, Any], view: View, old: Mapping[str, Any]) -> Dict[str, Any]:
    """Inputs that describe the cluster as its members hold it; handles as declared, as far as they are."""
    known = old.get("members", {})
    members = {}
    for node in spec["members"]:
        if node in known:
            members[node] = known[node]
        elif node in view.members:
            members[node] = node_handle(inputs_of_node(node, view.members[node].item, {}))
    return {"name": name, **spec, "members": members}

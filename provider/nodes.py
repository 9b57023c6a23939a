"""Nodes: installing a host, its own document, and wiping it."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional

from bpfleet.agent.wire import Hello, Item
from bpfleet.errors import BpfleetError, Conflict, NotOwner, Unreachable
from bpfleet.model.resources import NODE
from bpfleet.transport.artefact import current
from bpfleet.transport.outcome import Changes, Committed, Failed, Refused, Unchanged, Unreached
from bpfleet.transport.target import Target
from provider.directory import target_of
from provider.leaves import Leaves
from provider.runtime import Runtime
from provider.writing import Put

if TYPE_CHECKING:
    from bpfleet.transport.fleet import Fleet


@dataclass
class NodeRead:
    """What a host says of itself: its document, and the steps that would put its kernel right."""

    item: Item
    drift: List[str] = field(default_factory=list)


class Nodes:
    """Operations on nodes. Async methods are for the event loop."""

    def __init__(self, runtime: Runtime, leaves: Leaves) -> None:
        self._runtime = runtime
        self._leaves = leaves

    async def put(self, urn: str, owner: str, inputs: Mapping[str, Any], old: Optional[Mapping[str, Any]]) -> List[str]:
        """Install the host and give it its document, or change that on all members of its cluster.

        `old`: the inputs of the last update, where there was one. Returns the members that did not take the change.
        """
        name = str(inputs["name"])
        target = node_target(inputs)
        put = Put("node", name, spec_of(inputs), metadata_of(inputs))
        try:
            with self._runtime.shown_at(urn, [name]):
                hello = await self._runtime.run(self._install, target, name)
        except BaseException:
            self._leaves.batcher.withdraw(urn)
            raise
        if hello["cluster"] is not None:
            result = await self._leaves.put(urn, owner, hello["cluster"], put, {name: target}, target)
            for node, error in result.lagging.items():
                self._runtime.engine.warn(urn, f"{node} did not take this change and will be tried again: {error}")
            if name in result.lagging:
                raise result.lagging[name]
            return sorted(result.lagging)
        self._leaves.batcher.withdraw(urn)
        with self._runtime.shown_at(urn, [name]):
            warnings = await self._runtime.run(self._put_alone, target, put, owner)
        for warning in warnings:
            self._runtime.engine.warn(urn, warning)
        if old is not None and node_target(old) != target and hello["node"] is None:
            await self._leave(urn, owner, node_target(old), name, hello["boot_id"])
        return []

    def _install(self, target: Target, name: str) -> Hello:
        hello = self._runtime.fleet.install(target)
        if hello["node"] not in (None, name):
            raise Conflict(
                f"{target} already is node {hello['node']}",
                node=name,
                resource=f"node/{name}",
                field="ssh",
                remedy="Give the address of another host, or delete the node that it is",
            )
        return hello

    def _put_alone(self, target: Target, put: Put, owner: str) -> List[str]:
        """The document on its own node only: the cluster, once it has this member, brings the rest."""
        document = {"kind": put.kind, "name": put.name, "spec": dict(put.spec)}
        item: Item = {"document": document, "owner": owner, "metadata": dict(put.metadata)}
        changes = Changes(puts=[item], owner=owner)
        outcome = self._runtime.transact({target.name: target}, {target.name: changes})[target.name]
        if isinstance(outcome, (Committed, Unchanged)):
            return list(outcome.warnings)
        if isinstance(outcome, Refused):
            raise outcome.refusals[0].error
        assert isinstance(outcome, (Failed, Unreached))
        raise outcome.error.at(resource=put.key)

    async def _leave(self, urn: str, owner: str, target: Target, name: str, now_on: str) -> None:
        """The node moved to another host: clear the one it was on, if that still is this node. now_on: the boot id of
        the host it is on now, which may be the same one, reached another way."""
        try:
            await self._runtime.run(self._wipe, target, name, owner, now_on)
        except BpfleetError as error:
            self._runtime.engine.warn(urn, f"the host that was {name} before could not be cleared: {error}")

    async def delete(self, urn: str, owner: str, inputs: Mapping[str, Any]) -> None:
        """Clear the host of everything of ours, if its node document still is this one."""
        name = str(inputs["name"])
        try:
            with self._runtime.shown_at(urn, [name]):
                await self._runtime.run(self._wipe, node_target(inputs), name, owner)
        except NotOwner as error:
            self._runtime.engine.warn(urn, f"the host was left as it is: {error}")
        except Unreachable as error:
            if inputs.get("on_delete_unreachable") != "forget":
                raise
            self._runtime.engine.warn(urn, f"forgotten without being cleared: {error}")

    def _wipe(self, target: Target, name: str, owner: str, spared: Optional[str] = None) -> None:
        """NotOwner, and nothing is removed, if the address by now leads to a node of this name that others declared."""
        fleet = self._runtime.fleet
        dead = self._runtime.directory.dead(target)
        if dead is not None:
            raise dead
        # The host may have an agent of another version only: ours is what can tell, and clear what that one left.
        hello = fleet.install(target)
        if hello["boot_id"] == spared:
            return
        node = hello["node"]
        if node == name:
            own = _own_item(fleet, target, name)
            if own is not None and own["owner"] != owner:
                raise NotOwner(
                    f"{target} is a node of this name that belongs to {own['owner']}, not to {owner}",
                    resource=f"node/{name}",
                    remedy="Nothing was removed there",
                )
            fleet.call(target, "wipe", {"node": name})
        if node in (None, name):
            fleet.remove_agent(target)

    async def read(self, target: Target, name: str) -> Optional[NodeRead]:
        """What the host says; None if it answers and is not this node. Raises where it does not answer."""
        return await self._runtime.run(self._read, target, name)

    def _read(self, target: Target, name: str) -> Optional[NodeRead]:
        fleet = self._runtime.fleet
        had_agent = fleet.installed(target) is not None
        node = fleet.install(target)["node"]
        if node is None and not had_agent:
            fleet.remove_agent(target)  # there is nothing of ours; leave it so
        if node != name:
            return None
        own = _own_item(fleet, target, name)
        if own is None:
            return None
        return NodeRead(own, [str(step) for step in fleet.call(target, "status").get("drift", [])])


def _own_item(fleet: Fleet, target: Target, name: str) -> Optional[Item]:
    """The stored document of a node, as its host has it: that one alone, as each host holds those of all."""
    items: List[Item] = fleet.call(target, "documents", {"kinds": ["node"], "names": [name]})["items"]
    return next(iter(items), None)


@functools.lru_cache(maxsize=1)
def agent_digest() -> Optional[str]:
    """Digest of the agent and objects that this process installs; None where the objects have not been built."""
    try:
        return current().digest
    except BpfleetError:
        return None  # whoever installs it meets the same and says it; a preview can do without


def node_target(inputs: Mapping[str, Any]) -> Target:
    """How to reach a node with these inputs."""
    return target_of(str(inputs["name"]), inputs, inputs.get("ssh") or {})


def node_handle(inputs: Mapping[str, Any]) -> Dict[str, Any]:
    """The output `handle`: it depends on inputs only, so a preview knows it."""
    return {"name": inputs["name"], "address": inputs["address"], "ssh": inputs.get("ssh") or {}}


def spec_of(inputs: Mapping[str, Any]) -> Dict[str, Any]:
    """The node's document spec."""
    return {field.name: inputs[field.name] for field in NODE.spec_fields if field.name in inputs}


def metadata_of(inputs: Mapping[str, Any]) -> Dict[str, Any]:
    """What is kept beside the document: how to reach the node, and what to do when it does not answer."""
    metadata: Dict[str, Any] = {"ssh": node_target(inputs).to_metadata()}
    if inputs.get("on_delete_unreachable") == "forget":
        metadata["on_delete_unreachable"] = "forget"
    return metadata


def inputs_of_node(name: str, item: Item, old: Mapping[str, Any]) -> Dict[str, Any]:
    """Inputs that describe the node as it is. What the document does not hold stays as it was declared."""
    metadata, spec = item["metadata"], item["document"]["spec"]
    ssh = metadata.get("ssh") or {}
    inputs: Dict[str, Any] = {"name": name, **spec}
    same = bool(old) and target_of(name, spec, ssh) == node_target(old)
    if same:
        inputs["ssh"] = old.get("ssh", {})
    else:  # the host is kept also where it is the address, which is the default and need not be declared
        inputs["ssh"] = {key: value for key, value in ssh.items() if (key, value) != ("host", spec["address"])}
    inputs["on_delete_unreachable"] = metadata.get("on_delete_unreachable", "fail")
    return inputs

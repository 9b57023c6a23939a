# Copyright (c) bpfleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Actions that put and delete documents: check and diff mode, identity numbers, the transaction, the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import yaml
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.action import AgentAction, AgentChange
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.channel import Channel
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.deciding import Decision
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.declared import PLACEHOLDER, Declared
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.numbers import InUse, Table, in_use
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.peers import host_of, reach, survey
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.reachability import inventory_ssh
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.transaction import (
    Change,
    Held,
    Item,
    Refused,
    Store,
    is_busy,
    key_of,
    make,
    must_be,
    preview,
    read,
)
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.vendored.bpfleet.errors import (
    BpfleetError,
    InvalidInput,
    NumberTaken,
)
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.vendored.bpfleet.model.document import canonical_json

NUMBERS_TRIED = 16
_WAIT_SECONDS = 10.0


@dataclass
class Wanted:
    """What a task wants. prune: what the owner has put and does not declare here goes too."""

    cluster: str
    put: list[Declared] = field(default_factory=list)
    deletes: list[str] = field(default_factory=list)
    prune: bool = False

    @property
    def owner(self) -> str:
        """Whose documents these are."""
        return f"ansible:{self.cluster}"


class PuttingAction(AgentAction):
    """An action whose task says which documents should be there and which not."""

    _ours: Sequence[Declared] = ()
    """The identities whose numbers are allocated here."""
    _asked: list[Held] | None = None
    _replaced: Mapping[str, Any] | None = None
    """What the agent said that another host's task replaced here; empty if there was none."""

    def wanted(self, arguments: Mapping[str, Any]) -> Wanted:
        """What the task wants."""
        raise NotImplementedError

    def work(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Make the host hold what is wanted, or in check mode say what that would change."""
        self.require_renewable()
        wanted = self.wanted(arguments)
        node = self.node(arguments)
        channel = self.channel()
        held = read(channel)
        must_be(node, held)
        _must_be_of_cluster(wanted, held.store)
        members = _members(wanted, held.store)
        _must_be_member(node, self.host, wanted, held.store, members)
        self._reachability(wanted)
        if self._task.check_mode:
            result = self._check(channel, held, wanted, node)
        else:
            result = self._make(channel, held, wanted, node, float(arguments["deadline"]))
        active = {str(host) for host in self.variables.get("ansible_play_hosts", ())} | {self.host}
        left = sorted(set(members) - active - {node}) if result["changed"] else []
        result["left_behind"] = left
        if left:
            names = ", ".join(left)
            result.setdefault("warnings", []).append(
                f"members of cluster {wanted.cluster} that are not in this run keep what they have: {names}. "
                "Run the playbook without --limit when they can be reached."
            )
        return result

    def _check(self, channel: Channel, held: Held, wanted: Wanted, node: str) -> dict[str, Any]:
        for _attempt in range(NUMBERS_TRIED):
            change = self._change(wanted, held, node)
            if not held.agent:
                # Nothing can be staged without this very agent, and a check delivers none.
                return self._result(held, change, {"unchanged": False, "agent": "absent"})
            try:
                return self._result(held, change, preview(channel, change))
            except Refused as refused:
                self._renumber(wanted, held, refused)
        raise _no_number()

    def _make(self, channel: Channel, held: Held, wanted: Wanted, node: str, deadline: float) -> dict[str, Any]:
        installed = not held.agent and channel.install()
        for _attempt in range(NUMBERS_TRIED):
            change = self._change(wanted, held, node)
            own = partial(make, channel, change, self.renew, deadline)
            try:
                answer = self._commit(own, held, wanted, change, deadline)
            except Refused as refused:
                self._renumber(wanted, held, refused)
                continue
            if answer is not None:
                made = self._made_by_others(wanted, held, node)
                if made is None:
                    return self._result(held, change, answer, installed)
                self._replaced = made["replaced"]
                before = replace(held, store=_overlaid(held.store, made["before"]))
                change = replace(change, puts=self._new(wanted, before))
                installed = installed or self._replaced is not None
                return self._result(before, change, {**answer, "unchanged": False}, installed)
        raise _no_number()

    def _commit(
        self, own: Callable[[], dict[str, Any]], held: Held, wanted: Wanted, change: Change, deadline: float
    ) -> dict[str, Any] | None:
        """Make the change, identities on the deciding node first; None if there are other numbers by now."""
        if not any(item["document"]["kind"] == "identity" for item in change.puts):
            return own()
        with self._table(wanted, held).open() as state:
            if "busy" in state:
                raise BpfleetError.from_wire(state["busy"])
            if any(state["numbers"][canonical_json(one.spec["labels"])] != one.spec[PLACEHOLDER] for one in self._ours):
                self._forget()
                return None
            if not state.get("decided"):
                answer = self._decide(state, own, held, wanted, change, deadline)
                if answer is not None:
                    return answer
        return own()

    def _decide(
        self,
        state: dict[str, Any],
        own: Callable[[], dict[str, Any]],
        held: Held,
        wanted: Wanted,
        change: Change,
        deadline: float,
    ) -> dict[str, Any] | None:
        """For all hosts of the play; what became of the own change, if it was made in doing so."""
        decision = Decision(change, partial(reach, self), own, deadline)
        known = [held, *self._others(wanted, held)]
        before = next(filter(None, (_stored_members(wanted.cluster, one.store) for one in known)), [])
        try:
            decision.decide(before, _members(wanted, held.store))
        except BpfleetError as error:
            if is_busy(error):
                state["busy"] = error.to_wire()
            raise
        finally:
            for name, made in decision.made.items():
                entry = state.setdefault("made", {}).setdefault(name, {"before": {}, "replaced": None})
                entry["before"] = {**made.before, **entry["before"]}
                entry["replaced"] = made.replaced if entry["replaced"] is None else entry["replaced"]
        state["decided"] = True
        return decision.answer

    def _made_by_others(self, wanted: Wanted, held: Held, node: str) -> dict[str, Any] | None:
        """What another host's task did here of this host's change: told as this one's."""
        if not self._identities(wanted):
            return None
        with self._table(wanted, held).open() as state:
            made: dict[str, Any] | None = state.get("made", {}).pop(node, None)
        return made

    def _change(self, wanted: Wanted, held: Held, node: str) -> Change:
        self._number(wanted, held)
        declared = {one.key for one in wanted.put}
        deletes = {key for key in wanted.deletes if key in held.store}
        if wanted.prune:
            deletes |= {
                key for key, item in held.store.items() if item["owner"] == wanted.owner and key not in declared
            }
        new = self._new(wanted, held)
        # A run that was killed before it could confirm leaves a transaction that ends by itself: outlast it.
        pending = held.hello.get("pending") or {}
        return Change(node, wanted.owner, new, sorted(deletes), _WAIT_SECONDS + float(pending.get("seconds_left", 0)))

    @staticmethod
    def _new(wanted: Wanted, held: Held) -> list[Item]:
        puts = [one.item(wanted.owner) for one in wanted.put]
        return [item for item in puts if held.store.get(key_of(item)) != item]

    # Identity numbers

    def _number(self, wanted: Wanted, held: Held) -> None:
        """Give every identity without a number its own."""
        waiting = [one for one in self._identities(wanted) if PLACEHOLDER not in one.spec]
        if not waiting:
            return
        self._ours = waiting
        numbers = self._table(wanted, held).numbers(lambda: self._in_use(wanted, held))
        for one in waiting:
            one.metadata = {}
            one.spec[PLACEHOLDER] = numbers[canonical_json(one.spec["labels"])]

    def _renumber(self, wanted: Wanted, held: Held, refused: Refused) -> None:
        """After a refusal because of numbers alone: other numbers for those. Anything else is raised."""
        taken = {key for key, error in refused.errors if isinstance(error, NumberTaken)}
        if len(taken) != len(refused.errors) or not taken <= {one.key for one in self._ours}:
            raise refused
        table = self._table(wanted, held)
        for one in self._ours:
            if one.key in taken:
                table.strike(int(one.spec[PLACEHOLDER]), one.spec["labels"])
        self._forget()

    def _forget(self) -> None:
        for one in self._ours:
            del one.spec[PLACEHOLDER]

    @staticmethod
    def _identities(wanted: Wanted) -> list[Declared]:
        return [one for one in wanted.put if one.kind == "identity"]

    def _table(self, wanted: Wanted, held: Held) -> Table:
        given = sorted([one.key, one.spec[PLACEHOLDER]] for one in self._identities(wanted) if one not in self._ours)
        cluster_id = _cluster_id(wanted, held.store) if self._ours else 0
        name = [wanted.cluster, self._task._uuid, given]
        return Table(self.scratch, name, cluster_id, [dict(one.spec["labels"]) for one in self._ours])

    def _in_use(self, wanted: Wanted, held: Held) -> InUse:
        """Which numbers are in use: as this host knows them, and as others do where there is one to allocate."""
        own = in_use(held.store.values())
        numbered = {text for texts in own.values() if len(texts) == 1 for text in texts}
        if all(canonical_json(one.spec["labels"]) in numbered for one in self._ours):
            return own
        for other in self._others(wanted, held):
            for number, texts in in_use(other.store.values()).items():
                own.setdefault(number, set()).update(texts)
        return own

    def _others(self, wanted: Wanted, held: Held) -> list[Held]:
        """What others hold; asked once."""
        if self._asked is None:
            self._asked = list(survey(self, _members(wanted, held.store), wanted.cluster))
        return self._asked

    # Reachability

    def _reachability(self, wanted: Wanted) -> None:
        """Beside each node's document, how the inventory reaches it: any member can tell another controller."""
        for one in wanted.put:
            if one.kind == "node":
                known = inventory_ssh(
                    self.variables.get("hostvars") or {},
                    host_of(self, one.name) or one.name,
                    become=bool(self._task.become),
                    user=self._task.remote_user,
                )
                address = {"host": str(one.spec["address"])}
                one.metadata = {"ssh": {**address, **known, **one.metadata.get("ssh", {})}}

    # The result

    def _result(
        self, held: Held, change: Change, answer: Mapping[str, Any], installed: bool | None = None
    ) -> dict[str, Any]:
        absent = answer.get("agent") == "absent"
        result: dict[str, Any] = {
            "changed": bool(not answer["unchanged"] or installed or absent),
            "put": [key_of(item) for item in change.puts],
            "deleted": list(change.deletes),
            "agent_installed": absent if installed is None else installed,
            "node": change.node,
        }
        for name in (
            "generation",
            "documents_digest",
            "state_digest",
            "steps",
            "writes",
            "waiting",
            "transaction",
            "capacity",
        ):
            if answer.get(name) is not None:
                result[name] = answer[name]
        result.setdefault("generation", held.hello.get("generation", 0))
        if answer.get("warnings"):
            result["warnings"] = list(answer["warnings"])
        if self._task.diff:
            result["diff"] = _diff(held, change, answer)
        if result["agent_installed"]:
            agent = AgentChange.of(held.hello if self._replaced is None else self._replaced)
            result["agent"] = agent.to_json()
            if self._task.diff:
                result["diff"].insert(0, agent.diff())
        return result


def _members(wanted: Wanted, store: Store) -> list[str]:
    """The members that the cluster has after the change."""
    for one in wanted.put:
        if one.kind == "cluster":
            return [str(name) for name in one.spec["members"]]
    return _stored_members(wanted.cluster, store)


def _stored_members(cluster: str, store: Store) -> list[str]:
    item = store.get(f"cluster/{cluster}")
    return [str(name) for name in item["document"]["spec"]["members"]] if item else []


def _must_be_of_cluster(wanted: Wanted, store: Store) -> None:
    """What is put counts on the host whatever cluster the task names: that name must be right. (What is deleted from
    another cluster is not there.)"""
    for key in store if wanted.put else ():
        kind, _slash, name = key.partition("/")
        if kind == "cluster" and name != wanted.cluster:
            raise InvalidInput(
                f"the host is of cluster {name}, not of {wanted.cluster}",
                field="cluster",
                remedy=f"Set cluster to {name}, take the host out of the play, or clear it first (role "
                "bpfleet.fleet.node with bpfleet_state: absent).",
            )


def _must_be_member(node: str, host: str, wanted: Wanted, store: Store, members: Sequence[str]) -> None:
    if not members or node in members:
        return
    raise InvalidInput(
        f"inventory host {host} is no member of cluster {wanted.cluster} (members: {', '.join(members)})",
        resource=f"cluster/{wanted.cluster}",
        field="members",
        remedy=f"Add {node} to the members and declare node/{node}, take the host out of the play, or set this_node if "
        "the node has another name than the host.",
    )


def _overlaid(store: Store, before: Mapping[str, Item | None]) -> Store:
    """The store as it was before these items came to be what they are."""
    return {key: item for key, item in {**store, **before}.items() if item is not None}


def _cluster_id(wanted: Wanted, store: Store) -> int:
    for one in wanted.put:
        if one.kind == "cluster":
            return int(one.spec["id"])
    item = store.get(f"cluster/{wanted.cluster}")
    if item is None:
        raise InvalidInput(
            f"there is no cluster {wanted.cluster} yet, whose id is part of an identity's number",
            resource=f"cluster/{wanted.cluster}",
            remedy="Declare the cluster in the same task, or before.",
        )
    return int(item["document"]["spec"]["id"])


def _no_number() -> InvalidInput:
    return InvalidInput(
        f"no free identity number was found in {NUMBERS_TRIED} attempts", remedy="Run the playbook again."
    )


def _diff(held: Held, change: Change, answer: Mapping[str, Any]) -> list[dict[str, str]]:
    """A part for each document that changes, and the steps in the kernel in words."""
    parts = []
    new = {key_of(item): item for item in change.puts}
    for key in sorted({*new, *change.deletes}):
        parts.append(
            {
                "before_header": key,
                "after_header": key,
                "before": _text(held.store.get(key)),
                "after": _text(new.get(key)),
            }
        )
    if answer.get("agent") == "absent":
        parts.append({"prepared": "what the new agent then does in the kernel shows only with it\n"})
    if answer.get("describe"):
        parts.append({"prepared": "steps:\n" + "".join(f"  {line}\n" for line in answer["describe"])})
    return parts


def _text(item: Mapping[str, Any] | None) -> str:
    if item is None:
        return ""
    shown = {**item["document"], **item["metadata"]}
    return str(yaml.safe_dump(shown, sort_keys=True, default_flow_style=False, allow_unicode=True))

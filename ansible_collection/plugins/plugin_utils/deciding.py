# Copyright (c) bpfleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Identities are committed on one node before any other is offered them.

A node refuses a number that it knows as another identity's. Every controller begins at the same node, the lowest-named
member that answers; so of two that want one number for different labels, the second is refused there, before it has
put it anywhere. One of Ansible's forks does this for all hosts of the play, while the others wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible.errors import AnsibleError
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.channel import Channel
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.transaction import (
    Change,
    Held,
    Item,
    Refused,
    is_busy,
    key_of,
    make,
    read,
)
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.vendored.bpfleet.errors import BpfleetError, InvalidInput
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.vendored.bpfleet.model.identity import decider

_KINDS = ("identity",)


@dataclass(frozen=True)
class There:
    """Another member as a task reaches it. playing: whether it is in this play, so that it may be changed."""

    channel: Channel
    renew: Callable[[], None]
    playing: bool


@dataclass
class Made:
    """What was done on another member for the task that it has itself: for that task's result.

    before: the items as they were. replaced: what the agent said that is replaced now, empty if there was none; None if
    it is the same.
    """

    before: dict[str, Item | None] = field(default_factory=dict)
    replaced: dict[str, Any] | None = None


class Decision:
    """Over the identities in `change`, which is the change of this task's own node.

    reach: another member by its node name, None if this controller has no way there. `made` is filled with what is
    changed on others, by node, also when deciding ends with an error.
    """

    def __init__(
        self,
        change: Change,
        reach: Callable[[str], There | None],
        make_own: Callable[[], dict[str, Any]],
        deadline_seconds: float,
    ) -> None:
        self._change = change
        self._reach = reach
        self._make_own = make_own
        self._deadline = deadline_seconds
        self._identities = [item for item in change.puts if item["document"]["kind"] == "identity"]
        self._members: dict[str, tuple[There, Held] | None] = {}
        self.made: dict[str, Made] = {}
        self.answer: dict[str, Any] | None = None

    def decide(self, before: Sequence[str], after: Sequence[str]) -> None:
        """Commit the identities on the node that decides, of the cluster's members before and after the change.

        `answer` is then what became of the own node's change, if that was the one. Where members change, others may
        still go by those before, so that their deciding node is asked first. Raises Refused; an error of the tree.
        """
        for view in dict.fromkeys(tuple(sorted(names)) for names in (before or after, after)):
            self._begin(view)

    def _begin(self, members: Sequence[str]) -> None:
        """At the first of these that answers. One broken host does not stop the fleet; one that others keep busy does:
        their numbers may be the same."""
        rest = set(members)
        while rest:
            first = decider(rest)
            rest.remove(first)
            if first == self._change.node:
                if self.answer is None:
                    self.answer = self._make_own()
                return
            try:
                if self._commit(first):
                    return
            except (Refused, NotPlaying):
                raise
            except (AnsibleError, BpfleetError) as error:
                if isinstance(error, BpfleetError) and is_busy(error):
                    raise error.at(node=first) from error

    def _commit(self, node: str) -> bool:
        """Put the identities on another node; False if that decides nothing."""
        reached = self._reached(node)
        if reached is None:
            return False
        there, held = reached
        new = [item for item in self._identities if held.store.get(key_of(item)) != item]
        if not new:
            return True
        if not there.playing:
            if held.hello.get("node") is None:
                return False  # not yet a node: nobody has put anything there
            raise NotPlaying(node, [key_of(item) for item in new])
        made = self.made.setdefault(node, Made())
        if not held.agent and there.channel.install():
            made.replaced = dict(held.hello)
        change = Change(node, self._change.owner, new, [], self._change.wait_seconds)
        try:
            make(there.channel, change, there.renew, self._deadline)
        except Refused as refused:
            for _key, error in refused.errors:
                error.at(node=node)
            raise
        made.before.update({key_of(item): held.store.get(key_of(item)) for item in new})
        # What is read of it once more, for another view of the members, is what it has now.
        held.store.update({key_of(item): item for item in new})
        return True

    def _reached(self, node: str) -> tuple[There, Held] | None:
        """A member and what it holds; None if it is this task's own, does not answer, or is another node by now."""
        if node not in self._members:
            self._members[node] = self._read(node)
        return self._members[node]

    def _read(self, node: str) -> tuple[There, Held] | None:
        there = self._reach(node) if node != self._change.node else None
        if there is None:
            return None
        try:
            held = read(there.channel, _KINDS)
        except (AnsibleError, BpfleetError):
            return None  # its own task reports it
        return None if held.hello.get("node") not in (None, node) else (there, held)


class NotPlaying(InvalidInput):
    """The node that decides over numbers does not have them, and is not in this play."""

    def __init__(self, node: str, keys: Sequence[str]) -> None:
        super().__init__(
            f"{', '.join(keys)} cannot get a number yet: {node}, which decides over the cluster's numbers, is not in "
            "this run and does not have it",
            resource=keys[0],
            remedy=f"Run the playbook without --limit, or with {node} in it.",
            details={"decider": node},
        )

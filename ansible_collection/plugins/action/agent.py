# Copyright (c) bpfleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""bpfleet.fleet.agent"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.bpfleet.fleet.plugins.plugin_utils.action import AgentAction, AgentChange
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.transaction import must_be, read
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.vendored.bpfleet.errors import BpfleetError, NotOwner


class ActionModule(AgentAction):
    """Installs, upgrades or removes the agent."""

    module = "agent"

    def work(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Bring the agent to what is wanted."""
        if arguments["state"] == "absent":
            return self._remove(self.node(arguments), arguments.get("cluster"), bool(arguments["force"]))
        channel = self.channel()
        held = read(channel, ("cluster",))
        agent = AgentChange.of(held.hello)
        result: dict[str, Any] = {
            "changed": not held.agent,
            "node": held.hello.get("node"),
            "agent": agent.to_json(),
        }
        if not held.agent:
            if self._task.diff:
                result["diff"] = [agent.diff()]
            if not self._task.check_mode:
                channel.install()
        return result

    def _remove(self, node: str, cluster: str | None, force: bool) -> dict[str, Any]:
        channel = self.channel()
        held = read(channel)
        must_be(node, held)
        owners = {item["owner"] for item in held.store.values()}
        others = sorted(
            owner
            for owner in owners
            if not (owner == f"ansible:{cluster}" if cluster else owner.startswith("ansible:"))
        )
        if others and not force:
            raise NotOwner(
                f"the host holds documents of {', '.join(others)}",
                resource=f"node/{node}",
                remedy="Remove the node where it is declared, or give force: true (bpfleet_force in role node).",
                details={"owners": others},
            )
        result: dict[str, Any] = {"changed": bool(held.hello), "node": held.hello.get("node")}
        if self._task.check_mode or not held.hello:
            return result
        channel.install()  # what clears the host is the agent that this collection carries
        (wiped,) = channel.ask(("wipe", {"node": node}))
        if isinstance(wiped, BpfleetError):
            raise wiped
        channel.remove()
        return {**result, "writes": wiped["writes"]}

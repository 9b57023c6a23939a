# Copyright (c) bpfleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""bpfleet.fleet.status_info"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.bpfleet.fleet.plugins.plugin_utils.action import AgentAction
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.channel import NotInstalled
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.vendored.bpfleet.errors import BpfleetError


class ActionModule(AgentAction):
    """Reads a node's status."""

    module = "status_info"

    def work(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What the agent says."""
        try:
            (status,) = self.channel().ask_any(("status", {}))
        except NotInstalled:
            return {"changed": False, "agent_installed": False}
        if isinstance(status, BpfleetError):
            raise status
        return {"changed": False, "agent_installed": True, "status": status}

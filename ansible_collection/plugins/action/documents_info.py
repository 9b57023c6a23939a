# Copyright (c) bpfleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""bpfleet.fleet.documents_info"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.bpfleet.fleet.plugins.plugin_utils.action import AgentAction
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.transaction import read


class ActionModule(AgentAction):
    """Reads documents."""

    module = "documents_info"

    def work(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The documents that are asked for."""
        held = read(self.channel(), arguments.get("kinds") or ())
        names = arguments.get("names")
        documents = [
            {**item["document"], "owner": item["owner"], "metadata": item["metadata"]}
            for _key, item in sorted(held.store.items())
            if names is None or item["document"]["name"] in names
        ]
        return {
            "changed": False,
            "documents": documents,
            "digest": held.hello.get("documents_digest", ""),
            "generation": held.hello.get("generation", 0),
            "agent_installed": bool(held.hello),
        }

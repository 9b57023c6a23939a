# Copyright (c) bpfleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action of a module for one resource: one document, present or absent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.bpfleet.fleet.plugins.plugin_utils.declared import declare, plain
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.putting import PuttingAction, Wanted
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.vendored.bpfleet.model.resources import RESOURCES


class ResourceAction(PuttingAction):
    """Puts or deletes one document; `module` is its kind."""

    def wanted(self, arguments: Mapping[str, Any]) -> Wanted:
        """The one document."""
        resource, name = RESOURCES[self.module], str(arguments["name"])
        wanted = Wanted(cluster=name if self.module == "cluster" else str(arguments["cluster"]))
        if arguments["state"] == "absent":
            wanted.deletes = [f"{self.module}/{name}"]
            return wanted
        fields = [field.name for field in resource.spec_fields if not field.computed]
        data: dict[str, Any] = {"kind": self.module, "name": name}
        data["spec"] = {key: arguments[key] for key in fields if arguments.get(key) is not None}
        if arguments.get("ssh"):
            data["ssh"] = {key: value for key, value in plain(arguments["ssh"]).items() if value is not None}
        wanted.put = declare([data], [])
        return wanted

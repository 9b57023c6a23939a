# Copyright (c) bpfleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action of a module for one resource: one document, present or absent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.bpfleet.fleet.plugins.plugin_utils.declared import declare_one, plain
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.putting import PuttingAction, Wanted
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.vendored.bpfleet.model.resources import RESOURCES
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.vendored.bpfleet.model.schema import ListOf, Object, Type


class ResourceAction(PuttingAction):
    """Puts or deletes one document; `module` is its kind."""

    def wanted(self, arguments: Mapping[str, Any]) -> Wanted:
        """The one document."""
        resource, name = RESOURCES[self.module], str(arguments["name"])
        wanted = Wanted(cluster=name if self.module == "cluster" else str(arguments["cluster"]))
        if arguments["state"] == "absent":
            wanted.deletes = [f"{self.module}/{name}"]
            return wanted
        fields = [field for field in resource.spec_fields if not field.computed]
        data: dict[str, Any] = {"kind": self.module, "name": name}
        written = self._task.args
        data["spec"] = {
            field.name: _given(field.type, arguments[field.name], written.get(field.name))
            for field in fields
            if arguments[field.name] is not None or field.name in written
        }
        if arguments.get("ssh"):
            data["ssh"] = {key: value for key, value in plain(arguments["ssh"]).items() if value is not None}
        wanted.put = [declare_one(data)]
        return wanted


def _given(kind: Type, value: Any, written: Any) -> Any:
    """Without the options that were not given, which Ansible sets to None. One that is `written` in the task and has no
    value is a mistake and stays: `peers:` without its items would mean any peer."""
    if isinstance(kind, ListOf) and isinstance(value, (list, tuple)):
        alike = written if isinstance(written, (list, tuple)) and len(written) == len(value) else [None] * len(value)
        return [_given(kind.item, item, one) for item, one in zip(value, alike, strict=True)]
    if isinstance(kind, Object) and isinstance(value, Mapping):
        types = {field.name: field.type for field in kind.fields}
        given = written if isinstance(written, Mapping) else {}
        return {
            name: _given(types[name], item, given.get(name)) if name in types else item
            for name, item in value.items()
            if item is not None or name in given
        }
    return value

# Copyright (c) bpfleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""bpfleet.fleet.documents"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFileNotFound
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.declared import declare
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.putting import PuttingAction, Wanted
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.vendored.bpfleet.errors import InvalidInput


class ActionModule(PuttingAction):
    """Puts all documents of a cluster."""

    module = "documents"

    def wanted(self, arguments: Mapping[str, Any]) -> Wanted:
        """All declared documents."""
        paths = [self._find(str(path)) for path in arguments.get("paths") or ()]
        put = declare(arguments.get("documents") or (), paths)
        clusters = [one.name for one in put if one.kind == "cluster"]
        name = arguments.get("cluster")
        if name is None:
            if len(clusters) != 1:
                raise InvalidInput(
                    f"{len(clusters) or 'no'} cluster documents are declared",
                    field="cluster",
                    remedy="Declare the cluster's document too, or say with `cluster` whose documents these are.",
                )
            name = clusters[0]
        for other in clusters:
            if other != name:
                raise InvalidInput(
                    f"is declared in a task of cluster {name}",
                    resource=f"cluster/{other}",
                    remedy="Declare each cluster in a task of its own, for its own hosts.",
                )
        return Wanted(cluster=str(name), put=put, prune=bool(arguments["prune"]))

    def _find(self, path: str) -> Path:
        try:
            return Path(self._find_needle("documents", path))
        except AnsibleFileNotFound as error:
            raise InvalidInput(
                "is not there", file=path, remedy="Give a file, or a directory of YAML or JSON files."
            ) from error

# Copyright (c) bpfleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all of this collection's action plugins have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible import constants as C
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.plugins.connection import ConnectionBase
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.argument_specs import ARGUMENT_SPECS
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.channel import Artefact, Channel, Executed
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.vendored.bpfleet import __version__
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.vendored.bpfleet.errors import (
    BpfleetError,
    InvalidInput,
    Unreachable,
)


@dataclass(frozen=True)
class AgentChange:
    """The agent that this collection carries, and the one before it (None: there was none)."""

    version: str
    digest: str
    before: dict[str, Any] | None

    @staticmethod
    def of(hello: Mapping[str, Any]) -> AgentChange:
        """hello: what the one before it said; empty if there was none."""
        before = {"version": hello["version"], "digest": hello["artefact"]} if hello else None
        return AgentChange(__version__, Artefact.carried().digest, before)

    def to_json(self) -> dict[str, Any]:
        return {"version": self.version, "digest": self.digest, "before": self.before}

    def diff(self) -> dict[str, str]:
        """A part of a task's diff."""
        text = "version: {version}\ndigest: {digest}\n"
        return {
            "before_header": "agent",
            "after_header": "agent",
            "before": text.format(**self.before) if self.before else "",
            "after": text.format(version=self.version, digest=self.digest),
        }


class AgentAction(ActionBase):
    """An action that asks the host's agent over the task's own connection. `module` names its argument spec."""

    module = ""
    _supports_check_mode = True
    _supports_async = False
    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the task; errors of bpfleet become a result that says what, where and what to do."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        self.variables: dict[str, Any] = task_vars or {}
        try:
            arguments = self.validate_argument_spec(**ARGUMENT_SPECS[self.module])[1]
            result.update(self.work(arguments))
        except Unreachable as error:
            raise AnsibleConnectionFailure(str(error)) from error
        except BpfleetError as error:
            error.at(node=self.host)
            result.update(failed=True, msg=str(error), error=error.to_wire())
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        return result

    def work(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The result of the task."""
        raise NotImplementedError

    @property
    def host(self) -> str:
        """The host's name in the inventory."""
        return str(self.variables["inventory_hostname"])

    def node(self, arguments: Mapping[str, Any]) -> str:
        """The node that the host is: as the task says, as the inventory says, else the host's own name."""
        known = (self.variables.get("hostvars") or {}).get(self.host, {}).get("bpfleet_this_node")
        return str(arguments.get("this_node") or known or self.host)

    @property
    def scratch(self) -> Path:
        """A directory on the controller that all forks of this run share, removed when it ends."""
        return Path(C.DEFAULT_LOCAL_TMP)

    def channel(self) -> Channel:
        """The host's agent."""
        return Channel(self._run, Artefact.carried(), local=self._connection.transport == "local")

    def _run(self, command: str, stdin: bytes) -> Executed:
        done = self._low_level_execute_command(command, in_data=stdin or None)
        return Executed(int(done["rc"]), str(done["stdout"]), str(done["stderr"]))

    def renew(self) -> None:
        """End the connection: ControlPersist would hand back the old one for the confirmation."""
        self._connection.reset()

    def require_renewable(self) -> None:
        """Refuse to change anything over a connection that cannot be renewed: a confirmation over it proves nothing."""
        # The reset of local does nothing: there is no connection.
        if self._connection.transport == "local" or type(self._connection).reset is ConnectionBase.reset:
            raise InvalidInput(
                f"connection {self._connection.transport} cannot be renewed, so a change could not be confirmed",
                field="ansible_connection",
                remedy="Use ansible_connection ssh, also for the controller itself.",
            )

# Copyright (c) bpfleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asking a host's agent over whatever connection Ansible has to it.

One command is one agent process: all requests go in on its stdin at once, the answers come back on its stdout.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ansible_collections.bpfleet.fleet.plugins.plugin_utils.vendored.bpfleet.agent import install, wire
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.vendored.bpfleet.errors import (
    BpfleetError,
    HostFailed,
    HostUnfit,
    ProtocolFailed,
)

ARTEFACT = Path(__file__).resolve().parents[2] / "files" / "agent.pyz"
"""The agent that this collection carries."""

Request = tuple[str, Mapping[str, Any]]
"""A method and its parameters; agent/wire.py has them."""


class Executed(NamedTuple):
    """How a command on the host ended."""

    code: int
    stdout: str
    stderr: str


Execute = Callable[[str, bytes], Executed]
"""Runs a command on the host, as root, with this on its stdin."""


@dataclass(frozen=True)
class Artefact:
    """The agent to deliver, named by the digest of its bytes."""

    digest: str
    data: bytes

    @staticmethod
    def carried(path: Path = ARTEFACT) -> Artefact:
        """The one that belongs to this code."""
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise HostFailed(
                f"{path} is missing",
                remedy="Install the collection from its built archive; in a checkout, `make collection` builds it.",
                file=str(path),
            ) from error
        return Artefact(install.digest_of(data), data)


class NotInstalled(HostFailed):
    """The host does not have the agent that was asked for."""


class Channel:
    """One host. local: the connection is a process on this machine rather than SSH."""

    def __init__(
        self, execute: Execute, artefact: Artefact, *, local: bool = False, root: str = wire.STATE_ROOT
    ) -> None:
        self._execute = execute
        self.artefact = artefact
        self._local = local
        self._root = root

    def ask(self, *requests: Request) -> list[Any]:
        """An answer for each request: its result, or the error answered. Raises NotInstalled."""
        return self._converse(
            install.launch_command(self.artefact.digest, root=self._root, local=self._local), requests
        )

    def ask_any(self, *requests: Request) -> list[Any]:
        """As `ask`, of whichever agent is installed: to read from a host that an upgrade waits for."""
        # The newest first; an agent that is still being unpacked has ".new." in its name and no __main__.py of its own.
        script = f'ls -1t {self._root}/agent 2>/dev/null | grep -v "[.]new[.]" | head -n 1'
        found = self._execute(f"sh -c '{script}'", b"").stdout.strip()
        if not found:
            raise _not_installed()
        return self._converse(install.launch_command(found, root=self._root, local=self._local), requests)

    def install(self) -> bool:
        """Put the agent on the host, if this very one is not there; whether it had to be."""
        done = self._execute(install.install_command(self.artefact.digest, root=self._root), self.artefact.data)
        return bool(self._single(done)["installed"])

    def remove(self) -> bool:
        """Take every installed agent off the host; whether there was one."""
        return bool(self._single(self._execute(install.remove_command(root=self._root), b""))["removed"])

    def _converse(self, command: str, requests: Sequence[Request]) -> list[Any]:
        lines = [wire.request(number, method, params) for number, (method, params) in enumerate(requests)]
        done = self._execute(command, b"".join(lines))
        if done.code == wire.EXIT_NOT_INSTALLED:
            raise _not_installed()
        answers = {message.get("id"): message for message in self._messages(done)}
        if None in answers:
            raise _error_of(answers[None])
        missing = [method for number, (method, _params) in enumerate(requests) if number not in answers]
        if missing:
            raise ProtocolFailed(
                f"the agent ended (exit status {done.code}) without answering {', '.join(missing)}",
                remedy="Its own words are in the details, and in agent.log under its state directory.",
                details={"stderr": done.stderr[-2000:], "stdout": done.stdout[-500:]},
            )
        return [_result(answers[number]) for number in range(len(requests))]

    def _single(self, done: Executed) -> Mapping[str, Any]:
        messages = self._messages(done)
        if not messages:
            raise ProtocolFailed(
                f"the host did not answer (exit status {done.code})",
                remedy="Its own words are in the details.",
                details={"stderr": done.stderr[-2000:]},
            )
        result = _result(messages[-1])
        if isinstance(result, BpfleetError):
            raise result
        return dict(result)

    @staticmethod
    def _messages(done: Executed) -> list[dict[str, Any]]:
        if done.code == wire.EXIT_NO_PYTHON:
            raise HostUnfit("there is no python3", remedy="Install Python 3.9 or later on the host.")
        found = []
        for line in done.stdout.splitlines():
            # A login script that prints, or the shell's own words, may stand around the answers.
            if line.startswith("{"):
                try:
                    message = json.loads(line)
                except ValueError:
                    continue
                if isinstance(message, dict) and "id" in message:
                    found.append(message)
        return found


def _result(message: Mapping[str, Any]) -> Any:
    return _error_of(message) if "error" in message else message["result"]


def _error_of(message: Mapping[str, Any]) -> BpfleetError:
    return BpfleetError.from_wire(message["error"])


def _not_installed() -> NotInstalled:
    return NotInstalled(
        "the agent is not installed", remedy="Run bpfleet.fleet.agent, or a module that changes the host."
    )

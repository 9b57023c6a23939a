"""One agent process and the conversation with it: requests out, answers and events in (bpfleet/agent/wire.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from bpfleet.agent import wire
from bpfleet.errors import BpfleetError, HostFailed, HostUnfit, ProtocolFailed
from bpfleet.transport.channel import Broken, Cancelled, Deadline, Stream, TimedOut

_ENDING_SECONDS = 5.0
_POSTING_SECONDS = 0.2


class NotInstalled(Exception):
    """The host has no agent of this digest: deliver it, then start it again."""


class AgentEnded(Exception):
    """The agent process ended instead of answering; `error` says how. The connection may be fine."""

    def __init__(self, error: BpfleetError) -> None:
        super().__init__(str(error))
        self.error = error


class AgentSession:
    """A conversation with a running agent. Used by one thread at a time.

    After `TimedOut`, `Broken` or an error that says so, the session is of no further use: close it.
    """

    def __init__(
        self,
        stream: Stream,
        count: Callable[[int], None] = lambda sent: None,
        explain: Callable[[int | None, str], BpfleetError | None] = lambda status, complaint: None,
    ) -> None:
        """explain: the error that an exit status and stderr mean, where the caller knows."""
        self._stream = stream
        self._count = count
        self._explain = explain
        self._number = 0
        self._pieces: list[bytes] = []
        self._waiting_bytes = 0
        self._lines: list[bytes] = []

    def call(self, method: str, params: Mapping[str, Any], until: Deadline) -> Any:
        """The result of a request. An event in between is none of ours and an error of the protocol."""
        self._send(method, params, until)
        for message in self._messages(until):
            if "event" in message:
                raise ProtocolFailed(f"the agent sent an event in answer to {method}")
            return wire.result_of(message)
        raise self._ended(method, until)

    def stream(self, method: str, params: Mapping[str, Any], until: Callable[[], Deadline]) -> Iterator[dict[str, Any]]:
        """The events of a streaming request; `until()` is asked anew before each."""
        self._send(method, params, until())
        while True:
            for message in self._messages(until()):
                if "event" not in message:
                    wire.result_of(message)
                    return
                yield message["event"]
                break
            else:
                raise self._ended(method, until())

    def _send(self, method: str, params: Mapping[str, Any], until: Deadline) -> None:
        self._number += 1
        line = wire.request(self._number, method, params)
        try:
            self._stream.send(line, until)
        except EOFError:
            # It is gone; what it said last, if anything, is read next.
            return
        self._count(len(line))

    def _messages(self, until: Deadline) -> Iterator[dict[str, Any]]:
        """Messages that concern the current request, until the agent ends."""
        while True:
            while self._lines:
                message = wire.decode(self._lines.pop(0))
                if message.get("id") not in (None, self._number):
                    raise ProtocolFailed(f"the agent answered request {message.get('id')}, not {self._number}")
                yield message
            data = self._stream.receive(until)
            if not data:
                return
            *complete, rest = data.split(b"\n")
            if complete:
                complete[0] = b"".join([*self._pieces, complete[0]])
                self._pieces, self._waiting_bytes = [], 0
                self._lines.extend(line for line in complete if line.strip())
            self._pieces.append(rest)
            self._waiting_bytes += len(rest)
            if self._waiting_bytes > wire.MAX_LINE_BYTES:
                raise ProtocolFailed(f"the agent's answer is longer than {wire.MAX_LINE_BYTES} bytes")

    def _ended(self, method: str, until: Deadline) -> Exception:
        """What it means that the agent process ended instead of answering."""
        status = self._stream.exit_status(until.sooner(_ENDING_SECONDS))
        complaint = self._stream.complaint()
        if status == wire.EXIT_NOT_INSTALLED:
            return NotInstalled()
        if status in (wire.EXIT_NO_PYTHON, wire.EXIT_UNFIT):
            return AgentEnded(unfit(status, complaint))
        explained = self._explain(status, complaint)
        if explained is not None:
            return AgentEnded(explained)
        how = "by a signal" if status is None else f"with exit status {status}"
        said = f": {complaint.splitlines()[-1]}" if complaint else ""
        return AgentEnded(
            HostFailed(
                f"the agent ended {how} instead of answering {method}{said}",
                remedy=f"See its log on the host ({wire.STATE_ROOT}/agent.log) and the kernel's, then try again; if "
                f"its files are damaged, remove {wire.STATE_ROOT}/agent there, and it is delivered anew",
                details={"exit_status": status, "stderr": complaint},
            )
        )

    def post(self, method: str, params: Mapping[str, Any]) -> None:
        """Send a request whose answer nobody waits for, as the last thing before `leave`."""
        # A connection that takes nothing any more has lost the request: the node's own deadline is what is left.
        with suppress(TimedOut, Cancelled, Broken):
            self._send(method, params, Deadline(_POSTING_SECONDS))

    def leave(self) -> None:
        """Go without waiting: the agent ends when it is done with what was sent."""
        self._stream.leave()

    def close(self) -> None:
        self._stream.close()


def unfit(status: int | None, complaint: str) -> BpfleetError:
    """The error for a host on which python3 is missing or too old."""
    if status == wire.EXIT_NO_PYTHON:
        return HostUnfit(
            "the host has no python3 on the PATH of non-interactive sessions",
            remedy="Install Python 3.9 or later on it (Debian: apt-get install python3-minimal libpython3-stdlib)",
            details={"stderr": complaint},
        )
    return HostUnfit(
        f"the host's python3 is too old for the agent{': ' + complaint if complaint else ''}",
        remedy="Install Python 3.9 or later on it, first on the PATH of non-interactive sessions",
        details={"stderr": complaint},
    )

"""The agent's end of the channel: requests on stdin, answers on stdout, everything else in the log."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Mapping, Optional, Sequence

from bpfleet import __version__
from bpfleet.agent import wire
from bpfleet.agent.node import DEFAULT_DEADLINE_SECONDS, Agent
from bpfleet.agent.pending import pending
from bpfleet.errors import BpfleetError, InvalidInput, ProtocolFailed

_READ_BYTES = 1 << 20
_LOG_BYTES = 1 << 20

Emit = Callable[[Sequence[str]], bool]
"""Sends events of a stream, each as JSON, by one write; False when the other end wants no more."""


class Log:
    """A file for people, of at most about two megabytes with its predecessor. Nothing is logged when all is well."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, text: str) -> None:
        """Append `text` with the time; what cannot be written goes to stderr alone."""
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text.rstrip()}\n"
        sys.stderr.write(line)
        try:
            with contextlib.suppress(FileNotFoundError):
                if self.path.stat().st_size > _LOG_BYTES:
                    self.path.replace(self.path.with_name(self.path.name + ".1"))
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as problem:
            sys.stderr.write(f"{self.path}: {problem}\n")


class Channel:
    """Lines over two file descriptors. Reading never loses what arrived with a line before."""

    def __init__(self, source: int, target: int) -> None:
        self._source = source
        self._target = target
        self._buffer = bytearray()
        self._searched = 0
        self._ended = False

    def lines(self) -> Iterator[bytes]:
        """Lines until the end of input; a last one without its newline is none."""
        while True:
            end = self._buffer.find(b"\n", self._searched)
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                self._searched = 0
                if line.strip():
                    yield line
            elif self._ended:
                return
            elif len(self._buffer) > wire.MAX_LINE_BYTES:
                raise ProtocolFailed(f"a request is longer than {wire.MAX_LINE_BYTES} bytes")
            else:
                self._searched = len(self._buffer)
                self._read()

    def interrupted(self, wait_seconds: float) -> bool:
        """Whether something arrived, or the input ended, within the time."""
        if self._buffer or self._ended:
            return True
        return bool(select.select([self._source], [], [], wait_seconds)[0])

    def _read(self) -> None:
        data = os.read(self._source, _READ_BYTES)
        self._ended = not data
        self._buffer += data

    def send(self, message: Mapping[str, Any]) -> None:
        """Write one message whole."""
        self.write(wire.encode(message))

    def write(self, lines: bytes) -> None:
        """Write messages that are lines already."""
        view = memoryview(lines)
        while view:
            view = view[os.write(self._target, view) :]


class Server:
    """Answers requests with an Agent."""

    def __init__(self, agent: Agent, channel: Channel, log: Log, artefact: Optional[str] = None) -> None:
        self._agent = agent
        self._channel = channel
        self._log = log
        self._artefact = artefact
        self._resolved: Optional[str] = None

    def run(self) -> int:
        """Serve until the input ends; answers the exit status."""
        heard = True
        try:
            self._resolve()
            for line in self._channel.lines():
                # A controller that is cancelled while a change is being applied sends a rollback after it and leaves.
                # Nothing else is done for somebody who is gone: what is under way is in the journal.
                if heard or _method(line) == "rollback":
                    heard = self._serve(line) and heard
        except ProtocolFailed as error:
            self._channel.send({"id": None, "error": error.to_wire()})
            return 1
        finally:
            self._agent.close()
        return 0 if heard else 1

    def _serve(self, line: bytes) -> bool:
        """Do what a request asks and answer it; False if nobody listens any more."""
        try:
            self._channel.send(self._answer(line))
        except BrokenPipeError:
            return False
        return True

    def _resolve(self) -> None:
        """Put back what a dead transaction left, before anything is answered."""
        try:
            self._resolved = self._agent.resolve()
        except Exception as problem:  # noqa: BLE001 - hello and status must still be answered
            self._resolved = f"an unfinished transaction could not be put back: {problem}"
            self._log.write(f"{self._resolved}\n{traceback.format_exc()}")
        else:
            if self._resolved:
                self._log.write(self._resolved)

    def _answer(self, line: bytes) -> Dict[str, Any]:
        number: Any = None
        try:
            message = wire.decode(line)
            number, method, params = message.get("id"), message.get("method"), message.get("params") or {}
            if not isinstance(params, dict):
                raise ProtocolFailed("params must be an object")
            handler = _HANDLERS.get(str(method))
            if handler is None:
                raise ProtocolFailed(
                    f"this agent knows no method {method!r}",
                    remedy="Agent and caller differ in version: deliver the caller's agent.",
                    details={"methods": sorted(_HANDLERS)},
                )

            def emit(events: Sequence[str]) -> bool:
                self._channel.write(wire.event_lines(number, events))
                return not self._channel.interrupted(0)

            return {"id": number, "result": handler(self, params, emit)}
        except BpfleetError as error:
            return {"id": number, "error": error.to_wire()}
        except BrokenPipeError:
            raise
        except Exception as problem:  # noqa: BLE001 - one bad request must not end the channel
            self._log.write(f"{line[:200]!r}: {problem!r}\n{traceback.format_exc()}")
            internal = BpfleetError(
                f"internal error in the agent: {type(problem).__name__}: {problem}",
                remedy=f"The traceback is in {self._log.path} on the node; please report it.",
                file=str(self._log.path),
            )
            return {"id": number, "error": internal.to_wire()}

    # The methods, as wire.py describes them.

    def _hello(self, params: Mapping[str, Any], emit: Emit) -> Mapping[str, Any]:
        from bpfleet.agent.session import boot_id

        journal = self._agent.journal()
        head = journal.confirmed
        answer: wire.Hello = {
            "protocol": wire.PROTOCOL,
            "version": __version__,
            "artefact": self._artefact,
            "boot_id": boot_id(),
            "python": ".".join(str(part) for part in sys.version_info[:3]),
            "kernel": os.uname().release,
            "node": head.node,
            "cluster": head.cluster,
            "generation": head.generation,
            "documents_digest": head.documents_digest,
            "state_digest": head.state_digest,
            "pending": pending(journal),
            "writes": journal.writes,
            "resolved": self._resolved,
        }
        return answer

    def _documents(self, params: Mapping[str, Any], emit: Emit) -> Mapping[str, Any]:
        head = self._agent.journal().confirmed
        kinds, names = params.get("kinds"), params.get("names")
        items = sorted(self._agent.store.load(head).items.items())
        answer: wire.DocumentsResult = {
            "items": [
                item.to_item()
                for _, item in items
                if (not kinds or item.document.kind in kinds) and (not names or item.document.name in names)
            ],
            "digest": head.documents_digest,
            "generation": head.generation,
        }
        return answer

    def _stage(self, params: Mapping[str, Any], emit: Emit) -> Mapping[str, Any]:
        return self._agent.stage(params)  # type: ignore[arg-type]

    def _apply(self, params: Mapping[str, Any], emit: Emit) -> Mapping[str, Any]:
        seconds = float(params.get("deadline_seconds", DEFAULT_DEADLINE_SECONDS))
        transaction = _text(params, "transaction") if "transaction" in params else self._agent.staged_here()
        return self._agent.apply(transaction, seconds)

    def _confirm(self, params: Mapping[str, Any], emit: Emit) -> Mapping[str, Any]:
        return self._agent.confirm(_text(params, "transaction"))

    def _rollback(self, params: Mapping[str, Any], emit: Emit) -> Mapping[str, Any]:
        return self._agent.rollback(params.get("transaction"))

    def _journal(self, params: Mapping[str, Any], emit: Emit) -> Any:
        limit = int(params.get("limit", 50))
        return list(self._agent.journal().entries[-limit:]) if limit > 0 else []

    def _state(self, params: Mapping[str, Any], emit: Emit) -> Mapping[str, Any]:
        return self._agent.confirmed_state(self._agent.journal().confirmed).to_json()

    def _status(self, params: Mapping[str, Any], emit: Emit) -> Mapping[str, Any]:
        from bpfleet.agent.report import status

        return status(self._agent, self._artefact, str(self._log.path))

    def _addresses(self, params: Mapping[str, Any], emit: Emit) -> Mapping[str, Any]:
        from bpfleet.agent.report import addresses

        return addresses(self._agent)

    def _explain(self, params: Mapping[str, Any], emit: Emit) -> Mapping[str, Any]:
        from bpfleet.agent.report import explain

        return explain(self._agent, params)

    def _events(self, params: Mapping[str, Any], emit: Emit) -> Mapping[str, Any]:
        from bpfleet.agent.report import events

        return events(self._agent, params, emit, self._channel.interrupted)

    def _flows(self, params: Mapping[str, Any], emit: Emit) -> Mapping[str, Any]:
        from bpfleet.agent.report import flows

        return flows(self._agent, params, emit)

    def _wipe(self, params: Mapping[str, Any], emit: Emit) -> Mapping[str, Any]:
        return self._agent.wipe(params.get("node"))


def _method(line: bytes) -> Any:
    try:
        return wire.decode(line).get("method")
    except ProtocolFailed:
        return None


def _text(params: Mapping[str, Any], name: str) -> str:
    value = params.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidInput(f"{name} is missing", field=name)
    return value


_HANDLERS: Dict[str, Callable[[Server, Mapping[str, Any], Emit], Any]] = {
    "hello": Server._hello,
    "documents": Server._documents,
    "stage": Server._stage,
    "apply": Server._apply,
    "confirm": Server._confirm,
    "rollback": Server._rollback,
    "journal": Server._journal,
    "state": Server._state,
    "status": Server._status,
    "addresses": Server._addresses,
    "explain": Server._explain,
    "events": Server._events,
    "flows": Server._flows,
    "wipe": Server._wipe,
}


def serve(agent: Agent, source: int, target: int, artefact: Optional[str] = None) -> int:
    """Answer requests from file descriptor `source` on `target` until the input ends; answers the exit status."""
    return Server(agent, Channel(source, target), Log(agent.root / "agent.log"), artefact).run()

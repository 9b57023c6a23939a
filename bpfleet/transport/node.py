"""One node as the controller holds it: one working connection, one agent process on it, what it cost so far.

Requests to one node go one after the other (the agent answers one at a time anyway); requests to different nodes do
not wait for each other. A connection or agent that broke is replaced, once a request; a request whose effect may have
happened already (`apply`, `wipe`) is never sent twice.

A request that is called off is left: the agent finds its input ended and goes. Where it was changing the host, it is
told to put that back before it goes, and nobody waits for it.
"""

from __future__ import annotations

import math
import shlex
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from bpfleet.agent import install, wire
from bpfleet.errors import BpfleetError, HostFailed, ProtocolFailed, TransactionFailed, Unreachable
from bpfleet.transport.artefact import Artefact
from bpfleet.transport.channel import (
    NEVER,
    Broken,
    Cancelled,
    Connection,
    Deadline,
    Finished,
    NoRoom,
    Stop,
    TimedOut,
    run,
)
from bpfleet.transport.dial import Dialler
from bpfleet.transport.privilege import as_root, require_root, sudo_problem
from bpfleet.transport.session import AgentEnded, AgentSession, NotInstalled, unfit
from bpfleet.transport.target import Target

_NEVER_TWICE = frozenset({"apply", "wipe"})
_PUT_BACK = frozenset({"apply", "confirm"})


@dataclass(frozen=True)
class Timeouts:
    """Seconds. A request's time runs once its connection stands; dialling has a schedule of its own."""

    launch: float = 30.0
    deliver: float = 120.0
    request: float = 60.0
    by_method: Mapping[str, float] = field(
        default_factory=lambda: {"stage": 180.0, "apply": 180.0, "rollback": 180.0, "wipe": 180.0}
    )
    # Between two events of a stream that ends by itself. One that follows waits until the connection ends: nothing may
    # happen for days, and a host that vanished is found out by keepalives.
    event: float = 3600.0
    # Of an agent process that has nothing to do.
    answer: float = 2.0

    def of(self, method: str) -> float:
        return self.by_method.get(method, self.request)


@dataclass(frozen=True)
class Counters:
    """What a node took since the fleet was made: connections dialled, bytes sent to agents (artefacts included),
    requests sent, artefacts delivered."""

    connections: int = 0
    bytes_sent: int = 0
    requests: int = 0
    deliveries: int = 0

    def __add__(self, other: Counters) -> Counters:
        return Counters(
            self.connections + other.connections,
            self.bytes_sent + other.bytes_sent,
            self.requests + other.requests,
            self.deliveries + other.deliveries,
        )


@dataclass(frozen=True)
class Means:
    """What all nodes of a fleet share. stop: what calls off everything."""

    dialler: Dialler
    artefact: Callable[[], Artefact]
    timeouts: Timeouts
    root: str
    local: bool
    progress: Callable[[str, str, str], None]
    stop: Stop = NEVER


@dataclass(frozen=True)
class _Request:
    """One request, and how it is sent (see Node.call)."""

    method: str
    params: Mapping[str, Any]
    stop: Stop
    grace: float
    deliver: bool


class Node:
    """See the module's head. Thread-safe."""

    def __init__(self, target: Target, means: Means) -> None:
        self.target = target
        self.transaction_lock = threading.Lock()
        self.counters = Counters()
        self._means = means
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._session: AgentSession | None = None
        self._failure: tuple[BpfleetError, Deadline] | None = None
        self._closed = False

    def report(self, phase: str, detail: str = "") -> None:
        self._means.progress(self.target.name, phase, detail)

    # Requests

    def call(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        stop: Stop | None = None,
        grace: float = 0.0,
        new_connection: bool = False,
        deliver: bool = True,
    ) -> Any:
        """The result of one request, or the error it was answered with, which names this node.

        new_connection: send it over a connection dialled for it. Afterwards the one from before, whose agent process is
        warm, is the working one again if it still answers, else the new one. deliver=False: NotInstalled instead of
        putting a missing agent on the host. stop: what calls it off (default: what calls off the fleet's work); an
        answer that comes within `grace` seconds from then is still taken. TransactionFailed with "cancelled" in its
        details, and "left" if the request was under way and may still have its effect.
        """
        stop = stop or self._means.stop
        seconds = self._means.timeouts.of(method)
        request = _Request(method, params or {}, stop, grace, deliver)
        with self._exclusive(method, Deadline(seconds, stop, grace)):
            try:
                if new_connection:
                    return self._over_new_connection(request)
                return self._once_more(request)
            except BpfleetError as error:
                raise error.at(node=self.target.name) from error.__cause__

    def install(self) -> wire.Hello:
        """Have the agent on the host and running, and say hello."""
        return cast(wire.Hello, self.call("hello"))

    def installed(self) -> wire.Hello | None:
        """Hello if the host holds anything of bpfleet, else None, and then nothing was written there.

        A host that an agent of another version left its state on gets this one: nobody else can read it.
        """
        try:
            return cast(wire.Hello, self.call("hello", deliver=False))
        except NotInstalled:
            return self.install() if self._has_traces() else None

    def _has_traces(self) -> bool:
        """Whether the agent's root on the host holds anything."""
        script = f'[ -n "$(ls -A {shlex.quote(self._means.root)} 2>/dev/null)" ]'
        return self._run(f"exec sh -c {shlex.quote(script)}", "the question for traces").status == 0

    def remove_agent(self) -> None:
        """Take all agents off the host (their state must be wiped first)."""
        with self._exclusive("remove", Deadline(self._means.timeouts.deliver, self._means.stop)):
            self._end_session()
        done = self._run(install.remove_command(root=self._means.root), "the removal of the agent")
        try:
            self._bootstrap_result(done)
        except BpfleetError as error:
            raise error.at(node=self.target.name) from error.__cause__

    def _run(self, command: str, what: str) -> Finished:
        """Run a command beside the agent."""
        until = Deadline(self._means.timeouts.deliver, self._means.stop)
        with self._exclusive(what, until):
            connection = self._connected(self._means.stop)
            try:
                return run(connection, self._as_root(command), until)
            except Cancelled as cancelled:
                raise _called_off(what, left=True).at(node=self.target.name) from cancelled
            except (Broken, TimedOut) as failed:
                self._disconnect()
                raise self._unreachable(what, failed) from failed

    def stream(self, method: str, params: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a streaming request, over an agent process of its own, so that requests go on meanwhile."""
        session: AgentSession | None = None
        patience = math.inf if params.get("follow") else self._means.timeouts.event
        try:
            stop = self._means.stop
            with self._exclusive(method, Deadline(self._means.timeouts.request, stop)):
                session = self._launch(self._connected(stop), stop, deliver=True)
                self._count(requests=1)
            yield from session.stream(method, params, lambda: Deadline(patience, stop))
        except Cancelled as cancelled:
            raise _called_off(method).at(node=self.target.name) from cancelled
        except BpfleetError as error:
            raise error.at(node=self.target.name) from error.__cause__
        except AgentEnded as ended:
            raise ended.error.at(node=self.target.name) from ended
        except (Broken, TimedOut) as failed:
            raise self._unreachable(method, failed) from failed
        finally:
            _close(None, session)

    def interrupt(self) -> None:
        """Make a request that is under way fail soon, and later ones at once."""
        self._closed = True
        connection = self._connection
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """End the agent process and the connection. Idempotent."""
        self.interrupt()
        with self._lock:
            self._disconnect()

    # How a request is sent; the lock is held

    @contextmanager
    def _exclusive(self, method: str, until: Deadline) -> Iterator[None]:
        # Those before us are bounded by their own deadlines; this bounds a queue of them.
        while not self._lock.acquire(timeout=until.look):
            if until.cancelled:
                raise _called_off(method).at(node=self.target.name)
            if until.passed:
                raise Unreachable(
                    f"other requests kept this node busy for {until.seconds:.0f} s, so {method} was not sent",
                    node=self.target.name,
                    remedy="See what the node is doing: bpfleet status",
                )
        try:
            if self._closed:
                raise Unreachable("the fleet was closed", node=self.target.name)
            yield
        finally:
            self._lock.release()

    def _once_more(self, request: _Request) -> Any:
        had_connection = self._connection is not None
        try:
            return self._request(request)
        except NoRoom as full:
            # Dialling anew would end what the other sessions are used for.
            raise self._unreachable(request.method, full) from full
        except Broken as broken:
            self._disconnect()
            if request.method in _NEVER_TWICE or not had_connection or self._closed:
                raise self._unreachable(request.method, broken) from broken
        self.report("dial", "the connection was lost")
        try:
            return self._request(request)
        except Broken as broken:
            self._disconnect()
            raise self._unreachable(request.method, broken) from broken

    def _request(self, request: _Request) -> Any:
        method = request.method
        try:
            connection = self._connected(request.stop)
            session = self._session or self._launch(connection, request.stop, request.deliver)
            self._session = session
            self._count(requests=1)
            until = Deadline(self._means.timeouts.of(method), request.stop, request.grace)
            return session.call(method, request.params, until)
        except Cancelled as cancelled:
            raise self._leave(request) from cancelled
        except TimedOut as late:
            # An answer that comes later would be taken for the next request's.
            self._disconnect()
            raise self._unreachable(method, late) from late
        except AgentEnded as ended:
            self._end_session()
            raise ended.error from ended
        except ProtocolFailed:
            self._end_session()
            raise

    def _leave(self, request: _Request) -> BpfleetError:
        """Go away from a request that was called off; the error that says so."""
        session, self._session = self._session, None
        if session is None:
            return _called_off(request.method)
        if request.method in _PUT_BACK:
            # The agent gets to it when it is done with what it does; after a confirmation it has no effect.
            session.post("rollback", {"transaction": request.params["transaction"]})
        session.leave()
        return _called_off(request.method, left=True)

    def _over_new_connection(self, request: _Request) -> Any:
        old_connection, old_session = self._connection, self._session
        self._connection = self._session = None
        try:
            return self._once_more(request)
        finally:
            if self._session is None and old_session is not None:
                # No agent answers over a new connection: the old one may be the only way to put things back.
                _close(self._connection, None)
                self._connection, self._session = old_connection, old_session
            elif self._answers(old_session):
                # It has compiled for this node before, and its agent has all at hand that the next change needs.
                _close(self._connection, self._session)
                self._connection, self._session = old_connection, old_session
            else:
                _close(old_connection, old_session)

    def _answers(self, session: AgentSession | None) -> bool:
        """Whether an agent process is still there, over a connection that still lets words through."""
        if session is None:
            return False
        try:
            session.call("hello", {}, Deadline(self._means.timeouts.answer, self._means.stop))
        except (Broken, TimedOut, Cancelled, AgentEnded, BpfleetError):
            return False
        return True

    # Connection and agent process; the lock is held

    def _as_root(self, command: str) -> str:
        return command if self._means.local else as_root(self.target, command)

    def _connected(self, stop: Stop) -> Connection:
        if not self._means.local:
            require_root(self.target)
        if self._connection is not None and not self._connection.alive:
            self._disconnect()
        if self._connection is None:
            self._connection = self._dial(stop)
            self._count(connections=1)
        return self._connection

    def _dial(self, stop: Stop) -> Connection:
        if self._failure is not None:
            error, rest = self._failure
            if not rest.passed:
                raise BpfleetError.from_wire(error.to_wire())
            self._failure = None
        self.report("dial", str(self.target))
        try:
            return self._means.dialler.dial(self.target, report=lambda detail: self.report("dial", detail), stop=stop)
        except Unreachable as error:
            if type(error) is Unreachable:  # a refused key fails at once, and may be put right at any time
                self._failure = error, Deadline(self._means.dialler.schedule.rest)
            raise

    def _launch(self, connection: Connection, stop: Stop, deliver: bool) -> AgentSession:
        """A running agent that said hello; delivered first if the host does not have it."""
        try:
            return self._greeted(connection, stop)
        except NotInstalled:
            if not deliver:
                raise
        artefact = self._means.artefact()
        self.report("install", f"{len(artefact.data)} bytes, {artefact.digest[:12]}")
        command = self._as_root(install.install_command(artefact.digest, root=self._means.root))
        until = Deadline(self._means.timeouts.deliver, stop)
        self._count(deliveries=1, bytes_sent=len(artefact.data))
        try:
            self._bootstrap_result(run(connection, command, until, artefact.data))
            return self._greeted(connection, stop)
        except NotInstalled as still:
            raise HostFailed(
                "the agent was installed, but is not there",
                remedy=f"See what removes files from {self._means.root} on the host",
                details={"digest": artefact.digest},
            ) from still

    def _greeted(self, connection: Connection, stop: Stop) -> AgentSession:
        until = Deadline(self._means.timeouts.launch, stop)
        digest = self._means.artefact().digest
        command = install.launch_command(digest, root=self._means.root, local=self._means.local)
        session = AgentSession(
            connection.open(self._as_root(command), until),
            lambda sent: self._count(bytes_sent=sent),
            self._sudo_problem,
        )
        try:
            hello = session.call("hello", {}, until)
            if hello.get("protocol") != wire.PROTOCOL:
                raise ProtocolFailed(
                    f"the agent speaks protocol {hello.get('protocol')}, not {wire.PROTOCOL}",
                    remedy="Deliver the artefact that belongs to this controller",
                )
        except BaseException:
            session.close()
            raise
        return session

    def _bootstrap_result(self, done: Finished) -> Any:
        if done.status == wire.EXIT_NO_PYTHON:
            raise unfit(done.status, done.complaint)
        refused = self._sudo_problem(done.status, done.complaint)
        if refused is not None:
            raise refused
        lines = [line for line in done.output.splitlines() if line.strip()]
        if lines:
            return wire.result_of(wire.decode(lines[-1]))
        raise HostFailed(
            f"the agent could not be put on the host: exit status {done.status}, {done.complaint or 'without a word'}",
            remedy=f"See that {self.target.user} may run sh and python3 there and write to {self._means.root}",
            details={"exit_status": done.status, "stderr": done.complaint},
        )

    def _sudo_problem(self, status: int | None, complaint: str) -> BpfleetError | None:
        return None if self._means.local else sudo_problem(self.target, status, complaint)

    def _end_session(self) -> None:
        session, self._session = self._session, None
        _close(None, session)

    def _disconnect(self) -> None:
        connection, session = self._connection, self._session
        self._connection = self._session = None
        _close(connection, session)

    def _count(self, connections: int = 0, bytes_sent: int = 0, requests: int = 0, deliveries: int = 0) -> None:
        self.counters = self.counters + Counters(connections, bytes_sent, requests, deliveries)

    def _unreachable(self, method: str, failed: Exception) -> Unreachable:
        return Unreachable(
            f"no answer to {method}: {failed}",
            node=self.target.name,
            remedy="See that the host is up, then run the same again",
            details={"method": method, "sent": True},
        )


def _close(connection: Connection | None, session: AgentSession | None) -> None:
    if session is not None:
        session.close()
    if connection is not None:
        connection.close()


def _called_off(method: str, *, left: bool = False) -> TransactionFailed:
    details = {"cancelled": True, "left": True} if left else {"cancelled": True}
    return TransactionFailed(
        f"cancelled during {method}", remedy="Run the same again to make the change", details=details
    )

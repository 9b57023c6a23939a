"""Jump hosts: one connection to each, shared by every node behind it.

A node behind one is dialled from there, through a channel of the kind direct-tcpip (RFC 4254, section 7.2). sshd's
MaxSessions does not count those (sshd_config(5): it limits shells, logins and subsystems), and MaxStartups sees one
connection. Over the channel the node is logged in to as over TCP, with its own host key and ours: the jump host
forwards bytes that it cannot read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import paramiko

from bpfleet.errors import BpfleetError
from bpfleet.transport.channel import Deadline, DialFailed, within
from bpfleet.transport.target import Jump, Target

Connect = Callable[[Target, Deadline], paramiko.Transport]

_NOBODY = ("127.0.0.1", 0)
_PROHIBITED = 1  # SSH_OPEN_ADMINISTRATIVELY_PROHIBITED, RFC 4254, section 5.1


class JumpHosts:
    """The connections to all jump hosts. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hosts: dict[Jump, _JumpHost] = {}

    def channel(self, target: Target, until: Deadline, connect: Connect) -> paramiko.Channel:
        """A channel from target's jump host to target's sshd. `connect` logs in to a jump host. DialFailed; TimedOut;
        Cancelled; errors of the tree."""
        way = target.on_the_way()
        assert target.jump is not None
        assert way is not None
        with self._lock:
            host = self._hosts.setdefault(target.jump, _JumpHost())
        transport = host.transport(way, until, connect)
        try:
            return within(
                until,
                "channel through the jump host",
                lambda: transport.open_channel("direct-tcpip", (target.host, target.port), _NOBODY, timeout=until.left),
                lambda channel: channel.close(),
            )
        except paramiko.ChannelException as refused:
            if refused.code == _PROHIBITED:
                raise DialFailed(
                    f"the jump host {way} forwards no connection to {target.host} port {target.port} "
                    f"({refused.text}): see AllowTcpForwarding and PermitOpen in its sshd_config",
                    again=False,
                ) from refused
            raise DialFailed(
                f"the jump host {way} gets no connection to {target.host} port {target.port} ({refused.text})",
                again=True,
            ) from refused
        except (paramiko.SSHException, OSError, EOFError) as failed:
            raise DialFailed(f"the connection to the jump host {way} was lost ({failed})", again=True) from failed

    def close(self) -> None:
        """End all connections to jump hosts, and with them what goes through. Idempotent."""
        with self._lock:
            hosts = list(self._hosts.values())
            self._hosts.clear()
        for host in hosts:
            host.close()


class _JumpHost:
    """One jump host. Those who ask while it is being dialled wait for that attempt and share its failure: twenty nodes
    behind one that is off are twenty nodes away after one attempt, not after twenty in a row."""

    def __init__(self) -> None:
        self._dialling = threading.Lock()
        self._transport: paramiko.Transport | None = None
        self._failure: tuple[float, DialFailed | BpfleetError] | None = None

    def transport(self, way: Target, until: Deadline, connect: Connect) -> paramiko.Transport:
        asked = time.monotonic()
        while not self._dialling.acquire(timeout=until.look):
            until.check("connection to the jump host")
        try:
            if self._transport is not None and self._transport.is_active():
                return self._transport
            if self._failure is not None and self._failure[0] >= asked:
                raise _copy(self._failure[1], way)
            try:
                self._transport = connect(way, until)
            except DialFailed as failed:
                error = DialFailed(f"on the way there: {failed}", again=failed.again)
                self._failure = time.monotonic(), error
                raise error from failed
            except BpfleetError as refused:
                self._failure = time.monotonic(), refused
                raise
            return self._transport
        finally:
            self._dialling.release()

    def close(self) -> None:
        transport = self._transport
        if transport is not None:
            transport.close()


def _copy(error: DialFailed | BpfleetError, way: Target) -> Exception:
    """The same failure for another node."""
    if isinstance(error, DialFailed):
        return DialFailed(error.reason, again=error.again)
    data: dict[str, Any] = error.to_wire()
    data["where"] = {**data["where"], "node": way.name}
    return BpfleetError.from_wire(data)

"""Connections over SSH, by paramiko: one attempt to connect (through the jump host, if there is one), host key first,
then our key, then channels.

Names, ports and timeouts: docs/ssh.md. The protocol: RFC 4251 to 4254.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

import paramiko

from bpfleet.transport.channel import (
    CHUNK,
    COMPLAINT_BYTES,
    LOOK_SECONDS,
    Broken,
    Cancelled,
    Connection,
    Deadline,
    DialFailed,
    NoRoom,
    Stream,
    ended_at,
    within,
)
from bpfleet.transport.hostcerts import SUFFIX, Certificate
from bpfleet.transport.hostkeys import HostKeyPolicy, PublicKey
from bpfleet.transport.jump import JumpHosts
from bpfleet.transport.login import log_in
from bpfleet.transport.target import Target
from bpfleet.transport.tcp import connect

# paramiko tells its log, traceback included, what it also raises. Without a handler Python prints that to stderr.
LOG_NAME = "bpfleet.ssh"
logging.getLogger(LOG_NAME).addHandler(logging.NullHandler())

_JOIN_SECONDS = 5.0
# A session that was ended counts until the host has seen it end.
_ROOM_SECONDS = 3.0
# Host key algorithms by key type: an RSA key is shown under the names of its signatures (RFC 8332).
_ALGORITHMS = {
    "ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256"),
    f"ssh-rsa{SUFFIX}": (f"rsa-sha2-512{SUFFIX}", f"rsa-sha2-256{SUFFIX}"),
}


@dataclass(frozen=True)
class SshTimeouts:
    """Seconds. Each bounds one step of one attempt; the dial's own deadline bounds them all."""

    tcp: float = 8.0
    banner: float = 10.0
    authentication: float = 20.0
    keepalive: int = 15


@dataclass(frozen=True)
class SshConnector:
    """Connects over SSH. Jump hosts' connections are kept until `close`."""

    timeouts: SshTimeouts = SshTimeouts()
    local: bool = False
    _jumps: JumpHosts = field(default_factory=JumpHosts, repr=False, compare=False)

    def __call__(self, target: Target, until: Deadline) -> Connection:
        return SshConnection(target, self._transport(target, until))

    def close(self) -> None:
        self._jumps.close()

    def _transport(self, target: Target, until: Deadline) -> paramiko.Transport:
        """An authenticated connection."""
        policy = HostKeyPolicy(target)
        sock: socket.socket | paramiko.Channel
        if target.jump is None:
            sock = connect(target, until.sooner(self.timeouts.tcp))
        else:
            sock = self._jumps.channel(target, until, self._transport)
        try:
            transport = paramiko.Transport(sock)
        except (OSError, paramiko.SSHException) as failed:
            sock.close()
            raise DialFailed(f"{target} went away at once ({failed})", again=True) from failed
        try:
            with ended_at(until, transport.close):
                self._greet(target, transport, policy, until)
                policy.check(*_shown(transport))
                log_in(target, transport, until.sooner(self.timeouts.authentication))
        except BaseException as failed:
            _end(transport)
            if until.cancelled:
                raise Cancelled(f"cancelled while logging in to {target}") from failed
            if isinstance(failed, (paramiko.SSHException, OSError, EOFError)):
                raise DialFailed(f"{target} ended the connection ({failed})", again=True) from failed
            raise
        transport.set_keepalive(self.timeouts.keepalive)
        return transport

    def _greet(self, target: Target, transport: paramiko.Transport, policy: HostKeyPolicy, until: Deadline) -> None:
        """Exchange banners and keys. What fails here may be sshd's MaxStartups dropping us: worth another attempt."""
        transport.set_log_channel(LOG_NAME)
        transport.banner_timeout = self.timeouts.banner
        transport.handshake_timeout = self.timeouts.banner
        # How long a message of ours may wait for a key exchange to end.
        transport.clear_to_send_timeout = self.timeouts.banner
        _prefer(transport, policy.kinds())
        done = threading.Event()
        transport.start_client(event=done)
        greeting = until.sooner(2 * self.timeouts.banner)
        while not done.wait(greeting.look) and transport.is_active() and not greeting.passed:
            pass
        if done.is_set() and transport.is_active():
            return
        error = transport.get_exception()
        if isinstance(error, paramiko.ssh_exception.IncompatiblePeer):
            raise DialFailed(f"{target} and bpfleet have no algorithm in common: {error}", again=False)
        if error is None and transport.is_active():
            raise DialFailed(
                f"{target} accepts TCP connections, but said nothing for {greeting.seconds:.0f} s", again=True
            )
        raise DialFailed(f"{target} ended the connection before login ({error or 'no reason given'})", again=True)


def _prefer(transport: paramiko.Transport, kinds: list[str]) -> None:
    """Ask for host keys of these types first, so that the host shows the one that is known."""
    options = transport.get_security_options()
    known = {*options.key_types, *(f"{name}{SUFFIX}" for name in options.key_types)}
    wanted = [name for kind in kinds for name in _ALGORITHMS.get(kind, (kind,)) if name in known]
    options.key_types = (*wanted, *(name for name in options.key_types if name not in wanted))


def _shown(transport: paramiko.Transport) -> tuple[PublicKey, Certificate | None]:
    """The key that the host proved to hold, and the certificate that it came in, if any."""
    key = transport.get_remote_server_key()
    blob = key.public_blob
    certificate = Certificate(blob.key_type, blob.key_blob) if blob is not None else None
    return PublicKey(key.get_name(), key.asbytes()), certificate


def _end(transport: paramiko.Transport) -> None:
    """Close, and wait for paramiko's thread: its own close() does not."""
    transport.close()
    if transport.is_alive():
        transport.join(_JOIN_SECONDS)


class SshConnection:
    """A `Connection` over one authenticated SSH transport."""

    def __init__(self, target: Target, transport: paramiko.Transport) -> None:
        self._target = target
        self._transport = transport

    def open(self, command: str, until: Deadline) -> Stream:
        """See Connection.open. Takes one of the sessions that sshd allows a connection (MaxSessions, 10 by default).
        NoRoom if there is none, which leaves the connection as it is."""
        try:
            channel = self._session(until)
            try:
                with ended_at(until, channel.close):
                    channel.exec_command(command)
            except BaseException:
                channel.close()
                raise
        except paramiko.ChannelException as refused:
            raise NoRoom(
                "no channel could be opened: the host allows no more sessions on one connection "
                f"({refused.text}; see MaxSessions in its sshd_config)"
            ) from refused
        except (paramiko.SSHException, OSError, EOFError) as failed:
            if self.alive:
                until.check("channel")
            # A transport that cannot open a channel is of no use, whatever the cause: dial anew.
            raise Broken(f"no channel could be opened: {failed or type(failed).__name__}") from failed
        return _SshStream(self._transport, channel)

    def _session(self, until: Deadline) -> paramiko.Channel:
        room = until.sooner(_ROOM_SECONDS)
        while True:
            try:
                # paramiko waits for the answer without looking at anything else.
                return within(
                    until,
                    "channel",
                    lambda: self._transport.open_session(timeout=max(0.1, until.left)),
                    lambda late: late.close(),
                )
            except paramiko.ChannelException:
                if room.passed or not self.alive:
                    raise
                until.check("channel")
                time.sleep(LOOK_SECONDS)

    @property
    def alive(self) -> bool:
        return self._transport.is_active() and self._transport.is_authenticated()

    def close(self) -> None:
        _end(self._transport)


class _SshStream:
    """A command on an exec channel."""

    def __init__(self, transport: paramiko.Transport, channel: paramiko.Channel) -> None:
        self._transport = transport
        self._channel = channel
        self._complaint = b""

    def send(self, data: bytes, until: Deadline) -> None:
        view = memoryview(data)
        while view:
            self._listen()
            self._channel.settimeout(max(0.01, until.look))
            try:
                # Not sendall: after a timeout it does not say how much is gone.
                sent = self._channel.send(view[:CHUNK].tobytes())
            except TimeoutError:
                self._still_there(until)
                continue
            except paramiko.SSHException as failed:
                raise Broken(f"the SSH connection is of no more use: {failed}") from failed
            except (OSError, EOFError) as closed:
                self._raise_if_broken(closed)
                raise EOFError("the command reads no more") from closed
            view = view[sent:]

    def end_input(self) -> None:
        try:
            self._channel.shutdown_write()
        except paramiko.SSHException as failed:
            raise Broken(f"the SSH connection is of no more use: {failed}") from failed
        except (OSError, EOFError) as closed:
            self._raise_if_broken(closed)
            raise EOFError("the command reads no more") from closed

    def receive(self, until: Deadline) -> bytes:
        while True:
            self._listen()
            self._channel.settimeout(max(0.01, until.look))
            try:
                data = self._channel.recv(CHUNK)
            except TimeoutError:
                self._still_there(until)
                continue
            if not data:
                self._listen()
                self._raise_if_broken(None)
            return data

    def _still_there(self, until: Deadline) -> None:
        self._raise_if_broken(None)
        until.check("answer")

    def _raise_if_broken(self, cause: BaseException | None) -> None:
        if not self._transport.is_active() and self._channel.exit_status == -1:
            reason = str(self._transport.get_exception() or cause or "") or "the host ended it"
            raise Broken(f"the SSH connection was lost: {reason}") from cause

    def _listen(self) -> None:
        """Take what is on stderr: unread, it would use up the channel's window and stall stdout."""
        while self._channel.recv_stderr_ready():
            self._complaint = (self._complaint + self._channel.recv_stderr(CHUNK))[-COMPLAINT_BYTES:]

    def complaint(self) -> str:
        self._listen()
        return self._complaint.decode(errors="replace").strip()

    def exit_status(self, until: Deadline) -> int | None:
        while not self._channel.status_event.wait(until.look):
            if until.passed or until.cancelled or not self._transport.is_active():
                return None
        status = self._channel.exit_status
        return None if status == -1 else status

    def leave(self) -> None:
        # sshd hands what was sent to the command, and the command does not end with its channel.
        self.close()

    def close(self) -> None:
        # Telling the host may fail where the connection is broken already; whoever uses it next finds out.
        with suppress(paramiko.SSHException, OSError, EOFError):
            self._channel.close()

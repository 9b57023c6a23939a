"""Connections over SSH, by paramiko: one attempt to connect, host key first, then our key, then channels.

Names, ports and timeouts: docs/ssh.md. The protocol: RFC 4251 to 4254.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import paramiko

from bpfleet.transport.channel import CHUNK, COMPLAINT_BYTES, Broken, Connection, Deadline, DialFailed, Stream, TimedOut
from bpfleet.transport.hostkeys import HostKeyPolicy, PublicKey
from bpfleet.transport.login import log_in
from bpfleet.transport.target import Target

# paramiko tells its log, traceback included, what it also raises. Without a handler Python prints that to stderr.
LOG_NAME = "bpfleet.ssh"
logging.getLogger(LOG_NAME).addHandler(logging.NullHandler())

# How long to wait at a time before looking at stderr and at the connection again.
_LOOK_SECONDS = 1.0
_JOIN_SECONDS = 5.0
_UNACKNOWLEDGED_MILLISECONDS = 30_000
# Host key algorithms by key type: an RSA key is shown under the names of its signatures (RFC 8332).
_ALGORITHMS = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}


@dataclass(frozen=True)
class SshTimeouts:
    """Seconds. Each bounds one step of one attempt; the dial's own deadline bounds them all."""

    tcp: float = 8.0
    banner: float = 10.0
    authentication: float = 20.0
    keepalive: int = 15


@dataclass(frozen=True)
class SshConnector:
    """Connects over SSH."""

    timeouts: SshTimeouts = SshTimeouts()
    local: bool = False

    def __call__(self, target: Target, until: Deadline) -> Connection:
        policy = HostKeyPolicy(target)
        sock = _tcp(target, until.sooner(self.timeouts.tcp))
        try:
            transport = paramiko.Transport(sock)
        except (OSError, paramiko.SSHException) as failed:
            sock.close()
            raise DialFailed(f"{target} went away at once ({failed})", again=True) from failed
        try:
            self._greet(target, transport, policy, until)
            key = transport.get_remote_server_key()
            policy.check(PublicKey(key.get_name(), key.asbytes()))
            log_in(target, transport, until.sooner(self.timeouts.authentication))
        except BaseException as failed:
            _end(transport)
            if isinstance(failed, (paramiko.SSHException, OSError, EOFError)):
                raise DialFailed(f"{target} ended the connection ({failed})", again=True) from failed
            raise
        transport.set_keepalive(self.timeouts.keepalive)
        return SshConnection(target, transport)

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
        while not done.wait(min(0.1, greeting.left)) and transport.is_active() and not greeting.passed:
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
    wanted = [name for kind in kinds for name in _ALGORITHMS.get(kind, (kind,)) if name in options.key_types]
    options.key_types = (*wanted, *(name for name in options.key_types if name not in wanted))


def _tcp(target: Target, until: Deadline) -> socket.socket:
    """A TCP connection to any of the host's addresses."""
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as unknown:
        again = getattr(unknown, "errno", None) == socket.EAI_AGAIN
        raise DialFailed(f"the name {target.host} does not resolve ({unknown})", again=again) from unknown
    failures: list[str] = []
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(max(0.05, until.left))
            sock.connect(address)
            # Requests are small and each waits for its answer.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Together with the keepalives: a host that vanished breaks the connection instead of hanging it.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MILLISECONDS)
        except OSError as failed:
            sock.close()
            if isinstance(failed, TimeoutError):
                failures.append(f"{address[0]} did not answer within {until.seconds:.0f} s")
            else:
                failures.append(f"{address[0]}: {failed.strerror or failed}")
        else:
            return sock
    raise DialFailed(f"no TCP connection to port {target.port}: {'; '.join(dict.fromkeys(failures))}", again=True)


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
        """See Connection.open. Takes one of the 10 sessions that sshd allows a connection (MaxSessions)."""
        try:
            channel = self._transport.open_session(timeout=max(0.1, until.left))
            try:
                with _closed_at(until, channel):
                    channel.exec_command(command)
            except BaseException:
                channel.close()
                raise
        except (paramiko.SSHException, OSError, EOFError) as failed:
            if until.passed and self.alive:
                raise TimedOut(f"no channel within {until.seconds:.0f} s") from failed
            # A transport that cannot open a channel is of no use, whatever the cause: dial anew.
            raise Broken(f"no channel could be opened: {failed or type(failed).__name__}") from failed
        return _SshStream(self._transport, channel)

    @property
    def alive(self) -> bool:
        return self._transport.is_active() and self._transport.is_authenticated()

    def close(self) -> None:
        _end(self._transport)


@contextmanager
def _closed_at(until: Deadline, channel: paramiko.Channel) -> Iterator[None]:
    """Close the channel at the deadline: paramiko waits for the answer to an exec request without one."""
    timer = threading.Timer(until.left, channel.close)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join(_JOIN_SECONDS)


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
            self._channel.settimeout(max(0.01, min(_LOOK_SECONDS, until.left)))
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
            self._channel.settimeout(max(0.01, min(_LOOK_SECONDS, until.left)))
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
        if until.passed:
            raise TimedOut(f"no answer within {until.seconds:.0f} s")

    def _raise_if_broken(self, cause: BaseException | None) -> None:
        if not self._transport.is_active() and self._channel.exit_status == -1:
            reason = self._transport.get_exception() or cause or "the host ended it"
            raise Broken(f"the SSH connection was lost: {reason}") from cause

    def _listen(self) -> None:
        """Take what is on stderr: unread, it would use up the channel's window and stall stdout."""
        while self._channel.recv_stderr_ready():
            self._complaint = (self._complaint + self._channel.recv_stderr(CHUNK))[-COMPLAINT_BYTES:]

    def complaint(self) -> str:
        self._listen()
        return self._complaint.decode(errors="replace").strip()

    def exit_status(self, until: Deadline) -> int | None:
        while not self._channel.status_event.wait(min(_LOOK_SECONDS, until.left)):
            if until.passed or not self._transport.is_active():
                return None
        status = self._channel.exit_status
        return None if status == -1 else status

    def close(self) -> None:
        # Telling the host may fail where the connection is broken already; whoever uses it next finds out.
        with suppress(paramiko.SSHException, OSError, EOFError):
            self._channel.close()

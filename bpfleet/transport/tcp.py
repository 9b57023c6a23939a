"""TCP connections to hosts: all addresses of a name, within a deadline, called off in time."""

from __future__ import annotations

import errno
import os
import select
import socket
from typing import Any

from bpfleet.transport.channel import Deadline, DialFailed, TimedOut
from bpfleet.transport.target import Target

_UNACKNOWLEDGED_MILLISECONDS = 30_000


def connect(target: Target, until: Deadline) -> socket.socket:
    """A TCP connection to any of the host's addresses, as a blocking socket. DialFailed; Cancelled.

    Looking the name up is the one wait that cannot be called off: the system's resolver has time limits of its own.
    """
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as unknown:
        again = getattr(unknown, "errno", None) == socket.EAI_AGAIN
        raise DialFailed(f"the name {target.host} does not resolve ({unknown})", again=again) from unknown
    failures: list[str] = []
    for number, (family, kind, protocol, _, address) in enumerate(found):
        # An address that does not answer leaves time for those behind it.
        share = until.sooner(max(0.05, until.left / (len(found) - number)))
        sock = socket.socket(family, kind, protocol)
        try:
            _connect(sock, address, share)
            # Requests are small and each waits for its answer.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Together with the keepalives: a host that vanished breaks the connection instead of hanging it.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MILLISECONDS)
        except TimedOut:
            sock.close()
            failures.append(f"{address[0]} did not answer within {share.seconds:.2g} s")
        except OSError as failed:
            sock.close()
            failures.append(f"{address[0]}: {failed.strerror or failed}")
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise DialFailed(f"no TCP connection to port {target.port}: {'; '.join(dict.fromkeys(failures))}", again=True)


def _connect(sock: socket.socket, address: Any, until: Deadline) -> None:
    """socket.connect in slices. OSError; TimedOut; Cancelled."""
    sock.setblocking(False)
    code = sock.connect_ex(address)
    while code in (errno.EINPROGRESS, errno.EALREADY):
        if select.select([], [sock], [], until.look)[1]:
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            break
        until.check("answer")
    if code:
        raise OSError(code, os.strerror(code))
    sock.setblocking(True)

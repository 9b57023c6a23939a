"""A process that does with real sockets what it is told, and answers itself at every address it is given.

In a network namespace of its own, for test_sockets_dice.py. It reads lines of JSON and writes one for each. First
{"addresses", "ports"}; it listens at all of those. Then {"do": ..., "socket": name, ...}. Errors go by their names.
"""

from __future__ import annotations

import contextlib
import errno
import json
import select
import socket
import struct
import subprocess
import sys
from typing import Any, Dict, List

PATIENCE_SECONDS = 10
KEPT = 8  # connections; more than there are clients
FASTOPEN = 0x20000000  # MSG_FASTOPEN
Named = List[Any]  # address, port


def family_of(address: str) -> int:
    """By its notation."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def wait(one: socket.socket, seconds: float) -> None:
    """At most so long for an answer. Python's own way makes the socket another one, which does not block."""
    one.setsockopt(
        socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000))
    )


class Servers:
    """They take connections, and answer datagrams."""

    def __init__(self, addresses: List[str], ports: List[int]) -> None:
        lines = ["link set lo up"]
        lines += [f"addr add {one} dev lo" + (" nodad" if ":" in one else "") for one in addresses]
        subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)
        self._all: Dict[int, socket.socket] = {}
        self._accepted: List[socket.socket] = []
        self._poll = select.poll()
        for address in addresses:
            for port in ports:
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    one = socket.socket(family_of(address), kind)
                    one.bind((address, port))
                    if kind == socket.SOCK_STREAM:
                        one.listen()
                    self._all[one.fileno()] = one
                    self._poll.register(one, select.POLLIN)

    def serve(self) -> Named:
        """Take what has come, and say where it came. Empty: nowhere, or to several."""
        ready = self._poll.poll(PATIENCE_SECONDS * 1000)
        if len(ready) != 1:
            return []
        one = self._all[ready[0][0]]
        if one.type == socket.SOCK_STREAM:
            self._accepted = [*self._accepted[-KEPT:], one.accept()[0]]
        else:
            one.sendto(b"answer", one.recvfrom(100)[1])
        return list(one.getsockname()[:2])


class Clients:
    """Sockets by name."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._all: Dict[str, socket.socket] = {}

    def open(self, name: str, protocol: str, v6: bool) -> None:
        """A new socket, in place of one of that name."""
        if name in self._all:
            self._all[name].close()
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        self._all[name] = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, kind)
        wait(self._all[name], PATIENCE_SECONDS)

    def connect(self, name: str, target: Named, how: str) -> Dict[str, Any]:
        """Whom a stream reached; of datagrams nobody knows yet."""
        one = self._all[name]
        if how == "fastopen":
            one.sendto(b"hello", FASTOPEN, tuple(target))
        elif how == "datagram":
            one.connect(tuple(target))
            return {}
        else:
            one.connect(tuple(target))
        return {"peer": self._servers.serve()}

    def send(self, name: str, target: Named) -> Dict[str, Any]:
        """Whom a datagram reached; no target: by connection."""
        if target:
            self._all[name].sendto(b"hello", tuple(target))
        else:
            self._all[name].send(b"hello")
        return {"peer": self._servers.serve()}

    def receive(self, name: str, is_due: bool) -> Dict[str, Any]:
        """Whom the answer is from; None: there is none."""
        one = self._all[name]
        wait(one, PATIENCE_SECONDS if is_due else 0.02)
        source: Any = None
        with contextlib.suppress(BlockingIOError):
            source = list(one.recvfrom(100)[1][:2])
        return {"source": source}

    def peer(self, name: str) -> Dict[str, Any]:
        """Whom the process is told it is connected to."""
        return {"seen": list(self._all[name].getpeername()[:2])}

    def do(self, what: Dict[str, Any]) -> Dict[str, Any]:
        """One thing. Raises OSError."""
        verb, name = what["do"], what["socket"]
        if verb == "open":
            self.open(name, what["protocol"], what["v6"])
            return {}
        if verb == "connect":
            return self.connect(name, what["target"], what["how"])
        if verb == "send":
            return self.send(name, what["target"])
        return self.receive(name, what["is_due"]) if verb == "receive" else self.peer(name)


def main() -> None:
    """Until there is no more to do."""
    start = json.loads(sys.stdin.readline())
    clients = Clients(Servers(start["addresses"], start["ports"]))
    print("{}", flush=True)
    for line in sys.stdin:
        try:
            answer = clients.do(json.loads(line))
        except OSError as error:
            answer = {"error": errno.errorcode.get(error.errno or 0, str(error))}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

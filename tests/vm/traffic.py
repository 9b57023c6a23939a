"""Runs on a virtual machine: sends packets from one network namespace to another and says what got an answer.

    python3 traffic.py FLOWS     FLOWS: [{"source", "destination": namespace, "address", "protocol", "port", "seconds"}]

as JSON; prints a list of booleans: whether an answer came within `seconds`. All flows run at the same time. With
"frontend": [address, port] the destination listens as said and the source asks there; an answer counts only if the
frontend is who it seems to come from. "connected": false for datagrams of a socket that is not connected.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
import time
from typing import Any, Dict, List, Tuple

Flow = Dict[str, Any]
PAUSE_SECONDS = 0.5
CLONE_NEWNET = 0x40000000
KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


def enter(namespace: str) -> None:
    """Put the calling thread into a named network namespace."""
    handle = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(handle, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), namespace)
    finally:
        os.close(handle)


def make_socket(flow: Flow) -> socket.socket:
    """A socket of the flow's family and protocol in the namespace of the calling thread."""
    return socket.socket(socket.AF_INET6 if ":" in flow["address"] else socket.AF_INET, KINDS[flow["protocol"]])


def listen(flow: Flow, ready: threading.Event) -> None:
    """Answer every connection or datagram with one byte."""
    enter(flow["destination"])
    with make_socket(flow) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind((flow["address"], flow["port"]))
        if flow["protocol"] == "tcp":
            own.listen()
        ready.set()
        while True:
            if flow["protocol"] == "tcp":
                connection, _ = own.accept()
                with connection:
                    connection.sendall(b"y")
            else:
                _, sender = own.recvfrom(16)
                own.sendto(b"y", sender)


def ask(flow: Flow) -> bool:
    """Whether the flow is answered in time."""
    enter(flow["source"])
    if flow["protocol"] == "icmp":
        command = ["ping", "-q", "-c", "1", "-W", str(flow["seconds"]), flow["address"]]
        return subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
    end = time.monotonic() + flow["seconds"]
    asked = tuple(flow.get("frontend") or (flow["address"], flow["port"]))
    connected = flow.get("connected", True)
    with make_socket({**flow, "address": asked[0]}) as own:
        try:
            own.settimeout(flow["seconds"])
            if connected:
                own.connect(asked)
            if flow["protocol"] == "tcp":
                return own.recv(1) == b"y" and own.getpeername()[:2] == asked
            own.settimeout(PAUSE_SECONDS)
            while time.monotonic() < end:
                own.send(b"x") if connected else own.sendto(b"x", asked)
                try:
                    answer, sender = own.recvfrom(1)
                except socket.timeout:
                    continue
                return answer == b"y" and sender[:2] == asked
        except OSError:
            return False
    return False


def main() -> None:
    flows: List[Flow] = json.loads(sys.argv[1])
    servers: Dict[Tuple[str, str, str, int], threading.Event] = {}
    for flow in flows:
        server = (flow["destination"], flow["address"], flow["protocol"], flow["port"])
        if flow["protocol"] != "icmp" and server not in servers:
            servers[server] = threading.Event()
            threading.Thread(target=listen, args=(flow, servers[server]), daemon=True).start()
    for server, ready in servers.items():
        if not ready.wait(30):
            raise SystemExit(f"no server on {server}")
    answers = [False] * len(flows)

    def fill(index: int) -> None:
        answers[index] = ask(flows[index])

    clients = [threading.Thread(target=fill, args=(index,)) for index in range(len(flows))]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    print(json.dumps(answers))
    sys.stdout.flush()
    os._exit(0)  # the servers never end


if __name__ == "__main__":
    main()

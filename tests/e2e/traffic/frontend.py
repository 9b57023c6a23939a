"""Whether a service answers, by processes that live for one question: a station does not outlive its host's reboot."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Sequence

from tests.e2e.traffic.ground import Ground

PORT = 7100
_PYTHON = ["/usr/bin/python3", "-S", "-c"]
_SERVER = """
import socket, sys, threading
listening = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
def serve():
    while True:
        one = listening.accept()[0]
        one.sendall(b"y")
        one.close()
threading.Thread(target=serve, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""
_CLIENT = """
import socket, sys
address, port = sys.argv[1], int(sys.argv[2])
with socket.create_connection((address, port), timeout=8) as one:
    sys.exit(0 if one.recv(1) == b"y" and one.getpeername()[:2] == (address, port) else 3)
"""


def answers(ground: Ground, client: str, address: str, port: int, backends: Sequence[str]) -> bool:
    """Whether a client endpoint that connects to a frontend is answered from its address. The backends listen on PORT
    meanwhile."""
    with contextlib.ExitStack() as stack:
        for name in backends:
            one = ground.workloads[name]
            command = [*_PYTHON, _SERVER, str(PORT)]
            pipe = subprocess.PIPE
            server = ground.lab.host(one.host).popen(command, workload=one.netns, stdin=pipe, stdout=pipe)
            stack.callback(server.wait, 10)
            assert server.stdin is not None and server.stdout is not None
            stack.callback(server.stdout.close)
            stack.callback(server.stdin.close)
            assert server.stdout.readline() == b"ready\n"
        asking = ground.workloads[client]
        command = [*_PYTHON, _CLIENT, address, str(port)]
        return ground.lab.host(asking.host).run(command, workload=asking.netns, check=False).returncode == 0

"""The network of a few machines: a bridge in a network namespace of its own.

    this machine's own namespace          namespace bpfleet-vm-ID
    bvmID (.254) --------veth-------- controller --+
                                                  br0 (.253, the machines' default gateway)
                                          tap1 ----+---- machine 1 (.1)

The bridge's namespace forwards nothing. All names carry ID, the process's id and a count. A guard process removes
everything when this process dies.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

from bpfleet.errors import HostFailed, HostUnfit
from tools.vm.command import run

_serial = itertools.count(1)
_POOL = ipaddress.IPv4Network("10.208.0.0/12")
_GUARD = Path(__file__).with_name("guard.py")
_GUARD_SECONDS = 30.0


class Network:
    """Made by entering it, removed by leaving it. `directory` holds its machines' keys and logs and goes with it."""

    def __init__(self) -> None:
        self.id = f"{os.getpid()}-{next(_serial)}"
        self.netns = f"bpfleet-vm-{self.id}"
        self.link = f"bvm{self.id}"
        self.directory = Path(tempfile.gettempdir()) / self.netns
        self.subnet = _free_subnet(self.id)
        self._machines = itertools.count(1)
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Network:
        self.directory.mkdir(mode=0o700)
        self._guard = subprocess.Popen(
            [sys.executable, str(_GUARD), self.netns, self.link, str(self.directory)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            self._make()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def address(self, host: int) -> str:
        """The subnet's address with that last byte."""
        return str(self.subnet[host])

    @property
    def gateway(self) -> str:
        """The machines' default gateway, which forwards nothing."""
        return self.address(253)

    def add_port(self) -> tuple[int, str]:
        """A machine's number (from 1; its address is `address(number)`) and its tap device in the namespace."""
        number = next(self._machines)
        tap = f"tap{number}"
        self._ip_here(
            f"tuntap add dev {tap} mode tap",
            f"link set {tap} master br0 up",
        )
        return number, tap

    def close(self) -> None:
        """End the machines that are left and remove the network: what the guard does when we die."""
        guard, self._guard = self._guard, None
        if guard is None:
            return
        assert guard.stdin is not None
        guard.stdin.close()
        try:
            guard.wait(_GUARD_SECONDS)
        except subprocess.TimeoutExpired as expired:
            raise HostFailed(f"the network {self.netns} was not removed in time") from expired

    def _make(self) -> None:
        run(["ip", "netns", "add", self.netns])
        self._ip_here(
            "link set lo up",
            "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
            f"address add {self.gateway}/24 dev br0",
            "link set br0 up",
        )
        run(["ip", "link", "add", self.link, "type", "veth", "peer", "name", "controller", "netns", self.netns])
        self._ip_here("link set controller master br0 up")
        run(["ip", "address", "add", f"{self.address(254)}/24", "dev", self.link])
        run(["ip", "link", "set", self.link, "up"])

    def _ip_here(self, *lines: str) -> None:
        run(["ip", "-netns", self.netns, "-batch", "-"], input="\n".join(lines))


def _free_subnet(seed: str) -> ipaddress.IPv4Network:
    """A /24 of the pool that this machine routes nowhere of its own; the search begins at a place `seed` decides."""
    taken = []
    for route in json.loads(run(["ip", "-j", "-4", "route", "show", "table", "all"]) or "[]"):
        if route["dst"] != "default":
            taken.append(ipaddress.IPv4Network(route["dst"]))
    subnets = list(_POOL.subnets(new_prefix=24))
    start = sum(ord(letter) * 31**place for place, letter in enumerate(seed)) % len(subnets)
    for subnet in subnets[start:] + subnets[:start]:
        if not any(subnet.overlaps(one) for one in taken):
            return subnet
    raise HostUnfit(f"no free /24 in {_POOL} on this machine", remedy="Remove routes to it")

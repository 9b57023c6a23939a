"""What a workload gets directly, by real frames. Its end of the device is in another namespace, as it has to be."""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import subprocess
from pathlib import Path
from typing import Callable, Dict, Iterator, NamedTuple

import pytest

from tests.packet import frames as f
from tests.packet import world
from tests.packet.kernel import Datapath, detach
from tests.packet.test_copies import TICK_NS, programs_ns
from tests.packet.test_direct import (
    BACK,
    PORTS,
    X,
    direct,
    in_one_tick,
    loaded_direct,
    pytestmark,
    tunnelled,
)
from tests.packet.world import DEVICES

__all__ = ["direct", "loaded_direct", "pytestmark"]

AWAY = 31
"""The index of a's device here."""
_IPV4, _ALL = 0x0800, 3
_SOL_PACKET, _PACKET_AUXDATA, _CHECKSUM_VALID = 263, 8, 1 << 7
_SIOCETHTOOL, _SET_GRO, _SET_TSO, SET_TX_CHECKSUMS = 0x8946, 0x2C, 0x1F, 0x17

_libc = ctypes.CDLL(None, use_errno=True)


class Arrived(NamedTuple):
    """A frame as a workload's stack is given it."""

    frame: bytes
    is_summed: bool
    """Whether the kernel knows that the transport's checksum is right."""


class Far(NamedTuple):
    """The far ends of the real devices."""

    datapath: Datapath
    network: socket.socket
    workload: socket.socket

    def open(self) -> None:
        """A connection that a has begun; its answers have a copy once some have come."""
        maps = self.datapath.maps
        maps["addresses"].update({"address": X["a"]}, {**world.address_record("a"), "ifindex": AWAY})
        maps["endpoints"].update({"ifindex": AWAY}, world.endpoint_record("a"))
        self.datapath.run("from_endpoint", f.ether(f.tcp(X["a"], X["c"], PORTS)), AWAY)
        self.datapath.run("from_endpoint", f.ether(f.udp(X["a"], X["c"], PORTS)), AWAY)

    def get(self, inner: bytes, *, directly: bool) -> Arrived:
        """What comes of an inner packet, which must come by that way."""
        before = _by_the_tunnel()
        self.network.send(tunnelled(inner))
        frame, ancillary, _, _ = self.workload.recvmsg(65536, 256)
        assert _by_the_tunnel() == before + (not directly)
        return Arrived(frame, bool(struct.unpack_from("I", ancillary[0][2])[0] & _CHECKSUM_VALID))


def _by_the_tunnel() -> int:
    lines = (line.split() for line in Path("/proc/thread-self/net/dev").read_text().splitlines())
    return next(int(words[2]) for words in lines if words[0] == "dev-vxlan:")


@pytest.fixture
def far(direct: Datapath) -> Iterator[Far]:
    """The programs of what is received, at a device that puts packets together."""
    away = f"bpfleet-direct-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        _ip(f"netns add {away}")
        stack.callback(_ip, f"netns del {away}")
        _ip(f"link add dev-away index {AWAY} type veth peer name away netns {away}")
        stack.callback(_ip, "link del dev-away")
        _ip("link set dev-away addrgenmode none up")
        _ip(f"-n {away} link set away addrgenmode none up")
        workload = stack.enter_context(_socket_in(away))
        network = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        network.bind(("wire", 0))
        for device, feature, on in (("dev-eth0", _SET_GRO, 1), ("wire", _SET_TSO, 0)):
            stack.callback(switch, device, feature, 1 - on)
            switch(device, feature, on)
        for program, device in (("from_underlay", "eth0"), ("from_tunnel", "vxlan")):
            stack.callback(detach, direct.attach(program, DEVICES[device]))
        yield Far(direct, network, workload)


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)


def _socket_in(name: str) -> socket.socket:
    """Of all IPv4 that comes to `away` there."""
    with Path("/proc/thread-self/ns/net").open() as home, Path(f"/run/netns/{name}").open() as there:
        assert not _libc.setns(there.fileno(), 0)
        try:
            found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_IPV4))
            found.bind(("away", _IPV4))
        finally:
            assert not _libc.setns(home.fileno(), 0)
    found.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
    found.settimeout(5)
    return found


def switch(device: str, feature: int, on: int) -> None:
    """As `ethtool -K`."""
    words = array.array("I", [feature, on])
    request = struct.pack("16sP", device.encode(), words.buffer_info()[0]).ljust(40, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, request)


def test_what_is_known_of_a_checksum_stays_known(far: Far) -> None:
    """Where it was found right on the way, by a device or as packets are put together, nobody adds up all bytes again;
    and one that is wrong is not taken for right."""

    def work() -> None:
        far.open()
        far.get(f.tcp(X["c"], X["a"], BACK, f.SYN | f.ACK), directly=False)
        segment = f.tcp(X["c"], X["a"], BACK, f.ACK)
        assert far.get(f.summed(segment), directly=False).is_summed
        arrived = far.get(f.summed(segment), directly=True)
        assert arrived == (f.ether(f.summed(segment), source=world.MACS["a"][1], destination=world.MACS["a"][0]), True)
        assert not far.get(segment, directly=True).is_summed

    in_one_tick(far.datapath, work)


def test_a_capture_at_the_underlay_device_shows_what_came(far: Far) -> None:
    """And not what was made of it: the two share their bytes until one of them is written to."""

    def work() -> None:
        far.open()
        inner = f.udp(X["c"], X["a"], BACK)
        far.get(inner, directly=False)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL)) as capture:
            capture.bind(("dev-eth0", _ALL))
            capture.settimeout(5)
            got = far.get(inner, directly=True)
            assert capture.recv(65536) == tunnelled(inner)
        assert got.frame[14:] == inner

    in_one_tick(far.datapath, work)


def test_a_priority_tag_is_no_hindrance(far: Far) -> None:
    def work() -> None:
        far.open()
        inner = f.udp(X["c"], X["a"], BACK)
        far.get(inner, directly=False)
        plain = tunnelled(inner)
        before = _by_the_tunnel()
        for tag in (b"", b"\x81\x00\x60\x00"):
            far.network.send(plain[:12] + tag + plain[12:])
            assert far.workload.recv(65536)[14:] == inner
        assert _by_the_tunnel() == before

    in_one_tick(far.datapath, work)


AGAINST = {
    "filter": (
        "nft 'add table ip t { chain c { type filter hook input priority 0; udp dport 8472 drop; }; }'",
        "nft delete table ip t",
    ),
    "early filter": (
        "nft 'add table ip t { chain c { type filter hook prerouting priority -300; ip saddr 192.0.2.2 drop; }; }'",
        "nft delete table ip t",
    ),
    "reverse path": (
        "echo 1 > $RP_FILTER; ip link set dev-b up; ip route add 192.0.2.2/32 dev dev-b",
        "echo 0 > $RP_FILTER; ip route del 192.0.2.2/32 dev dev-b; ip link set dev-b down",
    ),
}


@pytest.mark.parametrize("what", AGAINST)
def test_what_the_host_has_against_a_packet_ends_its_flow_with_the_tick(far: Far, what: str) -> None:
    """Though packets keep coming all the time."""
    begin, end = (f"RP_FILTER=/proc/sys/net/ipv4/conf/dev-eth0/rp_filter; {command}" for command in AGAINST[what])
    inner = f.udp(X["c"], X["a"], BACK)

    def passes() -> bool:
        far.network.send(tunnelled(inner))
        with contextlib.suppress(TimeoutError):
            return far.workload.recv(65536)[14:] == inner
        return False

    def work() -> None:
        far.open()
        far.get(inner, directly=False)
        far.get(inner, directly=True)

    in_one_tick(far.datapath, work)
    far.workload.settimeout(0.02)
    subprocess.run(begin, shell=True, check=True)
    try:
        over = programs_ns() // TICK_NS + 1
        while programs_ns() // TICK_NS <= over:
            came = passes()
        assert not came
        assert not any(passes() for _ in range(20))
    finally:
        subprocess.run(end, shell=True, check=True)
    assert passes()


WAITS: Dict[str, Callable[[int, bool], None]] = {
    "for a CPU": lambda mask, on: _in_sysfs(f"echo {mask * on:x} > $DEVICE/queues/rx-0/rps_cpus"),
    "for a thread": lambda mask, on: _in_sysfs(
        f"echo {int(on)} > $DEVICE/threaded; for one in $(pgrep napi/dev-vxlan); do taskset -p {mask:x} $one; done"
    ),
    "with all others'": lambda mask, on: switch("dev-vxlan", _SET_GRO, not on),
}


def _in_sysfs(command: str) -> None:
    """With this namespace's devices in it."""
    prefix = "mount -t sysfs sysfs /sys; DEVICE=/sys/class/net/dev-vxlan; "
    subprocess.run(["unshare", "--mount", "sh", "-e", "-c", prefix + command], check=True)


@pytest.mark.parametrize("what", WAITS)
def test_nothing_overtakes_what_waits_behind_the_tunnels_device(far: Far, what: str) -> None:
    """So all goes that way where the host has it wait there."""
    (cpu,) = os.sched_getaffinity(0)
    inner = f.udp(X["c"], X["a"], BACK)

    def work() -> None:
        far.open()
        for _ in range(5):
            far.get(inner, directly=False)

    WAITS[what](1 << cpu, True)
    try:
        in_one_tick(far.datapath, work)
    finally:
        WAITS[what](1 << cpu, False)

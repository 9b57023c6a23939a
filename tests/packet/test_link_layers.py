"""What comes to an underlay device's hooks without an Ethernet header, by real packets: what the host's stack loops
back to itself, and all traffic of a device that has no link layer."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bpfleet.loader.real import RealKernel
from tests.packet import frames as f
from tests.packet import world
from tests.packet.kernel import BUILD, Datapath, detach
from tests.packet.world import ADDRESSES, TUNNEL_PORT, UNDERLAY_MAC, Policy, Rule

pytestmark = pytest.mark.root

GROUPS = {4: "239.9.9.9", 6: "ff05::9"}
OPEN, CLOSED = Policy("host"), Policy("host", (), ("ingress", "egress"))
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
TUN = "tun-under"
_TUNSETIFF, _TUNSETLINK, _IFF_TUN_NO_PI = 0x400454CA, 0x400454CD, 0x1001
NONE, PPP, GRE = 65534, 512, 778


@contextlib.contextmanager
def hooked(datapath: Datapath, ifindex: int) -> Iterator[None]:
    """Both programs of an underlay device at one."""
    links = [
        datapath.attach("from_underlay", ifindex),
        datapath.attach("to_underlay", ifindex, egress=True),
    ]
    try:
        yield
    finally:
        for link in links:
            detach(link)


def counted(datapath: Datapath, action: Callable[[], object]) -> dict[str, int]:
    """What real packets are counted as, but for what the kernel says to its neighbours meanwhile."""
    with datapath.watch() as seen:
        action()
    return {name: count for name, count in seen[0].counters.items() if name != "neighbour"}


@pytest.mark.parametrize("policy", [OPEN, CLOSED], ids=["open", "closed"])
@pytest.mark.parametrize("to", [GROUPS[4], "192.0.2.255", GROUPS[6]])
def test_the_host_hears_what_it_sends_to_its_own_groups(host_datapath: Datapath, policy: Policy, to: str) -> None:
    """The stack's copy for itself is judged by no policy; what goes out to the network is, as everything."""
    family = 6 if f.is_v6(to) else 4
    world.apply(host_datapath, policy)
    eth0 = world.DEVICES["eth0"]
    with hooked(host_datapath, eth0), socket.socket(FAMILIES[family], socket.SOCK_DGRAM) as ours:
        ours.settimeout(5)
        if family == 4:
            ours.bind(("", 7555))
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            ours.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(ADDRESSES[4]["host"]))
            group = socket.inet_aton(GROUPS[4]) + socket.inet_aton(ADDRESSES[4]["host"])
            ours.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        else:
            ours.bind(("::", 7555))
            ours.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, eth0)
            group = socket.inet_pton(socket.AF_INET6, GROUPS[6]) + struct.pack("=I", eth0)
            ours.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)

        def say() -> None:
            with contextlib.suppress(PermissionError):  # by the policy, of the copy for the network
                ours.sendto(b"to myself", (to, 7555))
            assert ours.recvfrom(100)[0] == b"to myself"

        out = "underlay" if policy is OPEN else "denied_by_default"
        both = {"underlay": 2} if policy is OPEN else {"underlay": 1, out: 1}
        assert counted(host_datapath, say) == both


@pytest.mark.parametrize("family", [4, 6])
def test_nobody_else_speaks_as_the_host_to_a_group(host_datapath: Datapath, family: int) -> None:
    """A frame of the network is none that the stack looped back, whatever it says, and whatever it begins with."""
    x = ADDRESSES[family]
    world.apply(host_datapath, CLOSED)
    with hooked(host_datapath, world.DEVICES["eth0"]), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire:
        wire.bind(("wire", 0))

        def send(source: str, destination: str, mac: str, sender: str) -> dict[str, int]:
            packet = f.udp(source, destination, (40000, 7555))
            return counted(host_datapath, lambda: wire.send(f.ether(packet, sender, mac)))

        group = GROUPS[family]
        bare = "45:00:00:1e:00:07" if family == 4 else "60:00:00:00:00:0a"  # as an IP header begins
        for mac in (UNDERLAY_MAC, "01:00:5e:09:09:09", "33:33:00:00:00:09", "ff:ff:ff:ff:ff:ff", bare):
            for sender in ("02:00:00:00:00:99", "00:00:40:11:c0:00"):
                assert send(x["host"], group, mac, sender) == {"spoofed_source": 1}
                assert send(x["world"], group, mac, sender) == {"denied_by_default": 1}


class Tun:
    """A device without a link layer, whose other end is here. packets: of IP, both ways."""

    def __init__(self, name: str = TUN) -> None:
        self.fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(self.fd, _TUNSETIFF, struct.pack("16sH14x", name.encode(), _IFF_TUN_NO_PI))
        for command in (f"link set {name} addrgenmode none", f"link set {name} up"):
            subprocess.run(["ip", *command.split()], check=True)
        self.ifindex = socket.if_nametoindex(name)

    def send(self, packet: bytes) -> None:
        """The network sends it."""
        os.write(self.fd, packet)

    def heard(self, protocol: int, seconds: float = 5) -> bytes:
        """The next packet of that protocol that the host sent; empty if none comes."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                packet = os.read(self.fd, 4000)
            except BlockingIOError:
                time.sleep(0.01)
                continue
            if packet[6 if packet[0] >> 4 == 6 else 9] == protocol:
                return packet
        return b""

    def close(self) -> None:
        """And the device is gone."""
        os.close(self.fd)


@pytest.fixture
def tun(host_datapath: Datapath) -> Iterator[Tun]:
    """With the way to the world, at a host whose policy lets in TCP 80 and out UDP 81 of the world, and no more."""
    rules = (Rule("ingress", 71, 2, f.TCP, 80), Rule("egress", 72, 2, f.UDP, 81))
    world.apply(host_datapath, Policy("host", rules, ("ingress", "egress")))
    opened = Tun()
    try:
        for family in (4, 6):
            command = ["ip", f"-{family}", "route", "add", ADDRESSES[family]["world"], "dev", TUN]
            subprocess.run([*command, "src", ADDRESSES[family]["host"]], check=True)
        with hooked(host_datapath, opened.ifindex):
            yield opened
    finally:
        opened.close()


@pytest.mark.parametrize("family", [4, 6])
def test_what_comes_without_a_link_layer_is_judged(tun: Tun, host_datapath: Datapath, family: int) -> None:
    x = ADDRESSES[family]

    def receive(packet: bytes) -> dict[str, int]:
        return counted(host_datapath, lambda: tun.send(packet))

    me, world_, node2 = x["host"], x["world"], x["node2"]
    assert receive(f.tcp(world_, me, (40000, 80))) == {"underlay": 1}
    assert receive(f.tcp(world_, me, (40000, 81))) == {"denied_by_default": 1}
    assert receive(f.tcp(world_, me, (40000, 22))) == {"underlay": 1}, "a failsafe port"
    assert receive(f.tcp(me, me, (40000, 80))) == {"spoofed_source": 1}
    assert receive(f.tcp(x["c"], me, (40000, 80))) == {"underlay_workload": 1}
    assert receive(f.udp(world_, me, (50000, TUNNEL_PORT))) == {"underlay_tunnel": 1}
    assert receive(f.udp(node2, me, (50000, TUNNEL_PORT))) == {"tunnel_source_port": 1}
    assert receive(f.udp(node2, me, (f.TUNNEL_SOURCE, TUNNEL_PORT))) == {"underlay": 1}
    assert receive(f.tcp(world_, me, (40000, 80), 0)) == {"malformed": 1}
    assert receive(f.tcp(world_, me, (40000, 80))[:-3]) == {"truncated": 1}


@pytest.mark.parametrize("family", [4, 6])
def test_what_goes_out_without_a_link_layer_is_judged(tun: Tun, host_datapath: Datapath, family: int) -> None:
    """And its answers find their connection; also those to a failsafe port, which nobody judged."""
    x = ADDRESSES[family]
    with socket.socket(FAMILIES[family], socket.SOCK_DGRAM) as ours:
        ours.settimeout(5)
        ours.bind((x["host"], 0))
        port = ours.getsockname()[1]

        def answer(from_port: int) -> bytes:
            return f.summed(f.udp(x["world"], x["host"], (from_port, port)))

        assert counted(host_datapath, lambda: tun.send(answer(81))) == {"denied_by_default": 1}
        for allowed in (81, 53):
            assert counted(host_datapath, lambda: ours.sendto(b"hi", (x["world"], allowed))) == {"underlay": 1}  # noqa: B023
            assert tun.heard(f.UDP)
            assert counted(host_datapath, lambda: tun.send(answer(allowed))) == {"underlay": 1}  # noqa: B023
            assert ours.recvfrom(100)[1][:2] == (x["world"], allowed)

        def refused() -> None:
            with contextlib.suppress(PermissionError):
                ours.sendto(b"hi", (x["world"], 82))

        assert counted(host_datapath, refused) == {"denied_by_default": 1}
        assert tun.heard(f.UDP, 0.2) == b""


@pytest.mark.parametrize("family", [4, 6])
def test_a_failsafe_port_is_served_without_a_link_layer(tun: Tun, family: int) -> None:
    """The stack's answer to a SYN comes out again."""
    x = ADDRESSES[family]
    with socket.socket(FAMILIES[family], socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((x["host"], 22))
        server.listen()
        tun.send(f.summed(f.tcp(x["world"], x["host"], (40000, 22))))
        answer = tun.heard(f.TCP)
        assert answer[(40 if family == 6 else 20) + 13] == f.SYN | f.ACK


def test_what_does_not_begin_as_its_type_says_is_no_way_in(tun: Tun, host_datapath: Datapath) -> None:
    """A version that is none is refused by the device; a packet of one byte is of nobody."""
    for packet in (b"\x45", b"\x60", b"\x45" + bytes(18), b"\x60" + bytes(38)):
        assert counted(host_datapath, lambda: tun.send(packet)) == {"truncated": 1}  # noqa: B023


def test_the_agent_sees_what_link_layer_a_device_has(devices: None, tmp_path: Path) -> None:
    """Those that have one which is none of ours are refused by name: bpfleet/compile/validate.py."""
    opened = Tun()
    try:
        subprocess.run(["ip", "link", "set", TUN, "down"], check=True)
        for link_type in (NONE, PPP, GRE):
            fcntl.ioctl(opened.fd, _TUNSETLINK, link_type)
            facts = RealKernel(BUILD, "/sys/fs/bpf/bpfleet-facts", tmp_path).facts("h1")
            assert facts.link_types == {"lo": 772, TUN: link_type}
            assert facts.devices.keys() >= {"dev-eth0", TUN}
    finally:
        opened.close()

"""The devices of ours: what is there compared with what is described, and the changes that make them alike.

A veth's host side stays down until it is set up as a step of its own, after its programs are attached: until then its
workload has no carrier, so no packet of it passes unjudged.
"""

from __future__ import annotations

import errno
import socket
from pathlib import Path
from typing import AbstractSet, Any, Callable, Dict, List, Mapping, Optional, Sequence, Set, Tuple, Union

from bpfleet.errors import HostFailed
from bpfleet.loader import requests, taps
from bpfleet.loader.kernel import Found
from bpfleet.loader.requests import Message, Requests
from bpfleet.loader.rtnl import Link, Reader, inside, namespace_of
from bpfleet.model.state import DEVICE_PREFIX, TUNNEL_DEVICE, Adopted, Tap, Veth, Vxlan

_GLOBAL = 0


def is_ours(link: Link) -> bool:
    """Whether a device is made by bpfleet: by its name, or by the mark on a tap, whose name is the user's."""
    return link.name == TUNNEL_DEVICE or link.name.startswith(DEVICE_PREFIX) or taps.is_ours(link)


# -- reading -----------------------------------------------------------------------------------------------------------


def read_devices(links: Mapping[str, Link], want: Mapping[str, Any], host: Reader) -> Dict[str, Any]:
    """Devices of ours among `links`, and those of others that `want` adopts."""
    neighbours = {(item.index, item.address, item.mac) for item in host.neighbours()}
    taps_wanted = any(isinstance(wanted, Tap) for wanted in want.values())
    addresses = {(item.index, item.address) for item in host.addresses()} if taps_wanted else set()
    found: Dict[str, Any] = {}
    for name, link in links.items():
        wanted = want.get(name)
        if isinstance(wanted, Adopted):
            found[name] = wanted
        elif is_ours(link):
            found[name] = _compare(link, wanted, neighbours, addresses)
    return found


def _compare(link: Link, wanted: Any, neighbours: Set[Tuple[int, str, str]], addresses: Set[Tuple[int, str]]) -> Any:
    fields = {"name": link.name, "mtu": link.mtu, "mac": link.mac}
    if wanted is None:
        return Found(link.name, link.kind, fields, up=link.up)
    lacks: List[str] = []
    kind = taps.KIND if isinstance(wanted, Tap) else type(wanted).__name__.lower()
    rebuild = link.kind != kind
    if rebuild:
        lacks.append(f"is a {link.kind or 'device'}, not a {kind}")
    elif isinstance(wanted, Vxlan):
        port = int.from_bytes(link.data.get(requests.VXLAN_PORT, b""), "big")
        external = link.data.get(requests.VXLAN_COLLECT_METADATA) == b"\x01"
        if port != wanted.port or not external:
            rebuild = True
            lacks.append(f"UDP port {port}, external {external}")
        if link.data.get(requests.VXLAN_SOURCE_PORTS) != requests.TUNNEL_SOURCES:
            rebuild = True
            lacks.append("sends from other UDP ports")
        if not link.noarp:
            lacks.append("resolves neighbours")
    elif isinstance(wanted, Veth):
        rebuild = not _inside_matches(link, wanted, lacks)
        for address in wanted.peer_addresses:
            if (link.index, address, wanted.peer_mac) not in neighbours:
                lacks.append(f"no neighbour {address}")
    elif isinstance(wanted, Tap):
        rebuild = taps.differences(link, wanted, lacks)
        lacks.extend(f"no address {item}" for item in wanted.gateways if (link.index, item) not in addresses)
    if link.mac != wanted.mac:
        lacks.append(f"MAC {link.mac}")
    if link.mtu != wanted.mtu:
        lacks.append(f"MTU {link.mtu}")
    if link.up and not lacks:
        return wanted
    return Found(link.name, link.kind, fields, up=link.up, lacks=tuple(lacks), rebuild=rebuild)


def _inside_matches(host: Link, wanted: Veth, lacks: List[str]) -> bool:
    """Add to `lacks` what is wrong inside the namespace; False if the other end is not there at all."""
    try:
        reader = Reader(wanted.netns)
    except HostFailed:
        lacks.append(f"no network namespace {wanted.netns}")
        return False
    with reader:
        peer = reader.link(wanted.peer_name)
        if peer is None or peer.kind != "veth" or peer.index != host.peer or peer.peer != host.index:
            lacks.append(f"its other end is not {wanted.peer_name} in {wanted.netns}")
            return False
        if peer.mac != wanted.peer_mac:
            lacks.append(f"{wanted.peer_name}: MAC {peer.mac}")
        if peer.mtu != wanted.mtu:
            lacks.append(f"{wanted.peer_name}: MTU {peer.mtu}")
        if not peer.up:
            lacks.append(f"{wanted.peer_name}: down")
        addresses = {item.address for item in reader.addresses() if item.index == peer.index and item.scope == _GLOBAL}
        lacks.extend(
            f"{wanted.peer_name}: no address {item}" for item in wanted.peer_addresses if item not in addresses
        )
        lacks.extend(
            f"{wanted.peer_name}: another address {item}" for item in sorted(addresses - set(wanted.peer_addresses))
        )
        known = {(item.address, item.mac) for item in reader.neighbours() if item.index == peer.index}
        routes = {
            item.gateway
            for item in reader.routes()
            if item.index == peer.index and item.destination.endswith("/0") and item.gateway
        }
        for gateway in wanted.gateways:
            if (gateway, wanted.mac) not in known:
                lacks.append(f"{wanted.peer_name}: no neighbour {gateway}")
            if gateway not in routes:
                lacks.append(f"{wanted.peer_name}: no default route through {gateway}")
    return True


# -- writing -----------------------------------------------------------------------------------------------------------


class Devices:
    """Changes devices. `wrote` is called once for each request that changes something."""

    def __init__(self, wrote: Callable[[], None]) -> None:
        self._wrote = wrote

    def ensure(self, device: Union[Vxlan, Veth, Tap]) -> None:
        """Create the device, or change what differs. Raises HostFailed."""
        try:
            if isinstance(device, Vxlan):
                self._ensure_vxlan(device)
            elif isinstance(device, Tap):
                self._ensure_tap(device)
            else:
                self._ensure_veth(device)
        except OSError as error:
            raise HostFailed(
                f"cannot make device {device.name}: {error.strerror or error}",
                remedy="See what the host already has under that name or port: ip -d link show.",
            ) from error

    def set_up(self, name: str, up: bool) -> None:
        """Set a device up or down; one that is gone needs no setting down."""
        index = _lookup(name)
        if index is None:
            if up:
                raise HostFailed(f"device {name} is not there", remedy="Apply again: it is made anew.")
            return
        with Requests() as host:
            self._send(host, [requests.set_up(index, up)])

    def remove(self, name: str) -> None:
        """Remove a device of ours, if it is there."""
        index = _lookup(name)
        if index is not None:
            with Requests() as host:
                self._send(host, [requests.delete_link(index)])

    def _ensure_vxlan(self, device: Vxlan) -> None:
        with Requests() as host:
            link = host.link(device.name)
            messages: List[Message] = []
            if link is None:
                self._send(host, [requests.new_vxlan(device.name, device.mac, device.mtu, device.port)])
                link = _required(host, device.name)
                messages += [requests.no_link_local(device.name)] if _has_ipv6() else []
            messages += _adjusted(link, device.mac, device.mtu)
            if not link.noarp:
                messages.append(requests.set_noarp(link.index))
            self._send(host, messages)

    def _ensure_tap(self, device: Tap) -> None:
        with Requests() as host:
            link = host.link(device.name)
            messages: List[Message] = []
            if link is None:
                self._count(taps.create(host, device))
                link = _required(host, device.name)
                messages += [requests.no_link_local(device.name)] if _has_ipv6() else []
            else:
                self._count(taps.adjust(device, link))
            messages += _adjusted(link, device.mac, device.mtu)
            there = {item.address for item in host.addresses() if item.index == link.index}
            messages += [requests.add_gateway(link.index, item) for item in device.gateways if item not in there]
            self._send(host, messages)

    def _ensure_veth(self, device: Veth) -> None:
        with Requests() as host:
            link = host.link(device.name)
            if link is None:
                self._make_veth(host, device)
                return
            # First, as a device that gets another MAC forgets its neighbours.
            self._send(host, _adjusted(link, device.mac, device.mtu))
            there = {(item.address, item.mac) for item in host.neighbours() if item.index == link.index}
            self._send(host, _neighbours(link.index, device.peer_addresses, device.peer_mac, there))
        with inside(device.netns), Requests() as workload:
            peer = _required(workload, device.peer_name)
            self._send(workload, _adjusted(peer, device.peer_mac, device.mtu))
            messages = _addresses(workload, peer, device)
            if not peer.up:
                messages.append(requests.set_up(peer.index, True))
            there = {(item.address, item.mac) for item in workload.neighbours() if item.index == peer.index}
            messages += _neighbours(peer.index, device.gateways, device.mac, there)
            messages += [requests.put_default_route(peer.index, gateway) for gateway in device.gateways]
            self._send(workload, messages)

    def _make_veth(self, host: Requests, device: Veth) -> None:
        """A pair that is not there, of which nothing has to be read: after a reboot there are a thousand."""
        has_ipv6 = _has_ipv6()
        self._create_veth(host, device, has_ipv6=has_ipv6)
        self._send(host, _neighbours(_index(device.name), device.peer_addresses, device.peer_mac))
        with inside(device.netns), Requests() as workload:
            index = _index(device.peer_name)
            messages = [requests.no_link_local(device.peer_name)] if has_ipv6 else []
            messages += [requests.add_address(index, item) for item in device.peer_addresses]
            messages.append(requests.set_up(index, True))
            messages += _neighbours(index, device.gateways, device.mac)
            messages += [requests.put_default_route(index, gateway) for gateway in device.gateways]
            self._send(workload, messages)

    def _create_veth(self, host: Requests, device: Veth, *, has_ipv6: bool) -> None:
        names = (device.name, device.mac, device.mtu, device.peer_name, device.peer_mac)
        with namespace_of(device.netns) as namespace:
            messages = [requests.new_veth(*names, namespace)]
            if has_ipv6:
                messages.append(requests.no_link_local(device.name))
            codes = host.exchange(*messages)[1]
        if codes[0] == errno.EEXIST:  # not the host side, which was looked for
            raise HostFailed(
                f"network namespace {device.netns} has a device {device.peer_name} already",
                remedy="Remove it, or attach the endpoint to it by interface instead of by namespace.",
            )
        for code in codes:
            requests.check(code)
        self._count(len(codes))

    def _send(self, to: Requests, messages: List[Message]) -> None:
        self._count(to.do(*messages))

    def _count(self, changes: int) -> None:
        for _ in range(changes):
            self._wrote()


def _adjusted(link: Link, mac: str, mtu: int) -> List[Message]:
    messages = [requests.set_mac(link.index, mac)] if link.mac != mac else []
    return messages + ([requests.set_mtu(link.index, mtu)] if link.mtu != mtu else [])


def _addresses(workload: Reader, peer: Link, device: Veth) -> List[Message]:
    there = [item for item in workload.addresses() if item.index == peer.index and item.scope == _GLOBAL]
    known = {item.address for item in there}
    messages = [
        requests.delete_address(peer.index, item.address, item.prefix)
        for item in there
        if item.address not in device.peer_addresses
    ]
    return messages + [requests.add_address(peer.index, item) for item in device.peer_addresses if item not in known]


def _neighbours(
    index: int, addresses: Sequence[str], mac: str, there: AbstractSet[Tuple[str, str]] = frozenset()
) -> List[Message]:
    """The entries that are missing."""
    return [requests.put_neighbour(index, address, mac) for address in addresses if (address, mac) not in there]


def _has_ipv6() -> bool:
    return Path("/proc/sys/net/ipv6").exists()


def _lookup(name: str) -> Optional[int]:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None


def _index(name: str) -> int:
    """The index of a device that was made just now."""
    index = _lookup(name)
    if index is None:
        raise _vanished(name)
    return index


def _required(reader: Reader, name: str) -> Link:
    link = reader.link(name)
    if link is None:
        raise _vanished(name)
    return link


def _vanished(name: str) -> HostFailed:
    return HostFailed(
        f"device {name} vanished while it was being set up", remedy="Apply again.", details={"errno": errno.ENODEV}
    )

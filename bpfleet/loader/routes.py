"""Routes of ours on the host, known by their protocol number; all others are left alone."""

from __future__ import annotations

import errno
import socket
from typing import Any, Callable, Dict, Mapping, Tuple

from bpfleet.errors import HostFailed
from bpfleet.loader import rtnl
from bpfleet.loader.devices import netlink_error, request
from bpfleet.loader.rtnl import Link, Reader
from bpfleet.model.state import Route

PROTOCOL = 191
"""In the range left to routing daemons (linux/rtnetlink.h, RTPROT_*), used by none that is registered there."""

_SCOPE_LINK = 253
_METRIC = 1024  # IPv6's default, written out so that a route is found again by it


def read_routes(host: Reader, links: Mapping[str, Link]) -> Dict[Tuple[str, str], Route]:
    """Our routes by (destination, device)."""
    names = {link.index: name for name, link in links.items()}
    found = {}
    for item in host.routes():
        if item.protocol == PROTOCOL:
            device = names.get(item.index, str(item.index))
            found[(item.destination, device)] = Route(item.destination, device, item.source)
    return found


class Routes:
    """Changes routes through pyroute2. `wrote` is called once for each request that changes something."""

    def __init__(self, wrote: Callable[[], None]) -> None:
        self._wrote = wrote

    def put(self, route: Route) -> None:
        """Create or change a route of ours. Raises HostFailed if someone else has one to that destination."""
        arguments = _arguments(route, _index(route))
        with request() as ip:
            try:
                try:
                    ip.route("add", **arguments)
                except netlink_error() as error:
                    # Replacing would take over a route of others, so that is done to our own only.
                    if error.code != errno.EEXIST or not self._is_ours(route):
                        raise
                    ip.route("replace", **arguments)
            except netlink_error() as error:
                if error.code == errno.EEXIST:
                    remedy = f"Remove it (ip route del {route.destination}), or choose other addresses."
                    what = f"the host has another route to {route.destination} already"
                else:
                    remedy = f"See whether {route.device} is up and {route.source or 'the source'} is the host's own."
                    what = f"cannot set a route to {route.destination} through {route.device}: {error}"
                raise HostFailed(what, remedy=remedy, details={"errno": error.code}) from error
        self._wrote()

    def remove(self, route: Route) -> None:
        """Remove a route of ours; one that is not there is no error."""
        index = _index(route)
        if not index:
            return  # it went with its device
        arguments = _arguments(route, index)
        arguments.pop("prefsrc", None)
        with request() as ip:
            try:
                ip.route("del", **arguments)  # the kernel compares the protocol, so none but ours is meant
            except netlink_error() as error:
                if error.code != errno.ESRCH:
                    raise
                return  # the kernel dropped it when its device went down
        self._wrote()

    @staticmethod
    def _is_ours(route: Route) -> bool:
        with Reader() as reader:
            links = {link.name: link for link in reader.links()}
            return (route.destination, route.device) in read_routes(reader, links)


def _index(route: Route) -> int:
    try:
        return socket.if_nametoindex(route.device)
    except OSError:
        return 0


def _arguments(route: Route, index: int) -> Dict[str, Any]:
    if not index:
        raise HostFailed(
            f"device {route.device} of the route to {route.destination} is not there",
            remedy=f"Create {route.device}, or remove the endpoint that is attached to it.",
        )
    family = rtnl.family_of(route.destination)
    arguments: Dict[str, Any] = {"dst": route.destination, "oif": index, "proto": PROTOCOL, "family": family}
    if ":" in route.destination:
        arguments["priority"] = _METRIC
    else:
        arguments["scope"] = _SCOPE_LINK
    if route.source is not None:
        arguments["prefsrc"] = route.source
    return arguments

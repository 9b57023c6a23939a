"""Routes of ours on the host, known by their protocol number; all others are left alone."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import replace
from typing import Callable, Dict, Mapping, Tuple

from bpfleet.errors import HostFailed
from bpfleet.loader import requests
from bpfleet.loader.requests import Message, Requests
from bpfleet.loader.rtnl import Link, Reader
from bpfleet.model.state import Route

PROTOCOL = 191
"""In the range left to routing daemons (linux/rtnetlink.h, RTPROT_*), used by none that is registered there."""

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
    """Changes routes. `wrote` is called once for each request that changes something."""

    def __init__(self, wrote: Callable[[], None]) -> None:
        self._wrote = wrote

    def put(self, route: Route) -> None:
        """Create or change a route of ours. Raises HostFailed if someone else has one to that destination."""
        index = _index(route)
        if not index:
            raise HostFailed(
                f"device {route.device} of the route to {route.destination} is not there",
                remedy=f"Create {route.device}, or remove the endpoint that is attached to it.",
            )
        with Requests() as host:
            code = _answer(host, _message(route, index, requests.ADD))
            # Replacing would take over a route of others, so that is done to our own only.
            if code == errno.EEXIST and self._is_ours(route):
                code = _answer(host, _message(route, index, requests.REPLACE))
        if code == errno.EEXIST:
            raise HostFailed(
                f"the host has another route to {route.destination} already",
                remedy=f"Remove it (ip route del {route.destination}), or choose other addresses.",
                details={"errno": code},
            )
        if code:
            raise HostFailed(
                f"cannot set a route to {route.destination} through {route.device}: {os.strerror(code)}",
                remedy=f"See whether {route.device} is up and {route.source or 'the source'} is the host's own.",
                details={"errno": code},
            )
        self._wrote()

    def remove(self, route: Route) -> None:
        """Remove a route of ours; one that is not there is no error."""
        index = _index(route)
        if not index:
            return  # it went with its device
        with Requests() as host:
            # The kernel compares the protocol, so none but ours is meant.
            code = _answer(host, _message(replace(route, source=None), index, requests.DELETE))
        if code == errno.ESRCH:
            return  # the kernel dropped it when its device went down
        requests.check(code)
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


def _message(route: Route, index: int, verb: Tuple[int, int]) -> Message:
    metric = _METRIC if ":" in route.destination else None
    return requests.link_route(verb, index, route.destination, route.source, PROTOCOL, metric)


def _answer(host: Requests, message: Message) -> int:
    return host.exchange(message)[1][0]

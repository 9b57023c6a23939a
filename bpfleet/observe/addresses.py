"""Addresses as questions name them: one form for each that a packet can have, and an error for what none has. Pure."""

from __future__ import annotations

import ipaddress
from typing import Optional, Union

from bpfleet.errors import InvalidInput

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]


def as_address(text: str, field: str) -> Optional[Address]:
    """The address that a text is, however it is written; None if it is none. InvalidInput for one of no packet."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    _check(address, text, field)
    return address


def as_network(text: str, field: str) -> Optional[Network]:
    """The same of a CIDR; an address is a network of one."""
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
    _check(network.network_address, text, field)
    return network


def _check(address: Address, text: str, field: str) -> None:
    if address.version == 4:
        return
    if "%" in text:
        raise InvalidInput(f"{text} has a zone, which no packet carries", field=field, remedy="Leave the zone out.")
    if address.ipv4_mapped is not None:
        raise InvalidInput(
            f"{text} is the IPv4 address {address.ipv4_mapped} written as IPv6: no packet passes with it, and what is "
            "IPv4 is shown as such",
            field=field,
            remedy=f"Write it as IPv4, {address.ipv4_mapped}.",
        )

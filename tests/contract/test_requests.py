"""What our own netlink requests make is what pyroute2, which shares no line with them, reads back."""

from __future__ import annotations

from typing import Any, Dict, List, Set, Tuple

from pyroute2 import IPRoute

from bpfleet.loader.rtnl import inside
from bpfleet.model.state import TUNNEL_DEVICE
from tests.contract.rigs import RealRig
from tests.contract.states import TWO, veth
from tests.contract.test_kernel import bring

MAIN = 254


def read(name: str, namespace: str | None = None) -> Tuple[Any, List[Any], Set[Tuple[str, str]], List[Any]]:
    """A device, its addresses, its permanent neighbours and its routes in the main table, by pyroute2."""
    with inside(namespace), IPRoute() as ip:
        (index,) = ip.link_lookup(ifname=name)
        (link,) = ip.get_links(index)
        addresses = [one for one in ip.get_addr() if one["index"] == index]
        neighbours = {
            (one.get_attr("NDA_DST"), one.get_attr("NDA_LLADDR"))
            for one in ip.get_neighbours()
            if one["ifindex"] == index and one["state"] & 0x80
        }
        routes = [one for one in ip.get_routes() if one.get_attr("RTA_OIF") == index and one["table"] == MAIN]
    return link, addresses, neighbours, routes


def info(link: Any) -> Dict[str, Any]:
    described = link.get_attr("IFLA_LINKINFO")
    return {"kind": described.get_attr("IFLA_INFO_KIND"), "data": described.get_attr("IFLA_INFO_DATA")}


def facts(link: Any) -> Tuple[str, int, bool]:
    return link.get_attr("IFLA_ADDRESS"), link.get_attr("IFLA_MTU"), bool(link["flags"] & 1)


def test_a_veth_and_the_routes_to_it(real_rig: RealRig) -> None:
    bring(real_rig.kernel, TWO)
    wanted = veth(1)
    link, _, neighbours, routes = real_rig.sandbox.run(read, wanted.name)
    assert info(link)["kind"] == "veth" and facts(link) == (wanted.mac, wanted.mtu, True)
    assert neighbours == {(address, wanted.peer_mac) for address in wanted.peer_addresses}
    ours = {(one.get_attr("RTA_DST"), one["dst_len"]) for one in routes if one["proto"] == 191}
    assert ours == {(r.destination.split("/")[0], int(r.destination.split("/")[1]))
                    for r in TWO.routes.values() if r.device == wanted.name}  # fmt: skip


def test_the_inside_of_a_namespace(real_rig: RealRig) -> None:
    bring(real_rig.kernel, TWO)
    wanted = veth(1)
    link, addresses, neighbours, routes = real_rig.sandbox.run(read, wanted.peer_name, wanted.netns)
    assert info(link)["kind"] == "veth" and facts(link) == (wanted.peer_mac, wanted.mtu, True)
    assert {one.get_attr("IFA_ADDRESS") for one in addresses} == set(wanted.peer_addresses)
    assert {one["prefixlen"] for one in addresses} == {32, 128}
    assert neighbours == {(gateway, wanted.mac) for gateway in wanted.gateways}
    assert {one.get_attr("RTA_GATEWAY") for one in routes if not one["dst_len"]} == set(wanted.gateways)


def test_the_tunnel_device(real_rig: RealRig) -> None:
    bring(real_rig.kernel, TWO)
    wanted: Any = TWO.devices[TUNNEL_DEVICE]
    link, *_ = real_rig.sandbox.run(read, TUNNEL_DEVICE)
    found = info(link)
    assert found["kind"] == "vxlan" and facts(link) == (wanted.mac, wanted.mtu, True)
    assert found["data"].get_attr("IFLA_VXLAN_COLLECT_METADATA") == 1
    assert found["data"].get_attr("IFLA_VXLAN_PORT") == wanted.port
    assert found["data"].get_attr("IFLA_VXLAN_PORT_RANGE") == {"low": 665, "high": 1023}
    assert not found["data"].get_attr("IFLA_VXLAN_LEARNING") and link["flags"] & 0x80, "resolves no neighbours"

"""The lab's network: a bridge in a namespace of its own, which is also the world outside the hosts.

    machine's own namespace            the switch                              host h1
    bpfleet-lab77 (.254) ---veth--- controller --+
                                               br0 (.253, the hosts' default gateway)
                                        h1 ------+---veth--- eth0 (.1)

The switch forwards nothing; it answers on 198.51.100.1 and 2001:db8:100::1 and routes each host's workload CIDRs
to that host, so that it can play the part of the world in tests.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bpfleet.errors import HostFailed
from bpfleet.lab import machine, state
from bpfleet.lab.plan import UNDERLAY_DEVICE, WORLD_ADDRESSES, HostPlan, LabPlan, link_alias

BRIDGE = "br0"
CONTROLLER_PORT = "controller"
# No duplicate address detection (addresses must answer at once), no forwarding, IPv6 on whatever the machine says.
SYSCTLS = {
    "net/ipv6/conf/all/disable_ipv6": "0",
    "net/ipv6/conf/default/disable_ipv6": "0",
    "net/ipv6/conf/all/accept_dad": "0",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/all/accept_ra": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv4/ip_forward": "0",
    "net/ipv6/conf/all/forwarding": "0",
}


def switch_path(name: str) -> Path:
    """The file that the switch's network namespace is bound to."""
    return state.folder(name) / "switch"


def machine_routes() -> list[str]:
    """Every prefix that this machine routes, as CIDRs, but for default routes."""
    routes: list[str] = []
    for family in ("-4", "-6"):
        for route in json.loads(machine.run(["ip", "-j", family, "route", "show", "table", "all"]) or "[]"):
            if route.get("dst", "default") != "default" and route.get("type") != "multicast":
                routes.append(route["dst"])
    return [route for route in routes if not route.startswith(("ff00::", "fe80::"))]


def build_switch(plan: LabPlan, keep: Sequence[int]) -> None:
    """Make the switch and the controller's link to it."""
    switch = switch_path(plan.name)
    switch.touch()
    machine.run(["unshare", f"--net={switch}", "true"], keep=keep)
    settings = "".join(f"echo {value} > /proc/sys/{key}\n" for key, value in SYSCTLS.items())
    machine.run(["sh", "-e"], input=settings, netns=switch, keep=keep)
    mtu = plan.shape.mtu
    gateway, gateway6 = plan.gateway_addresses
    lines = [
        "link set lo up",
        f"link add {BRIDGE} mtu {mtu} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
        f"link set {BRIDGE} up",
        f"address add {gateway}/24 dev {BRIDGE}",
        f"address add {gateway6}/64 dev {BRIDGE} nodad",
        *(f"address add {address} dev lo" for address in WORLD_ADDRESSES),
    ]
    for host in plan.hosts:
        for cidr, via in zip(host.workload_cidrs, (host.address, host.address6)):
            lines.append(f"route add {cidr} via {via} dev {BRIDGE}")
    machine.run(["ip", "-batch", "-"], input="\n".join(lines), netns=switch, keep=keep)
    _link_controller(plan, keep)


def _link_controller(plan: LabPlan, keep: Sequence[int]) -> None:
    switch = switch_path(plan.name)
    mtu = plan.shape.mtu
    machine.run(
        _cable(plan.link, CONTROLLER_PORT, mtu, switch),
        keep=keep,
    )
    machine.run(["ip", "link", "set", plan.link, "alias", plan.alias], keep=keep)
    machine.run(["ip", "link", "set", CONTROLLER_PORT, "master", BRIDGE, "up"], netns=switch, keep=keep)
    address, address6 = plan.controller_addresses
    lines = [f"address add {address}/24 dev {plan.link}", f"link set {plan.link} up"]
    if Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").exists():
        Path(f"/proc/sys/net/ipv6/conf/{plan.link}/disable_ipv6").write_text("0")
        lines.append(f"address add {address6}/64 dev {plan.link} nodad")
    machine.run(["ip", "-batch", "-"], input="\n".join(lines), keep=keep)


def host_commands(plan: LabPlan, host: HostPlan) -> list[list[str]]:
    """What a host runs in its own fresh network namespace to get its underlay device."""
    switch = switch_path(plan.name)
    gateway, gateway6 = plan.gateway_addresses
    return [
        ["ip", "link", "set", "lo", "up"],
        _cable(UNDERLAY_DEVICE, host.name, plan.shape.mtu, switch),
        ["nsenter", f"--net={switch}", "--", "ip", "link", "set", host.name, "master", BRIDGE, "up"],
        ["ip", "link", "set", UNDERLAY_DEVICE, "address", host.mac],
        ["ip", "address", "add", f"{host.address}/24", "dev", UNDERLAY_DEVICE],
        ["ip", "address", "add", f"{host.address6}/64", "dev", UNDERLAY_DEVICE, "nodad"],
        ["ip", "link", "set", UNDERLAY_DEVICE, "up"],
        ["ip", "route", "add", "default", "via", gateway],
        ["ip", "-6", "route", "add", "default", "via", gateway6],
    ]


def _cable(here: str, port: str, mtu: int, switch: Path) -> list[str]:
    """The command that makes a veth pair from the caller's network namespace to the switch."""
    peer = ["peer", "name", port, "mtu", str(mtu), "netns", str(switch)]
    return ["ip", "link", "add", here, "mtu", str(mtu), "type", "veth", *peer]


def unplug(name: str, host: str, keep: Sequence[int]) -> None:
    """Remove a host's cable at the switch's end, which removes both ends."""
    switch = switch_path(name)
    if host not in _links(switch):
        return
    try:
        machine.run(["ip", "link", "delete", host], netns=switch, keep=keep)
    except HostFailed:  # the kernel takes both ends away by itself when it gets to the host's dead namespace
        if host in _links(switch):
            raise


def remove(name: str, keep: Sequence[int]) -> None:
    """Remove the controller's link, found by its alias or by the recorded number, and the switch."""
    record = state.read(name)
    recorded = record.plan.link if record else None
    for link, alias in _links(None).items():
        # Between its creation and its alias a recorded link has no alias; one with another's is another's.
        if alias == link_alias(name) or (link == recorded and alias is None):
            machine.run(["ip", "link", "delete", link], keep=keep)
    switch = switch_path(name)
    if is_mounted(switch):
        machine.run(["umount", "--lazy", str(switch)], keep=keep)


def is_mounted(path: Path) -> bool:
    """Whether something is mounted on exactly this path."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return any(line.split()[1] == str(path) for line in mounts)


def _links(netns: Path | None) -> dict[str, str | None]:
    """Device -> alias, in a network namespace."""
    try:
        links = json.loads(machine.run(["ip", "-j", "link", "show"], netns=netns) or "[]")
    except ValueError as broken:
        raise HostFailed(
            "`ip -j link show` did not print JSON", remedy="Check iproute2's version (6.1 works)"
        ) from broken
    return {link["ifname"]: link.get("ifalias") for link in links}

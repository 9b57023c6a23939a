"""What a preview refuses without asking a host: resources at odds with each other, and more than the limits hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.pulumi_stack import Stack, cli_folder, cluster, inside

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1DTUbUmBbVMPBv3PqAUQYX6kEBSKyP5tHYFGoQYKRJ"


def host(index: int, **changes: Any) -> dict[str, Any]:
    """A node that nobody can reach: 192.0.2.0/24 is nobody's (RFC 5737)."""
    properties = {
        "address": f"192.0.2.{index}",
        "devices": [{"name": "eth0"}],
        "workloadCidrs": [f"10.77.{index}.0/24"],
        "ssh": {"hostKey": HOST_KEY},
        **changes,
    }
    return {"type": "bpfleet:Node", "properties": properties}


def endpoint(address: str, netns: str, on: str = "h1", **changes: Any) -> dict[str, Any]:
    spec = {"node": on, "identity": "web", "addresses": [address], "attach": {"netns": netns}, **changes}
    return inside("Endpoint", spec)


def service(*frontends: str, **changes: Any) -> dict[str, Any]:
    listed = [{"address": address, "port": 80} for address in frontends]
    return inside("Service", {"frontends": listed, "backends": [{"labels": {"role": "web"}}], **changes})


def fleet(**changes: Any) -> dict[str, dict[str, Any]]:
    """Two nodes, one endpoint on each, all of it good."""
    return {
        "h1": host(1),
        "h2": host(2),
        "fleet": cluster("h1", "h2", **changes),
        "web": inside("Identity", {"labels": {"role": "web"}}),
        "web-1": endpoint("10.77.1.10", "w1"),
        "web-2": endpoint("10.77.2.10", "w1", "h2"),
        "shop": service("10.96.0.1"),
        "policy": inside("Policy", {"selector": {"role": "web"}, "ingress": [{"ports": [{"port": 80}]}]}),
    }


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    return Stack(tmp_path_factory.mktemp("stack") / "stack", cli_folder())


CONTRADICTIONS: dict[str, tuple[dict[str, dict[str, Any]], list[str]]] = {
    "two endpoints of one address": (
        {"twin": endpoint("10.77.1.10", "w2")},
        [r"endpoint/(twin|web-1), field addresses: .*10.77.1.10 is already an address of endpoint/"],
    ),
    "two endpoints in one namespace": (
        {"twin": endpoint("10.77.1.11", "w1")},
        [r"endpoint/(twin|web-1), field attach: .*is attached where endpoint/(twin|web-1) is: netns w1 on h1"],
    ),
    "an address outside the node's networks": (
        {"lost": endpoint("10.77.2.11", "w2")},
        [r"endpoint/lost, field addresses: 10.77.2.11 is outside the workload CIDRs of node/h1"],
    ),
    "two services of one frontend": (
        {"shop-2": service("10.96.0.1")},
        [r"service/shop.*, field frontends: .*10.96.0.1:80/tcp is already a frontend of service/shop"],
    ),
    "a frontend that is a node's address": (
        {"shop-2": service("192.0.2.2")},
        [r"service/shop-2, field frontends: 192.0.2.2 is an address of node/h2"],
    ),
    "a frontend that is an endpoint's address": (
        {"shop-2": service("10.77.1.10")},
        [r"(service/shop-2, field frontends|endpoint/web-1): .*10.77.1.10 is an address of endpoint/web-1"],
    ),
    "a service behind a service": (
        {"shop-2": service("10.96.0.2", backends=[{"address": "10.96.0.1"}])},
        [r"field backends: .*10.96.0.1 is an address of service/shop: a service is no backend"],
    ),
    "two identities of the same labels": (
        {"web-twin": inside("Identity", {"labels": {"role": "web"}})},
        [r"identity/web(-twin)?, field labels: .*has the same labels as identity/web"],
    ),
    "nodes with one network": (
        {"h2": host(2, workloadCidrs=["10.77.1.128/25", "10.77.2.0/24"])},
        [r"'fleet'|about fleet", r"node/h2, field workloadCidrs: 10.77.1.128/25 overlaps 10.77.1.0/24 of node/h1"],
    ),
    "a blocked member": (
        {"fleet": cluster("h1", "h2", blockedCidrs=["192.0.2.2/32"])},
        [r"cluster/fleet, field blockedCidrs: .*192.0.2.2, the address of member h2"],
    ),
    "a node of two clusters": (
        {"other": cluster("h2", id=8)},
        [r"cluster/(other|fleet), field members.h2: .*belongs to cluster/(other|fleet) as well"],
    ),
}  # fmt: skip
"""Resources beside those of `fleet`, and what is said of them: of the one that the engine comes to last."""


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_preview_refuses_resources_at_odds(stack: Stack, name: str) -> None:
    added, patterns = CONTRADICTIONS[name]
    stack.resources = {**fleet(), **added}
    run = stack.preview(ok=False)
    told = "\n".join(f"about {about}: {text}" for about, severity, text in run.messages if severity == "error")
    for pattern in patterns:
        assert re.search(pattern, told), told


def secret(value: Any) -> dict[str, Any]:
    return {"fn::secret": value}


SECRETS: dict[str, tuple[dict[str, dict[str, Any]], str, str]] = {
    "an address": (
        {"lost": endpoint("10.77.2.11", "w2", addresses=[secret("10.77.2.11")])},
        "10.77.2.11",
        r"endpoint/lost, field addresses: \[secret\] is outside the workload CIDRs of node/h1",
    ),
    "a node's network, told of the cluster": (
        {"h2": host(2, workloadCidrs=[secret("10.77.1.128/25"), "10.77.2.0/24"])},
        "10.77.1.128/25",
        r"property name value .* node/h2, field workloadCidrs: \[secret\] overlaps 10.77.1.0/24 of node/h1",
    ),
    "a label, which the engine would print": (
        {"zz-twin": inside("Identity", {"labels": {"role": "web", "hidden": secret("zebra")}}),
         "zz-other": inside("Identity", {"labels": {"role": "web", "hidden": secret("zebra")}})},
        "zebra",
        r"property labels \(secret\) value .* field labels: .*has the same labels as identity/zz-",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SECRETS)
def test_what_is_refused_tells_no_secret(stack: Stack, name: str) -> None:
    added, hidden, pattern = SECRETS[name]
    stack.resources = {**fleet(), **added}
    errors = stack.preview(ok=False).all_errors
    assert re.search(pattern, errors), errors
    assert hidden not in errors


def test_a_preview_of_what_is_good_refuses_nothing(stack: Stack) -> None:
    stack.resources = fleet()
    assert set(stack.preview().ops) == set(stack.resources)


PORTS = [{"protocol": "tcp", "port": 1 + number} for number in range(300)]
NETWORKS = [{"cidr": f"198.51.{number}.0/24"} for number in range(17)]
FULL: dict[str, tuple[dict[str, int], dict[str, dict[str, Any]], list[str]]] = {
    "endpoints": (
        {"endpoints": 16},
        {f"many-{n}": endpoint(f"10.77.1.{100 + n}", f"n{n}") for n in range(16)},
        ["node h1", "the map endpoints has room for 16 entries, 17 are needed", "raise limits.endpoints"],
    ),
    "addresses": (
        {"addresses": 256},
        {
            f"many-{n}": endpoint(
                f"10.77.1.{n}", f"n{n}", addresses=[f"10.77.1.{n}", *(f"fd77::{n}:{host:x}" for host in range(1, 52))]
            )
            for n in range(20, 26)
        },
        ["node h1", "the map addresses has room for 256 entries", "raise limits.addresses"],
    ),
    "frontends": (
        {"frontends": 16},
        {f"shop-{n}": service(*(f"10.96.{n}.{host}" for host in range(1, 9))) for n in (1, 2)},
        ["node h1", "the map services has room for 16 entries, 17 are needed", "raise limits.frontends"],
    ),
    "policy entries": (
        {"policyEntries": 256},
        {"wide": inside("Policy", {"selector": {"role": "web"}, "ingress": [{"ports": PORTS}]})},
        ["policy/wide", "identity web has room for 256 entries, 303 are needed", "raise limits.policyEntries"],
    ),
    "cidrs": (
        {"cidrs": 16},
        {"wide": inside("Policy", {"selector": {"role": "web"}, "egress": [{"peers": NETWORKS}]})},
        ["policy/wide", "has room for 16 entries, 17 are needed", "raise limits.cidrs"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FULL)
def test_a_preview_refuses_more_than_the_limits_hold(stack: Stack, name: str) -> None:
    limits, added, said = FULL[name]
    first = {"h1": host(1, workloadCidrs=["10.77.1.0/24", "fd77::/64"])}
    stack.resources = {**fleet(limits=limits), **first, **added}
    run = stack.preview(ok=False)
    for text in said:
        assert text in run.all_errors, run.all_errors
    stack.resources["fleet"] = cluster("h1", "h2", limits=dict.fromkeys(limits, 4096))
    assert set(stack.preview().ops) == set(stack.resources), "the same within the limits"


def test_what_is_not_known_yet_is_not_counted(stack: Stack) -> None:
    """The number of an identity is known only after it was made; what is made of it may be anything."""
    undecided = endpoint("10.77.1.10", "w9", identity="number-${web.number}")
    stack.resources = {**fleet(), "undecided": undecided}
    assert "undecided" in stack.preview().ops


def test_a_stack_without_the_cluster_knows_what_it_declares_itself(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "stack", cli_folder(), "guest")
    handle = {"cluster": "fleet", "seeds": {"h1": {"name": "h1", "address": "192.0.2.1", "ssh": {}}}}

    def guest(kind: str, **properties: Any) -> dict[str, Any]:
        return {"type": f"bpfleet:{kind}", "properties": {"cluster": handle, **properties}}

    listed = {"frontends": [{"address": "10.96.0.1", "port": 80}], "backends": []}
    stack.resources = {
        "shop": guest("Service", **listed),
        **{f"e-{n}": guest("Endpoint", node="h1", identity="web", addresses=[f"10.77.1.{n}"], attach={"netns": f"w{n}"})
           for n in range(1, 20)},
    }  # fmt: skip
    assert set(stack.preview().ops) >= set(stack.resources)
    stack.resources["shop-2"] = guest("Service", **listed)
    run = stack.preview(ok=False)
    assert "10.96.0.1:80/tcp is already a frontend of service/shop" in run.all_errors

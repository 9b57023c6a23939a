"""Addresses by which nobody can be reached are refused where they are declared, with the field's path."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

import pytest

from bpfleet.model.document import problems_of

NODE = {"address": "192.0.2.1", "devices": [{"name": "eth0"}], "workload_cidrs": ["10.1.0.0/24", "fd01::/64"]}
ENDPOINT = {"node": "h1", "identity": "web", "addresses": ["10.1.0.7"], "attach": {"netns": "w1"}}
SPECS: Dict[str, Dict[str, Any]] = {"node": NODE, "endpoint": ENDPOINT}


def problems(kind: str, changed: Dict[str, Any]) -> List[Tuple[str, str]]:
    """Paths, and what is wrong there."""
    found = problems_of({"kind": kind, "name": "one", "spec": {**SPECS[kind], **changed}})
    return [(str(problem.field), str(problem)) for problem in found]


@pytest.mark.parametrize(("port", "paths"), [(68, ["routing.port"]), (547, ["routing.port"]), (8472, [])])
def test_the_tunnel_takes_no_port_of_dhcp(port: int, paths: List[str]) -> None:
    cluster = {"kind": "cluster", "name": "one", "spec": {"id": 1, "members": ["h1"], "routing": {"port": port}}}
    assert [str(problem.field) for problem in problems_of(cluster)] == paths


@pytest.mark.parametrize("kind", SPECS)
def test_good_ones_are_taken(kind: str) -> None:
    assert problems(kind, {}) == []


@pytest.mark.parametrize(
    ("kind", "field", "value", "path", "says"),
    [
        ("node", "address", "127.0.0.1", "address", "a loopback address"),
        ("node", "address", "224.0.0.1", "address", "a multicast address"),
        ("node", "address", "fe80::7", "address", "a link-local address"),
        ("node", "address", "::", "address", "an unspecified address"),
        ("node", "workload_cidrs", ["10.1.0.0/24", "224.0.0.0/24"], "workload_cidrs[1]", "holds a multicast address"),
        ("node", "workload_cidrs", ["0.0.0.0/0"], "workload_cidrs[0]", "holds a loopback address"),
        ("node", "workload_cidrs", ["fe80::/64"], "workload_cidrs[0]", "holds a link-local address"),
        ("endpoint", "addresses", ["10.1.0.7", "224.0.0.5"], "addresses[1]", "a multicast address"),
        ("endpoint", "addresses", ["255.255.255.255"], "addresses[0]", "a broadcast address"),
        # Where it was written, not where it is when sorted.
        ("endpoint", "addresses", ["fd77::7", "FE80:0::7", "10.1.0.7"], "addresses[1]", "a link-local address"),
        ("node", "workload_cidrs", ["224.0.0.0/24", "10.1.0.0/24"], "workload_cidrs[0]", "holds a multicast address"),
        ("endpoint", "addresses", ["169.254.1.1"], "addresses[0]", "a link-local address"),
    ],
)
def test_by_which_nobody_is_reached(kind: str, field: str, value: Any, path: str, says: str) -> None:
    ((at, text),) = problems(kind, {field: value})
    assert at == path
    assert says in text

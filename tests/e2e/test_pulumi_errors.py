"""Bad input, with the real CLI: what is refused, how the error reads, and that the others go on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from bpfleet.lab import Lab
from tests.e2e.pulumi_stack import Stack, cli_folder, cluster, inside, node

pytestmark = [pytest.mark.root, pytest.mark.lab]

OTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1DTUbUmBbVMPBv3PqAUQYX6kEBSKyP5tHYFGoQYKRJ"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, needs_root: None) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("errors")
    with Lab.up(f"pulumi-bad-{os.getpid()}", 3, 2, directory=folder, guarded=True) as up:
        yield up


@pytest.fixture(scope="module")
def stack(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    made = Stack(tmp_path_factory.mktemp("stack") / "stack", cli_folder())
    for name in ("h1", "h2"):
        made.resources[name] = node(lab.host(name), lab.private_key)
    made.resources["fleet"] = cluster("h1", "h2")
    return made


def endpoint(address: str, host: str = "h1", **changes: Any) -> dict[str, Any]:
    attach = {"netns": "w1"}
    return inside("Endpoint", {"node": host, "identity": "web", "addresses": [address], "attach": attach, **changes})


def test_a_preview_refuses_what_the_schema_forbids(tmp_path: Any) -> None:
    stack = Stack(tmp_path / "stack", cli_folder())
    handle = {"cluster": "fleet", "seeds": {"h1": {"name": "h1", "address": "192.0.2.1", "ssh": {}}}}
    bad = {"selector": {}, "cluster": handle, "ingress": [{"ports": [{"port": 80}, {"port": 70000}]}]}
    stack.resources["bad-port"] = {"type": "bpfleet:Policy", "properties": bad}
    run = stack.preview(ok=False)
    assert "ingress[0].ports[1].port" in run.text and "70000 is out of range. Use 1 to 65535." in run.text
    stack.resources = {"unknown": {"type": "bpfleet:Policy", "properties": {**bad, "ingress": [], "ingres": []}}}
    run = stack.preview(ok=False)
    assert "ingres" in run.text and "unknown" in run.text


def test_hosts_that_cannot_be_used_are_named_and_the_others_go_on(lab: Lab, stack: Stack) -> None:
    """Wrong key, changed host key, dead host; and workload CIDRs of two good nodes that overlap."""
    other_key = lab.directory / "other_key"
    if not other_key.exists():
        lab.host("h1").run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/other_key"])
        other_key.write_text(lab.host("h1").run(["cat", "/root/other_key"]).stdout)
        other_key.chmod(0o600)
    third = lab.host("h3")
    good = dict(stack.resources)
    stack.resources["h2"] = node(lab.host("h2"), lab.private_key, workloadCidrs=list(lab.host("h1").workload_cidrs))
    stack.resources["wrong-key"] = node(third, other_key)
    stack.resources["changed"] = node(third, lab.private_key, ssh={"hostKey": OTHER_KEY})
    stack.resources["unknown-host"] = node(third, lab.private_key, ssh={"hostKey": None})
    dead = third.address.rsplit(".", 1)[0] + ".200"
    stack.resources["dead"] = node(third, lab.private_key, address=dead)
    run = stack.up("--continue-on-error", ok=False)
    assert run.ops["h1"] == run.ops["h2"] == "create", "the others go on"
    assert set(stack.state()) & set(stack.resources) == {"h1", "h2"}
    assert "wrong-key" in run.errors("wrong-key") and str(other_key) in run.errors("wrong-key")
    assert "field ssh.hostKey" in run.errors("changed") and third.host_key in run.errors("changed")
    assert "known_hosts" in run.errors("unknown-host")
    assert dead in run.errors("dead") and "not reachable" in run.errors("dead")
    overlap = run.errors("fleet")
    assert "node/h2" in overlap and "field workloadCidrs," in overlap and "overlaps" in overlap and "node/h1" in overlap
    stack.resources = good
    assert stack.up().ops == {"h2": "update", "fleet": "create"}


def test_conflicting_documents_fail_alone(lab: Lab, stack: Stack) -> None:
    one = lab.host("h1").workload_cidrs[0].replace("0/24", "10")
    stack.resources["web"] = inside("Identity", {"labels": {"role": "web"}})
    stack.resources["a"] = endpoint(one)
    stack.resources["b"] = endpoint(one, attach={"netns": "w2"})
    stack.resources["outside"] = endpoint("203.0.113.7", attach={"interface": "tap0"})
    stack.resources["web-twin"] = inside("Identity", {"labels": {"role": "web"}})
    stack.resources["open"] = inside("Policy", {"selector": {"role": "web"}, "egress": [{}]})
    run = stack.up("--continue-on-error", ok=False)
    assert {"web", "a", "open"} <= set(stack.state()), "what is right is applied"
    assert not {"web-twin", "b", "outside"} & set(stack.state())
    for text in ("endpoint/b", "field addresses,", f"{one} is already an address of endpoint/a"):
        assert text in run.errors("b")
    assert "outside the workload CIDRs of node/h1" in run.errors("outside")
    assert "field labels" in run.errors("web-twin") and "same labels as identity/web" in run.errors("web-twin")


def test_two_resources_of_one_name_are_refused(stack: Stack) -> None:
    for name in ("b", "outside", "web-twin"):
        stack.resources.pop(name, None)
    stack.resources["once-more"] = inside("Policy", {"name": "open", "selector": {}, "ingress": []})
    run = stack.up(ok=False)
    assert "policy open is declared twice" in run.text and "Give each its own name" in run.text
    del stack.resources["once-more"]


def test_a_resource_renamed_in_the_program_keeps_its_document(lab: Lab, stack: Stack) -> None:
    stack.resources["renamed"] = inside("Policy", {"name": "open", "selector": {"role": "web"}, "egress": [{}]})
    del stack.resources["open"]
    run = stack.up()
    assert (run.ops["renamed"], run.ops["open"]) == ("create", "delete")
    stack.refresh()
    assert "renamed" in stack.state()


def test_what_failed_did_no_harm(stack: Stack) -> None:
    assert stack.up().ops == {}
    stack.destroy()

"""What docs/hosts.md says of hosts that are replaced, or whose address leads to somebody else's node by now."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfleet.agent.wire import Hello
from bpfleet.lab import Lab
from bpfleet.transport.fleet import Fleet
from tests.e2e.pulumi_stack import Stack, cli_folder, cluster, node
from tests.e2e.test_transport import target_of

pytestmark = [pytest.mark.root, pytest.mark.lab]

KEY = "/etc/ssh/ssh_host_ed25519_key"


@pytest.fixture
def lab(tmp_path: Path, needs_root: None) -> Iterator[Lab]:
    with Lab.up(f"hosts-{os.getpid()}", 2, 0, directory=tmp_path / "lab", guarded=True) as up:
        yield up


def stack_of(lab: Lab, folder: Path, name: str) -> Stack:
    stack = Stack(folder / name, cli_folder(), name)
    for host in lab.hosts.values():
        stack.resources[host.name] = node(host, lab.private_key)
    stack.resources["fleet"] = cluster(*lab.hosts)
    return stack


def hellos(lab: Lab, **keys: str) -> dict[str, Hello]:
    with Fleet() as fleet:
        found = {}
        for name, host in lab.hosts.items():
            found[name] = fleet.install(target_of(lab, host, keys.get(name)))
        return found


def test_a_replaced_host_gets_everything_once_its_new_key_is_declared(lab: Lab, tmp_path: Path) -> None:
    stack = stack_of(lab, tmp_path, "one")
    stack.up()
    # A new machine under the old name and address: nothing of ours on it, and another key.
    host = lab.hosts["h1"]
    host.run(["sh", "-c", f"rm -rf /var/lib/bpfleet {KEY}* && ssh-keygen -q -t ed25519 -N '' -f {KEY}"])
    key = " ".join(host.run(["cat", f"{KEY}.pub"]).stdout.split()[:2])
    lab.reboot("h1")
    run = stack.refresh(ok=False)
    assert key in run.all_errors, "the error tells the key that was seen"
    assert "h1" in stack.state(), "who shows another key is not taken for gone"
    ssh = stack.resources["h1"]["properties"]["ssh"]
    ssh["hostKey"] = key
    run = stack.up()
    assert run.ops == {"h1": "update", "fleet": "update"}
    found = hellos(lab, h1=key)
    assert found["h1"]["cluster"] == "fleet"
    assert found["h1"]["documents_digest"] == found["h2"]["documents_digest"]
    # Emptied, and reached another way: it is still the same host, and not the one that was h1 before.
    host.run(["rm", "-rf", "/var/lib/bpfleet"])
    lab.reboot("h1")
    ssh["host"] = host.address6
    stack.up()
    assert hellos(lab, h1=key)["h1"]["cluster"] == "fleet"
    stack.destroy()


def test_an_emptied_host_that_is_declared_as_before_is_found_by_a_refresh(lab: Lab, tmp_path: Path) -> None:
    stack = stack_of(lab, tmp_path, "one")
    stack.up()
    lab.hosts["h1"].run(["rm", "-rf", "/var/lib/bpfleet"])
    lab.reboot("h1")
    stack.refresh()
    stack.up()
    found = hellos(lab)
    assert found["h1"]["cluster"] == "fleet"
    assert found["h1"]["documents_digest"] == found["h2"]["documents_digest"]
    stack.destroy()


def test_a_host_is_cleared_only_if_its_node_document_is_still_this_one(lab: Lab, tmp_path: Path) -> None:
    one, two = stack_of(lab, tmp_path, "one"), stack_of(lab, tmp_path, "two")
    del one.resources["fleet"]
    one.up()
    for host in lab.hosts.values():
        host.run(["rm", "-rf", "/var/lib/bpfleet"])
        lab.reboot(host.name)
    # Other people set the hosts up anew, under the names that they had.
    two.up()
    before = hellos(lab)
    one.resources.clear()
    run = one.up()
    assert run.ops == {"h1": "delete", "h2": "delete"}
    assert "left as it is" in run.warnings("h1") and "pulumi:e2e/two" in run.warnings("h1")
    found = hellos(lab)
    assert {name: hello["generation"] for name, hello in found.items()} == {
        name: hello["generation"] for name, hello in before.items()
    }
    assert {hello["cluster"] for hello in found.values()} == {"fleet"}
    two.destroy()

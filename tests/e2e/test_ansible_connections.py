"""The connections of a playbook to its hosts: another user with sudo, a jump host, and those that prove nothing."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bpfleet.agent import wire
from bpfleet.lab import Lab
from bpfleet.transport.artefact import current, of_bytes
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.target import Target
from tests.e2e.ansible_play import Controller, tasks
from tools.build_collection import assemble

pytestmark = [pytest.mark.root, pytest.mark.lab]

NEVER_NEW = """
DOCUMENTATION = '''
name: never_new
short_description: ssh without a reset
description: [Ssh without a reset.]
extends_documentation_fragment: [connection_pipelining]
author: nobody
'''
from ansible.plugins.connection import ConnectionBase
from ansible.plugins.connection.local import Connection as Local


class Connection(Local):
    transport = "never_new"
    reset = ConnectionBase.reset
"""


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory, needs_root: None) -> Iterator[Controller]:
    folder = tmp_path_factory.mktemp("connections")
    assemble(folder / "collections")
    with Lab.up(f"ways-{os.getpid()}", 2, 0, directory=folder / "lab", guarded=True) as lab:
        made = Controller(lab, folder / "collections", folder)
        yield made
        made.close()


def inventory(controller: Controller, name: str, **values: Any) -> Path:
    """The lab's inventory, with more said of one host."""
    data = yaml.safe_load(controller.inventory.read_text())
    found = data["all"]["children"]["lab"]["hosts"][name]
    found.update(values)
    found["bpfleet_host_key"] = controller.lab.host(name).host_key
    path = controller.folder / "ways.yml"
    path.write_text(json.dumps(data))
    return path


def documents(controller: Controller, name: str, description: str = "") -> list[dict[str, Any]]:
    host = controller.lab.host(name)
    policy = {"description": description, "selector": {"role": "none"}, "ingress": []}
    return [
        {"kind": "node", "name": name, "spec": host.node_spec},
        {"kind": "cluster", "name": "one", "spec": {"id": 3, "members": [name]}},
        {"kind": "policy", "name": "version", "spec": policy},
    ]


def as_told(controller: Controller, name: str) -> Target:
    """The host as another controller reaches it by what stands beside its document."""
    return Target.from_metadata(name, controller.items(name)[f"node/{name}"]["metadata"]["ssh"])


def test_another_user_with_sudo(controller: Controller) -> None:
    if shutil.which("sudo") is None:
        pytest.skip("sudo is not installed on this machine, and so on no lab host")
    host = controller.lab.host("h1")
    script = (
        "useradd -m -p '*' op && mkdir ~op/.ssh && cp /root/.ssh/authorized_keys ~op/.ssh/ && chown -R op: ~op/.ssh && "
        "echo 'op ALL=(root) NOPASSWD: ALL' >/etc/sudoers.d/op && chmod 440 /etc/sudoers.d/op"
    )
    host.run(["sh", "-c", script])
    where = inventory(controller, "h1", ansible_user="op", ansible_become=True)
    play = tasks(("documents", {"documents": documents(controller, "h1")}))
    played = controller.play(play, "--limit", "h1", inventory=where).of("documents")["h1"]
    assert played.changed and played.result["generation"] == 1
    logins = host.run(["grep", "Accepted publickey", "/var/log/sshd.log"]).stdout.splitlines()
    assert sum(" for op " in line for line in logins) == 2, "the change, and its confirmation over a new connection"
    assert not controller.play(play, "--limit", "h1", inventory=where).changed
    told = as_told(controller, "h1")
    assert (told.user, told.sudo) == ("op", True)
    with Fleet() as fleet:
        assert fleet.call(told, "hello")["generation"] == 1


def test_without_sudo_another_user_changes_nothing(controller: Controller) -> None:
    where = inventory(controller, "h1", ansible_user="op")
    play = tasks(("documents", {"documents": documents(controller, "h1", "by op")}))
    refused = controller.play(play, "--limit", "h1", inventory=where, ok=False).of("documents")["h1"]
    assert refused.outcome == "failed" and refused.result["error"]["remedy"], refused.message
    assert controller.hellos()["h1"]["generation"] == 1


def test_a_jump_host(controller: Controller) -> None:
    gate, host = controller.lab.host("h1"), controller.lab.host("h2")
    gate.run(["sh", "-c", "echo 'AllowTcpForwarding yes' >>/etc/ssh/sshd_config && kill -HUP $(cat /run/sshd.pid)"])
    # ssh gives the jump host none of the arguments that it has for the host itself: they stand in its configuration.
    (controller.folder / "ssh_config").write_text(
        f"Host {gate.address}\n  User root\n  IdentityFile {controller.lab.private_key}\n"
        "  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n"
    )
    arguments = f"-F {controller.folder}/ssh_config -J root@{gate.address}"
    data = yaml.safe_load(controller.inventory.read_text())
    usual = {**data["all"].get("vars", {}), **data["all"]["children"]["lab"].get("vars", {})}
    arguments = f"{usual.get('ansible_ssh_common_args', '')} {arguments}"
    where = inventory(controller, "h2", ansible_ssh_common_args=arguments)
    play = tasks(("documents", {"documents": documents(controller, "h2")}))
    logins = ["grep", "Accepted publickey", "/var/log/sshd.log"]
    before = len(host.run(logins).stdout.splitlines())
    played = controller.play(play, "--limit", "h2", inventory=where).of("documents")["h2"]
    assert played.changed and played.result["generation"] == 1
    lines = host.run(logins).stdout.splitlines()[before:]
    assert len(lines) == 2 and all(f"from {gate.address} " in line for line in lines)
    jump = as_told(controller, "h2").jump
    assert jump is not None and (jump.host, jump.user) == (gate.address, "root")


@pytest.mark.parametrize("connection", ["local", "never_new"])
def test_a_connection_that_cannot_be_renewed_changes_nothing(controller: Controller, connection: str) -> None:
    plugins = controller.folder / "connection_plugins"
    plugins.mkdir(exist_ok=True)
    (plugins / "never_new.py").write_text(NEVER_NEW)
    before = controller.hellos()
    arguments = {"documents": documents(controller, "h1", connection)}
    played = controller.play(
        tasks(("documents", arguments), connection=connection),
        "--limit",
        "h1",
        ok=False,
        environment={"ANSIBLE_CONNECTION_PLUGINS": str(plugins)},
        ansible_connection=connection,
    ).of("documents")["h1"]
    assert f"connection {connection} cannot be renewed" in played.message
    assert played.result["error"]["where"]["field"] == "ansible_connection"
    assert controller.hellos() == before
    assert not Path(wire.STATE_ROOT, "agent", current().digest).exists(), "nor this machine"


def test_the_upgrade_of_an_agent_shows_in_a_check(controller: Controller, tmp_path: Path) -> None:
    """Its version and digest, in the diff and as data; done once."""
    controller.play(tasks(("documents", {"documents": documents(controller, "h2")})), "--limit", "h2")
    older = tmp_path / "older.pyz"
    older.write_bytes(current().data)
    with zipfile.ZipFile(older, "a") as archive:
        archive.writestr("older", "")
    artefact = of_bytes(older.read_bytes())
    with Fleet(artefact=artefact) as fleet:
        assert fleet.install(controller.target("h2"))["artefact"] == artefact.digest
    newest = f"touch -d '+1 hour' {wire.STATE_ROOT}/agent/{artefact.digest}"
    controller.lab.host("h2").run(["sh", "-c", f"rm -r {wire.STATE_ROOT}/agent/{current().digest} && {newest}"])
    play = tasks(("agent", {}), ("documents", {"documents": documents(controller, "h2")}))
    checked = controller.play(play, "--limit", "h2", "--check", "--diff")
    for action in ("agent", "documents"):
        result = checked.of(action)["h2"]
        assert result.changed
        assert result.result["agent"]["digest"] == current().digest
        assert result.result["agent"]["before"]["digest"] == artefact.digest
        (part,) = [part for part in result.result["diff"] if part.get("before_header") == "agent"]
        assert f"digest: {artefact.digest}" in part["before"] and f"digest: {current().digest}" in part["after"]
        assert "version: " in part["before"]
    assert checked.of("documents")["h2"].result["put"] == []
    assert {result.task for result in controller.play(play, "--limit", "h2").results if result.changed} == {
        "bpfleet.fleet.agent"
    }
    assert not controller.play(play, "--limit", "h2").changed

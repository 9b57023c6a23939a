"""How the inventory reaches a host, as what is kept beside its node's document."""

from __future__ import annotations

from typing import Any

import pytest

from bpfleet.transport.target import Jump, Target
from tests.unit.collection import module

reachability = module("reachability")


def ssh(given: dict[str, Any], *, become: bool = False, user: str | None = None, **others: Any) -> dict[str, Any]:
    found: dict[str, Any] = reachability.inventory_ssh({"h1": given, **others}, "h1", become=become, user=user)
    return found


def test_what_the_inventory_says_is_carried_and_understood() -> None:
    given = {
        "ansible_host": "192.0.2.1",
        "ansible_port": "2222",
        "ansible_user": "op",
        "ansible_become": "yes",
        "ansible_ssh_private_key_file": "/keys/op",
        "bpfleet_host_key": "ssh-ed25519 AAAA",
        "ansible_ssh_common_args": "-o BatchMode=yes -J gate@192.0.2.9:2200",
    }
    assert Target.from_metadata("h1", ssh(given)) == Target(
        "h1", "192.0.2.1", 2222, "op", "/keys/op", "ssh-ed25519 AAAA", sudo=True, jump=Jump("192.0.2.9", 2200, "gate")
    )


def test_a_host_that_the_inventory_does_not_have() -> None:
    assert reachability.inventory_ssh({}, "h1", become=True, user="op") == {}


@pytest.mark.parametrize(
    ("given", "become", "user", "expected"),
    [
        ({}, True, None, ("root", False)),
        ({}, True, "op", ("op", True)),
        ({"ansible_user": "op"}, False, None, ("op", False)),
        ({"ansible_user": "op", "ansible_become": True}, False, None, ("op", True)),
        ({"ansible_user": "op", "ansible_become": "false"}, True, None, ("op", False)),
        ({"ansible_user": "op", "ansible_become_method": "su"}, True, None, ("op", False)),
        ({"ansible_user": "root"}, True, "op", ("root", False)),
    ],
)
def test_sudo_is_that_of_the_inventory_before_that_of_the_task(
    given: dict[str, Any], become: bool, user: str | None, expected: tuple[str, bool]
) -> None:
    found = ssh(given, become=become, user=user)
    assert (found["user"], found.get("sudo", False)) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("-J gate", ("gate", 22, "root")),
        ("-Jop@gate:2200", ("gate", 2200, "op")),
        ("-o ProxyJump=op@gate", ("gate", 22, "op")),
        ("-oProxyJump=gate", ("gate", 22, "root")),
        ("-o 'proxyjump gate'", ("gate", 22, "root")),
        ("-J ssh://op@[2001:db8::1]:2200", ("2001:db8::1", 2200, "op")),
        ("-J 2001:db8::1", ("2001:db8::1", 22, "root")),
        ("-J one -J two", ("one", 22, "root")),  # ssh takes the first
    ],
)
def test_the_jump_host(arguments: str, expected: tuple[str, int, str]) -> None:
    jump = ssh({"ansible_ssh_common_args": arguments})["jump"]
    assert (jump["host"], jump["port"], jump["user"]) == expected


@pytest.mark.parametrize("arguments", ["", "-o ProxyJump=none", "-J one,two", "-o ProxyCommand='ssh -W %h:%p gate'"])
def test_what_a_nodes_ssh_cannot_say_is_not_carried(arguments: str) -> None:
    assert "jump" not in ssh({"ansible_ssh_common_args": arguments})


def test_a_jump_host_of_the_inventory_is_reached_as_the_inventory_says() -> None:
    gate = {"ansible_host": "192.0.2.9", "ansible_user": "gate", "bpfleet_host_key": "ssh-ed25519 BBBB"}
    jump = ssh({"ansible_ssh_common_args": "-J gate"}, gate=gate)["jump"]
    assert jump == {"host": "192.0.2.9", "port": 22, "user": "gate", "host_key": "ssh-ed25519 BBBB"}

# Copyright (c) bpfleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the inventory reaches a host, as the `ssh` beside its node's document, so that other controllers can learn it.

Carried are address, port, user, key file, `bpfleet_host_key`, sudo, and one jump host. What only ssh itself knows, from
its own configuration or a ProxyCommand, is not: say it in the node's `ssh`.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean

_ARGUMENTS = ("ansible_ssh_common_args", "ansible_ssh_extra_args", "ansible_ssh_args")


def inventory_ssh(
    hostvars: Mapping[str, Mapping[str, Any]], name: str, *, become: bool, user: str | None
) -> dict[str, Any]:
    """A host's `ssh`; empty if the inventory does not have it. become, user: what the task says for all hosts."""
    if name not in hostvars:
        return {}
    given = hostvars[name]
    ssh = {"port": 22, "user": user or "root", **_login(given)}
    wanted = boolean(given["ansible_become"], strict=False) if "ansible_become" in given else become
    if ssh["user"] != "root" and wanted and given.get("ansible_become_method", "sudo") == "sudo":
        ssh["sudo"] = True
    jump = _jump(hostvars, given)
    return {**ssh, "jump": jump} if jump else ssh


def _login(given: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        "host": given.get("ansible_host") or given.get("ansible_ssh_host"),
        "port": given.get("ansible_port") or given.get("ansible_ssh_port"),
        "user": given.get("ansible_user") or given.get("ansible_ssh_user"),
        "private_key_file": given.get("ansible_ssh_private_key_file") or given.get("ansible_private_key_file"),
        "host_key": given.get("bpfleet_host_key"),
    }
    return {key: int(value) if key == "port" else str(value) for key, value in found.items() if value}


def _jump(hostvars: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any]) -> dict[str, Any]:
    """The jump host that ssh is told of; empty if none, or if there are several: a node's `ssh` has one."""
    told = next((jump for name in _ARGUMENTS for jump in _jumps(shlex.split(str(given.get(name) or "")))), "none")
    if told.lower() == "none" or "," in told:
        return {}
    user, _at, place = told.removeprefix("ssh://").rpartition("@")
    host, port = _place(place)
    jump = {"host": host, **(_login(hostvars[host]) if host in hostvars else {})}
    if user:
        jump["user"] = user
    if port:
        jump["port"] = port
    return {"port": 22, "user": "root", **jump}


def _jumps(arguments: Sequence[str]) -> Iterator[str]:
    """The values of -J and of -o ProxyJump, in the order in which ssh takes the first."""
    for argument, following in itertools.pairwise([*arguments, ""]):
        if argument.startswith("-J"):
            yield argument[2:] or following
        elif argument.startswith("-o"):
            key, _sign, value = (argument[2:] or following).strip().replace("=", " ", 1).partition(" ")
            if key.lower() == "proxyjump":
                yield value.strip()


def _place(text: str) -> tuple[str, int]:
    """host, host:port, [address]:port or an IPv6 address; port 0 if there is none."""
    if text.startswith("["):
        host, _bracket, rest = text[1:].partition("]")
        return host, int(rest.removeprefix(":") or 0)
    if text.count(":") == 1:
        host, _colon, port = text.partition(":")
        return host, int(port)
    return text, 0

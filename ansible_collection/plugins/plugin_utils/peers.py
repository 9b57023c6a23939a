# Copyright (c) bpfleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Other hosts of the inventory, from within one host's task.

Identity numbers are the cluster's, not a host's: before new ones are allocated, the members are asked which are in use,
and one of them takes them first.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from ansible.errors import AnsibleError
from ansible.utils.display import Display
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.action import AgentAction
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.deciding import There
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.transaction import Held, read
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.vendored.bpfleet.errors import BpfleetError

_AT_ONCE = 8
_KINDS = ("cluster", "identity")


def survey(action: AgentAction, members: Iterable[str], cluster: str) -> Iterator[Held]:
    """What other members hold: those of this play; if none of them knows the cluster, the first other one that does.

    Members that do not answer are left out: their own task reports them, and a node refuses a number that is taken.
    """
    found = (host_of(action, name) for name in members)
    hosts = [host for host in found if host is not None and host != action.host]
    play, known = _playing(action), False
    playing = [host for host in hosts if host in play]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for held in pool.map(lambda host: _read(action, host), playing):
            known |= f"cluster/{cluster}" in held.store
            yield held
    if known:
        return
    for host in hosts:
        if host not in play:
            held = _read(action, host)
            if f"cluster/{cluster}" in held.store:
                yield held
                return


def reach(action: AgentAction, node: str) -> There | None:
    """Another member, over a connection of its own; None if the inventory does not have it."""
    host = host_of(action, node)
    if host is None or host == action.host:
        return None
    there = _at(action, host)
    return There(there.channel(), there.renew, host in _playing(action))


def host_of(action: AgentAction, node: str) -> str | None:
    """The inventory host that is this node: it has its name, or says so (`bpfleet_this_node`)."""
    hostvars = action.variables.get("hostvars") or {}
    if node in hostvars:
        return node
    return next((str(host) for host in hostvars if hostvars[host].get("bpfleet_this_node") == node), None)


def _playing(action: AgentAction) -> set[str]:
    """The hosts of this play, whatever became of them so far."""
    return {str(host) for host in action.variables.get("ansible_play_hosts_all", ())}


def _read(action: AgentAction, host: str) -> Held:
    try:
        return read(_at(action, host).channel(), _KINDS)
    except (AnsibleError, BpfleetError) as error:
        Display().vvv(f"identity numbers in use could not be read: {error}", host=host)
        return Held()


def _at(action: AgentAction, name: str) -> AgentAction:
    """The same action with another host's connection, as that host's own task would have it."""
    variables = action.variables["hostvars"][name]
    kind = str(variables.get("ansible_connection") or action._connection._load_name)
    context = copy.copy(action._play_context)
    context.remote_addr = str(variables.get("ansible_host") or name)
    connection = action._shared_loader_obj.connection_loader.get(
        kind, context, task_uuid=action._task._uuid, ansible_playbook_pid=str(os.getppid())
    )
    options = connection._resolve_option_variables(variables, action._templar)
    connection.set_options(task_keys={"timeout": context.timeout}, var_options=options)
    connection._shell = action._connection._shell
    if action._connection.become is not None:
        connection.set_become_plugin(action._connection.become)
    there = copy.copy(action)
    there._connection = connection
    return there

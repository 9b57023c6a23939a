#!/usr/bin/python
# Copyright (c) bpfleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Generated from bpfleet/model by `python -m bpfleet.emit`; do not edit.
"""Documentation of bpfleet.fleet.documents; the action plugin of this name does the work."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: documents
short_description: Put all documents of a cluster on a host, as one transaction
version_added: 0.1.0
description:
  - Puts documents from a list, from files or from directories on the host, as one transaction.
  - 'This is the way to declare a whole cluster: run it on every member with O(prune=true).'
  - 'Identities need no number: it is allocated once for all hosts of the run.'
  - The host's agent is installed, or replaced by the one that this collection carries, where needed.
options:
  cluster:
    description:
      - Name of the cluster.
      - 'Default: that of the one cluster document among the declared ones.'
      - The documents' owner is V(ansible:<cluster>).
    type: str
  documents:
    description:
      - Documents, each with C(kind), C(name) and C(spec); a node may have C(ssh) beside them.
      - The fields of a C(spec) are those of the module of that kind.
    type: list
    elements: dict
  paths:
    description:
      - YAML or JSON files with one or more documents each, or directories of such files.
      - Searched for below C(documents/) beside the play or role, then beside it.
    type: list
    elements: path
  prune:
    description:
      - Delete the documents that this cluster's playbooks have put and that are not declared any more.
      - What a Pulumi stack or another owner has put is never deleted.
    type: bool
    default: false
  this_node:
    description:
      - Which node of the cluster the host is.
      - 'Default: the host''s name in the inventory.'
    type: str
  deadline:
    description:
      - Seconds within which a change must be confirmed over a new connection.
      - A change that is not confirmed in time is taken back.
    type: int
    default: 60
attributes:
  check_mode:
    support: full
    description:
      - Says what would change, without changing it; also where no agent is installed yet.
  diff_mode:
    support: full
    description:
      - Shows the documents before and after, the agent's version and digest where it changes, and the
        steps in the kernel.
  platform:
    platforms: Linux
    support: full
    description:
      - Hosts that run the agent.
requirements:
  - Python 3.9 or later, libbpf 1.1 or later and Linux 6.1 or later on the host
author:
  - bpfleet contributors (@bpfleet)
"""

EXAMPLES = r"""
- name: The whole cluster, from files beside the playbook and from variables
  hosts: shop
  gather_facts: false
  tasks:
    - name: All documents
      bpfleet.fleet.documents:
        paths: [documents]
        documents: "{{ shop_nodes + shop_endpoints }}"
        prune: true
"""

RETURN = r"""
---
put:
  description:
    - Keys of the documents that are new or differ.
  returned: success
  type: list
  elements: str
  sample:
    - policy/web
deleted:
  description:
    - Keys of the deleted documents.
  returned: success
  type: list
  elements: str
  sample:
    - policy/old
node:
  description:
    - Which node the host is.
  returned: success
  type: str
  sample: h1
agent_installed:
  description:
    - 'Whether the agent was (in check mode: would be) installed or replaced.'
  returned: success
  type: bool
agent:
  description:
    - 'The agent that was (in check mode: would be) installed, and the one before it; null if there was
      none.'
  returned: when RV(agent_installed) is true
  type: dict
  sample:
    version: 0.2.0
    digest: 3b1f…
    before:
      version: 0.1.0
      digest: 77c0…
left_behind:
  description:
    - 'Members of the cluster that are not in this run, or failed earlier in it: they keep what they have.'
  returned: success
  type: list
  elements: str
  sample:
    - h3
generation:
  description:
    - Number of the host's confirmed generation of documents.
  returned: success
  type: int
  sample: 3
documents_digest:
  description:
    - Digest of all documents of the host; equal on all members that are up to date.
  returned: where the agent is installed
  type: str
state_digest:
  description:
    - Digest of what the documents mean for this node.
  returned: where the agent is installed
  type: str
steps:
  description:
    - Count of the steps in the kernel by kind.
  returned: where the agent is installed
  type: dict
capacity:
  description:
    - 'Of each map of the node, in entries: used now, wanted, the most while the change is made (peak),
      and the limit.'
  returned: where the agent is installed
  type: list
  elements: dict
writes:
  description:
    - System calls and file writes that the change took.
  returned: when something was changed
  type: int
waiting:
  description:
    - Documents that take effect when another arrives, and why.
  returned: where the agent is installed
  type: list
  elements: dict
transaction:
  description:
    - Id of the transaction.
  returned: when something was changed
  type: str
error:
  description:
    - What was wrong, where, and what to do, for programs.
  returned: failure
  type: dict
"""

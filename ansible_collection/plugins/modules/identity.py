#!/usr/bin/python
# Copyright (c) bpfleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Generated from bpfleet/model by `python -m bpfleet.emit`; do not edit.
"""Documentation of bpfleet.fleet.identity; the action plugin of this name does the work."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: identity
short_description: Put or delete one identity document
version_added: 0.1.0
description:
  - A set of labels, known by one number on every node and on the wire.
  - 'Run it on every member of the cluster: every node holds all documents.'
  - Each task is a transaction on each host. For a whole cluster use M(bpfleet.fleet.documents), which
    is one.
  - The host's agent is installed, or replaced by the one that this collection carries, where needed.
options:
  name:
    description:
      - 'Name of the identity: 1 to 63 of a-z, 0-9, - and ., starting and ending with a letter or digit;
        no number, no address and none of unknown, host, world, waiting, remote-node: those mean other
        ends of a flow.'
      - Other documents refer to it by this name.
    type: str
    required: true
  cluster:
    description:
      - Name of the cluster it belongs to.
      - The documents' owner is V(ansible:<cluster>).
    type: str
    required: true
  labels:
    description:
      - The labels. No two identities of a cluster may have the same.
      - Required if O(state=present).
    type: dict
  state:
    description:
      - Whether the document should be there.
    type: str
    choices:
      - present
      - absent
    default: present
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
- name: Who the web servers are
  bpfleet.fleet.identity:
    cluster: shop
    name: web
    labels: {app: shop, role: web}
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

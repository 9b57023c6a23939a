#!/usr/bin/python
# Copyright (c) bpfleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Generated from bpfleet/model by `python -m bpfleet.emit`; do not edit.
"""Documentation of bpfleet.fleet.endpoint; the action plugin of this name does the work."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: endpoint
short_description: Put or delete one endpoint document
version_added: 0.1.0
description:
  - 'A workload: where it runs, who it is, its addresses and how it is attached.'
  - 'Run it on every member of the cluster: every node holds all documents.'
  - Each task is a transaction on each host. For a whole cluster use M(bpfleet.fleet.documents), which
    is one.
  - The host's agent is installed, or replaced by the one that this collection carries, where needed.
options:
  name:
    description:
      - 'Name of the endpoint: 1 to 63 of a-z, 0-9, - and ., starting and ending with a letter or digit;
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
  node:
    description:
      - Name of the node it runs on.
      - Required if O(state=present).
    type: str
  identity:
    description:
      - Name of its identity.
      - Required if O(state=present).
    type: str
  addresses:
    description:
      - Its addresses, within the node's workload CIDRs; none that a node's own device has.
      - Required if O(state=present).
    type: list
    elements: str
  attach:
    description:
      - How it is attached.
      - Required if O(state=present).
      - Exactly one of V(netns), V(tap), V(interface) must be given.
    type: dict
    suboptions:
      netns:
        description:
          - Network namespace of the workload (a name under /run/netns on the node); a veth pair is made
            for it, eth0 inside.
        type: str
      tap:
        description:
          - 'Name of a tap that is made on the node, persistent, for a virtual machine to open: judged
            before it carries a packet, also after a reboot.'
        type: str
      owner:
        description:
          - 'User who may open the tap, by name or number on the node. Default: root, or the members of
            `group`.'
        type: str
      group:
        description:
          - Group whose members may open the tap, by name or number on the node.
        type: str
      multi_queue:
        description:
          - 'Let the tap be opened once for each of several queues. Default: no.'
        type: bool
      interface:
        description:
          - 'Existing device of the node that leads to the workload. It is attached when it appears: a
            moment after it can carry packets, if whoever makes it sets it up at once.'
        type: str
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
- name: A workload in the network namespace w1 of node h1
  bpfleet.fleet.endpoint:
    cluster: shop
    name: web-1
    node: h1
    identity: web
    addresses: [10.0.1.10]
    attach: {netns: w1}
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

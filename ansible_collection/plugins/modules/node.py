#!/usr/bin/python
# Copyright (c) bpfleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Generated from bpfleet/model by `python -m bpfleet.emit`; do not edit.
"""Documentation of bpfleet.fleet.node; the action plugin of this name does the work."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: node
short_description: Put or delete one node document
version_added: 0.1.0
description:
  - A Linux host. Creating it installs the agent and the eBPF objects.
  - 'Run it on every member of the cluster: every node holds all documents.'
  - Each task is a transaction on each host. For a whole cluster use M(bpfleet.fleet.documents), which
    is one.
  - The host's agent is installed, or replaced by the one that this collection carries, where needed.
options:
  name:
    description:
      - 'Name of the node: 1 to 63 of a-z, 0-9, - and ., starting and ending with a letter or digit; no
        number, no address and none of unknown, host, world, waiting, remote-node: those mean other ends
        of a flow.'
      - Other documents refer to it by this name.
    type: str
    required: true
  cluster:
    description:
      - Name of the cluster it belongs to.
      - The documents' owner is V(ansible:<cluster>).
    type: str
    required: true
  address:
    description:
      - Underlay address by which the other nodes reach it.
      - Required if O(state=present).
    type: str
  devices:
    description:
      - 'Underlay devices: where the other nodes'' traffic arrives.'
      - Required if O(state=present).
    type: list
    elements: dict
    suboptions:
      name:
        description:
          - Its name on the node.
        type: str
        required: true
      xdp:
        description:
          - 'Where packets of the cluster''s blocked_cidrs are dropped: by XDP in the device''s driver,
            by XDP right behind the driver (any device can), or at tc (off).'
        type: str
        choices:
          - native
          - generic
          - 'off'
        default: 'off'
  workload_cidrs:
    description:
      - Networks of its endpoints' addresses. No two nodes' may overlap.
      - Required if O(state=present).
    type: list
    elements: str
  labels:
    description:
      - Its labels, by which policies select it.
    type: dict
  ssh:
    description:
      - How the controller reaches it.
      - Filled in from the inventory for a node that it has; not part of the document's content.
    type: dict
    suboptions:
      host:
        description:
          - 'Host name or address to dial, as the jump host sees it if there is one. Default: the node''s
            address.'
        type: str
      port:
        description:
          - TCP port of sshd.
        type: int
        default: 22
      user:
        description:
          - 'User to log in as: root, or one who may use sudo (see sudo).'
        type: str
        default: root
      sudo:
        description:
          - 'Become root by `sudo -n` after logging in as another user; sudo must not ask for a password.
            Default: no.'
        type: bool
      private_key_file:
        description:
          - 'Path of the private key on the controller. Default: keys of the SSH agent, then ~/.ssh''s
            own.'
        type: str
      host_key:
        description:
          - 'Public key the host must show, as in /etc/ssh/ssh_host_ed25519_key.pub. Default: what known_hosts
            says; an unknown key is refused.'
        type: str
      known_hosts_file:
        description:
          - 'known_hosts file to check against. Default: ~/.ssh/known_hosts.'
        type: str
      jump:
        description:
          - 'Host through which the node is reached. Default: it is dialled directly.'
        type: dict
        suboptions:
          host:
            description:
              - Host name or address to dial.
            type: str
            required: true
          port:
            description:
              - TCP port of its sshd.
            type: int
            default: 22
          user:
            description:
              - User to log in as; needs no rights but to forward connections.
            type: str
            default: root
          private_key_file:
            description:
              - 'Path of the private key on the controller. Default: keys of the SSH agent, then ~/.ssh''s
                own.'
            type: str
          host_key:
            description:
              - 'Public key the jump host must show. Default: what known_hosts says; an unknown key is
                refused.'
            type: str
          known_hosts_file:
            description:
              - 'known_hosts file to check against. Default: ~/.ssh/known_hosts.'
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
- name: Every node's document, on all members
  bpfleet.fleet.node:
    cluster: shop
    name: "{{ item }}"
    address: "{{ hostvars[item].underlay_address }}"
    devices: [{name: eth0}]
    workload_cidrs: "{{ hostvars[item].workload_cidrs }}"
  loop: "{{ groups['shop'] }}"
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

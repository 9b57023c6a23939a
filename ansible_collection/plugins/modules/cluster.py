#!/usr/bin/python
# Copyright (c) bpfleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Generated from bpfleet/model by `python -m bpfleet.emit`; do not edit.
"""Documentation of bpfleet.fleet.cluster; the action plugin of this name does the work."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: cluster
short_description: Put or delete one cluster document
version_added: 0.1.0
description:
  - A set of nodes that share identities, addresses and policies.
  - 'Run it on every member of the cluster: every node holds all documents.'
  - Each task is a transaction on each host. For a whole cluster use M(bpfleet.fleet.documents), which
    is one.
  - The host's agent is installed, or replaced by the one that this collection carries, where needed.
options:
  name:
    description:
      - 'Name of the cluster: 1 to 63 of a-z, 0-9, - and ., starting and ending with a letter or digit.'
      - Other documents refer to it by this name.
    type: str
    required: true
  id:
    description:
      - 'Number of the cluster: bits 16 to 23 of its identities'' numbers.'
      - Required if O(state=present).
    type: int
  routing:
    description:
      - How packets travel between nodes.
    type: dict
    suboptions:
      mode:
        description:
          - Encapsulation between nodes.
        type: str
        choices:
          - vxlan
        default: vxlan
      port:
        description:
          - UDP port of the tunnel on every node; none of DHCP's, whose answers would be taken for tunnel
            packets.
        type: int
        default: 8472
      mtu:
        description:
          - 'MTU of workloads, in bytes. Default: the smallest MTU of the node''s devices less the tunnel''s
            overhead (50 bytes over IPv4, 70 over IPv6).'
        type: int
      direct_delivery:
        description:
          - Whether packets of an established flow go straight between their workload and the device of
            the node, but for one a second; of those received, IPv4. What goes so is seen by no filter
            and no capture of the host between the two. On nodes with an IPv4 address, one device, Linux
            6.2 or later, and no IPsec.
        type: bool
        default: true
  members:
    description:
      - The nodes that belong to it.
      - Required if O(state=present).
      - Names of node documents, which usually are names of inventory hosts.
    type: list
    elements: str
  failsafe_ports:
    description:
      - 'Ports of the nodes themselves that no policy can close, so that a policy which selects nodes
        locks nobody out. Default: TCP port 22, ingress. A list replaces that; an empty one leaves SSH
        to the policies.'
    type: list
    elements: dict
    suboptions:
      protocol:
        description:
          - Protocol.
        type: str
        choices:
          - tcp
          - udp
        default: tcp
      port:
        description:
          - Port.
        type: int
        required: true
      direction:
        description:
          - 'ingress: the node''s own port, which everybody reaches. egress: a port elsewhere, which the
            node reaches.'
        type: str
        choices:
          - ingress
          - egress
        default: ingress
  blocked_cidrs:
    description:
      - Networks from which the nodes' devices take nothing. None may hold a member, a gateway or the
        controller. What workloads send to each other travels between members, so it is not blocked by
        its own addresses.
    type: list
    elements: str
  unselected:
    description:
      - 'What becomes of an endpoint''s traffic in a direction that no policy closes. deny: only what
        some policy allows passes, so that a fleet is closed before its first policy and while it is taken
        down. Default: open.'
    type: str
    choices:
      - open
      - deny
  mode:
    description:
      - 'audit: what policies would drop passes and is reported, as if every policy were in audit mode,
        and `unselected` too. Default: enforce.'
    type: str
    choices:
      - enforce
      - audit
  allow_local_host:
    description:
      - 'Let a node''s own processes reach its endpoints unless a rule denies it. Default: they reach
        them only where policy lets `host`.'
    type: bool
  limits:
    description:
      - 'What each node has room for. Default: those of each field.'
    type: dict
    suboptions:
      addresses:
        description:
          - 'Addresses of all endpoints and nodes of the cluster (about 90 bytes each). Default: 131072.'
        type: int
      endpoints:
        description:
          - 'Endpoints on one node, and so the identities that have policies there. Default: 8192.'
        type: int
      connections:
        description:
          - 'Connections that a node remembers, once for each of their ends that is on it (128 bytes each,
            and 96 for copies by CPU, but at most 6 MB a CPU; taken at once). When they are used up, those
            that were idle for longest are forgotten, and judged again if they go on. Default: 131072.'
        type: int
      policy_entries:
        description:
          - 'Peers times ports in the policies of one identity (about 64 bytes each). Default: 262144.'
        type: int
      cidrs:
        description:
          - 'CIDRs and exceptions in one direction of one identity''s policies. Default: 262144.'
        type: int
      frontends:
        description:
          - 'Frontends of all services. Default: 65536.'
        type: int
      translations:
        description:
          - 'Flows to services whose backend a node remembers (about 112 bytes each, taken at once), the
            longest idle forgotten first. Default: 65536.'
        type: int
      blocked_cidrs:
        description:
          - 'Networks in `blocked_cidrs`. Default: 65536.'
        type: int
      flows:
        description:
          - 'Flows in a node''s history, a fifth of them for what was dropped (about 130 bytes each, and
            32 for each CPU, taken at once). What does not fit is counted together. Default: 10240.'
        type: int
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
- name: The cluster, on all its members
  bpfleet.fleet.cluster:
    name: shop
    id: 1
    members: "{{ groups['shop'] }}"
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

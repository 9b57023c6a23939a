#!/usr/bin/python
# Copyright (c) bpfleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Generated from bpfleet/model by `python -m bpfleet.emit`; do not edit.
"""Documentation of bpfleet.fleet.policy; the action plugin of this name does the work."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: policy
short_description: Put or delete one policy document
version_added: 0.1.0
description:
  - What the selected endpoints, or the selected nodes' own processes, may receive and send. A direction
    without rules here stays as it is; with rules, or an empty list of them, it is closed to all that
    no policy allows, unless `default_deny` says otherwise.
  - 'Run it on every member of the cluster: every node holds all documents.'
  - Each task is a transaction on each host. For a whole cluster use M(bpfleet.fleet.documents), which
    is one.
  - The host's agent is installed, or replaced by the one that this collection carries, where needed.
options:
  name:
    description:
      - 'Name of the policy: 1 to 63 of a-z, 0-9, - and ., starting and ending with a letter or digit.'
      - Other documents refer to it by this name.
    type: str
    required: true
  cluster:
    description:
      - Name of the cluster it belongs to.
      - The documents' owner is V(ansible:<cluster>).
    type: str
    required: true
  description:
    description:
      - What it is for; shown beside its rules.
    type: str
  labels:
    description:
      - Labels of the policy itself; shown beside its rules, and `observe` finds by them.
    type: dict
  selector:
    description:
      - Endpoints whose identity has all these labels; {} selects every endpoint.
    type: dict
  node_selector:
    description:
      - Nodes that have all these labels; {} selects every node. What their own processes receive and
        send is judged; their failsafe ports, and what a node needs to have neighbours, addresses and
        a tunnel, always pass.
    type: dict
  expressions:
    description:
      - 'What else is asked of the labels: all of it must hold.'
    type: list
    elements: dict
    suboptions:
      key:
        description:
          - Key of the label.
        type: str
        required: true
      operator:
        description:
          - 'In: the label has one of the values. NotIn: it has none of them, or there is no such label.
            Exists, DoesNotExist: there is such a label with any value, or none.'
        type: str
        choices:
          - In
          - NotIn
          - Exists
          - DoesNotExist
        required: true
      values:
        description:
          - Values of In and NotIn.
        type: list
        elements: str
  ingress:
    description:
      - Rules for what arrives. An empty list allows nothing.
    type: list
    elements: dict
    suboptions:
      action:
        description:
          - A matching deny beats every allow.
        type: str
        choices:
          - allow
          - deny
        default: allow
      peers:
        description:
          - 'The other ends. Not given: any peer. An empty list: nobody.'
          - Exactly one of V(labels), V(entity), V(cidr), V(cidr_group) must be given.
        type: list
        elements: dict
        suboptions:
          labels:
            description:
              - Endpoints whose identity has all these labels; {} means every endpoint.
            type: dict
          expressions:
            description:
              - 'What else is asked of the labels: all of it must hold.'
            type: list
            elements: dict
            suboptions:
              key:
                description:
                  - Key of the label.
                type: str
                required: true
              operator:
                description:
                  - 'In: the label has one of the values. NotIn: it has none of them, or there is no such
                    label. Exists, DoesNotExist: there is such a label with any value, or none.'
                type: str
                choices:
                  - In
                  - NotIn
                  - Exists
                  - DoesNotExist
                required: true
              values:
                description:
                  - Values of In and NotIn.
                type: list
                elements: str
          entity:
            description:
              - 'host: the endpoint''s own node (what a node says to itself is never judged). remote-node:
                any other node. cluster: every endpoint and node. world: addresses that are neither endpoint
                nor node. all: everything. none: nothing.'
            type: str
            choices:
              - world
              - host
              - remote-node
              - cluster
              - all
              - none
          cidr:
            description:
              - Addresses of this network that are neither endpoint nor node.
            type: str
          except:
            description:
              - 'Parts of the CIDR that this peer does not mean. They narrow this peer only: another may
                mean them.'
            type: list
            elements: str
          cidr_group:
            description:
              - 'Name of a CIDR group: addresses of its networks that are neither endpoint nor node. Until
                the group is there, an allow means nobody by it, and a deny every such address.'
            type: str
      ports:
        description:
          - 'Destination ports and message types. Not given: every protocol and port. An empty list: nothing.'
        type: list
        elements: dict
        suboptions:
          protocol:
            description:
              - Protocol. `any` with a port means TCP, UDP and SCTP; without, every protocol.
            type: str
            choices:
              - tcp
              - udp
              - sctp
              - icmp
              - icmpv6
              - any
            default: any
          port:
            description:
              - 'Destination port. Default: every port.'
            type: int
          end_port:
            description:
              - 'Last port of a range that begins with `port`. Default: that port alone.'
            type: int
          type:
            description:
              - 'Type of an ICMP or ICMPv6 message. Default: every type.'
            type: int
          code:
            description:
              - 'Code within the type. Default: every code.'
            type: int
  egress:
    description:
      - Rules for what is sent. An empty list allows nothing.
    type: list
    elements: dict
    suboptions:
      action:
        description:
          - A matching deny beats every allow.
        type: str
        choices:
          - allow
          - deny
        default: allow
      peers:
        description:
          - 'The other ends. Not given: any peer. An empty list: nobody.'
          - Exactly one of V(labels), V(entity), V(cidr), V(cidr_group) must be given.
        type: list
        elements: dict
        suboptions:
          labels:
            description:
              - Endpoints whose identity has all these labels; {} means every endpoint.
            type: dict
          expressions:
            description:
              - 'What else is asked of the labels: all of it must hold.'
            type: list
            elements: dict
            suboptions:
              key:
                description:
                  - Key of the label.
                type: str
                required: true
              operator:
                description:
                  - 'In: the label has one of the values. NotIn: it has none of them, or there is no such
                    label. Exists, DoesNotExist: there is such a label with any value, or none.'
                type: str
                choices:
                  - In
                  - NotIn
                  - Exists
                  - DoesNotExist
                required: true
              values:
                description:
                  - Values of In and NotIn.
                type: list
                elements: str
          entity:
            description:
              - 'host: the endpoint''s own node (what a node says to itself is never judged). remote-node:
                any other node. cluster: every endpoint and node. world: addresses that are neither endpoint
                nor node. all: everything. none: nothing.'
            type: str
            choices:
              - world
              - host
              - remote-node
              - cluster
              - all
              - none
          cidr:
            description:
              - Addresses of this network that are neither endpoint nor node.
            type: str
          except:
            description:
              - 'Parts of the CIDR that this peer does not mean. They narrow this peer only: another may
                mean them.'
            type: list
            elements: str
          cidr_group:
            description:
              - 'Name of a CIDR group: addresses of its networks that are neither endpoint nor node. Until
                the group is there, an allow means nobody by it, and a deny every such address.'
            type: str
      ports:
        description:
          - 'Destination ports and message types. Not given: every protocol and port. An empty list: nothing.'
        type: list
        elements: dict
        suboptions:
          protocol:
            description:
              - Protocol. `any` with a port means TCP, UDP and SCTP; without, every protocol.
            type: str
            choices:
              - tcp
              - udp
              - sctp
              - icmp
              - icmpv6
              - any
            default: any
          port:
            description:
              - 'Destination port. Default: every port.'
            type: int
          end_port:
            description:
              - 'Last port of a range that begins with `port`. Default: that port alone.'
            type: int
          type:
            description:
              - 'Type of an ICMP or ICMPv6 message. Default: every type.'
            type: int
          code:
            description:
              - 'Code within the type. Default: every code.'
            type: int
  default_deny:
    description:
      - 'Which directions it closes. Default: those it has rules for.'
    type: dict
    suboptions:
      ingress:
        description:
          - 'For what arrives. Default: if the policy has `ingress`.'
        type: bool
      egress:
        description:
          - 'For what is sent. Default: if the policy has `egress`.'
        type: bool
  mode:
    description:
      - 'audit: it drops nothing; what it would drop passes and is reported. Default: enforce.'
    type: str
    choices:
      - enforce
      - audit
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
- name: Clients reach the web servers' port 80 and nothing else
  bpfleet.fleet.policy:
    cluster: shop
    name: web-from-clients
    selector: {role: web}
    ingress:
      - peers: [{labels: {role: client}}]
        ports: [{protocol: tcp, port: 80}]

- name: The office reaches their range of ports, but for its guests; to be watched before it is enforced
  bpfleet.fleet.policy:
    cluster: shop
    name: web-from-office
    selector: {}
    expressions: [{key: role, operator: In, values: [web, api]}]
    mode: audit
    ingress:
      - peers: [{cidr_group: office}]
        ports: [{protocol: tcp, port: 8000, end_port: 8099}]
      - action: deny
        peers: [{cidr: 198.51.100.0/24, except: [198.51.100.0/25]}]

- name: A policy that is not wanted any more
  bpfleet.fleet.policy:
    cluster: shop
    name: old
    state: absent
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

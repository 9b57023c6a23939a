#!/usr/bin/python
# Copyright (c) bpfleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Generated from bpfleet/model by `python -m bpfleet.emit`; do not edit.
"""Documentation of bpfleet.fleet.agent; the action plugin of this name does the work."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: agent
short_description: Install, upgrade or remove the agent
version_added: 0.1.0
description:
  - Puts the agent that this collection carries on the host, or takes it off again.
  - The agent is one archive of Python files and eBPF objects below V(/var/lib/bpfleet); nothing is compiled
    or downloaded on the host, and no service runs.
  - 'Removing it removes everything of bpfleet from the host first: programs, maps, devices and documents.
    Workloads there lose their network.'
options:
  state:
    description:
      - V(present) installs the carried agent unless it is there.
      - V(absent) removes everything of bpfleet from the host, then the agent.
    type: str
    choices:
      - present
      - absent
    default: present
  this_node:
    description:
      - Which node the host is; with O(state=absent) it is cleared only if it still is this node.
      - 'Default: the host''s name in the inventory.'
    type: str
  cluster:
    description:
      - With O(state=absent), the cluster whose playbook the host's documents must be of; a host of another
        cluster is not cleared.
      - 'Default: any playbook''s.'
    type: str
  force:
    description:
      - Clear the host with O(state=absent) although it holds documents of a Pulumi stack, of another
        cluster's playbook, or of another owner.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description:
      - Says what would change, without changing it; also where no agent is installed yet.
  diff_mode:
    support: partial
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
- name: The agent, as this collection carries it
  bpfleet.fleet.agent:

- name: Nothing of bpfleet on the host any more
  bpfleet.fleet.agent:
    state: absent
"""

RETURN = r"""
---
agent:
  description:
    - The agent that this collection carries, and the one that was there; null if there was none.
  returned: with O(state=present)
  type: dict
  sample:
    version: 0.2.0
    digest: 3b1f…
    before:
      version: 0.1.0
      digest: 77c0…
node:
  description:
    - Which node the host is; null before it holds documents.
  returned: success
  type: str
  sample: h1
writes:
  description:
    - System calls and file writes that clearing the host took.
  returned: when it was cleared
  type: int
error:
  description:
    - What was wrong, where, and what to do, for programs.
  returned: failure
  type: dict
"""

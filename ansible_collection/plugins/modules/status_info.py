#!/usr/bin/python
# Copyright (c) bpfleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Generated from bpfleet/model by `python -m bpfleet.emit`; do not edit.
"""Documentation of bpfleet.fleet.status_info; the action plugin of this name does the work."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: status_info
short_description: Read what bpfleet does on a host
version_added: 0.1.0
description:
  - 'Reads what is confirmed and whether the kernel agrees with it: attached programs, drift, how full
    the maps are, counters, what waits for what.'
  - Nothing is installed where no agent is.
options: {}
attributes:
  check_mode:
    support: full
    description:
      - Says what would change, without changing it; also where no agent is installed yet.
  diff_mode:
    support: none
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
- name: What bpfleet does on this host
  bpfleet.fleet.status_info:
  register: bpfleet

- name: The kernel is as declared
  ansible.builtin.assert:
    that: bpfleet.status.drift == []
"""

RETURN = r"""
---
agent_installed:
  description:
    - Whether an agent is installed.
  returned: success
  type: bool
status:
  description:
    - 'What C(bpfleet status -o json) says of a node: node, cluster, generation, documents_digest, state_digest,
      documents, programs, drift, maps, counters, waiting, warnings, pending, writes, fitness, agent.'
  returned: where an agent is installed
  type: dict
"""

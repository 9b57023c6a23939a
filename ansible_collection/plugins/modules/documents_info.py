#!/usr/bin/python
# Copyright (c) bpfleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Generated from bpfleet/model by `python -m bpfleet.emit`; do not edit.
"""Documentation of bpfleet.fleet.documents_info; the action plugin of this name does the work."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: documents_info
short_description: Read the documents that a host holds
version_added: 0.1.0
description:
  - Reads the confirmed documents. A host without an agent holds none; nothing is installed.
options:
  kinds:
    description:
      - Only documents of these kinds.
      - 'Default: all.'
    type: list
    elements: str
    choices:
      - cluster
      - node
      - identity
      - endpoint
      - cidr_group
      - policy
      - service
  names:
    description:
      - Only documents of these names.
      - 'Default: all.'
    type: list
    elements: str
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
- name: The policies that this host holds
  bpfleet.fleet.documents_info:
    kinds: [policy]
  register: held
"""

RETURN = r"""
---
documents:
  description:
    - The documents, each with C(kind), C(name), C(spec), C(owner) and C(metadata).
  returned: success
  type: list
  elements: dict
digest:
  description:
    - Digest of all documents of the host.
  returned: success
  type: str
generation:
  description:
    - Number of the confirmed generation; 0 before the first.
  returned: success
  type: int
  sample: 3
agent_installed:
  description:
    - Whether an agent is installed.
  returned: success
  type: bool
"""

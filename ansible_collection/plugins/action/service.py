# Copyright (c) bpfleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""bpfleet.fleet.service"""

from __future__ import annotations

from ansible_collections.bpfleet.fleet.plugins.plugin_utils.resource import ResourceAction


class ActionModule(ResourceAction):
    """Puts or deletes one service document."""

    module = "service"

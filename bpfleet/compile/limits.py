"""How many entries each map has room for, from the limits that the cluster declares.

A map that could only be too small where another one is, has its size from that one's limit: then it never is.
"""

from __future__ import annotations

from typing import Dict, Mapping, Optional

from bpfleet.model.document import Document
from bpfleet.model.resources import DEFAULT_LIMITS

_HOST = 1
"""The node itself, which policies select like an endpoint."""
_BOTH = 2
"""While a change is made, what comes and what goes are there together."""
_TOGETHER = 2
"""Slots of the flow history for what did not fit: what passed, and what was dropped (enum flow_slot)."""
_INTERVALS = 5 << 16
"""Every port and message of all five protocols by itself: a port set never needs more."""
_SIDES = 4
"""An identity's directions, enforced and as they would be: each has one prefix set and one port set at most."""


def limits_of(cluster: Optional[Document]) -> Dict[str, int]:
    """Every limit, declared or by default."""
    declared: Mapping[str, int] = cluster.spec.get("limits", {}) if cluster is not None else {}
    return {**DEFAULT_LIMITS, **declared}


def sizes_of(cluster: Document) -> Dict[str, int]:
    """Entries by map; of an inner map the most that one may have."""
    limits = limits_of(cluster)
    subjects = _BOTH * limits["endpoints"] + _HOST
    flows = _TOGETHER + limits["flows"]
    return {
        "addresses": limits["addresses"],
        "backends": _BOTH * limits["frontends"],
        "blocked": limits["blocked_cidrs"],
        "connections": limits["connections"],
        "endpoints": limits["endpoints"],
        "flow_slots": flows,
        "flows": flows,
        "policies": subjects,
        "policies_staged": limits["endpoints"] + _HOST,  # no more are in use
        "policy_entries": limits["policy_entries"],
        "port_intervals": _INTERVALS,
        "port_sets": _SIDES * subjects,
        "prefix_sets": _SIDES * subjects,
        "prefix_classes": limits["cidrs"],
        "services": limits["frontends"],
        "translations": limits["translations"],
    }

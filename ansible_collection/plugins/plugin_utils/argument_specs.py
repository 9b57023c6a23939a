# Copyright (c) bpfleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Generated from bpfleet/model by `python -m bpfleet.emit`; do not edit.
"""Argument specs of the modules, for the action plugins that validate them."""

from __future__ import annotations

from typing import Any

ARGUMENT_SPECS: dict[str, dict[str, Any]] = {
    "cluster": {
        "argument_spec": {
            "name": {
                "type": "str",
                "required": True,
            },
            "id": {
                "type": "int",
            },
            "routing": {
                "type": "dict",
                "options": {
                    "mode": {
                        "type": "str",
                        "choices": [
                            "vxlan",
                        ],
                        "default": "vxlan",
                    },
                    "port": {
                        "type": "int",
                        "default": 8472,
                    },
                    "mtu": {
                        "type": "int",
                    },
                    "direct_delivery": {
                        "type": "bool",
                        "default": True,
                    },
                },
            },
            "members": {
                "type": "list",
                "elements": "str",
            },
            "failsafe_ports": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "protocol": {
                        "type": "str",
                        "choices": [
                            "tcp",
                            "udp",
                        ],
                        "default": "tcp",
                    },
                    "port": {
                        "type": "int",
                        "required": True,
                    },
                    "direction": {
                        "type": "str",
                        "choices": [
                            "ingress",
                            "egress",
                        ],
                        "default": "ingress",
                    },
                },
            },
            "blocked_cidrs": {
                "type": "list",
                "elements": "str",
            },
            "unselected": {
                "type": "str",
                "choices": [
                    "open",
                    "deny",
                ],
            },
            "mode": {
                "type": "str",
                "choices": [
                    "enforce",
                    "audit",
                ],
            },
            "allow_local_host": {
                "type": "bool",
            },
            "limits": {
                "type": "dict",
                "options": {
                    "addresses": {
                        "type": "int",
                    },
                    "endpoints": {
                        "type": "int",
                    },
                    "connections": {
                        "type": "int",
                    },
                    "policy_entries": {
                        "type": "int",
                    },
                    "cidrs": {
                        "type": "int",
                    },
                    "frontends": {
                        "type": "int",
                    },
                    "translations": {
                        "type": "int",
                    },
                    "blocked_cidrs": {
                        "type": "int",
                    },
                    "flows": {
                        "type": "int",
                    },
                },
            },
            "state": {
                "type": "str",
                "choices": [
                    "present",
                    "absent",
                ],
                "default": "present",
            },
            "this_node": {
                "type": "str",
            },
            "deadline": {
                "type": "int",
                "default": 60,
            },
        },
        "required_if": [
            (
                "state",
                "present",
                [
                    "id",
                    "members",
                ],
            ),
        ],
    },
    "node": {
        "argument_spec": {
            "name": {
                "type": "str",
                "required": True,
            },
            "cluster": {
                "type": "str",
                "required": True,
            },
            "address": {
                "type": "str",
            },
            "devices": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "name": {
                        "type": "str",
                        "required": True,
                    },
                    "xdp": {
                        "type": "str",
                        "choices": [
                            "native",
                            "generic",
                            "off",
                        ],
                        "default": "off",
                    },
                },
            },
            "workload_cidrs": {
                "type": "list",
                "elements": "str",
            },
            "labels": {
                "type": "dict",
            },
            "ssh": {
                "type": "dict",
                "options": {
                    "host": {
                        "type": "str",
                    },
                    "port": {
                        "type": "int",
                        "default": 22,
                    },
                    "user": {
                        "type": "str",
                        "default": "root",
                    },
                    "sudo": {
                        "type": "bool",
                    },
                    "private_key_file": {
                        "type": "str",
                        "no_log": False,
                    },
                    "host_key": {
                        "type": "str",
                        "no_log": False,
                    },
                    "known_hosts_file": {
                        "type": "str",
                    },
                    "jump": {
                        "type": "dict",
                        "options": {
                            "host": {
                                "type": "str",
                                "required": True,
                            },
                            "port": {
                                "type": "int",
                                "default": 22,
                            },
                            "user": {
                                "type": "str",
                                "default": "root",
                            },
                            "private_key_file": {
                                "type": "str",
                                "no_log": False,
                            },
                            "host_key": {
                                "type": "str",
                                "no_log": False,
                            },
                            "known_hosts_file": {
                                "type": "str",
                            },
                        },
                    },
                },
            },
            "state": {
                "type": "str",
                "choices": [
                    "present",
                    "absent",
                ],
                "default": "present",
            },
            "this_node": {
                "type": "str",
            },
            "deadline": {
                "type": "int",
                "default": 60,
            },
        },
        "required_if": [
            (
                "state",
                "present",
                [
                    "address",
                    "devices",
                    "workload_cidrs",
                ],
            ),
        ],
    },
    "identity": {
        "argument_spec": {
            "name": {
                "type": "str",
                "required": True,
            },
            "cluster": {
                "type": "str",
                "required": True,
            },
            "labels": {
                "type": "dict",
            },
            "state": {
                "type": "str",
                "choices": [
                    "present",
                    "absent",
                ],
                "default": "present",
            },
            "this_node": {
                "type": "str",
            },
            "deadline": {
                "type": "int",
                "default": 60,
            },
        },
        "required_if": [
            (
                "state",
                "present",
                [
                    "labels",
                ],
            ),
        ],
    },
    "endpoint": {
        "argument_spec": {
            "name": {
                "type": "str",
                "required": True,
            },
            "cluster": {
                "type": "str",
                "required": True,
            },
            "node": {
                "type": "str",
            },
            "identity": {
                "type": "str",
            },
            "addresses": {
                "type": "list",
                "elements": "str",
            },
            "attach": {
                "type": "dict",
                "mutually_exclusive": [
                    [
                        "netns",
                        "tap",
                        "interface",
                    ],
                ],
                "required_one_of": [
                    [
                        "netns",
                        "tap",
                        "interface",
                    ],
                ],
                "options": {
                    "netns": {
                        "type": "str",
                    },
                    "tap": {
                        "type": "str",
                    },
                    "owner": {
                        "type": "str",
                    },
                    "group": {
                        "type": "str",
                    },
                    "multi_queue": {
                        "type": "bool",
                    },
                    "interface": {
                        "type": "str",
                    },
                },
            },
            "state": {
                "type": "str",
                "choices": [
                    "present",
                    "absent",
                ],
                "default": "present",
            },
            "this_node": {
                "type": "str",
            },
            "deadline": {
                "type": "int",
                "default": 60,
            },
        },
        "required_if": [
            (
                "state",
                "present",
                [
                    "node",
                    "identity",
                    "addresses",
                    "attach",
                ],
            ),
        ],
    },
    "cidr_group": {
        "argument_spec": {
            "name": {
                "type": "str",
                "required": True,
            },
            "cluster": {
                "type": "str",
                "required": True,
            },
            "description": {
                "type": "str",
            },
            "cidrs": {
                "type": "list",
                "elements": "str",
            },
            "state": {
                "type": "str",
                "choices": [
                    "present",
                    "absent",
                ],
                "default": "present",
            },
            "this_node": {
                "type": "str",
            },
            "deadline": {
                "type": "int",
                "default": 60,
            },
        },
        "required_if": [
            (
                "state",
                "present",
                [
                    "cidrs",
                ],
            ),
        ],
    },
    "policy": {
        "argument_spec": {
            "name": {
                "type": "str",
                "required": True,
            },
            "cluster": {
                "type": "str",
                "required": True,
            },
            "description": {
                "type": "str",
            },
            "labels": {
                "type": "dict",
            },
            "selector": {
                "type": "dict",
            },
            "node_selector": {
                "type": "dict",
            },
            "expressions": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "key": {
                        "type": "str",
                        "required": True,
                        "no_log": False,
                    },
                    "operator": {
                        "type": "str",
                        "choices": [
                            "In",
                            "NotIn",
                            "Exists",
                            "DoesNotExist",
                        ],
                        "required": True,
                    },
                    "values": {
                        "type": "list",
                        "elements": "str",
                    },
                },
            },
            "ingress": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "action": {
                        "type": "str",
                        "choices": [
                            "allow",
                            "deny",
                        ],
                        "default": "allow",
                    },
                    "peers": {
                        "type": "list",
                        "elements": "dict",
                        "mutually_exclusive": [
                            [
                                "labels",
                                "entity",
                                "cidr",
                                "cidr_group",
                            ],
                        ],
                        "required_one_of": [
                            [
                                "labels",
                                "entity",
                                "cidr",
                                "cidr_group",
                            ],
                        ],
                        "options": {
                            "labels": {
                                "type": "dict",
                            },
                            "expressions": {
                                "type": "list",
                                "elements": "dict",
                                "options": {
                                    "key": {
                                        "type": "str",
                                        "required": True,
                                        "no_log": False,
                                    },
                                    "operator": {
                                        "type": "str",
                                        "choices": [
                                            "In",
                                            "NotIn",
                                            "Exists",
                                            "DoesNotExist",
                                        ],
                                        "required": True,
                                    },
                                    "values": {
                                        "type": "list",
                                        "elements": "str",
                                    },
                                },
                            },
                            "entity": {
                                "type": "str",
                                "choices": [
                                    "world",
                                    "host",
                                    "remote-node",
                                    "cluster",
                                    "all",
                                    "none",
                                ],
                            },
                            "cidr": {
                                "type": "str",
                            },
                            "except": {
                                "type": "list",
                                "elements": "str",
                            },
                            "cidr_group": {
                                "type": "str",
                            },
                        },
                    },
                    "ports": {
                        "type": "list",
                        "elements": "dict",
                        "options": {
                            "protocol": {
                                "type": "str",
                                "choices": [
                                    "tcp",
                                    "udp",
                                    "sctp",
                                    "icmp",
                                    "icmpv6",
                                    "any",
                                ],
                                "default": "any",
                            },
                            "port": {
                                "type": "int",
                            },
                            "end_port": {
                                "type": "int",
                            },
                            "type": {
                                "type": "int",
                            },
                            "code": {
                                "type": "int",
                            },
                        },
                    },
                },
            },
            "egress": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "action": {
                        "type": "str",
                        "choices": [
                            "allow",
                            "deny",
                        ],
                        "default": "allow",
                    },
                    "peers": {
                        "type": "list",
                        "elements": "dict",
                        "mutually_exclusive": [
                            [
                                "labels",
                                "entity",
                                "cidr",
                                "cidr_group",
                            ],
                        ],
                        "required_one_of": [
                            [
                                "labels",
                                "entity",
                                "cidr",
                                "cidr_group",
                            ],
                        ],
                        "options": {
                            "labels": {
                                "type": "dict",
                            },
                            "expressions": {
                                "type": "list",
                                "elements": "dict",
                                "options": {
                                    "key": {
                                        "type": "str",
                                        "required": True,
                                        "no_log": False,
                                    },
                                    "operator": {
                                        "type": "str",
                                        "choices": [
                                            "In",
                                            "NotIn",
                                            "Exists",
                                            "DoesNotExist",
                                        ],
                                        "required": True,
                                    },
                                    "values": {
                                        "type": "list",
                                        "elements": "str",
                                    },
                                },
                            },
                            "entity": {
                                "type": "str",
                                "choices": [
                                    "world",
                                    "host",
                                    "remote-node",
                                    "cluster",
                                    "all",
                                    "none",
                                ],
                            },
                            "cidr": {
                                "type": "str",
                            },
                            "except": {
                                "type": "list",
                                "elements": "str",
                            },
                            "cidr_group": {
                                "type": "str",
                            },
                        },
                    },
                    "ports": {
                        "type": "list",
                        "elements": "dict",
                        "options": {
                            "protocol": {
                                "type": "str",
                                "choices": [
                                    "tcp",
                                    "udp",
                                    "sctp",
                                    "icmp",
                                    "icmpv6",
                                    "any",
                                ],
                                "default": "any",
                            },
                            "port": {
                                "type": "int",
                            },
                            "end_port": {
                                "type": "int",
                            },
                            "type": {
                                "type": "int",
                            },
                            "code": {
                                "type": "int",
                            },
                        },
                    },
                },
            },
            "default_deny": {
                "type": "dict",
                "options": {
                    "ingress": {
                        "type": "bool",
                    },
                    "egress": {
                        "type": "bool",
                    },
                },
            },
            "mode": {
                "type": "str",
                "choices": [
                    "enforce",
                    "audit",
                ],
            },
            "state": {
                "type": "str",
                "choices": [
                    "present",
                    "absent",
                ],
                "default": "present",
            },
            "this_node": {
                "type": "str",
            },
            "deadline": {
                "type": "int",
                "default": 60,
            },
        },
        "required_if": [
            (
                "state",
                "present",
                [],
            ),
            (
                "state",
                "present",
                [
                    "selector",
                    "node_selector",
                ],
                True,
            ),
        ],
        "mutually_exclusive": [
            [
                "selector",
                "node_selector",
            ],
        ],
    },
    "service": {
        "argument_spec": {
            "name": {
                "type": "str",
                "required": True,
            },
            "cluster": {
                "type": "str",
                "required": True,
            },
            "frontends": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "address": {
                        "type": "str",
                        "required": True,
                    },
                    "port": {
                        "type": "int",
                        "required": True,
                    },
                    "protocol": {
                        "type": "str",
                        "choices": [
                            "tcp",
                            "udp",
                        ],
                        "default": "tcp",
                    },
                },
            },
            "backends": {
                "type": "list",
                "elements": "dict",
                "mutually_exclusive": [
                    [
                        "labels",
                        "address",
                    ],
                ],
                "required_one_of": [
                    [
                        "labels",
                        "address",
                    ],
                ],
                "options": {
                    "labels": {
                        "type": "dict",
                    },
                    "address": {
                        "type": "str",
                    },
                    "port": {
                        "type": "int",
                    },
                },
            },
            "state": {
                "type": "str",
                "choices": [
                    "present",
                    "absent",
                ],
                "default": "present",
            },
            "this_node": {
                "type": "str",
            },
            "deadline": {
                "type": "int",
                "default": 60,
            },
        },
        "required_if": [
            (
                "state",
                "present",
                [
                    "frontends",
                    "backends",
                ],
            ),
        ],
    },
    "documents": {
        "argument_spec": {
            "cluster": {
                "type": "str",
            },
            "documents": {
                "type": "list",
                "elements": "dict",
            },
            "paths": {
                "type": "list",
                "elements": "path",
            },
            "prune": {
                "type": "bool",
                "default": False,
            },
            "this_node": {
                "type": "str",
            },
            "deadline": {
                "type": "int",
                "default": 60,
            },
        },
        "required_one_of": [
            [
                "documents",
                "paths",
            ],
        ],
    },
    "agent": {
        "argument_spec": {
            "state": {
                "type": "str",
                "choices": [
                    "present",
                    "absent",
                ],
                "default": "present",
            },
            "this_node": {
                "type": "str",
            },
            "cluster": {
                "type": "str",
            },
            "force": {
                "type": "bool",
                "default": False,
            },
        },
    },
    "documents_info": {
        "argument_spec": {
            "kinds": {
                "type": "list",
                "elements": "str",
                "choices": [
                    "cluster",
                    "node",
                    "identity",
                    "endpoint",
                    "cidr_group",
                    "policy",
                    "service",
                ],
            },
            "names": {
                "type": "list",
                "elements": "str",
            },
        },
    },
    "status_info": {
        "argument_spec": {},
    },
}

"""What is written by hand of the collection's documentation: options, results and examples that no resource has."""

from __future__ import annotations

from typing import Any, Dict

from bpfleet.model.resources import RESOURCES

COMMON: Dict[str, Dict[str, Any]] = {
    "cluster": {
        "description": ["Name of the cluster it belongs to.", "The documents' owner is V(ansible:<cluster>)."],
        "type": "str",
        "required": True,
    },
    "state": {
        "description": ["Whether the document should be there."],
        "type": "str",
        "choices": ["present", "absent"],
        "default": "present",
    },
    "this_node": {
        "description": ["Which node of the cluster the host is.", "Default: the host's name in the inventory."],
        "type": "str",
    },
    "deadline": {
        "description": [
            "Seconds within which a change must be confirmed over a new connection.",
            "A change that is not confirmed in time is taken back.",
        ],
        "type": "int",
        "default": 60,
    },
}

SYNOPSES: Dict[str, Any] = {
    "resource": [
        "Run it on every member of the cluster: every node holds all documents.",
        "Each task is a transaction on each host. For a whole cluster use M(bpfleet.fleet.documents), which is one.",
        "The host's agent is installed, or replaced by the one that this collection carries, where needed.",
    ],
    "check_mode": ["Says what would change, without changing it; also where no agent is installed yet."],
    "diff_mode": [
        "Shows the documents before and after, the agent's version and digest where it changes, and the steps in the "
        "kernel."
    ],
    "platform": ["Hosts that run the agent."],
}

OTHERS: Dict[str, Dict[str, Any]] = {
    "documents": {
        "short_description": "Put all documents of a cluster on a host, as one transaction",
        "description": [
            "Puts documents from a list, from files or from directories on the host, as one transaction.",
            "This is the way to declare a whole cluster: run it on every member with O(prune=true).",
            "Identities need no number: it is allocated once for all hosts of the run.",
            "The host's agent is installed, or replaced by the one that this collection carries, where needed.",
        ],
        "check_mode": "full",
        "diff_mode": "full",
        "returns": "change",
        "required_one_of": [["documents", "paths"]],
        "options": {
            "cluster": {
                "description": [
                    "Name of the cluster.",
                    "Default: that of the one cluster document among the declared ones.",
                    "The documents' owner is V(ansible:<cluster>).",
                ],
                "type": "str",
            },
            "documents": {
                "description": [
                    "Documents, each with C(kind), C(name) and C(spec); a node may have C(ssh) beside them.",
                    "The fields of a C(spec) are those of the module of that kind.",
                ],
                "type": "list",
                "elements": "dict",
            },
            "paths": {
                "description": [
                    "YAML or JSON files with one or more documents each, or directories of such files.",
                    "Searched for below C(documents/) beside the play or role, then beside it.",
                ],
                "type": "list",
                "elements": "path",
            },
            "prune": {
                "description": [
                    "Delete the documents that this cluster's playbooks have put and that are not declared any more.",
                    "What a Pulumi stack or another owner has put is never deleted.",
                ],
                "type": "bool",
                "default": False,
            },
            "this_node": COMMON["this_node"],
            "deadline": COMMON["deadline"],
        },
    },
    "agent": {
        "short_description": "Install, upgrade or remove the agent",
        "description": [
            "Puts the agent that this collection carries on the host, or takes it off again.",
            "The agent is one archive of Python files and eBPF objects below V(/var/lib/bpfleet); nothing is compiled "
            "or downloaded on the host, and no service runs.",
            "Removing it removes everything of bpfleet from the host first: programs, maps, devices and documents. "
            "Workloads there lose their network.",
        ],
        "check_mode": "full",
        "diff_mode": "partial",
        "returns": "agent",
        "options": {
            "state": {
                "description": [
                    "V(present) installs the carried agent unless it is there.",
                    "V(absent) removes everything of bpfleet from the host, then the agent.",
                ],
                "type": "str",
                "choices": ["present", "absent"],
                "default": "present",
            },
            "this_node": {
                "description": [
                    "Which node the host is; with O(state=absent) it is cleared only if it still is this node.",
                    "Default: the host's name in the inventory.",
                ],
                "type": "str",
            },
            "cluster": {
                "description": [
                    "With O(state=absent), the cluster whose playbook the host's documents must be of; a host of "
                    "another cluster is not cleared.",
                    "Default: any playbook's.",
                ],
                "type": "str",
            },
            "force": {
                "description": [
                    "Clear the host with O(state=absent) although it holds documents of a Pulumi stack, of another "
                    "cluster's playbook, or of another owner.",
                ],
                "type": "bool",
                "default": False,
            },
        },
    },
    "documents_info": {
        "short_description": "Read the documents that a host holds",
        "description": ["Reads the confirmed documents. A host without an agent holds none; nothing is installed."],
        "check_mode": "full",
        "diff_mode": "none",
        "returns": "documents_info",
        "options": {
            "kinds": {
                "description": ["Only documents of these kinds.", "Default: all."],
                "type": "list",
                "elements": "str",
                "choices": list(RESOURCES),
            },
            "names": {
                "description": ["Only documents of these names.", "Default: all."],
                "type": "list",
                "elements": "str",
            },
        },
    },
    "status_info": {
        "short_description": "Read what bpfleet does on a host",
        "description": [
            "Reads what is confirmed and whether the kernel agrees with it: attached programs, drift, how full the "
            "maps are, counters, what waits for what.",
            "Nothing is installed where no agent is.",
        ],
        "check_mode": "full",
        "diff_mode": "none",
        "returns": "status_info",
        "options": {},
    },
}


def _value(description: str, kind: str, returned: str = "success", **more: Any) -> Dict[str, Any]:
    return {"description": [description], "returned": returned, "type": kind, **more}


_AGENT = {"version": "0.2.0", "digest": "3b1f…", "before": {"version": "0.1.0", "digest": "77c0…"}}

RETURNS: Dict[str, Dict[str, Any]] = {
    "change": {
        "put": _value("Keys of the documents that are new or differ.", "list", elements="str", sample=["policy/web"]),
        "deleted": _value("Keys of the deleted documents.", "list", elements="str", sample=["policy/old"]),
        "node": _value("Which node the host is.", "str", sample="h1"),
        "agent_installed": _value("Whether the agent was (in check mode: would be) installed or replaced.", "bool"),
        "agent": _value(
            "The agent that was (in check mode: would be) installed, and the one before it; null if there was none.",
            "dict",
            "when RV(agent_installed) is true",
            sample=_AGENT,
        ),
        "left_behind": _value(
            "Members of the cluster that are not in this run, or failed earlier in it: they keep what they have.",
            "list",
            elements="str",
            sample=["h3"],
        ),
        "generation": _value("Number of the host's confirmed generation of documents.", "int", sample=3),
        "documents_digest": _value(
            "Digest of all documents of the host; equal on all members that are up to date.",
            "str",
            "where the agent is installed",
        ),
        "state_digest": _value(
            "Digest of what the documents mean for this node.", "str", "where the agent is installed"
        ),
        "steps": _value("Count of the steps in the kernel by kind.", "dict", "where the agent is installed"),
        "capacity": _value(
            "Of each map of the node, in entries: used now, wanted, the most while the change is made (peak), and the "
            "limit.",
            "list",
            "where the agent is installed",
            elements="dict",
        ),
        "writes": _value("System calls and file writes that the change took.", "int", "when something was changed"),
        "waiting": _value(
            "Documents that take effect when another arrives, and why.",
            "list",
            "where the agent is installed",
            elements="dict",
        ),
        "transaction": _value("Id of the transaction.", "str", "when something was changed"),
        "error": _value("What was wrong, where, and what to do, for programs.", "dict", "failure"),
    },
    "agent": {
        "agent": _value(
            "The agent that this collection carries, and the one that was there; null if there was none.",
            "dict",
            "with O(state=present)",
            sample=_AGENT,
        ),
        "node": _value("Which node the host is; null before it holds documents.", "str", sample="h1"),
        "writes": _value("System calls and file writes that clearing the host took.", "int", "when it was cleared"),
        "error": _value("What was wrong, where, and what to do, for programs.", "dict", "failure"),
    },
    "documents_info": {
        "documents": _value(
            "The documents, each with C(kind), C(name), C(spec), C(owner) and C(metadata).", "list", elements="dict"
        ),
        "digest": _value("Digest of all documents of the host.", "str"),
        "generation": _value("Number of the confirmed generation; 0 before the first.", "int", sample=3),
        "agent_installed": _value("Whether an agent is installed.", "bool"),
    },
    "status_info": {
        "agent_installed": _value("Whether an agent is installed.", "bool"),
        "status": _value(
            "What C(bpfleet status -o json) says of a node: node, cluster, generation, documents_digest, state_digest, "
            "documents, programs, drift, maps, counters, waiting, warnings, pending, writes, fitness, agent.",
            "dict",
            "where an agent is installed",
        ),
    },
}

EXAMPLES: Dict[str, str] = {
    "cluster": """
- name: The cluster, on all its members
  bpfleet.fleet.cluster:
    name: shop
    id: 1
    members: "{{ groups['shop'] }}"
""",
    "node": """
- name: Every node's document, on all members
  bpfleet.fleet.node:
    cluster: shop
    name: "{{ item }}"
    address: "{{ hostvars[item].underlay_address }}"
    devices: [{name: eth0}]
    workload_cidrs: "{{ hostvars[item].workload_cidrs }}"
  loop: "{{ groups['shop'] }}"
""",
    "identity": """
- name: Who the web servers are
  bpfleet.fleet.identity:
    cluster: shop
    name: web
    labels: {app: shop, role: web}
""",
    "endpoint": """
- name: A workload in the network namespace w1 of node h1
  bpfleet.fleet.endpoint:
    cluster: shop
    name: web-1
    node: h1
    identity: web
    addresses: [10.0.1.10]
    attach: {netns: w1}
""",
    "cidr_group": """
- name: Where the office is
  bpfleet.fleet.cidr_group:
    cluster: shop
    name: office
    cidrs: [198.51.100.0/24, "2001:db8:100::/48"]
""",
    "policy": """
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
""",
    "service": """
- name: One address for all web servers
  bpfleet.fleet.service:
    cluster: shop
    name: web
    frontends: [{address: 10.96.0.10, port: 80}]
    backends: [{labels: {role: web}, port: 8080}]
""",
    "documents": """
- name: The whole cluster, from files beside the playbook and from variables
  hosts: shop
  gather_facts: false
  tasks:
    - name: All documents
      bpfleet.fleet.documents:
        paths: [documents]
        documents: "{{ shop_nodes + shop_endpoints }}"
        prune: true
""",
    "agent": """
- name: The agent, as this collection carries it
  bpfleet.fleet.agent:

- name: Nothing of bpfleet on the host any more
  bpfleet.fleet.agent:
    state: absent
""",
    "documents_info": """
- name: The policies that this host holds
  bpfleet.fleet.documents_info:
    kinds: [policy]
  register: held
""",
    "status_info": """
- name: What bpfleet does on this host
  bpfleet.fleet.status_info:
  register: bpfleet

- name: The kernel is as declared
  ansible.builtin.assert:
    that: bpfleet.status.drift == []
""",
}

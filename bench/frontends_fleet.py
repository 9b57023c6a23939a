"""The fleet of the group `frontends`, said once: as documents, from which a Pulumi program and a play are made."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping

from bpfleet.lab import Lab

HOSTS, WORKLOADS = 20, 2
ROLES = 20
"""Identities, with a policy for each."""
CLUSTER = "fleet"
CHANGED_POLICY = "app0"

Documents = List[Dict[str, Any]]
Resources = Dict[str, Dict[str, Any]]


def documents(lab: Lab, port: int = 80) -> Documents:
    """All hosts of the lab with all their workloads, 20 identities, 20 policies. `port`: what one of those allows."""
    hosts = list(lab.hosts.values())
    found = [_document("cluster", CLUSTER, id=7, members=[host.name for host in hosts])]
    for host in hosts:
        found.append(_document("node", host.name, **host.node_spec))
    for index in range(ROLES):
        name, tier = f"app{index}", f"tier{index % 4}"
        found.append(_document("identity", name, labels={"app": name, "tier": tier}))
        rule = {
            "peers": [{"labels": {"tier": tier}}],
            "ports": [{"protocol": "tcp", "port": port if name == CHANGED_POLICY else 80}],
        }
        found.append(_document("policy", name, selector={"app": name}, ingress=[rule]))
    places = [(host, number) for host in hosts for number in range(len(host.workloads))]
    for index, (host, number) in enumerate(places):
        four, six = (cidr.partition("/")[0] for cidr in host.workload_cidrs)
        found.append(
            _document(
                "endpoint",
                f"e{index}",
                node=host.name,
                identity=f"app{index % ROLES}",
                addresses=[f"{four[: four.rindex('.')]}.{10 + number}", f"{six}{10 + number}"],
                attach={"netns": host.workloads[number]},
            )
        )
    return found


def _document(kind: str, name: str, **spec: Any) -> Dict[str, Any]:
    return {"kind": kind, "name": name, "spec": spec}


def resources(lab: Lab, declared: Documents) -> Resources:
    """A Pulumi program's resources for these documents: nodes and the cluster by handles, all else as written."""
    made: Resources = {}
    for document in declared:
        kind, name, spec = document["kind"], document["name"], document["spec"]
        if kind == "node":
            ssh = {"privateKeyFile": str(lab.private_key), "hostKey": lab.host(name).host_key}
            properties = {**_camel(spec), "ssh": ssh}
        elif kind == "cluster":
            properties = {**spec, "members": {member: f"${{node-{member}.handle}}" for member in spec["members"]}}
        else:
            properties = {**spec, "cluster": f"${{cluster-{CLUSTER}.handle}}"}
        # Kinds share names here, as they may in a cluster; a program's resources may not.
        resource = {"type": f"bpfleet:{kind.capitalize()}", "properties": {**properties, "name": name}}
        made[f"{kind}-{name}"] = resource
    return made


def _camel(spec: Mapping[str, Any]) -> Dict[str, Any]:
    return {{"workload_cidrs": "workloadCidrs"}.get(name, name): value for name, value in spec.items()}


def playbook(declared: Documents) -> List[Dict[str, Any]]:
    """A play that delivers the agent and puts the documents on all hosts."""
    task = {"bpfleet.fleet.documents": {"documents": declared, "prune": True}}
    role = {"role": "bpfleet.fleet.node", "bpfleet_host_files": False}
    return [{"hosts": "all", "gather_facts": False, "roles": [role], "tasks": [task]}]

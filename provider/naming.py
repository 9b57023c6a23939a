"""Ids of resources, ids to import, and owners. Pure.

A node's and a cluster's id is its name; any other's is "cluster/name". Read gets nothing but the id on `pulumi
import`, so an id to import also says where to ask:

    NAME@HOST[:PORT][?user=…&sudo=true&privateKeyFile=…&hostKey=…&knownHostsFile=…]            Node, Cluster
    CLUSTER/NAME@HOST[:PORT][?…]                                                      everything else
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Optional, Tuple
from urllib.parse import parse_qsl, urlsplit

from bpfleet.errors import InvalidInput
from bpfleet.model.resources import CLUSTER_HANDLE, RESOURCES, SSH
from bpfleet.model.schema import Boolean, Text, camel, check

IN_CLUSTER = frozenset(
    kind
    for kind, resource in RESOURCES.items()
    if any(field.type is CLUSTER_HANDLE and not field.computed for field in resource.fields)
)
"""Kinds of resources that belong to a cluster, and name it by its handle."""


@dataclass(frozen=True)
class ResourceId:
    """What an id says. `ssh` (a checked spec of the model's Ssh, with host) only in an id to import."""

    name: str
    cluster: Optional[str] = None
    ssh: Optional[Dict[str, Any]] = None

    @property
    def text(self) -> str:
        """The id in the state."""
        return f"{self.cluster}/{self.name}" if self.cluster else self.name


def parse_id(kind: str, text: str) -> ResourceId:
    """What an id says; raises InvalidInput with the form that is expected."""
    form = f"{'CLUSTER/' if kind in IN_CLUSTER else ''}NAME@HOST[:PORT]"
    remedy = f"To import, give {form}, where HOST is a node of the cluster."
    path, at, address = text.partition("@")
    cluster, slash, name = path.rpartition("/")
    if bool(slash) != (kind in IN_CLUSTER) or not name or (slash and not cluster):
        raise InvalidInput(f"{text!r} is not the id of a {kind}", remedy=remedy, field="id")
    return ResourceId(name, cluster or None, _parse_ssh(address, text, remedy) if at else None)


def _parse_ssh(address: str, text: str, remedy: str) -> Dict[str, Any]:
    try:
        parts = urlsplit(f"//{address}")
        given: Dict[str, Any] = {"host": parts.hostname, "port": parts.port}
    except ValueError as error:
        raise InvalidInput(f"{text!r} has no usable address: {error}", remedy=remedy, field="id") from error
    fields = {
        camel(field.name): field
        for field in SSH.fields
        if isinstance(field.type, (Text, Boolean)) and field.name != "host"
    }
    for key, value in parse_qsl(parts.query):
        if key not in fields:
            raise InvalidInput(f"{key!r} is no option of an id", remedy=f"Use {', '.join(fields)}.", field="id")
        truth = isinstance(fields[key].type, Boolean) and value in ("true", "false")
        given[fields[key].name] = value == "true" if truth else value
    ssh, problems = check(SSH.fields, given)
    if problems or not given["host"]:
        what = problems[0].what if problems else "has no host"
        raise InvalidInput(f"{text!r}: {what}", remedy=remedy, field="id")
    return ssh


class Declarations:
    """Which Pulumi resource is which document, as far as the program of this run was checked."""

    def __init__(self) -> None:
        self._urns: Dict[Tuple[str, Optional[str], str], str] = {}

    def declare(self, kind: str, cluster: Optional[str], name: str, urn: str) -> Optional[str]:
        """Note that `urn` is this document; the URN that is it already, if it is another."""
        other = self._urns.setdefault((kind, cluster, name), urn)
        return None if other == urn else other

    def taken_over(self, kind: str, cluster: Optional[str], name: str, urn: str) -> bool:
        """Whether the document belongs to another resource now, as when a resource got a new name in its program.

        Pulumi then makes the new one and deletes the old one afterwards, which must leave the document alone.
        """
        return self._urns.get((kind, cluster, name), urn) != urn


def owner_of(urn: str) -> str:
    """The owner of a stack's documents: "pulumi:project/stack". A URN is urn:pulumi:stack::project::types::name."""
    head, project, _, _ = urn.split("::", 3)
    return f"pulumi:{project}/{head.rsplit(':', 1)[1]}"


def logical_name(urn: str) -> str:
    """The resource's name in its Pulumi program."""
    return urn.split("::", 3)[3]


def type_token(urn: str) -> str:
    """The resource's own type token (a URN has its parents' before it)."""
    return urn.split("::", 3)[2].rsplit("$", 1)[-1]

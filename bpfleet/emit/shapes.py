"""Resource types as a Pulumi program sees them: the model's fields, and what only Pulumi has.

Only Pulumi has `name` (in a document it stands outside the fields; here it may be left out and is then the Pulumi
resource's own name), members as a map of handles, and the outputs that say how the nodes differ from the state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Dict, Tuple

from bpfleet.model.resources import NAME, RESOURCES, Resource
from bpfleet.model.schema import Field, ListOf, MapOf, Text

NAME_FIELD = Field(
    "name",
    NAME,
    "Name in the cluster, by which other resources refer to it. Default: the Pulumi resource's name.",
    replaces=True,
)
DRIFT_FIELD = Field(
    "drift",
    ListOf(Text()),
    "How nodes differed from what is declared when last refreshed, a line for each difference. The next update "
    "repairs what is listed.",
    computed=True,
    required=True,
)
LAGGING_FIELD = Field(
    "lagging_nodes",
    ListOf(NAME),
    "Members that did not take the latest change, because they could not be reached or failed. The next update "
    "tries them again.",
    computed=True,
    required=True,
)
AGENT_FIELD = Field(
    "agent",
    Text(),
    "Digest of the agent and the eBPF objects on the node. A newer bpfleet where Pulumi runs shows as a change of it.",
    computed=True,
    required=True,
)


@dataclass(frozen=True)
class Shape:
    """One resource type in Pulumi. `inputs` is what a program writes, `outputs` what it can read besides."""

    resource: Resource
    inputs: Tuple[Field, ...]
    outputs: Tuple[Field, ...]

    @property
    def kind(self) -> str:
        """The kind of its document."""
        return self.resource.kind

    @property
    def fields(self) -> Tuple[Field, ...]:
        """Inputs and outputs."""
        return self.inputs + self.outputs


def _shape(resource: Resource) -> Shape:
    inputs = [replace(NAME_FIELD, type=resource.name)]
    for field in resource.input_fields:
        if field.handles is not None:
            names = field.type
            assert isinstance(names, ListOf) and isinstance(names.item, Text)
            doc = f"{field.doc} A map from each one's name to its handle" + (", at least one." if names.least else ".")
            field = replace(field, type=MapOf(field.handles, key=names.item), doc=doc)
        inputs.append(field)
    outputs = [replace(field, required=True) for field in resource.fields if field.computed]
    if resource.kind in ("cluster", "node"):
        # A node or a cluster that is not finished everywhere must not hold up all that depends on it, as a partially
        # created resource would: it says so in an output instead. Leaves are kept as partially created.
        outputs.append(LAGGING_FIELD)
    if resource.kind == "node":
        outputs.append(AGENT_FIELD)
    return Shape(resource, tuple(inputs), (*outputs, DRIFT_FIELD))


SHAPES: Dict[str, Shape] = {resource.token: _shape(resource) for resource in RESOURCES.values()}
"""Shapes by Pulumi's type token."""

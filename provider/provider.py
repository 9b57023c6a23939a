"""The operations, as `pulumi.provider.experimental` calls them. Each method here reads as what one call does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, NoReturn, Optional, Tuple

from pulumi.provider.experimental import provider as sdk

from bpfleet.emit.shapes import SHAPES, Shape
from bpfleet.errors import BpfleetError, InvalidInput
from bpfleet.model.document import Document
from bpfleet.model.schema import UNKNOWN, contains_unknown
from bpfleet.transport.target import Target
from provider.checking import check_inputs, pulumi_words, unechoed
from provider.clusters import Clusters, cluster_handle, inputs_of_cluster
from provider.differing import cluster_name, differences
from provider.directory import handle_target
from provider.engine import Engine
from provider.leaves import Leaves, seeds_of
from provider.naming import IN_CLUSTER, Declarations, ResourceId, logical_name, owner_of, parse_id, type_token
from provider.nodes import Nodes, agent_digest, inputs_of_node, node_handle, node_target
from provider.program import Program, cluster_of, known_document
from provider.reading import Reader, Snapshot, find
from provider.runtime import Runtime
from provider.sdk import DeleteRequest, DiffRequest, PartialFailure, UpdateRequest, Values
from provider.values import Secrets, from_model, from_pulumi, secret_texts, to_model, to_pulumi
from provider.writing import Put, Result

_SCHEMA = Path(__file__).resolve().with_name("schema.json")

Plain = Dict[str, Any]


@dataclass(frozen=True)
class _Read:
    """Inputs and computed outputs as the nodes have them. silent: members that could not be asked."""

    inputs: Plain
    computed: Plain
    silent: Mapping[str, BpfleetError]


class BpfleetProvider(sdk.Provider):
    """Resources of bpfleet. Check and Diff ask no node: the engine runs them one at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.begin()

    def begin(self) -> None:
        """Start afresh, knowing nothing: at the start, and when another engine takes over (see Servicer.Attach)."""
        self._runtime = Runtime(self._engine)
        self._leaves = Leaves(self._runtime)
        self._nodes = Nodes(self._runtime, self._leaves)
        self._clusters = Clusters(self._runtime)
        self._reader = Reader(self._runtime)
        self._declarations = Declarations()
        self._program = Program()
        self._previewing = False

    async def get_schema(self, request: sdk.GetSchemaRequest) -> sdk.GetSchemaResponse:
        return sdk.GetSchemaResponse(_SCHEMA.read_text(encoding="utf-8"))

    async def configure(self, request: sdk.ConfigureRequest) -> sdk.ConfigureResponse:
        return sdk.ConfigureResponse(accept_secrets=True, supports_preview=True)

    async def check(self, request: sdk.CheckRequest) -> sdk.CheckResponse:
        shape = _shape(request.urn)
        inputs, failures = check_inputs(shape, logical_name(request.urn), request.new_inputs)
        self._engine.hide(secret_texts(request.new_inputs) | secret_texts(inputs))
        if not failures:
            failures = self._declare(shape, request.urn, inputs)
        if not failures:
            failures = self._see(shape, request.urn, inputs)
        if not failures and not request.old_inputs and shape.kind in IN_CLUSTER:
            self._leaves.batcher.announce(request.urn)
        return sdk.CheckResponse(inputs, [sdk.CheckFailure(path, reason) for path, reason in failures])

    def _declare(self, shape: Shape, urn: str, checked: Values) -> List[Tuple[str, str]]:
        """Refuse a second resource of the same name: both would write one document."""
        inputs, _ = _plain(shape, checked)
        key = _key(shape, inputs)
        other = self._declarations.declare(*key, urn) if UNKNOWN not in key else None
        if other is None:
            return []
        return [("name", f"{shape.kind} {key[2]} is declared twice: {other} is it already. Give each its own name.")]

    def _see(self, shape: Shape, urn: str, checked: Values) -> List[Tuple[str, str]]:
        """Note what the program says of a resource. In a preview, refuse what contradicts a resource seen before it.

        A check does not know whether it is a preview's. If nothing was created or updated yet, that resource finds the
        contradiction itself (see `_foresee`). An update refuses what it must by itself and makes the rest.
        """
        inputs, secrets = _plain(shape, checked)
        document = known_document(shape, inputs)
        if document is None:
            self._program.forget(urn)
            return []
        self._program.see(urn, cluster_of(shape, inputs), document)
        error = self._program.refusal(urn) if self._previewing else None
        if error is None:
            return []
        self._tell(error, document.key)
        own = error.field if error.resource == document.key else None  # others' fields are no properties of this one
        return [(unechoed(own or "name", secrets), str(error))]

    def _foresee(self, urn: str, preview: bool) -> None:
        """Raise what an update will be refused for, as far as the program tells."""
        self._previewing = preview
        error = self._program.refusal(urn) if preview else None
        if error is not None:
            self._fail(error, error.resource or logical_name(urn))

    async def diff(self, request: sdk.DiffRequest) -> sdk.DiffResponse:
        assert isinstance(request, DiffRequest)
        shape = _shape(request.urn)
        old_outputs, _ = _plain(shape, request.old_state)
        old_inputs, _ = _plain(shape, request.old_inputs or request.old_state)
        news, _ = _plain(shape, request.new_inputs)
        found = differences(shape, old_inputs, old_outputs, news, agent_digest() if shape.kind == "node" else None)
        if found.detailed and shape.kind != "cluster":
            self._leaves.batcher.announce(request.urn)
        return sdk.DiffResponse(
            changes=bool(found.detailed),
            replaces=found.replaced,
            detailed_diff=found.detailed,
            diffs=sorted({path.split(".")[0].split("[")[0] for path in found.detailed}),
            delete_before_replace=found.delete_first,
        )

    async def create(self, request: sdk.CreateRequest) -> sdk.CreateResponse:
        shape = _shape(request.urn)
        inputs, secrets = _plain(shape, request.properties)
        self._foresee(request.urn, request.preview)
        if request.preview:
            return sdk.CreateResponse("", _outputs(shape, _previewed(shape, inputs, {}, {}), secrets))
        outputs = await self._put(shape, request.urn, inputs, {}, {}, secrets)
        return sdk.CreateResponse(_id(shape, inputs).text, outputs)

    async def update(self, request: sdk.UpdateRequest) -> sdk.UpdateResponse:
        assert isinstance(request, UpdateRequest)
        shape = _shape(request.urn)
        inputs, secrets = _plain(shape, request.news)
        old_outputs, _ = _plain(shape, request.olds)
        old_inputs, _ = _plain(shape, request.old_inputs or request.olds)
        self._foresee(request.urn, request.preview)
        if request.preview:
            return sdk.UpdateResponse(_outputs(shape, _previewed(shape, inputs, old_inputs, old_outputs), secrets))
        return sdk.UpdateResponse(await self._put(shape, request.urn, inputs, old_inputs, old_outputs, secrets))

    async def _put(
        self, shape: Shape, urn: str, inputs: Plain, old_inputs: Plain, old_outputs: Plain, secrets: Secrets
    ) -> Values:
        """Make it so on the nodes; the outputs. Raises PartialFailure where some nodes of a leaf lag behind."""
        owner = owner_of(urn)
        outputs = _previewed(shape, inputs, old_inputs, old_outputs)
        try:
            if shape.kind == "node":
                outputs["lagging_nodes"] = await self._nodes.put(urn, owner, inputs, old_inputs or None)
            elif shape.kind == "cluster":
                applied = await self._clusters.put(urn, owner, inputs, old_inputs or None)
                outputs["lagging_nodes"] = sorted(applied.lagging)
            else:
                result = await self._put_leaf(shape, urn, owner, inputs)
                if shape.kind == "identity":
                    outputs["number"] = result.spec["number"]
                if result.lagging:
                    values = _outputs(shape, outputs, secrets)
                    raise PartialFailure(_id(shape, inputs).text, values, self._reasons(result.lagging))
        except BpfleetError as error:
            self._fail(error, f"{shape.kind}/{inputs['name']}")
        finally:
            self._reader.outdate_all()
        return _outputs(shape, outputs, secrets)

    async def _put_leaf(self, shape: Shape, urn: str, owner: str, inputs: Plain) -> Result:
        handle = inputs["cluster"]
        spec = {field.name: inputs[field.name] for field in shape.resource.spec_fields if field.name in inputs}
        put = Put(shape.kind, str(inputs["name"]), spec)
        return await self._leaves.put(urn, owner, str(handle["cluster"]), put, seeds_of(handle))

    async def delete(self, request: sdk.DeleteRequest) -> None:
        assert isinstance(request, DeleteRequest)
        shape = _shape(request.urn)
        # The state's outputs may be stale (a "same" step refreshes the inputs only): the inputs say where to go.
        inputs, _ = _plain(shape, request.old_inputs or request.properties)
        owner, key = owner_of(request.urn), f"{shape.kind}/{inputs['name']}"
        if self._declarations.taken_over(*_key(shape, inputs), request.urn):
            return
        try:
            if shape.kind == "node":
                await self._nodes.delete(request.urn, owner, inputs)
            elif shape.kind == "cluster":
                await self._clusters.delete(request.urn, owner, inputs)
            else:
                handle = inputs["cluster"]
                await self._leaves.delete(request.urn, owner, str(handle["cluster"]), key, seeds_of(handle))
        except BpfleetError as error:
            self._fail(error, key)
        finally:
            self._reader.outdate_all()

    async def read(self, request: sdk.ReadRequest) -> sdk.ReadResponse:
        shape = _shape(request.urn)
        wanted = parse_id(shape.kind, request.resource_id)
        old_inputs, secrets = _plain(shape, request.inputs or request.properties)
        old_outputs, _ = _plain(shape, request.properties)
        if not old_inputs and wanted.ssh is None:
            raise InvalidInput(
                f"{request.resource_id!r} says no host to ask",
                field="id",
                remedy=f"To import, give {request.resource_id}@HOST[:PORT], where HOST is a node of the cluster.",
            )
        try:
            found = await self._read(shape, request.urn, wanted, old_inputs)
        except BpfleetError as error:
            self._fail(error, f"{shape.kind}/{wanted.name}")
        if found is None:
            return sdk.ReadResponse()
        outputs = {**_previewed(shape, found.inputs, found.inputs, old_outputs), **found.computed}
        if shape.kind in ("node", "cluster"):
            # Whether a member took the last change only the next update can tell, unless it is no member any more.
            outputs["lagging_nodes"] = old_outputs.get("lagging_nodes", [])
        if old_outputs.get("agent"):
            outputs["agent"] = old_outputs["agent"]  # what the node runs changes by an update only
        declared = to_pulumi(from_model(shape.inputs, found.inputs), secrets)
        properties = _outputs(shape, outputs, secrets)
        if found.silent and shape.kind in IN_CLUSTER:
            raise PartialFailure(wanted.text, properties, self._reasons(found.silent), declared)
        for reason in self._reasons(found.silent):
            self._runtime.engine.warn(request.urn, reason)
        return sdk.ReadResponse(wanted.text, properties, declared)

    async def _read(self, shape: Shape, urn: str, wanted: ResourceId, old: Plain) -> Optional[_Read]:
        """What the nodes have; None if it is gone."""
        if shape.kind == "node":
            target = node_target(old) if old else Target.from_metadata(wanted.name, wanted.ssh or {})
            node = await self._nodes.read(target, wanted.name)
            if node is None:
                return None
            return _Read(inputs_of_node(wanted.name, node.item, old), {"drift": node.drift}, {})
        snapshot = await self._reader.snapshot(wanted.cluster or wanted.name, _seeds(shape, wanted, old))
        if snapshot.view is None:
            return None
        found = find(snapshot, f"{shape.kind}/{wanted.name}", _declared(shape, wanted.name, old))
        if found is None:
            return None
        spec = dict(found.item["document"]["spec"])
        computed: Plain = {"drift": found.drift}
        if shape.kind == "cluster":
            return _Read(inputs_of_cluster(wanted.name, spec, snapshot.view, old), computed, found.silent)
        if "number" in spec:
            computed["number"] = spec.pop("number")
        handle = old.get("cluster") or _handle_of(snapshot)
        return _Read({"name": wanted.name, "cluster": handle, **spec}, computed, found.silent)

    def _reasons(self, errors: Mapping[str, BpfleetError]) -> List[str]:
        return [self._engine.fit_to_tell(pulumi_words(str(error))) for _, error in sorted(errors.items())]

    def _fail(self, error: BpfleetError, resource: str) -> NoReturn:
        self._tell(error, resource)
        raise error

    def _tell(self, error: BpfleetError, resource: str) -> None:
        """Have it name the resource, call fields as Pulumi programs do, and tell no secret."""
        error.at(resource=resource)
        error.what, error.remedy = (self._engine.fit_to_tell(pulumi_words(text)) for text in (error.what, error.remedy))
        if error.field is not None:
            error.where["field"] = pulumi_words(error.field)

    async def cancel(self) -> None:
        self._leaves.cancel()
        await self._runtime.close()


def _shape(urn: str) -> Shape:
    token = type_token(urn)
    if token not in SHAPES:
        raise InvalidInput(f"there is no resource type {token}", remedy=f"Use one of {', '.join(SHAPES)}.")
    return SHAPES[token]


def _plain(shape: Shape, values: Mapping[str, Any]) -> Tuple[Plain, Secrets]:
    """Checked inputs, or outputs, with the schema's names; what an older version had besides is left out."""
    plain, secrets = from_pulumi(values)
    renamed, _ = to_model(shape.fields, plain)
    return renamed, secrets


def _outputs(shape: Shape, values: Plain, secrets: Secrets) -> Values:
    """Outputs for the state. A handle has parts of the inputs in it, so it is secret if any of those is."""
    if secrets and "handle" in values:
        secrets |= {("handle",)}
    return to_pulumi(from_model(shape.fields, values), secrets)


def _id(shape: Shape, inputs: Plain) -> ResourceId:
    handle = inputs.get("cluster")
    return ResourceId(str(inputs["name"]), str(handle["cluster"]) if handle else None)


def _key(shape: Shape, inputs: Plain) -> Tuple[str, Any, Any]:
    """Kind, cluster (None for nodes and clusters) and name, each UNKNOWN if that is not known yet."""
    return shape.kind, cluster_name(inputs.get("cluster")), inputs["name"]


def _previewed(shape: Shape, inputs: Plain, old_inputs: Plain, old_outputs: Plain) -> Plain:
    """Outputs as far as they follow from the inputs. The rest is unknown, or what a clean change ends with."""
    outputs: Plain = {**inputs, "drift": []}
    if shape.kind in ("node", "cluster"):
        outputs["lagging_nodes"] = []
    if shape.kind == "node":
        outputs["handle"] = node_handle(inputs)
        outputs["agent"] = agent_digest() or UNKNOWN
    elif shape.kind == "cluster":
        known = isinstance(inputs["members"], Mapping)
        outputs["handle"] = cluster_handle(inputs, old_outputs.get("handle")) if known else UNKNOWN
    elif shape.kind == "identity":
        same = old_inputs.get("labels") == inputs["labels"] and not contains_unknown(inputs["labels"])
        outputs["number"] = old_outputs.get("number", UNKNOWN) if same else UNKNOWN
    return outputs


def _declared(shape: Shape, name: str, old: Plain) -> Optional[Document]:
    """The document that the state declares, to compare with what nodes hold."""
    if not old or shape.kind not in IN_CLUSTER - {"identity"}:
        return None
    spec = {field.name: old[field.name] for field in shape.resource.spec_fields if field.name in old}
    return Document(shape.kind, name, spec)


def _seeds(shape: Shape, wanted: ResourceId, old: Plain) -> Dict[str, Target]:
    """Whom to ask: the members that the state knows, or the host in an id to import."""
    if wanted.ssh is not None:
        return {wanted.ssh["host"]: Target.from_metadata(str(wanted.ssh["host"]), wanted.ssh)}
    if shape.kind == "cluster":
        return {name: handle_target(handle) for name, handle in old["members"].items()}
    return seeds_of(old["cluster"])


def _handle_of(snapshot: Snapshot) -> Plain:
    """A cluster's handle made from what its members hold, for imports."""
    assert snapshot.view is not None
    view = snapshot.view
    members = {name: node_handle(inputs_of_node(name, member.item, {})) for name, member in view.members.items()}
    return cluster_handle({"name": view.name, "members": members}, None)

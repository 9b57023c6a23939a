"""What `pulumi.provider.experimental` (SDK 3.272) leaves out or gets wrong, and nothing else.

- A resource that was made but is not finished needs the status detail ErrorResourceInitFailed: `PartialFailure`.
- An exception becomes a traceback in front of the user: here a `BpfleetError` becomes its own text.
- Diff, Update and Delete drop the inputs of the last update: `old_inputs` of the requests below.
- What Read does not find has empty inputs, which an import takes for a resource: here it has none.
- DiffConfig drops `changes`; Attach is missing, so that PULUMI_DEBUG_PROVIDERS does not work.
- `main` offers no way in for any of this, nor an end when the engine dies: see server.py.
"""

from __future__ import annotations

import sys
import traceback
from typing import Any, Awaitable, Callable, Dict, List, Optional, Sequence, Tuple

import grpc  # type: ignore[import-untyped]
from google.protobuf import empty_pb2
from pulumi.provider.experimental import provider as sdk
from pulumi.provider.experimental.property_value import PropertyValue
from pulumi.provider.experimental.server import ProviderServicer
from pulumi.runtime import proto
from pulumi.runtime.proto import status_pb2

from bpfleet.errors import BpfleetError

Values = Dict[str, PropertyValue]


class PartialFailure(Exception):
    """The resource exists, but not everywhere: kept in the state with `properties`, and updated by the next `up`.

    `inputs`: from Read only, as what is read besides.
    """

    def __init__(
        self, resource_id: str, properties: Values, reasons: Sequence[str], inputs: Optional[Values] = None
    ) -> None:
        super().__init__("; ".join(reasons))
        self.inputs = inputs
        self.resource_id = resource_id
        self.properties = properties
        self.reasons = list(reasons)


class DiffRequest(sdk.DiffRequest):
    """With `old_inputs`: the checked inputs of the last update."""

    old_inputs: Values


class UpdateRequest(sdk.UpdateRequest):
    """With `old_inputs`: the checked inputs of the last update."""

    old_inputs: Values


class DeleteRequest(sdk.DeleteRequest):
    """With `old_inputs`: the checked inputs of the last update."""

    old_inputs: Values


def partial_failure_details(failure: PartialFailure) -> bytes:
    """The gRPC status that carries a partial failure, for the trailer `grpc-status-details-bin`."""
    status = status_pb2.Status(code=grpc.StatusCode.UNKNOWN.value[0], message=str(failure))
    status.details.add().Pack(
        proto.ErrorResourceInitFailed(
            id=failure.resource_id,
            properties=PropertyValue.marshal_map(failure.properties),
            reasons=failure.reasons,
            inputs=None if failure.inputs is None else PropertyValue.marshal_map(failure.inputs),
        )
    )
    serialized: bytes = status.SerializeToString()
    return serialized


class Servicer(ProviderServicer):
    """The SDK's gRPC servicer with the gaps closed."""

    def __init__(
        self, args: List[str], version: str, provider: sdk.Provider, engine_address: str, attach: Callable[[str], None]
    ) -> None:
        """`attach` is told the engine's address when an engine takes over a plugin that runs already."""
        super().__init__(args, version, provider, engine_address)
        self._attach = attach

    async def Attach(self, request: Any, context: Any) -> Any:
        self._engine_address = request.address
        self._attach(request.address)
        return empty_pb2.Empty()

    async def GetSchema(self, request: Any, context: Any) -> Any:
        return await _answer(context, super().GetSchema(request, context))

    async def CheckConfig(self, request: Any, context: Any) -> Any:
        return await _answer(context, super().CheckConfig(request, context))

    async def Configure(self, request: Any, context: Any) -> Any:
        return await _answer(context, super().Configure(request, context))

    async def Check(self, request: Any, context: Any) -> Any:
        return await _answer(context, super().Check(request, context))

    async def Create(self, request: Any, context: Any) -> Any:
        return await _answer(context, super().Create(request, context))

    async def Read(self, request: Any, context: Any) -> Any:
        return await _answer(context, self._read(request, context))

    async def DiffConfig(self, request: Any, context: Any) -> Any:
        return await _answer(context, self._diff(self._provider.diff_config, request))

    async def Diff(self, request: Any, context: Any) -> Any:
        return await _answer(context, self._diff(self._provider.diff, request))

    async def Update(self, request: Any, context: Any) -> Any:
        return await _answer(context, self._update(request))

    async def Delete(self, request: Any, context: Any) -> Any:
        return await _answer(context, self._delete(request))

    async def _read(self, request: Any, context: Any) -> Any:
        answer = await super().Read(request, context)
        return answer if answer.id else proto.ReadResponse()

    async def _diff(self, operation: Callable[[Any], Awaitable[sdk.DiffResponse]], request: Any) -> Any:
        wanted = DiffRequest(
            request.urn,
            request.id,
            PropertyValue.unmarshal_map(request.olds),
            PropertyValue.unmarshal_map(request.news),
            list(request.ignoreChanges),
        )
        wanted.old_inputs = PropertyValue.unmarshal_map(request.old_inputs)
        response = await operation(wanted)
        changes = {None: "DIFF_UNKNOWN", True: "DIFF_SOME", False: "DIFF_NONE"}[response.changes]
        return proto.DiffResponse(
            replaces=response.replaces,
            stables=response.stables,
            deleteBeforeReplace=response.delete_before_replace,
            changes=proto.DiffResponse.DiffChanges.Value(changes),
            diffs=response.diffs,
            detailedDiff={
                path: proto.PropertyDiff(
                    kind=proto.PropertyDiff.Kind.Value(change.kind.name), inputDiff=change.input_diff
                )
                for path, change in response.detailed_diff.items()
            },
            hasDetailedDiff=True,
        )

    async def _update(self, request: Any) -> Any:
        wanted = UpdateRequest(
            request.urn,
            request.id,
            PropertyValue.unmarshal_map(request.olds),
            PropertyValue.unmarshal_map(request.news),
            timeout=request.timeout,
            ignore_changes=list(request.ignoreChanges),
            preview=request.preview,
        )
        wanted.old_inputs = PropertyValue.unmarshal_map(request.old_inputs)
        response = await self._provider.update(wanted)
        return proto.UpdateResponse(properties=PropertyValue.marshal_map(response.properties))

    async def _delete(self, request: Any) -> Any:
        wanted = DeleteRequest(
            request.urn, request.id, PropertyValue.unmarshal_map(request.properties), timeout=request.timeout
        )
        wanted.old_inputs = PropertyValue.unmarshal_map(request.old_inputs)
        await self._provider.delete(wanted)
        return empty_pb2.Empty()


async def _answer(context: Any, operation: Awaitable[Any]) -> Any:
    """The operation's answer; its failure as a status with a text for people instead of a traceback."""
    try:
        return await operation
    except NotImplementedError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever failed is told to the engine, nothing is swallowed
        code, text, trailers = _status(error)
    await context.abort(code, text, trailers)


def _status(error: Exception) -> Tuple[grpc.StatusCode, str, Tuple[Tuple[str, bytes], ...]]:
    """gRPC code, text and trailers that tell the engine about `error`."""
    cause = error.__context__ if type(error) is Exception and isinstance(error.__context__, Exception) else error
    # The SDK raises a bare Exception whose text has the traceback; what really happened is its context.
    if isinstance(cause, PartialFailure):
        return grpc.StatusCode.UNKNOWN, str(cause), (("grpc-status-details-bin", partial_failure_details(cause)),)
    if isinstance(cause, BpfleetError):
        return grpc.StatusCode.UNKNOWN, str(cause), ()
    traceback.print_exception(cause, file=sys.stderr)
    text = f"internal error in the bpfleet plugin: {type(cause).__name__}: {cause}. Please report it with this output."
    return grpc.StatusCode.INTERNAL, text, ()

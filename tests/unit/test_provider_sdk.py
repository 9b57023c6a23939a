"""Each gap of the SDK that provider/sdk.py closes, seen from the engine's side of a real gRPC connection.

Every test has a reason to exist only while the SDK has the gap: `test_the_sdk_itself_still_…` says when one can go.
"""

from __future__ import annotations

import asyncio
from typing import Any, Awaitable, Callable, List

import grpc
import grpc.aio
import pytest
from pulumi.provider.experimental import provider as sdk
from pulumi.provider.experimental.property_value import PropertyValue
from pulumi.provider.experimental.server import ProviderServicer
from pulumi.runtime import proto
from pulumi.runtime.proto import provider_pb2_grpc, status_pb2

from bpfleet.errors import InvalidInput
from provider.sdk import PartialFailure, Servicer

URN = "urn:pulumi:dev::p::bpfleet:index:Policy::web"


class Recorder(sdk.Provider):
    """Notes what arrives, and answers or fails as a test says."""

    def __init__(self) -> None:
        self.requests: List[Any] = []
        self.failure: Exception | None = None
        self.answer: Any = None

    def _do(self, request: Any) -> Any:
        self.requests.append(request)
        if self.failure is not None:
            raise self.failure
        return self.answer

    async def check(self, request: Any) -> Any:
        return self._do(request)

    async def diff(self, request: Any) -> Any:
        return self._do(request)

    async def diff_config(self, request: Any) -> Any:
        return self._do(request)

    async def create(self, request: Any) -> Any:
        return self._do(request)

    async def update(self, request: Any) -> Any:
        return self._do(request)

    async def delete(self, request: Any) -> Any:
        return self._do(request)


def struct(**values: str) -> Any:
    return PropertyValue.marshal_map({key: PropertyValue(value) for key, value in values.items()})


def talk(provider: Recorder, say: Callable[[Any], Awaitable[Any]], own: bool = True) -> Any:
    """What `say(stub)` gets from a server of `provider`; with the SDK's own servicer where `own` is false."""

    async def scenario() -> Any:
        attached: List[str] = []
        server = grpc.aio.server()
        servicer = Servicer([], "1", provider, "", attached.append) if own else ProviderServicer([], "1", provider, "")
        provider_pb2_grpc.add_ResourceProviderServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                result = await say(provider_pb2_grpc.ResourceProviderStub(channel))
                return attached if result is None else result
        finally:
            await server.stop(None)

    return asyncio.run(scenario())


def test_partial_failures_carry_id_outputs_and_reasons() -> None:
    provider = Recorder()
    provider.failure = PartialFailure("shop/web", {"drift": PropertyValue("x")}, ["h3 is down", "h4 is full"])
    for method, request in (
        ("Create", proto.CreateRequest(urn=URN)),
        ("Update", proto.UpdateRequest(urn=URN, id="shop/web")),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            talk(provider, lambda stub, method=method, request=request: getattr(stub, method)(request))  # type: ignore[misc]
        assert caught.value.code() is grpc.StatusCode.UNKNOWN
        trailers = dict(caught.value.trailing_metadata())
        status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
        detail = proto.ErrorResourceInitFailed()
        assert status.details[0].Unpack(detail)
        assert (detail.id, list(detail.reasons)) == ("shop/web", ["h3 is down", "h4 is full"])
        assert detail.properties["drift"] == "x"


def test_errors_of_the_tree_are_told_without_a_traceback() -> None:
    provider = Recorder()
    provider.failure = InvalidInput("is wrong", resource="policy/web", remedy="Put it right.")
    for method, request in (
        ("Check", proto.CheckRequest(urn=URN)),
        ("Diff", proto.DiffRequest(urn=URN)),
        ("Create", proto.CreateRequest(urn=URN)),
        ("Update", proto.UpdateRequest(urn=URN)),
        ("Delete", proto.DeleteRequest(urn=URN)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            talk(provider, lambda stub, method=method, request=request: getattr(stub, method)(request))  # type: ignore[misc]
        assert caught.value.details() == "resource policy/web: is wrong. Put it right.", method


def test_a_bug_is_named_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    provider = Recorder()
    provider.failure = KeyError("members")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        talk(provider, lambda stub: stub.Create(proto.CreateRequest(urn=URN)))
    assert "KeyError" in caught.value.details() and "report" in caught.value.details()
    assert "Traceback" not in caught.value.details()
    assert "Traceback" in capsys.readouterr().err


def test_old_inputs_arrive() -> None:
    provider = Recorder()
    provider.answer = sdk.DiffResponse(changes=False)
    talk(provider, lambda stub: stub.Diff(proto.DiffRequest(urn=URN, old_inputs=struct(a="1"), olds=struct(a="2"))))
    provider.answer = sdk.UpdateResponse({})
    talk(provider, lambda stub: stub.Update(proto.UpdateRequest(urn=URN, old_inputs=struct(a="1"))))
    provider.answer = None
    talk(provider, lambda stub: stub.Delete(proto.DeleteRequest(urn=URN, old_inputs=struct(a="1"))))
    assert [request.old_inputs["a"].value for request in provider.requests] == ["1", "1", "1"]
    assert provider.requests[0].old_state["a"].value == "2"


@pytest.mark.parametrize("method", ["Diff", "DiffConfig"])
def test_diffs_say_whether_there_are_changes(method: str) -> None:
    provider = Recorder()
    kinds = proto.DiffResponse
    for changes, expected in ((True, kinds.DIFF_SOME), (False, kinds.DIFF_NONE), (None, kinds.DIFF_UNKNOWN)):
        path = {"a.b": sdk.PropertyDiff(sdk.PropertyDiffKind.UPDATE_REPLACE, input_diff=True)}
        provider.answer = sdk.DiffResponse(changes=changes, detailed_diff=path, delete_before_replace=True)
        answer = talk(provider, lambda stub: getattr(stub, method)(proto.DiffRequest(urn=URN)))
        assert answer.changes == expected
        assert answer.hasDetailedDiff and answer.deleteBeforeReplace
        assert answer.detailedDiff["a.b"].kind == proto.PropertyDiff.UPDATE_REPLACE
        assert answer.detailedDiff["a.b"].inputDiff


def test_attach_is_told_the_engines_address() -> None:
    async def say(stub: Any) -> None:
        await stub.Attach(proto.PluginAttach(address="127.0.0.1:1234"))

    assert talk(Recorder(), say) == ["127.0.0.1:1234"]


def test_the_sdk_itself_still_has_no_attach() -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        talk(Recorder(), lambda stub: stub.Attach(proto.PluginAttach(address="x")), own=False)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_the_sdk_itself_still_drops_old_inputs() -> None:
    provider = Recorder()
    talk(provider, lambda stub: stub.Delete(proto.DeleteRequest(urn=URN, old_inputs=struct(a="1"))), own=False)
    assert not hasattr(provider.requests[0], "old_inputs")


def test_the_sdk_itself_still_shows_tracebacks() -> None:
    provider = Recorder()
    provider.failure = InvalidInput("is wrong")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        talk(provider, lambda stub: stub.Create(proto.CreateRequest(urn=URN)), own=False)
    assert "provider.py" in caught.value.details() or "File" in caught.value.details()

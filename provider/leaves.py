"""Documents on all members of a cluster: identities, endpoints, policies, and documents of nodes that are members.

Calls in flight together are one transaction a node (batching.py); each call learns what became of its own document.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

from bpfleet.errors import BpfleetError, Conflict, Unreachable
from bpfleet.transport.target import Target
from provider.batching import Batcher
from provider.directory import View, handle_target
from provider.runtime import Runtime, cancelled_error
from provider.writing import Delete, Put, Result, Writer, is_about, waits_for


@dataclass
class Call:
    """One Create, Update or Delete that waits for its batch.

    seeds: members to ask who the others are. node: the target of a node whose own document is being put.
    """

    urn: str
    owner: str
    cluster: str
    change: Union[Put, Delete]
    seeds: Mapping[str, Target]
    done: asyncio.Future[Result]
    node: Optional[Target] = None


class Leaves:
    """The documents of one process's resources. Methods are for the event loop."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._unsaid: Dict[Tuple[str, str], str] = {}
        self._deleted: Dict[Tuple[str, str], str] = {}
        self._warnings: Dict[str, List[str]] = {}
        self.batcher: Batcher[Call] = Batcher(self._work)

    async def put(
        self, urn: str, owner: str, cluster: str, put: Put, seeds: Mapping[str, Target], node: Optional[Target] = None
    ) -> Result:
        """Put a document on all members. What stopped it is raised; who lags behind is the caller's to judge."""
        return await self._submit(Call(urn, owner, cluster, put, seeds, _future(), node))

    async def delete(self, urn: str, owner: str, cluster: str, key: str, seeds: Mapping[str, Target]) -> Result:
        """Delete a document from all members."""
        return await self._submit(Call(urn, owner, cluster, Delete(key), seeds, _future()))

    async def _submit(self, call: Call) -> Result:
        if self._runtime.cancelled.is_set():
            raise cancelled_error()
        self.batcher.arrive(call.urn, call)
        result = await call.done
        for warning in result.warnings:
            self._runtime.engine.warn(call.urn, warning)
        if result.error is not None:
            raise result.error
        return result

    def _say_warnings(self) -> None:
        """Tell what nodes warn of, for documents put in this run. Only the last batch knows: in an earlier one a policy
        may select nothing just because its identities come in the next."""
        for (cluster, key), urn in self._unsaid.items():
            for warning in self._warnings.get(cluster, []):
                if is_about(warning, key):
                    self._runtime.engine.warn(urn, warning)
        self._unsaid.clear()

    def _say_who_waits(self) -> None:
        """Tell of documents that wait for one deleted in this run. Deletes are not announced, so only the end of the
        run knows that what waits was not to be deleted too."""
        for (cluster, key), urn in self._deleted.items():
            for warning in self._warnings.get(cluster, []):
                if waits_for(warning, key):
                    self._runtime.engine.warn(urn, f"still in use: {warning}")
        self._deleted.clear()

    def cancel(self) -> None:
        """End the calls that still wait for their batch, and say what is still to be said."""
        self._say_warnings()
        self._say_who_waits()
        for call in self.batcher.drain():
            call.done.set_result(Result(error=cancelled_error()))

    async def _work(self, calls: List[Call]) -> None:
        groups: Dict[Tuple[str, str], List[Call]] = {}
        for call in calls:
            groups.setdefault((call.cluster, call.owner), []).append(call)
        await asyncio.gather(*(self._group(group) for group in groups.values()))

    async def _group(self, calls: List[Call]) -> None:
        """One transaction; every call gets its result or the error that kept all of them."""
        by_key = {call.change.key: call for call in calls}
        results: Dict[str, Result] = {}
        failure: Optional[BaseException] = None
        try:
            results = await self._runtime.run(self._write, calls)
        except Exception as error:  # noqa: BLE001 - handed to every call of the batch, nothing is swallowed
            failure = error
        for key, result in results.items():
            if result.error is None:
                deleted = isinstance(by_key[key].change, Delete)
                (self._deleted if deleted else self._unsaid)[by_key[key].cluster, key] = by_key[key].urn
        if not self.batcher.expecting:
            self._say_warnings()
        for call in calls:
            if call.done.done():
                continue
            if failure is None:
                call.done.set_result(results[call.change.key])
            elif isinstance(failure, BpfleetError):
                call.done.set_result(Result(error=_copy(failure, call.change.key)))
            else:
                call.done.set_exception(failure)

    def _write(self, calls: List[Call]) -> Dict[str, Result]:
        """Blocking: find the members, write to all of them."""
        runtime = self._runtime
        cluster, owner = calls[0].cluster, calls[0].owner
        seeds = {name: target for call in calls for name, target in call.seeds.items()}
        view = runtime.directory.view(cluster, seeds)
        if view is None:
            return {call.change.key: _without_cluster(call, seeds) for call in calls}
        for call in calls:
            if call.node is not None and isinstance(call.change, Put):
                view = view.with_node(call.node, _item(call))
        puts = [call.change for call in calls if isinstance(call.change, Put)]
        deletes = [call.change for call in calls if isinstance(call.change, Delete)]
        with runtime.shown_at(calls[0].urn, list(view.members)):
            writer = Writer(runtime.fleet, runtime.directory, view, owner, runtime.cancelled)
            results = writer.write(puts, deletes)
        self._warnings[cluster] = writer.warnings
        for delete in deletes:
            _forgive(results[delete.key], view)
        if any(call.node is not None and results[call.change.key].error is None for call in calls):
            runtime.directory.remember(view)
        return results


def seeds_of(handle: Mapping[str, Any]) -> Dict[str, Target]:
    """The seeds that a cluster's handle names. One whose address is not known is left out."""
    return {name: handle_target(seed) for name, seed in handle["seeds"].items()}


def _future() -> asyncio.Future[Result]:
    return asyncio.get_running_loop().create_future()


def _item(call: Call) -> Any:
    assert isinstance(call.change, Put)
    document = {"kind": call.change.kind, "name": call.change.name, "spec": dict(call.change.spec)}
    return {"document": document, "owner": call.owner, "metadata": dict(call.change.metadata)}


def _copy(error: BpfleetError, key: str) -> BpfleetError:
    """The same error for one of the documents that it stopped."""
    return BpfleetError.from_wire(error.to_wire()).at(resource=key)


def _without_cluster(call: Call, seeds: Mapping[str, Target]) -> Result:
    """What is deleted from a cluster that is gone is gone; nothing can be put there."""
    if isinstance(call.change, Delete):
        return Result()
    return Result(
        error=Conflict(
            f"{', '.join(sorted(seeds)) or 'nobody'} knows no cluster {call.cluster}",
            resource=call.change.key,
            field="cluster",
            remedy="Run `pulumi refresh`, then `pulumi up`, to make the cluster again",
        )
    )


def _forgive(result: Result, view: View) -> None:
    """A delete may go on without members that do not answer, where they are declared so."""
    for name, error in list(result.lagging.items()):
        if view.members[name].forget and isinstance(error, Unreachable):
            del result.lagging[name]
            result.warnings.append(f"{name} does not answer and is forgotten ({error.what})")
    if not result.lagging and any("is forgotten" in warning for warning in result.warnings):
        result.error = None

"""Diff: what changes between the state and a program's checked inputs. Pure; no node is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from pulumi.provider.experimental.provider import PropertyDiff, PropertyDiffKind

from bpfleet.emit.shapes import AGENT_FIELD, DRIFT_FIELD, LAGGING_FIELD, Shape
from bpfleet.model.document import canonical_json
from bpfleet.model.resources import CLUSTER_HANDLE
from bpfleet.model.schema import UNKNOWN, ListOf, MapOf, Object, Type, camel, contains_unknown
from provider.values import key_step

_REPLACING = {
    PropertyDiffKind.ADD: PropertyDiffKind.ADD_REPLACE,
    PropertyDiffKind.DELETE: PropertyDiffKind.DELETE_REPLACE,
    PropertyDiffKind.UPDATE: PropertyDiffKind.UPDATE_REPLACE,
}


@dataclass(frozen=True)
class Difference:
    """`detailed` by property path. `delete_first`: the old one must go before its replacement can be made."""

    detailed: Dict[str, PropertyDiff]
    delete_first: bool

    @property
    def replaced(self) -> List[str]:
        """The properties whose change needs a replacement."""
        return sorted(path for path, change in self.detailed.items() if change.kind in _REPLACING.values())


def differences(
    shape: Shape,
    old_inputs: Mapping[str, Any],
    old_outputs: Mapping[str, Any],
    news: Mapping[str, Any],
    agent: Optional[str] = None,
) -> Difference:
    """Compare plain data with the schema's names.

    Drift and lagging nodes in `old_outputs` count as changes, and so does another agent than `agent` (a digest).
    """
    kinds: Dict[str, PropertyDiffKind] = {}
    for field in shape.inputs:
        found: Dict[str, PropertyDiffKind] = {}
        if field.type is CLUSTER_HANDLE:
            _compare_cluster(old_inputs.get(field.name), news.get(field.name), camel(field.name), found)
        else:
            _compare(field.type, old_inputs.get(field.name), news.get(field.name), camel(field.name), found)
        kinds.update({path: _REPLACING[kind] if field.replaces else kind for path, kind in found.items()})
    detailed = {path: PropertyDiff(kind, input_diff=True) for path, kind in kinds.items()}
    for field in (DRIFT_FIELD, LAGGING_FIELD):
        if old_outputs.get(field.name):
            detailed[camel(field.name)] = PropertyDiff(PropertyDiffKind.UPDATE, input_diff=False)
    if agent is not None and old_outputs.get(AGENT_FIELD.name, agent) != agent:
        detailed[camel(AGENT_FIELD.name)] = PropertyDiff(PropertyDiffKind.UPDATE, input_diff=False)
    # Two policies or CIDR groups side by side do no harm, and none at all would open what the old one closed. Anything
    # else would meet its own predecessor: an address, a set of labels or a host that is taken.
    return Difference(detailed, delete_first=shape.kind not in ("policy", "cidr_group"))


def _compare_cluster(old: Any, new: Any, path: str, found: Dict[str, PropertyDiffKind]) -> None:
    """Of a cluster's handle only the name counts: the seeds are how to get there, not where a resource belongs.

    A name that is not known means that the cluster itself is being replaced, and all that is in it with it.
    """
    if cluster_name(old) != cluster_name(new) or cluster_name(new) is UNKNOWN:
        found[path] = PropertyDiffKind.UPDATE


def cluster_name(handle: Any) -> Any:
    """The cluster that a handle names; UNKNOWN if that is not known yet, None without a handle."""
    if isinstance(handle, Mapping):
        return handle.get("cluster")
    return UNKNOWN if handle is UNKNOWN else None


def _compare(kind: Type, old: Any, new: Any, path: str, found: Dict[str, PropertyDiffKind]) -> None:
    if new is UNKNOWN:
        found[path] = PropertyDiffKind.UPDATE if old is not None else PropertyDiffKind.ADD
    elif old is None or new is None:
        if old is not None:
            found[path] = PropertyDiffKind.DELETE
        elif new is not None:
            found[path] = PropertyDiffKind.ADD
    elif isinstance(kind, Object) and isinstance(old, Mapping) and isinstance(new, Mapping):
        for field in kind.fields:
            _compare(field.type, old.get(field.name), new.get(field.name), f"{path}.{camel(field.name)}", found)
    elif isinstance(kind, MapOf) and isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            _compare(kind.value, old.get(key), new.get(key), path + key_step(key), found)
    elif isinstance(kind, ListOf) and isinstance(old, list) and isinstance(new, list):
        gone, came = _unlike(kind, old, new)
        for index in sorted(gone | came):
            before, after = old[index] if index in gone else None, new[index] if index in came else None
            _compare(kind.item, before, after, f"{path}[{index}]", found)
    elif old != new:
        found[path] = PropertyDiffKind.UPDATE


def _unlike(kind: ListOf, old: Sequence[Any], new: Sequence[Any]) -> Tuple[Set[int], Set[int]]:
    """The old indexes of what went and the new ones of what came, so that one item more or less does not show as a
    change of all behind it. Where order counts, what both lists begin and end with is no difference."""
    if kind.set_like and not contains_unknown(new):
        olds, news = ([canonical_json(item) for item in items] for items in (old, new))
        kept = set(olds).intersection(news)
        gone, came = ({index for index, one in enumerate(ones) if one not in kept} for ones in (olds, news))
        return gone, came
    shorter = min(len(old), len(new))
    first = next((index for index in range(shorter) if old[index] != new[index]), shorter)
    last = next((back for back in range(shorter - first) if old[-1 - back] != new[-1 - back]), shorter - first)
    return set(range(first, len(old) - last)), set(range(first, len(new) - last))

"""plan(want, have) -> ordered steps. Pure.

The order, and why:

 0. What a change that did not come to its end left staged is settled.
 1. Devices that must be made anew go, with what hangs on them. Devices that are no longer wanted go down: what their
    programs let through before must not pass when the programs are taken away.
 2. Devices and sysctls; a new veth has its host side down, and a new tap is down, so its workload cannot send yet.
 3. Programs are loaded. They bring the maps; traffic sees nothing of it.
 4. Where addresses change, `node` gets a revision of them that is neither the old one nor the new: what is judged from
    here to 6 is believed neither after the change nor after it was put back. Rows are put, addresses before all; then
    inner maps: sets before the policies that name them, policies of identities that have no endpoint here yet. Those of
    all others that change, or go, are staged and then switched to at once (staging.py), so that no packet is judged by
    some old and some new. Then `endpoints`, which name identities, and `services`, which name the inner maps of their
    backends.
 5. Programs, then routes, that are no longer wanted go; then rows: of `services` and `endpoints` first, then the rest;
     then the inner maps of identities that have no endpoint here any more (earlier, those endpoints would stand open),
     and the sets that no policy and the backends that no service names any more.
 6. `node`: its addresses_revision is the new one only when all addresses are as they shall be, removals included.
 7. Programs are attached, or replaced in place: all that they read is there. XDP comes first and goes last, as the
    program behind it looks for blocked networks only where XDP does not. Then devices are set up, then routes.
 8. What nothing uses any more goes: programs, devices, maps.
 9. Maps get their declared size. Where the change itself needs more room, those that grow do right after 0, with the
    programs that are in force then.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field, replace
from typing import Any, Dict, Iterator, List, Mapping, Optional, Set, Tuple

from bpfleet.loader.capacity import CONNECTIONS, check_capacity, needs_room, resized
from bpfleet.loader.kernel import Found
from bpfleet.loader.rows import REVISION_FIELD, is_index
from bpfleet.loader.staging import POLICIES, STAGED
from bpfleet.loader.steps import (
    Attach,
    DeleteRows,
    Detach,
    DropProgram,
    EnsureDevice,
    LoadProgram,
    PutRoute,
    PutRows,
    RemoveDevice,
    RemoveInner,
    RemoveMap,
    RemoveRoute,
    ResizeMaps,
    SetDown,
    SetSysctl,
    SettlePolicies,
    SetUp,
    Step,
    SwapInner,
    SwitchPolicies,
)
from bpfleet.model.identity import HOST
from bpfleet.model.state import Adopted, NodeState, Row, Table, Tap, Veth, Vxlan

FIRST_TABLE = "addresses"
AFTER_POLICIES = "endpoints"
AFTER_INNER = ("services", AFTER_POLICIES)
LAST_TABLE = "node"


def plan(want: NodeState, have: NodeState) -> List[Step]:
    """The steps from `have` (as a Kernel reads it) to `want`, in the order above; empty if there is nothing to do.

    Raises InvalidInput if `want` does not fit into the maps.
    """
    check_capacity(want, have)
    sizes = resized(want, have)
    grown = {name: size for name, size in sizes.items() if size > have.sizes[name] and name != CONNECTIONS}
    first = grown if needs_room(want, have) else {}
    last = {name: size for name, size in sizes.items() if name not in first}
    loaded = have.programs
    rebuilt = {name for name, device in have.devices.items() if _must_rebuild(want.devices.get(name), device)}
    steps: List[Step] = []
    if have.nested.get(STAGED):
        steps.append(SettlePolicies())
    if first:
        steps.append(ResizeMaps(first, tuple(sorted(have.attachments)), have.sizes))
        have = _with_programs_at_hooks(have)
    if rebuilt:
        steps += _take_away(have, rebuilt)
        have = _without(have, rebuilt)
    rows = _row_steps(want, have)
    unwanted = [Detach(*hook) for hook in sorted(have.attachments) if hook not in want.attachments]
    steps += _devices_down(want, have)
    steps += _devices(want, have)
    steps += _sysctls(want, have)
    steps += [LoadProgram(item) for name, item in sorted(want.programs.items()) if have.programs.get(name) != item]
    steps += rows.put_first
    steps += rows.put
    steps += _swaps(want, have)
    steps += rows.put_after
    steps += [hook for hook in unwanted if not is_xdp(hook.hook)]
    steps += [RemoveRoute(route) for key, route in sorted(have.routes.items()) if key not in want.routes]
    steps += rows.delete
    steps += _inner_removals(want, have)
    steps += rows.put_last
    steps += _attachments(want, have)
    steps += [hook for hook in unwanted if is_xdp(hook.hook)]
    steps += _devices_up(want, have)
    steps += [PutRoute(route) for key, route in sorted(want.routes.items()) if have.routes.get(key) != route]
    steps += [DropProgram(name) for name in sorted(loaded) if name not in want.programs]
    steps += [RemoveDevice(name) for name in sorted(have.devices) if name not in want.devices]
    steps += [RemoveMap(name) for name in sorted({*have.tables, *have.nested} - {*want.tables, *want.nested})]
    if last:
        steps.append(ResizeMaps(last, tuple(sorted(want.attachments)), have.sizes))
        at_hooks = _with_programs_at_hooks(want).programs
        steps += [LoadProgram(item) for name, item in sorted(want.programs.items()) if name not in at_hooks]
    return steps


# -- devices -----------------------------------------------------------------------------------------------------------


def _must_rebuild(wanted: Any, found: Any) -> bool:
    return isinstance(wanted, (Vxlan, Veth, Tap)) and isinstance(found, Found) and found.rebuild


def _take_away(have: NodeState, names: Set[str]) -> List[Step]:
    """Remove devices with all that is bound to their indexes, which the new ones will not have."""
    steps: List[Step] = [SetDown(name) for name in sorted(names) if _is_up(have.devices[name])]
    steps += [Detach(*hook) for hook in sorted(have.attachments) if hook[0] in names]
    steps += [RemoveRoute(route) for _, route in sorted(have.routes.items()) if route.device in names]
    for name in sorted(have.tables):
        table = have.tables[name]
        keys = tuple(key for key in table.rows if _mentions(table.key, key, names))
        if keys:
            steps.append(DeleteRows(name, table.key, keys))
    steps += [RemoveDevice(name) for name in sorted(names)]
    return steps


def _without(have: NodeState, names: Set[str]) -> NodeState:
    """What is left when devices are gone; rows that hold their old indexes count as absent, so that they are put again.

    The revision of addresses covers the bound indexes (rows.salt), so its row is put again as well.
    """
    tables = {}
    for name, table in have.tables.items():
        rows = {
            key: value
            for key, value in table.rows.items()
            if not _mentions(table.key, key, names)
            and not _mentions(table.value, value, names)
            and REVISION_FIELD not in table.value
        }
        tables[name] = Table(table.key, table.value, rows)
    return replace(
        have,
        attachments={hook: value for hook, value in have.attachments.items() if hook[0] not in names},
        tables=tables,
        devices={name: device for name, device in have.devices.items() if name not in names},
        routes={key: route for key, route in have.routes.items() if route.device not in names},
        sysctls={name: value for name, value in have.sysctls.items() if not names.intersection(re.split("[./]", name))},
    )


def _mentions(fields: Tuple[str, ...], row: Row, names: Set[str]) -> bool:
    return any(is_index(name) and value in names for name, value in zip(fields, row))


def _is_up(device: Any) -> bool:
    return device.up if isinstance(device, Found) else True


def _devices_down(want: NodeState, have: NodeState) -> List[Step]:
    gone = sorted(name for name in have.devices if name not in want.devices)
    return [SetDown(name) for name in gone if _is_up(have.devices[name])]


def _devices(want: NodeState, have: NodeState) -> List[Step]:
    steps: List[Step] = []
    for name, device in sorted(want.devices.items()):
        found = have.devices.get(name)
        if isinstance(device, Adopted) or found == device:
            continue
        if not isinstance(found, Found):
            steps.append(EnsureDevice(device))
        elif found.lacks:
            steps.append(EnsureDevice(device, found.lacks))
    return steps


def _devices_up(want: NodeState, have: NodeState) -> List[Step]:
    steps: List[Step] = []
    for name, device in sorted(want.devices.items()):
        found = have.devices.get(name)
        if not isinstance(device, Adopted) and (found is None or not _is_up(found)):
            steps.append(SetUp(name))
    return steps


def _sysctls(want: NodeState, have: NodeState) -> List[Step]:
    return [
        SetSysctl(name, value, have.sysctls.get(name))
        for name, value in want.sysctls.items()  # in their own order: one may be there to soften the next
        if have.sysctls.get(name) != value
    ]


# -- programs ----------------------------------------------------------------------------------------------------------


def is_xdp(hook: str) -> bool:
    """Whether a hook is one of XDP's."""
    return hook.startswith("xdp-")


def _attachments(want: NodeState, have: NodeState) -> List[Step]:
    steps: List[Step] = []
    for (device, hook), name in sorted(want.attachments.items(), key=lambda item: (not is_xdp(item[0][1]), item[0])):
        found = have.attachments.get((device, hook))
        if found != name or have.programs.get(name) != want.programs[name]:
            steps.append(Attach(device, hook, want.programs[name], found))
    return steps


def _with_programs_at_hooks(state: NodeState) -> NodeState:
    """Without the programs at no hook, which are not made anew on the maps that are."""
    used = set(state.attachments.values())
    return replace(state, programs={name: item for name, item in state.programs.items() if name in used})


# -- maps --------------------------------------------------------------------------------------------------------------


@dataclass
class _RowSteps:
    put_first: List[Step] = field(default_factory=list)
    put: List[Step] = field(default_factory=list)
    put_after: List[Step] = field(default_factory=list)
    put_last: List[Step] = field(default_factory=list)
    delete: List[Step] = field(default_factory=list)


def _row_steps(want: NodeState, have: NodeState) -> _RowSteps:
    steps = _RowSteps()
    for name in sorted(want.tables, key=lambda name: (name != FIRST_TABLE, name)):
        table = want.tables[name]
        there = _rows_of(have.tables.get(name), table)
        changed = {key: value for key, value in table.rows.items() if there.get(key) != value}
        if changed:
            put = PutRows(name, Table(table.key, table.value, changed))
            (steps.put_after if name in AFTER_INNER else steps.put_last if name == LAST_TABLE else steps.put).append(
                put
            )
    for name in sorted(want.tables, key=lambda name: (name not in AFTER_INNER, name not in AFTER_INNER[:1], name)):
        table = want.tables[name]
        gone = tuple(key for key in _rows_of(have.tables.get(name), table) if key not in table.rows)
        if gone:
            steps.delete.append(DeleteRows(name, table.key, gone))
    if any(getattr(step, "table", "") == FIRST_TABLE for step in (*steps.put, *steps.delete)):
        steps.put_first += _unsettled(want.tables.get(LAST_TABLE), have.tables.get(LAST_TABLE))
    return steps


def _unsettled(wanted: Optional[Table], found: Optional[Table]) -> Iterator[PutRows]:
    """`node` as it is, but for its revision of addresses, unless that stays."""
    if wanted is None or found is None:
        return
    at = found.value.index(REVISION_FIELD)
    for key, row in found.rows.items():
        old, new = row[at], wanted.rows.get(key, row)[at]
        if old != new:
            revision = zlib.crc32(f"{old} {new}".encode())
            while revision in (0, old, new):
                revision = (revision + 1) % 2**32
            yield PutRows(LAST_TABLE, Table(found.key, found.value, {key: (*row[:at], revision, *row[at + 1 :])}))


def _rows_of(found: Any, wanted: Table) -> Mapping[Row, Row]:
    """Rows that were found, if they have the fields that are wanted; a kernel reads them so."""
    if found is None:
        return {}
    if found.key != wanted.key or found.value != wanted.value:
        raise ValueError(
            f"rows of {found.key} -> {found.value} were read where {wanted.key} -> {wanted.value} are wanted"
        )
    rows: Mapping[Row, Row] = found.rows
    return rows


def _swaps(want: NodeState, have: NodeState) -> List[Step]:
    steps: List[Step] = []
    for name, inners in sorted(want.nested.items(), key=lambda item: (item[0] == POLICIES, item[0])):
        there = have.nested.get(name, {})
        changed: Dict[int, Table] = {key: inner for key, inner in inners.items() if there.get(key) != inner}
        if name == POLICIES:
            used = _subjects(have)
            staged = {key: inner for key, inner in changed.items() if key in used}
            staged.update((key, Table(inner.key, inner.value)) for key, inner in _opened(want, have).items())
            changed = {key: inner for key, inner in changed.items() if key not in used}
        if changed:
            steps.append(SwapInner(name, changed))
        if name == POLICIES and staged:
            steps += [SwapInner(STAGED, staged), SwitchPolicies(), SettlePolicies()]
    return steps


def _subjects(state: NodeState) -> Set[Any]:
    """The identities that packets may be judged by the policies of."""
    endpoints = state.tables.get(AFTER_POLICIES)
    return {HOST, *(record.get("identity") for record in (endpoints.records().values() if endpoints else ()))}


def _opened(want: NodeState, have: NodeState) -> Dict[int, Table]:
    """The policy maps that go while packets may still be judged by them: of the host, or of identities that keep
    endpoints here."""
    stay = _subjects(want) & _subjects(have)
    there, wanted = have.nested.get(POLICIES, {}), want.nested.get(POLICIES, {})
    return {key: inner for key, inner in there.items() if key in stay and key not in wanted}


def _inner_removals(want: NodeState, have: NodeState) -> List[Step]:
    """Removals of inner maps that nothing names any more: policies of identities without endpoints here, and prefix
    sets, port sets and backends."""
    opened = _opened(want, have)
    steps: List[Step] = []
    for name, inners in sorted(want.nested.items()):
        there = have.nested.get(name, {}) if name != STAGED else {}
        gone = [key for key in there if key not in inners and (name != POLICIES or key not in opened)]
        if gone:
            steps.append(RemoveInner(name, tuple(sorted(gone))))
    return steps

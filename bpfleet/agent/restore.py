"""Restoring: what is in force is brought into the kernel again, for the devices and namespaces that are there now.

Run at boot, before the network and again when it is up, and whenever a device or a namespace appears (templates/: the
units). Each run does the same: it reads what is there, and does what is to do; a run that finds nothing to do writes
nothing. Before the network is there, that is programs, maps and the hooks of the host; each device follows when it
appears.

It is no transaction: the documents stay what they were, and a run that dies is made good by the next one. It ends what
a reboot left half done (`Agent.resolve`'s rule: what nobody confirmed is put back), and waits for a change that is
being applied.
"""

from __future__ import annotations

import stat
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, List, Optional, Tuple

from bpfleet.agent.pending import in_force, unfinished
from bpfleet.errors import BpfleetError

if TYPE_CHECKING:
    from bpfleet.agent.journal import Head
    from bpfleet.agent.node import Agent
    from bpfleet.loader.steps import Step
    from bpfleet.model.state import Facts, NodeState

NAMESPACES = Path("/run/netns")
WAIT_SECONDS = 330.0
"""For a change that is being applied: longer than one may take (watchdog.PATIENCE_SECONDS)."""
MOST_FAILURES = 20
"""Devices that cannot be attached before the rest is given up."""

_YOUNG_SECONDS = 5.0
_POLL_SECONDS = 0.02


def restore(agent: Agent) -> Tuple[Optional[str], List[BpfleetError]]:
    """What was done in words, if anything; and what could not be done, device by device: the rest is done anyway."""
    if agent.journal().transaction is None and agent.journal().confirmed.node is None:
        return None, []
    _await_young_namespaces()
    with agent.lock.exclusive("restoring what is confirmed", WAIT_SECONDS):
        journal = agent.journal()
        why = unfinished(journal.transaction)
        head = in_force(journal) if why is None else journal.confirmed
        if head.generation and not agent.store.path(head.generation).exists():
            head = journal.confirmed  # it is being put back, which a full disk did not let be noted
        steps, failures = _realise(agent, head)
        words = []
        if journal.transaction is not None and why is not None:
            journal = agent.ended(journal, why)
            words.append(f"transaction {journal.entries[-1]['transaction']} was rolled back: {why}")
        if steps:
            agent.record(journal.noting("restored", head, steps=steps))
            words.append(f"generation {head.generation} was restored in {steps} steps")
    return "; ".join(words) or None, failures


def _realise(agent: Agent, head: Head) -> Tuple[int, List[BpfleetError]]:
    """Bring a generation into the kernel; how many steps that took. A device that fails is left out, and told."""
    from bpfleet.loader.plan import plan

    failures: List[BpfleetError] = []
    lost: List[str] = []
    done, is_first = 0, True
    while True:
        want = agent.confirmed_state(head, lambda facts: _without(facts, lost))
        have = agent.kernel.read(want)
        absent = _absent(want, have)
        if is_first and absent and not have.programs:
            done += _all_but(agent, head, absent)
            have = agent.kernel.read(want)
        is_first = False
        steps = plan(want, have)
        if not steps:
            return done, failures
        try:
            _do(agent, want, steps)
            return done + len(steps), failures
        except BpfleetError as error:
            step = error.details.get("step")
            place = _place(want, steps[step]) if isinstance(step, int) else None
            if place is None or place in lost or len(failures) >= MOST_FAILURES:
                raise
            done += int(step or 0)
            lost.append(place)
            failures.append(error)


def _do(agent: Agent, want: NodeState, steps: List[Step]) -> None:
    from bpfleet.loader.apply import apply

    try:
        agent.kernel.prepare(want.programs)
        apply(agent.kernel, steps)
    finally:
        agent.kernel.release()


def _absent(want: NodeState, have: NodeState) -> List[str]:
    """Namespaces and names of the endpoints' devices that are to be made."""
    from bpfleet.model.state import Tap, Veth

    made = [device for name, device in want.devices.items() if name not in have.devices]
    return [
        device.netns if isinstance(device, Veth) else device.name for device in made if isinstance(device, (Veth, Tap))
    ]


def _all_but(agent: Agent, head: Head, absent: List[str]) -> int:
    """Where nothing is in force, as at boot: first all that needs no endpoint's device, as these take the kernel longer
    than all the rest. How many steps that took. What fails here fails again, and is told, with the devices.
    """
    from bpfleet.loader.plan import plan

    want = agent.confirmed_state(head, lambda facts: _without(facts, absent))
    steps = plan(want, agent.kernel.read(want))
    try:
        _do(agent, want, steps)
    except BpfleetError:
        return 0
    return len(steps)


def _place(want: NodeState, step: object) -> Optional[str]:
    """The device or namespace that a step is about, if the rest can do without it."""
    from bpfleet.model.state import Adopted, Tap, Veth

    device = getattr(step, "device", None) or getattr(getattr(step, "route", None), "device", None)
    found = want.devices.get(device) if isinstance(device, str) else device
    if isinstance(found, Veth):
        return found.netns
    return found.name if isinstance(found, (Adopted, Tap)) else None


def _without(facts: Facts, lost: List[str]) -> Facts:
    """Facts as if these devices and namespaces were not there, and taps that cannot be made were somebody else's."""
    taps = {name: (0, ()) for name in lost if name not in facts.devices and name not in facts.namespaces}
    return replace(
        facts,
        devices={**{name: device for name, device in facts.devices.items() if name not in lost}, **taps},
        namespaces=tuple(name for name in facts.namespaces if name not in lost),
    )


def _await_young_namespaces() -> None:
    """`ip netns add` makes a file and then mounts the namespace on it; the file alone is what woke us.

    A file that is older stands for nothing any more.
    """
    until = time.monotonic() + _YOUNG_SECONDS
    while time.monotonic() < until and any(_is_young_file(path) for path in _entries(NAMESPACES)):
        time.sleep(_POLL_SECONDS)


def _entries(folder: Path) -> List[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def _is_young_file(path: Path) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    own = Path("/proc/self/ns/net").stat().st_dev
    return found.st_dev != own and stat.S_ISREG(found.st_mode) and abs(time.time() - found.st_mtime) < _YOUNG_SECONDS

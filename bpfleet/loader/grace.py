"""Shorter grace periods of RCU while much is changed at once.

The kernel waits for a grace period, about 14 ms, whenever a program is attached by a tcx link, a device joins a
namespace, or an outer map is written, and keeps everybody else from the devices meanwhile. With a thousand endpoints
that is half a minute after a reboot. While /sys/kernel/rcu_expedited is 1 the kernel interrupts the other CPUs instead
of waiting for them (kernel documentation, "A Tour Through TREE_RCU's Expedited Grace Periods"), which takes less than a
tenth of a millisecond. So it is set for the time of a change with many such waits, and never for one with few.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Sequence

from bpfleet.loader import steps

WAITS = (steps.Attach, steps.EnsureDevice, steps.RemoveDevice, steps.Detach, steps.SettlePolicies)
"""Steps for which the kernel waits, beside those that write outer maps."""
MANY = 8
"""So many waits are a tenth of a second: the least for which other CPUs are disturbed."""

SETTING = Path("/sys/kernel/rcu_expedited")
MARK = Path("/run/bpfleet-rcu-expedited")


@contextmanager
def expedited(todo: Sequence[steps.Step], setting: Path = SETTING, mark: Path = MARK) -> Iterator[None]:
    """Expedite grace periods while these steps are done, if many of them wait, and put the setting back afterwards.

    A process that dies leaves a mark beside the setting; whoever comes next, the watchdog at the latest, puts it back.
    Where somebody else has set it, or it cannot be set or marked, nothing is changed.
    """
    many = sum(map(_waits, todo)) >= MANY
    ours = mark.exists()
    if many and not ours and _read(setting) == "0" and _made(mark):
        ours = _write(setting, "1")
        if not ours:
            mark.unlink()
    try:
        yield
    finally:
        if ours and _write(setting, "0"):  # else the mark stays, for whoever comes next
            mark.unlink(missing_ok=True)


def _waits(step: steps.Step) -> int:
    """How often the kernel waits for a step. Until 6.8 it did for every inner map, since then for a batch of them."""
    if isinstance(step, steps.SwapInner):
        return len(step.inners)
    if isinstance(step, steps.RemoveInner):
        return len(step.keys)
    if isinstance(step, steps.ResizeMaps):
        return len(step.hooks)
    return int(isinstance(step, WAITS))


def _read(setting: Path) -> str:
    try:
        return setting.read_text().strip()
    except OSError:
        return ""  # a kernel without it


def _made(mark: Path) -> bool:
    try:
        mark.touch()
    except OSError:
        return False  # /run is full or read-only: no reason to fail, or not to put back
    return True


def _write(setting: Path, value: str) -> bool:
    try:
        setting.write_text(value)
    except OSError:
        return False  # read-only, as in a container: the change takes its time
    return True

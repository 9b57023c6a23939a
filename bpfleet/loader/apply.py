"""Do the steps of a plan in order, and say how far it went when one fails."""

from __future__ import annotations

from typing import Callable, Optional, Sequence

from bpfleet.errors import BpfleetError, HostFailed
from bpfleet.loader.kernel import Kernel
from bpfleet.loader.steps import Step


def apply(kernel: Kernel, steps: Sequence[Step], on_step: Optional[Callable[[int, Step], None]] = None) -> int:
    """Do `steps` one after the other and return how many writes that took.

    `on_step(index, step)` is called before each step. The first failure stops it: the error's details then hold
    `step` (index from 0; the steps before it are done), `steps` (how many there were) and `doing` (the step's
    description). Reading, planning and applying again continues from there.
    """
    before = kernel.writes
    with kernel.hurry(steps):
        for index, step in enumerate(steps):
            if on_step is not None:
                on_step(index, step)
            _do(kernel, index, steps)
    return kernel.writes - before


def _do(kernel: Kernel, index: int, steps: Sequence[Step]) -> None:
    step = steps[index]
    try:
        kernel.do(step)
    except BpfleetError as error:
        error.details.update(_place(index, steps))
        raise
    except OSError as error:
        raise HostFailed(
            f"cannot {step.describe()}: {error.strerror or error}",
            remedy="Put right what the system says and apply again; it continues from here.",
            details={"errno": error.errno, **_place(index, steps)},
        ) from error


def _place(index: int, steps: Sequence[Step]) -> dict[str, object]:
    return {"step": index, "steps": len(steps), "doing": steps[index].describe()}

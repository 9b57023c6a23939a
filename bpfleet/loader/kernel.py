"""What the agent asks of a kernel, real (real.py) or in memory (fake.py): one contract, one test suite.

What `read` answers in a NodeState, beyond what was wanted, is how differences are told:

- A device that is not as described, or not up, is `Found`, never Vxlan or Veth.
- A program of ours that is loaded but is not the wanted one (other constants, another object file, other maps) has the
  key "object@digest". What is attached and is not the wanted program has such a name too.
- Tables that are not wanted are read only where nothing is wanted to be loaded, so that they can be removed; among
  them those that programs fill by themselves (connections, counters, events). A map of another layout is under its
  file's name, "addresses_v0123456789abcdef".
- Policies are those in force, also in the middle of a change of them (staging.py); what is staged is beside them.
- `sizes` are those of the maps that are there, as far as the wanted state has a size for them.
- A field `ifindex` (or ending so) holds the device's name, or the bare number if no device has that index now.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ContextManager, List, Mapping, Protocol, Sequence, Tuple

from bpfleet.errors import HostFailed
from bpfleet.loader.steps import Step
from bpfleet.model.state import Facts, NodeState, Program


@dataclass(frozen=True)
class Found:
    """A device of ours that is not as it should be: its kind, its fields (plain data), and what is wrong, for people.

    `rebuild`: it cannot be changed into what is wanted, only removed and made again.
    """

    name: str
    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    up: bool = False
    lacks: Tuple[str, ...] = ()
    rebuild: bool = False


class Kernel(Protocol):
    """A node's kernel, as far as it is ours."""

    writes: int
    """System calls, netlink requests and file writes that changed something, since this object was made."""

    def check_fitness(self) -> None:
        """Raise HostUnfit, naming what is missing, on a host that cannot run bpfleet. Changes nothing."""

    def facts(self, node: str) -> Facts:
        """What the compiler must know of this node; `node` is its name."""

    def read(self, want: NodeState) -> NodeState:
        """What is there of ours now, in the field names of `want`. Changes nothing."""

    def obstacles(self, want: NodeState) -> List[HostFailed]:
        """What somebody else has where only one can be and `want` has us: programs at XDP; and more connections under
        way than `want` has room for. Changes nothing.

        The details of each hold `device`, or `map`.
        """

    def prepare(self, programs: Mapping[str, Program]) -> None:
        """Load and verify what is not loaded yet. Traffic sees none of it; on an error nothing is left behind.

        `read` does not show what was prepared until a LoadProgram step uses it, so a plan is the same before and after.
        """

    def release(self) -> None:
        """Forget what `prepare` loaded and no step used."""

    def hurry(self, steps: Sequence[Step]) -> ContextManager[None]:
        """The time in which these steps are done: what the kernel can be told to make many of them quicker."""

    def do(self, step: Step) -> None:
        """Do one step. Doing it twice is the same as once."""

"""In which order a node that was rebooted is brought back, and what becomes of a device that cannot be made."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, Callable, List, Optional
from unittest.mock import Mock

import pytest

from bpfleet.agent.journal import Head
from bpfleet.agent.node import Agent
from bpfleet.agent.restore import _realise, restore
from bpfleet.agent.session import boot_ticks
from bpfleet.compile.compiler import Compiler
from bpfleet.errors import HostFailed
from bpfleet.loader.fake import FakeKernel
from bpfleet.loader.steps import Attach, EnsureDevice, Step
from bpfleet.model.document import DocumentSet
from bpfleet.model.state import Facts, NodeState, Tap, Veth
from tests import fleet

MACHINE = fleet.document(
    "endpoint", "vm", node="h1", identity="web", addresses=["10.77.1.9"], attach={"tap": "vm0", "owner": "qemu"}
)
DOCUMENTS = DocumentSet(
    [
        fleet.cluster(["h1"]),
        fleet.node(1),
        fleet.identity("web"),
        *(fleet.endpoint(f"e{n}", 1, n, "web") for n in (1, 2)),
        MACHINE,
    ]
)


class Kernel(FakeKernel):
    """Notes what it is asked to do; makes no tap, or nothing for want of memory, if told so."""

    no_taps = False
    out_of_memory = False

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.asked: List[Step] = []

    def read(self, want: NodeState) -> NodeState:
        if self.out_of_memory and self.asked:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return super().read(want)

    def do(self, step: Step) -> None:
        self.asked.append(step)
        if self.out_of_memory:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        if self.no_taps and isinstance(step, EnsureDevice) and isinstance(step.device, Tap):
            raise HostFailed("the host has no user qemu, who shall open tap vm0")
        super().do(step)


class Node:
    """What restoring asks of an agent."""

    def __init__(self) -> None:
        facts = fleet.facts(1)
        self.kernel = Kernel(dict(facts.devices), ("w1", "w2"))
        self.compiler = Compiler()

    def confirmed_state(self, head: Head, seen: Callable[[Facts], Facts] = lambda facts: facts) -> NodeState:
        return self.compiler.compile(DOCUMENTS, seen(self.kernel.facts("h1"))).state


def restored(node: Node) -> List[str]:
    """What is said to have failed."""
    steps, failures = _realise(node, Head())  # type: ignore[arg-type]
    assert steps == len(node.kernel.asked) - len(failures)
    return [str(failure) for failure in failures]


def first(asked: List[Step], which: Callable[[Step], bool]) -> Optional[int]:
    return next((number for number, step in enumerate(asked) if which(step)), None)


def test_all_that_needs_no_endpoints_device_comes_first() -> None:
    node = Node()
    assert restored(node) == []
    asked = node.kernel.asked
    made = first(asked, lambda step: isinstance(step, EnsureDevice) and isinstance(step.device, (Veth, Tap)))
    assert made is not None
    others = {step.device for step in asked[:made] if isinstance(step, Attach)}
    assert "eth0" in others and "bpfleet_vxlan" in others
    later = {step.device for step in asked[made:] if isinstance(step, Attach)}
    assert len(later) == 3 and not later & others
    assert node.kernel.unjudged == []
    node.kernel.asked.clear()
    assert restored(node) == [] and node.kernel.asked == []


def test_a_tap_that_cannot_be_made_holds_nothing_up() -> None:
    node = Node()
    node.kernel.no_taps = True
    (said,) = restored(node)
    assert "no user qemu" in said
    assert len([name for name, hook in node.kernel.links if hook == "ingress" and name.startswith("bpf-")]) == 2
    assert "vm0" not in {name for name, _ in node.kernel.links}
    # As soon as it can be made, it is.
    node.kernel.no_taps = False
    node.kernel.asked.clear()
    assert restored(node) == []
    assert ("vm0", "ingress") in node.kernel.links


def test_what_failed_first_is_told_where_putting_back_fails_in_a_way_nobody_thought_of(tmp_path: Path) -> None:
    """A host out of memory fails whatever comes next as well."""
    kernel = Kernel(dict(fleet.facts(1).devices), ("w1", "w2"))
    agent = Agent(tmp_path, lambda: kernel, local=True, arm=Mock())
    puts = [{"document": one.to_json(), "owner": "o", "metadata": {}} for one in DOCUMENTS]
    transaction = agent.stage({"node": "h1", "owner": "o", "puts": puts})["transaction"]  # type: ignore[typeddict-item]
    kernel.out_of_memory = True
    with pytest.raises(HostFailed, match="Cannot allocate memory") as raised:
        agent.apply(str(transaction))
    assert "Putting the last confirmed generation back failed too" in raised.value.remedy
    assert raised.value.details["rolled_back"] is False
    kernel.out_of_memory = False
    assert "was rolled back" in str(agent.resolve())


def test_what_could_not_be_noted_as_being_put_back_is_not_brought_back(tmp_path: Path) -> None:
    """On a full disk its generation's file is gone, and the journal still says that it is applied."""
    kernel = Kernel(dict(fleet.facts(1).devices), ("w1", "w2"))
    agent = Agent(tmp_path, lambda: kernel, local=True, arm=Mock())
    puts = [{"document": one.to_json(), "owner": "o", "metadata": {}} for one in DOCUMENTS]
    for change in ({"puts": puts}, {"deletes": ["endpoint/e1"]}):
        staged = agent.stage({"node": "h1", "owner": "o", **change})  # type: ignore[typeddict-item]
        agent.apply(str(staged["transaction"]))
        if "puts" in change:
            agent.session_started = boot_ticks()  # as over a new connection
            agent.confirm(str(staged["transaction"]))
    agent.store.path(2).unlink()
    words, failures = restore(Agent(tmp_path, lambda: kernel, local=True))
    assert not failures and str(words).startswith("generation 1 was restored")

"""What an endpoint on a tap of ours means for its node."""

from __future__ import annotations

import dataclasses

from bpfleet.compile.compiler import Compiler
from bpfleet.compile.validate import validate
from bpfleet.model.document import Document, DocumentSet
from bpfleet.model.state import Compiled, Tap
from tests import fleet


def machine(name: str, host: int, **attach: object) -> Document:
    return fleet.document(
        "endpoint",
        name,
        node="h1",
        identity="web",
        addresses=[f"10.77.1.{host}", f"fd77:0:0:1::{host:x}"],
        attach=attach,
    )


def compiled(*endpoints: Document, taken: str = "") -> Compiled:
    facts = fleet.facts(1)
    if taken:
        facts = dataclasses.replace(facts, devices={**facts.devices, taken: (1500, ())})
    documents = [fleet.cluster(["h1"]), fleet.node(1), fleet.identity("web"), *endpoints]
    return Compiler().compile(DocumentSet(documents), facts)


def test_a_tap_is_made_and_judged_wherever_its_name_is_free() -> None:
    made = compiled(machine("vm", 9, tap="vm0", owner="libvirt-qemu", multi_queue=True))
    device = made.state.devices["vm0"]
    assert isinstance(device, Tap)
    assert (device.owner, device.group, device.multi_queue) == ("libvirt-qemu", "", True)
    assert device.gateways == ("169.254.1.1", "fe80::1")
    assert {hook for name, hook in made.state.attachments if name == "vm0"} == {"ingress", "egress"}
    assert ("10.77.1.9/32", "vm0") in made.state.routes
    assert made.waiting == ()


def test_a_device_of_others_is_not_taken() -> None:
    made = compiled(machine("vm", 9, tap="vm0"), taken="vm0")
    assert "vm0" not in made.state.devices and not [name for name, _ in made.state.attachments if name == "vm0"]
    (waiting,) = made.waiting
    assert "a device vm0 that bpfleet did not make" in waiting.reason


def test_one_device_has_one_endpoint_whoever_makes_it() -> None:
    documents = [machine("one", 9, tap="vm0"), machine("two", 10, interface="vm0"), machine("six", 11, tap="vm1")]
    (conflict,) = validate(
        DocumentSet([fleet.cluster(["h1"]), fleet.node(1), fleet.identity("web"), *documents]), fleet.facts(1)
    )
    assert conflict.field == "attach" and "vm0 on h1" in str(conflict)

"""Every object passes the verifier of every kernel there is a machine for, with the constants of a node."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bpfleet.compile.compiler import Compiler
from bpfleet.model.document import Document, DocumentSet
from bpfleet.transport.artefact import Artefact
from tests import fleet
from tests.vm.conftest import Machines
from tools.vm.recipe import RECIPES

VERIFY = Path(__file__).with_name("verify.py")
INSTRUCTION_LIMIT = 1_000_000
"""Where the verifier gives up: BPF_COMPLEXITY_LIMIT_INSNS in include/linux/bpf.h."""


def programs(has_contexts: bool) -> list[tuple[str, dict[str, object]]]:
    """Every program of a node that uses everything, and of nodes that use less: without constants (as the object has
    them) and with all that occur. Each feature that is on or off is other code to the verifier."""
    found: dict[str, tuple[str, dict[str, object]]] = {}
    facts = [replace(fleet.facts(1), kernel_contexts=shows) for shows in {False, has_contexts}]
    for host, services, xdp, of in itertools.product((True, False), (True, False), ("native", "off"), facts):
        state = Compiler().compile(DocumentSet(documents(host, services, xdp)), of).state
        for _, program in sorted(state.programs.items()):
            for constants in ({}, dict(program.constants)):
                found.setdefault(json.dumps([program.object, constants], sort_keys=True), (program.object, constants))
    built = Path(__file__).parents[2] / "build/bpf"
    assert {f"{name}.bpf.o" for name, _ in found.values()} == {path.name for path in built.glob("*.bpf.o")}
    return list(found.values())


def documents(host: bool, services: bool, xdp: str) -> list[Document]:
    """The quickstart's fleet, with a policy for hosts, a service, XDP."""
    found = [one for one in fleet.quickstart() if one.key not in ("node/h1", "cluster/fleet")]
    devices = [{"name": "eth0", "xdp": xdp}]
    found.append(fleet.document("node", "h1", **{**fleet.node(1).spec, "devices": devices}))
    spec = {**fleet.cluster(["h1", "h2"]).spec, "blocked_cidrs": ["198.51.100.0/24"]}
    found.append(fleet.document("cluster", "fleet", **spec))
    if host:
        found.append(fleet.document("policy", "nodes", node_selector={}, ingress=[{"peers": [{"entity": "cluster"}]}]))
    if services:
        found.append(fleet.service("front", ["10.96.0.1:80"], [{"labels": {"app": "db"}}]))
    return found


@pytest.mark.parametrize("release", sorted(RECIPES))
def test_the_verifier_takes_every_object(
    machines: Machines, artefact: Artefact, release: str, capsys: pytest.CaptureFixture[str]
) -> None:
    machine, recipe = machines[release], RECIPES[release]
    kernel = machine.run("uname -r").strip()
    assert kernel.startswith("{}.{}.".format(*recipe.kernel))
    python = machine.run("python3 -c 'import sys; print(*sys.version_info[:2])'").split()
    assert tuple(map(int, python)) == recipe.python
    machine.put({"/root/agent.pyz": artefact.data, "/root/verify.py": VERIFY.read_bytes()})
    try:
        asked = json.dumps(programs(recipe.kernel >= (6, 2))).encode()
        output = machine.run("python3 -B verify.py agent.pyz", input=asked)
    finally:
        machine.run("rm verify.py agent.pyz")
    answers = json.loads(output)
    refused = [answer["error"] for answer in answers if "error" in answer]
    with capsys.disabled():
        print(file=sys.stderr)  # which a worker of several shares with the one who called
        for answer in answers:
            told = f"{kernel} {answer['object']}: {answer.get('verified', 'refused')} instructions verified"
            print(told, file=sys.stderr)
    assert not refused, json.dumps(refused, indent=1)
    assert all(answer["jited"] for answer in answers)
    assert all(0 < answer["verified"] < INSTRUCTION_LIMIT for answer in answers)

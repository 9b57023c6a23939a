"""What the compiler makes, realised: documents to kernel and back."""

from __future__ import annotations

from typing import List

import pytest

from bpfleet.compile.compiler import Compiler
from bpfleet.loader.plan import plan
from bpfleet.model.document import Document, DocumentSet
from bpfleet.model.state import NodeState
from tests.contract.rigs import RealRig
from tests.contract.test_kernel import bring
from tests.fleet import node_policy, quickstart

pytestmark = pytest.mark.root


@pytest.fixture
def host(real_rig: RealRig) -> RealRig:
    """Host h1 of the small fleets."""
    for words in (
        "ip link add eth0 type veth peer name eth0p",
        "ip address add 192.168.77.1/24 dev eth0",
        "ip link set eth0 up",
    ):
        real_rig.sandbox.command(*words.split())
    return real_rig


def compiled(host: RealRig, documents: List[Document]) -> NodeState:
    return Compiler().compile(DocumentSet(documents), host.kernel.facts("h1")).state


def test_documents_to_kernel_and_back(host: RealRig) -> None:
    want = compiled(host, quickstart())
    assert want.attachments and want.nested["policies"] and want.routes
    bring(host.kernel, want)
    assert host.kernel.read(want) == want
    again = compiled(host, quickstart())
    assert again == want, "what bpfleet makes is no fact of the host"
    assert plan(again, host.kernel.read(again)) == []


def test_a_policy_of_the_node_comes_and_goes(host: RealRig) -> None:
    open_to_all, closed = quickstart(), [*quickstart(), node_policy("closed", {}, ingress=[], egress=[])]
    bring(host.kernel, compiled(host, open_to_all))
    want = compiled(host, closed)
    bring(host.kernel, want)
    assert host.kernel.read(want) == want
    assert want.attachments[("eth0", "egress")] == "to_underlay"
    assert {program.constants["host_policy"] for program in want.programs.values()} == {1}
    back = compiled(host, open_to_all)
    bring(host.kernel, back)
    assert host.kernel.read(back) == back
    assert {program.constants["host_policy"] for program in back.programs.values()} == {0}
    bring(host.kernel, NodeState())
    assert host.left() == set()


def test_one_document_at_a_time(host: RealRig) -> None:
    documents = quickstart()
    for count in range(1, len(documents) + 1):
        want = compiled(host, documents[:count])
        bring(host.kernel, want)
        assert host.kernel.read(want) == want
    bring(host.kernel, NodeState())
    assert host.left() == set()

"""Policies that select nodes: which do, what failsafe keeps, what is refused, what explain says."""

from __future__ import annotations

import difflib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List, Optional, Tuple

import pytest

from bpfleet.agent.session import ssh_port
from bpfleet.compile import selector
from bpfleet.compile.compiler import Compiler
from bpfleet.compile.host import session_refusal
from bpfleet.compile.selector import LabelIndex
from bpfleet.errors import InvalidInput
from bpfleet.model.document import Document, DocumentSet, parse_document
from bpfleet.model.identity import HOST
from bpfleet.model.state import Compiled
from bpfleet.observe.explain import explain
from tests import fleet

ADMIN = "203.0.113.5"


def documents(*policies: Document, **cluster: Any) -> DocumentSet:
    """Two nodes of different racks, one endpoint on the first, and these policies."""
    return DocumentSet(
        [
            fleet.document("cluster", "fleet", id=1, members=["h1", "h2"], **cluster),
            fleet.node(1, labels={"rack": "a"}),
            fleet.node(2, labels={"rack": "b"}),
            fleet.identity("web"),
            fleet.endpoint("web-1", 1, 1, "web"),
            *policies,
        ]
    )


def compiled(held: DocumentSet, index: int = 1) -> Compiled:
    return Compiler().compile(held, fleet.facts(index))


def selects(held: DocumentSet, index: int) -> bool:
    return HOST in compiled(held, index).state.nested["policies"]


@pytest.mark.parametrize(
    ("selector", "nodes"), [({}, [1, 2]), ({"rack": "a"}, [1]), ({"rack": "b"}, [2]), ({"rack": "c"}, [])]
)
def test_a_policy_selects_nodes_by_their_labels(selector: Dict[str, str], nodes: List[int]) -> None:
    held = documents(fleet.node_policy("p", selector, ingress=[]))
    assert [index for index in (1, 2) if selects(held, index)] == nodes


def test_a_policy_for_endpoints_selects_no_node() -> None:
    assert not selects(documents(fleet.policy("p", {}, ingress=[])), 1)


def test_a_selector_without_a_node_is_told_with_the_nearest_label() -> None:
    held = documents(fleet.node_policy("p", {"rack": "aa"}, ingress=[]))
    assert compiled(held).warnings == ("policy/p, node_selector: no node has rack=aa; the nearest label is rack=a",)


def test_of_very_many_labels_few_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of selectors whose identities come later must not take minutes to say so."""
    index = LabelIndex((number, {"app": f"service-{number}"}) for number in range(5000))
    compared = []

    def close(text: str, known: List[str], *most: Any) -> List[str]:
        compared.append(len(known))
        return difflib.get_close_matches(text, known, *most)

    monkeypatch.setattr(selector, "difflib", SimpleNamespace(get_close_matches=close))
    assert index.nearest({"app": "service-4711x"}) == "app=service-4711"
    assert index.nearest({"app": "service-99999"}) is not None
    assert index.nearest({"zone": "a"}) is None
    assert max(compared) <= 100
    few = LabelIndex([(1, {"tier": "front"}), (2, {"app": "web"})])
    assert few.nearest({"tear": "front"}) == "tier=front"
    assert few.nearest({"xtier": "front"}) == "tier=front"
    compared.clear()
    peers = [{"labels": {"rack": f"a{number}"}} for number in range(100)]
    warnings = compiled(documents(fleet.policy("p", {"app": "web"}, ingress=[{"peers": peers}]))).warnings
    assert len(warnings) == 100 and len(compared) == 50


@pytest.mark.parametrize("spec", [{}, {"selector": {}, "node_selector": {}}])
def test_exactly_one_selector(spec: Dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_document({"kind": "policy", "name": "p", "spec": spec})
    assert raised.value.field == "selector"
    assert raised.value.remedy == "Give exactly one of selector, node_selector."


def rows(held: DocumentSet) -> Any:
    return compiled(held).state.tables["failsafe"].rows


def test_failsafe_ports() -> None:
    assert rows(documents()) == {(22, 6, 0): (1,)}
    assert rows(documents(failsafe_ports=[])) == {}
    listed = [{"port": 2222}, {"protocol": "udp", "port": 53, "direction": "egress"}]
    assert rows(documents(failsafe_ports=listed)) == {(2222, 6, 0): (1,), (53, 17, 1): (1,)}


@pytest.mark.parametrize("port", [0, 65536, "ssh"])
def test_what_is_no_failsafe_port(port: Any) -> None:
    with pytest.raises(InvalidInput) as raised:
        documents(failsafe_ports=[{"port": port}])
    assert raised.value.field == "failsafe_ports[0].port"


SSH = {"protocol": "tcp", "port": 22}
RANGE = {"port": 20, "end_port": 25}


@pytest.mark.parametrize(
    ("policy", "warning"),
    [
        ({"ingress": []}, "policy/p, ingress: would close tcp port 22 of node h1, a failsafe port: it stays open"),
        (
            {"ingress": [{}, {"action": "deny", "peers": [{"entity": "world"}], "ports": [SSH]}]},
            "policy/p, ingress[1]: would close tcp port 22 of node h1, a failsafe port: it stays open",
        ),
        # To somebody only.
        (
            {"ingress": [{}, {"action": "deny", "peers": [{"cidr": "198.51.100.0/24"}], "ports": [RANGE]}]},
            "policy/p, ingress[1]: would close tcp port 22 of node h1, a failsafe port: it stays open",
        ),
        (
            {"default_deny": {"ingress": False}, "ingress": [{"action": "deny", "peers": [{"labels": {}}]}]},
            "policy/p, ingress[0]: would close tcp port 22 of node h1, a failsafe port: it stays open",
        ),
        (
            {"ingress": [{"peers": [{"entity": "remote-node"}, {"cidr": "0.0.0.0/0"}]}]},
            "policy/p, ingress: would close tcp port 22 of node h1, a failsafe port: it stays open",
        ),
        ({"ingress": [{"peers": [{"entity": "remote-node"}, {"cidr": "0.0.0.0/0"}, {"cidr": "::/0"}]}]}, None),
        ({"ingress": [{}, {"action": "deny", "peers": [{"cidr": "198.51.100.0/24"}], "ports": [{"port": 23}]}]}, None),
        ({"mode": "audit", "ingress": [{"action": "deny"}]}, None),
        ({"ingress": [{"ports": [SSH]}], "egress": []}, None),
        ({"egress": []}, None),
        ({"ingress": [{}]}, None),
    ],
)
def test_what_would_close_a_failsafe_port_is_told(policy: Dict[str, Any], warning: Optional[str]) -> None:
    held = documents(fleet.node_policy("p", {}, **policy))
    assert compiled(held).warnings == ((warning,) if warning else ())


def refused(held: DocumentSet, session: Optional[Tuple[str, int]]) -> Optional[str]:
    error = session_refusal(held, compiled(held), "h1", session)
    return None if error is None else str(error)


CLOSED = fleet.node_policy("closed", {}, ingress=[])


@pytest.mark.parametrize(
    ("session", "policies", "ports"),
    [
        (None, [CLOSED], []),  # over no SSH
        ((ADMIN, 22), [CLOSED], None),  # the default
        ((ADMIN, 2222), [CLOSED], [{"port": 2222}]),
        ((ADMIN, 2222), [], []),
        (("192.168.77.1", 22), [CLOSED], []),  # from the node itself
        (("127.0.0.1", 22), [CLOSED], []),
        (("::1", 22), [CLOSED], []),
        ((ADMIN, 22), [fleet.node_policy("p", {"rack": "b"}, ingress=[])], []),  # another node
        ((ADMIN, 22), [CLOSED, fleet.node_policy("admin", {}, ingress=[{"ports": [SSH]}])], []),
        (("192.168.77.2", 22), [fleet.node_policy("p", {}, ingress=[{"peers": [{"entity": "remote-node"}]}])], []),
    ],
)
def test_a_change_that_keeps_its_own_connection(session: Any, policies: List[Document], ports: Any) -> None:
    held = documents(*policies, **({} if ports is None else {"failsafe_ports": ports}))
    assert refused(held, session) is None


@pytest.mark.parametrize("client", [ADMIN, "::ffff:203.0.113.5", "2001:db8::5", "fe80::1%eth0"])
@pytest.mark.parametrize(("port", "ports"), [(22, []), (2222, None), (2222, [{"port": 22}])])
def test_a_change_that_would_cut_its_own_connection_is_refused(client: str, port: int, ports: Any) -> None:
    held = documents(CLOSED, **({} if ports is None else {"failsafe_ports": ports}))
    text = str(refused(held, (client, port)))
    assert "policy/closed" in text and f"tcp port {port} of node h1" in text and client in text
    assert f"{{protocol: tcp, port: {port}}}" in text and "failsafe_ports" in text


def test_of_another_port_than_failsafe_a_deny_is_refused_by_its_rule() -> None:
    deny = fleet.node_policy("no", {}, ingress=[{}, {"action": "deny", "peers": [{"entity": "world"}]}])
    assert "policy/no, field ingress[1]" in str(refused(documents(deny), (ADMIN, 2222)))
    assert refused(documents(deny), ("192.168.77.2", 2222)) is None


OPEN = "no policy closes this direction"


@pytest.mark.parametrize(
    ("source", "destination", "port", "judged"),
    [
        ("world", "node/h1", 80, [("ingress", "h1", "denied", "default deny")]),
        ("world", "node/h1", 22, [("ingress", "h1", "allowed", "failsafe")]),
        ("world", "node/h2", 80, [("ingress", "h2", "allowed", OPEN)]),
        ("web-1", "node/h1", 80, [("egress", "h1", "allowed", OPEN), ("ingress", "h1", "allowed", "ingress[0]")]),
        ("web-1", "host", 81, [("egress", "h1", "allowed", OPEN), ("ingress", "h1", "denied", "default deny")]),
        ("node/h1", "node/h2", 80, [("egress", "h1", "allowed", OPEN), ("ingress", "h2", "allowed", OPEN)]),
        ("node/h2", "192.168.77.1", 80, [("egress", "h2", "allowed", OPEN), ("ingress", "h1", "denied", "default")]),
    ],
)
def test_explain_knows_nodes(source: str, destination: str, port: int, judged: Any) -> None:
    rule = {"peers": [{"labels": {"app": "web"}}], "ports": [{"protocol": "tcp", "port": 80}]}
    held = documents(fleet.node_policy("p", {"rack": "a"}, ingress=[rule]))
    answer = explain(held, source, destination, "tcp", port)
    found = [(entry["direction"], entry["node"], entry["verdict"]) for entry in answer["judged"]]
    assert found == [entry[:3] for entry in judged]
    for entry, (*_, rule_text) in zip(answer["judged"], judged):
        assert rule_text in entry["rule"]


def process(proc: Path, pid: int, parent: int, environment: bytes) -> None:
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "stat").write_text(f"{pid} (name) S {parent} " + " ".join(["0"] * 17) + " 7 0")
    (proc / str(pid) / "environ").write_bytes(environment)


def test_the_port_of_a_session_is_found_through_sudo(tmp_path: Path) -> None:
    process(tmp_path, 10, 1, b"PATH=/bin\0")
    process(tmp_path, 20, 10, b"PATH=/bin\0SSH_CONNECTION=2001:db8::5 50123 2001:db8::1 2222\0")
    process(tmp_path, 30, 20, b"PATH=/bin\0SUDO_USER=admin\0")
    assert ssh_port(local=False, proc=tmp_path, pid=30) == ("2001:db8::5", 2222)
    assert ssh_port(local=False, proc=tmp_path, pid=10) is None
    assert ssh_port(local=True, proc=tmp_path, pid=30) is None

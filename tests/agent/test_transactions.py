"""Transactions of a real agent process over pipes, its kernel in memory."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest

from bpfleet.errors import (
    BpfleetError,
    Conflict,
    DiskFull,
    HostFailed,
    HostUnfit,
    InvalidInput,
    ObjectRejected,
    TransactionFailed,
)
from bpfleet.model.document import Document, DocumentSet
from tests import fleet
from tests.agent.conftest import Host, items, quickstart
from tests.agent.pythons import INTERPRETERS, interpreter


@pytest.fixture(params=INTERPRETERS)
def any_host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path, interpreter(request.param))
    yield made
    made.close()


DOCUMENTS = DocumentSet(fleet.quickstart())


def test_stage_apply_confirm(any_host: Host) -> None:
    first = any_host.connect()
    hello = first.call("hello")
    assert (hello["generation"], hello["node"], hello["pending"], hello["writes"]) == (0, None, None, 0)
    staged = first.call("stage", **quickstart())
    assert staged["documents_digest"] == DOCUMENTS.digest
    assert staged["steps"]["Attach"] == 7
    assert not staged["unchanged"]
    assert any_host.kernel.links == {}, "staging attaches nothing"

    applied = first.call("apply", transaction=staged["transaction"])
    assert applied["generation"] == 1
    assert applied["writes"] >= sum(staged["steps"].values())
    pending = first.call("hello")["pending"]
    assert (pending["transaction"], pending["state"]) == (staged["transaction"], "applied")
    assert len(any_host.kernel.links) == 7

    second = any_host.connect()
    confirmed = second.call("confirm", transaction=staged["transaction"])
    assert confirmed == {
        "generation": 1,
        "documents_digest": DOCUMENTS.digest,
        "state_digest": applied["state_digest"],
    }
    for connection in (first, second, any_host.connect()):
        hello = connection.call("hello")
        assert (hello["generation"], hello["node"], hello["cluster"]) == (1, "h1", "fleet")
        assert hello["pending"] is None
    assert second.call("confirm", transaction=staged["transaction"]) == confirmed, "asked again after a lost answer"


def test_the_same_again_is_unchanged_and_writes_nothing(any_host: Host) -> None:
    any_host.commit(**quickstart())
    before, writes = any_host.digests(), any_host.connect().call("hello")["writes"]
    kernel = any_host.kernel_file.stat().st_mtime_ns
    connection = any_host.connect()
    staged = connection.call("stage", **quickstart())
    assert staged["unchanged"], staged
    assert staged["transaction"] is None
    assert staged["steps"] == {}
    assert connection.call("hello")["writes"] == writes
    assert connection.close() == ""
    assert any_host.digests() == before
    assert any_host.kernel_file.stat().st_mtime_ns == kernel


def test_the_journal_says_how_much_each_change_changed(host: Host) -> None:
    host.commit(**quickstart())
    more = items(
        [fleet.policy("more", {"app": "web"}, ingress=[]), fleet.identity("web", {"app": "web", "new": "yes"})]
    )
    host.commit(node="h1", owner="pulumi:p/s", puts=more, deletes=["policy/db"])
    applied = [entry for entry in host.connect().call("journal") if entry["event"] == "applied"]
    assert applied[0]["changed"] == {"cluster": 1, "node": 2, "identity": 3, "endpoint": 4, "policy": 2}
    assert applied[1]["changed"] == {"policy": 2, "identity": 1}


def test_an_overfull_plan_is_refused_at_its_document_before_anything(host: Host) -> None:
    """Stage counts every map and says so; what does not fit is refused, with its document, and nothing is written."""
    cluster = fleet.document("cluster", "fleet", id=1, members=["h1", "h2"], limits={"frontends": 16})
    others = [document for document in fleet.quickstart() if document.kind != "cluster"]
    host.commit(node="h1", owner="pulumi:p/s", puts=items([cluster, *others]))
    before = host.digests()
    connection = host.connect()
    fits = fleet.service("fits", [f"10.96.0.1:{port}" for port in range(1, 17)], [])
    staged = connection.call("stage", node="h1", owner="pulumi:p/s", puts=items([fits]))
    counted = {entry["map"]: entry for entry in staged["capacity"]}
    assert counted["services"] == {"map": "services", "used": 0, "wanted": 16, "peak": 16, "limit": 16}
    small = fleet.policy("small", {"app": "web"}, egress=[])
    large = fleet.service("large", [f"10.96.0.1:{port}" for port in range(1, 18)], [])
    (refused,) = connection.call("stage", node="h1", owner="pulumi:p/s", puts=items([small, large]))["refused"]
    error = BpfleetError.from_wire(refused["error"])
    assert refused["document"] == error.resource == "service/large"
    assert (
        error.what == "the map services has room for 16 entries, 17 are needed; 0 are used now; filled by service/large"
    )
    assert error.remedy == "Declare fewer frontends; or raise limits.frontends of the cluster."
    raised = fleet.document("cluster", "fleet", id=1, members=["h1", "h2"], limits={"frontends": 32})
    staged = connection.call("stage", node="h1", owner="pulumi:p/s", puts=items([raised, large]))
    counted = {entry["map"]: entry for entry in staged["capacity"]}
    assert counted["services"] == {"map": "services", "used": 0, "wanted": 17, "peak": 17, "limit": 32}
    assert staged["warnings"] == []
    connection.close()
    assert host.digests() == before


def test_endpoints_that_wait_have_room_for_when_they_come(host: Host) -> None:
    """When a device appears nobody is there to be refused: what did not fit would keep the node from being restored."""
    limits = {"endpoints": 16, "policy_entries": 300}
    cluster = fleet.document("cluster", "fleet", id=1, members=["h1", "h2"], limits=limits)
    waiting = fleet.endpoint("late", 1, 60, "db", netns="late")
    others = [document for document in fleet.quickstart() if document.kind != "cluster"]
    host.commit(node="h1", owner="pulumi:p/s", puts=items([cluster, *others, waiting]))
    before = host.digests()
    crowd = [fleet.endpoint(f"vm-{n}", 1, 100 + n, "web", netns=f"vm{n}") for n in range(14)]

    def ports(count: int) -> List[Dict[str, Any]]:
        return [{"ports": [{"protocol": "tcp", "port": port} for port in range(1, count + 1)]}]

    wide = fleet.policy("db", {"app": "db"}, ingress=ports(200), egress=ports(200))
    wider = fleet.policy("db", {"app": "db"}, ingress=ports(301))
    connection = host.connect()

    def refused(*documents: Document) -> BpfleetError:
        with pytest.raises(InvalidInput) as caught:
            answer = connection.call("stage", node="h1", owner="pulumi:p/s", puts=items(documents))
            raise BpfleetError.from_wire(answer["refused"][0]["error"])
        return caught.value

    for error, document, name in (
        (refused(*crowd), crowd[0], "endpoints"),
        (refused(wide), wide, "policy_entries"),
        (refused(wider), wide, "policy_entries"),
    ):
        assert (error.resource, error.details["map"]) == (document.key, name)
        assert f"limits.{name} of the cluster" in error.remedy
    says = "the map endpoints has room for 16 entries, 17 are needed once what endpoints wait for is there; 2 are used"
    assert refused(*crowd).what == f"{says} now; filled by endpoint/vm-0 and 13 more"
    connection.close()
    assert host.digests() == before
    host.commit(node="h1", owner="pulumi:p/s", puts=items(crowd[1:]))


def test_every_write_is_counted_once(host: Host) -> None:
    host.commit(**quickstart())
    first = host.connect().call("hello")["writes"]
    host.commit(node="h1", owner="pulumi:p/s", puts=items([fleet.policy("more", {"app": "web"}, ingress=[])]))
    second = host.connect().call("hello")["writes"]
    # Kernel steps, plus: two locks, a generation, and three journals.
    assert first > 20
    assert 6 < second - first < first


def test_a_confirmation_over_the_old_connection_proves_nothing(host: Host) -> None:
    connection = host.connect()
    staged = connection.call("stage", **quickstart())
    earlier = host.connect()
    earlier.call("hello")
    connection.call("apply", transaction=staged["transaction"])
    for old in (connection, earlier):
        with pytest.raises(TransactionFailed, match="before the change"):
            old.call("confirm", transaction=staged["transaction"])
    assert host.connect().call("confirm", transaction=staged["transaction"])["generation"] == 1


def test_another_owner_is_a_change_without_steps(host: Host) -> None:
    host.commit(**quickstart())
    puts = [{**item, "metadata": {"ssh": {"host": "x"}}} for item in items([fleet.node(1)])]
    staged = host.connect().call("stage", node="h1", owner="pulumi:p/s", puts=puts)
    assert not staged["unchanged"]
    assert staged["steps"] == {}
    assert staged["documents_digest"] == DOCUMENTS.digest
    host.commit(node="h1", owner="pulumi:p/s", puts=puts)
    found = {item["document"]["name"]: item for item in host.connect().call("documents", kinds=["node"])["items"]}
    assert found["h1"]["metadata"] == {"ssh": {"host": "x"}}
    assert found["h2"]["metadata"] == {}


def test_drift_is_found_and_repaired(host: Host) -> None:
    host.commit(**quickstart())
    right = host.digests()[0]
    links = dict(host.kernel.links)
    del links[("bpfleet_vxlan", "ingress")]
    host.change_kernel(links=links)
    connection = host.connect()
    assert connection.call("status")["drift"] == ["attach from_tunnel to bpfleet_vxlan ingress"]
    staged = connection.call("stage", **quickstart())
    assert staged["steps"] == {"Attach": 1}
    host.commit(**quickstart())
    assert host.digests()[0] == right
    assert host.connect().call("status")["drift"] == []


def test_nothing_is_staged_if_a_document_is_refused(host: Host) -> None:
    host.commit(**quickstart())
    before = host.digests()
    bad = {"kind": "policy", "name": "p", "spec": {"selector": {}, "ingress": [{"ports": [{"port": 70000}]}]}}
    clash = fleet.document(
        "endpoint", "twin", node="h1", identity="web", addresses=["10.77.1.1"], attach={"netns": "w3"}
    )
    web = next(item for item in fleet.quickstart() if item.key == "identity/web")
    taken = fleet.identity("new", {"app": "new"}, web.spec["number"])
    connection = host.connect()
    answer = connection.call(
        "stage",
        node="h1",
        owner="ansible:other",
        puts=[{"document": bad, "owner": "ansible:other"}, *items([clash, taken, web], "ansible:other")],
        deletes=["policy/db"],
    )
    assert set(answer) == {"refused"}
    refused = {(refusal["document"], refusal["error"]["code"]) for refusal in answer["refused"]}
    assert refused == {
        ("policy/p", "InvalidInput"),
        ("endpoint/twin", "Conflict"),
        ("identity/new", "NumberTaken"),
        ("identity/web", "NotOwner"),
        ("policy/db", "NotOwner"),
    }
    port = next(refusal for refusal in answer["refused"] if refusal["document"] == "policy/p")
    assert port["error"]["where"]["field"] == "ingress[0].ports[0].port"
    with pytest.raises(TransactionFailed):
        connection.call("apply", transaction="x")
    assert host.digests() == before


def test_waiting_documents_and_warnings_are_told(host: Host) -> None:
    late = fleet.endpoint("late", 1, 3, "nobody")
    vague = fleet.policy("vague", {"app": "wbe"}, ingress=[])
    staged = host.connect().call("stage", **quickstart(late, vague))
    assert [item["document"] for item in staged["waiting"]] == ["endpoint/late"]
    assert "policy/vague" in staged["warnings"][0]


def test_what_the_host_came_to_contradict_stops_no_other_change(host: Host) -> None:
    """The host gets an endpoint's address, and loses a device: that is told, and refuses only what it is about."""
    node = fleet.node(1)
    two = {**node.spec, "devices": [*node.spec["devices"], {"name": "eth1"}]}
    kernel = host.kernel
    kernel.add_host_device("eth1")
    kernel.keep()
    host.commit(**quickstart())
    host.commit(node="h1", owner="pulumi:p/s", puts=items([fleet.document("node", "h1", **two)]))
    kernel = host.kernel
    kernel.lose_device("eth1")
    kernel.host_devices["eth0"] = (1500, ("192.168.77.1", "10.77.1.1", "10.77.1.3"))
    kernel.keep()

    connection = host.connect()
    told = ["node/h1, field devices[1].name: the node has no device eth1", "10.77.1.1 is an address of node/h1 itself"]
    warnings = connection.call("stage", node="h1", owner="pulumi:p/s", puts=[], deletes=["policy/api"])["warnings"]
    assert all(any(word in warning for warning in warnings) for word in told), warnings
    warnings = connection.call("status")["warnings"]
    assert all(any(word in warning for warning in warnings) for word in told), warnings
    connection.close()
    host.commit(node="h1", owner="pulumi:p/s", puts=[], deletes=["policy/api"])

    held = {**fleet.endpoint("web-1", 1, 1, "web").spec, "identity": "db"}
    for document in (fleet.document("endpoint", "web-1", **held), fleet.endpoint("new", 1, 3, "web")):
        answer = host.connect().call("stage", node="h1", owner="pulumi:p/s", puts=items([document]))
        assert [refused["document"] for refused in answer["refused"]] == [document.key]


def test_a_host_is_one_node_only(host: Host) -> None:
    host.commit(**quickstart())
    with pytest.raises(Conflict, match="this host is node h1, not h2"):
        host.connect().call("stage", node="h2", owner="a", puts=[])


def test_a_failing_step_puts_the_last_confirmed_generation_back(host: Host) -> None:
    host.commit(**quickstart())
    right = host.digests()[0]
    change = {"node": "h1", "owner": "pulumi:p/s", "deletes": ["endpoint/web-1"], "puts": []}
    connection = host.connect()
    steps = sum(connection.call("stage", **change)["steps"].values())
    assert steps > 4
    for number in range(steps):
        staged = connection.call("stage", **change)
        host.change_kernel(fail_at=host.kernel.steps_done + number)
        with pytest.raises(HostFailed, match="was made to fail") as raised:
            connection.call("apply", transaction=staged["transaction"])
        assert raised.value.details["rolled_back"] is True
        assert raised.value.details["step"] == number
        assert raised.value.details["doing"]
        assert "was put back" in raised.value.remedy
        assert host.digests()[0] == right
        hello = connection.call("hello")
        assert (hello["generation"], hello["pending"]) == (1, None)
    entry = connection.call("journal", limit=1)[0]
    assert (entry["event"], entry["generation"]) == ("rolled back", 2)
    assert "failed to" in entry["reason"]


def test_a_failing_first_change_leaves_an_empty_node(host: Host) -> None:
    host.change_kernel(fail_at=10)
    connection = host.connect()
    staged = connection.call("stage", **quickstart())
    with pytest.raises(HostFailed):
        connection.call("apply", transaction=staged["transaction"])
    kernel = host.kernel
    assert (kernel.links, kernel._programs, kernel.maps, kernel._routes) == ({}, [], set(), {})
    assert connection.call("hello")["generation"] == 0
    host.commit(**quickstart())


def test_rollback_of_what_is_staged_and_of_what_is_pending(host: Host) -> None:
    host.commit(**quickstart())
    right = host.digests()[0]
    connection = host.connect()
    assert connection.call("rollback")["rolled_back"] is None
    change = {"node": "h1", "owner": "pulumi:p/s", "deletes": ["policy/api"], "puts": []}
    staged = connection.call("stage", **change)
    assert connection.call("rollback")["rolled_back"] == staged["transaction"]
    with pytest.raises(TransactionFailed, match="is staged here"):
        connection.call("apply", transaction=staged["transaction"])
    staged = connection.call("stage", **change)
    connection.call("apply", transaction=staged["transaction"])
    assert host.digests()[0] != right
    other = host.connect()
    assert other.call("rollback", transaction="another")["rolled_back"] is None
    assert other.call("rollback", transaction=staged["transaction"])["rolled_back"] == staged["transaction"]
    assert host.digests()[0] == right
    with pytest.raises(TransactionFailed, match="rolled back \\(asked\\)"):
        host.connect().call("confirm", transaction=staged["transaction"])


def test_staged_and_left_is_as_if_nothing_had_been(host: Host) -> None:
    host.connect().call("hello")
    connection = host.connect()
    connection.call("stage", **quickstart())
    assert connection.close() == ""
    assert host.kernel._programs == []
    assert host.connect().call("hello")["generation"] == 0


def test_an_unconfirmed_change_is_put_back_at_the_next_start_after_its_deadline(host: Host) -> None:
    host.commit(**quickstart())
    right = host.digests()[0]
    connection = host.connect()
    staged = connection.call("stage", node="h1", owner="pulumi:p/s", deletes=["policy/api"], puts=[])
    connection.call("apply", transaction=staged["transaction"], deadline_seconds=0)
    late = host.connect()
    with pytest.raises(TransactionFailed, match="was not confirmed within 0 s"):
        late.call("confirm", transaction=staged["transaction"])
    assert "was not confirmed" in late.call("hello")["resolved"]
    assert host.digests()[0] == right


def test_an_unconfirmed_change_of_another_boot_is_put_back(host: Host) -> None:
    host.commit(**quickstart())
    right = host.digests()[0]
    connection = host.connect()
    staged = connection.call("stage", node="h1", owner="pulumi:p/s", deletes=["policy/api"], puts=[])
    connection.call("apply", transaction=staged["transaction"])
    path = host.root / "journal.json"
    journal = json.loads(path.read_text())
    journal["transaction"]["boot_id"] = "another"
    path.write_text(json.dumps(journal))
    assert "rebooted" in host.connect().call("hello")["resolved"]
    assert host.digests()[0] == right


def test_two_callers_cannot_both_win(host: Host) -> None:
    one, two = host.connect(), host.connect()
    ours, theirs = one.call("stage", **quickstart()), two.call("stage", **quickstart())
    one.call("apply", transaction=ours["transaction"])
    with pytest.raises(TransactionFailed, match="another transaction changed the node") as raised:
        two.call("apply", transaction=theirs["transaction"])
    assert raised.value.details["retry"] == "stage"
    with pytest.raises(TransactionFailed, match="awaits its confirmation") as raised:
        two.call("stage", **quickstart(), wait_seconds=0)
    assert raised.value.details["pending"] == ours["transaction"]
    assert "pulumi:p/s" in raised.value.what
    # A waiting stage goes on as soon as the other is confirmed.
    two.send("stage", {**quickstart(), "wait_seconds": 60})
    host.connect().call("confirm", transaction=ours["transaction"])
    assert two.receive()["result"]["unchanged"]


def test_a_member_takes_over_a_seeds_store(host: Host) -> None:
    host.commit(**quickstart(fleet.policy("stale", {"app": "web"}, ingress=[])))
    puts = items(fleet.quickstart(), "pulumi:other/stack")
    host.commit(node="h1", owner="pulumi:other/stack", puts=puts, replace_all=True)
    answer = host.connect().call("documents")
    assert {item["owner"] for item in answer["items"]} == {"pulumi:other/stack"}
    assert answer["digest"] == DOCUMENTS.digest


def test_wipe_leaves_nothing_and_only_of_this_node(host: Host) -> None:
    host.commit(**quickstart())
    connection = host.connect()
    with pytest.raises(Conflict, match="this host is node h1, not h2: nothing was removed"):
        connection.call("wipe", node="h2")
    assert len(host.kernel.links) == 7
    answer = connection.call("wipe", node="h1")
    assert answer["wiped"]
    assert answer["writes"] > 10
    kernel = host.kernel
    assert (kernel.links, kernel._programs, kernel.maps, kernel._routes) == ({}, [], set(), {})
    assert sorted(path.name for path in host.root.iterdir()) == ["lock"]
    assert connection.call("hello")["generation"] == 0
    connection.close()
    host.commit(**quickstart())


@pytest.mark.parametrize("damage", ["journal.json", "generations/00000001.json", "it is gone"])
def test_who_meets_damaged_files_is_told_how_to_start_anew(host: Host, damage: str) -> None:
    host.commit(**quickstart())
    before = host.digests()[0]
    if damage == "it is gone":
        (host.root / "generations/00000001.json").unlink()
    else:
        (host.root / damage).write_text("{")
    connection = host.connect()
    with pytest.raises(HostFailed, match=r"cannot be understood|is damaged") as raised:
        connection.call("documents")
    remedy = f"Remove {host.root}/journal.json on the host"
    assert remedy in raised.value.remedy
    with pytest.raises(HostFailed) as raised:
        connection.call("stage", **quickstart())
    assert remedy in raised.value.remedy
    (host.root / "journal.json").unlink()
    host.commit(**quickstart())
    assert host.digests()[0] == before
    assert host.connect().call("status")["drift"] == []


def test_a_damaged_journal_is_wiped(host: Host) -> None:
    host.commit(**quickstart())
    (host.root / "journal.json").write_text("{")
    connection = host.connect()
    with pytest.raises(HostFailed, match="cannot be understood"):
        connection.call("hello")
    assert connection.call("wipe")["wiped"]
    assert host.kernel.links == {}
    connection.close()
    host.commit(**quickstart())


def test_waiting_for_another_transaction_writes_nothing(host: Host) -> None:
    first = host.connect()
    staged = first.call("stage", **quickstart())
    first.call("apply", transaction=staged["transaction"])
    before = host.digests()
    with pytest.raises(TransactionFailed, match="awaits its confirmation"):
        host.connect().call("stage", **quickstart(), wait_seconds=0.2)
    assert host.digests() == before


def test_an_unfit_host_is_told_before_anything_is_changed(host: Host) -> None:
    host.change_kernel(unfit="the kernel has no BTF")
    before = host.digests()
    connection = host.connect()
    with pytest.raises(HostUnfit, match="no BTF"):
        connection.call("stage", **quickstart())
    assert connection.call("status")["fitness"][0]["code"] == "HostUnfit"
    assert host.digests()[0] == before[0]
    assert connection.call("hello")["generation"] == 0


def test_a_rejected_object_is_told_with_the_verifiers_words(host: Host) -> None:
    host.change_kernel(rejects={"from_tunnel"})
    before = host.digests()[0]
    with pytest.raises(ObjectRejected) as raised:
        host.connect().call("stage", **quickstart())
    assert raised.value.details["log"] == ["R0 !read_ok"]
    assert host.digests()[0] == before


API = [{"labels": {"app": "api"}}]


def blocking(*networks: str) -> Document:
    return fleet.document("cluster", "fleet", **{**fleet.cluster(["h1", "h2"]).spec, "blocked_cidrs": list(networks)})


BAD: Dict[str, Tuple[Document, str, List[str]]] = {
    "a frontend on a node's own address": (
        fleet.service("bad", ["192.168.77.2:8000"], API), "frontends", ["192.168.77.2 is an address of node/h2"]),
    "a frontend on the SSH port of a node": (
        fleet.service("bad", ["192.168.77.1:22"], API), "frontends", ["tcp port 22 is a failsafe port"]),
    "a frontend that another service has": (
        fleet.service("bad", ["10.96.0.1:80"], API), "frontends",
        ["10.96.0.1:80/tcp is already a frontend of", "service/good", "service/bad"]),
    "a frontend of another family than all backends": (
        fleet.service("bad", ["[fd96::1]:80"], [{"address": "10.77.1.1"}]), "frontends",
        ["of another address family than every backend"]),
    "a block list that holds a member": (
        blocking("192.168.77.2/32"), "blocked_cidrs", ["192.168.77.2, the address of member h2"]),
    "a block list that holds the world": (blocking("0.0.0.0/0"), "blocked_cidrs", ["everybody"]),
}  # fmt: skip
"""What both front ends send as it is: the node refuses it, by document and field."""


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_is_refused_by_document_and_field_and_nothing_is_changed(host: Host, what: str) -> None:
    document, field, says = BAD[what]
    host.commit(**quickstart(fleet.service("good", ["10.96.0.1:80"], API)))
    before = host.digests()
    answer = host.connect().call("stage", node="h1", owner="pulumi:p/s", puts=items([document]))
    (refusal,) = answer["refused"]
    assert (refusal["document"], refusal["error"]["where"]["field"]) == (document.key, field)
    told = str(BpfleetError.from_wire(refusal["error"]))
    assert all(word in told for word in says) and refusal["error"]["remedy"], told
    assert host.digests() == before


def test_an_xdp_program_of_somebody_else_is_refused_with_the_nodes_document(host: Host) -> None:
    host.commit(**quickstart())
    host.change_kernel(foreign_xdp={"eth0": "suricata"})
    before = host.digests()
    node = fleet.document("node", "h1", **{**fleet.node(1).spec, "devices": [{"name": "eth0", "xdp": "native"}]})
    answer = host.connect().call("stage", node="h1", owner="pulumi:p/s", puts=items([node]))
    (refusal,) = answer["refused"]
    assert (refusal["document"], refusal["error"]["where"]["field"]) == ("node/h1", "devices[0].xdp")
    assert "an XDP program of somebody else: suricata" in refusal["error"]["what"]
    assert host.digests() == before


@pytest.mark.root
def test_a_full_disk_is_told_before_anything_is_changed(host: Host) -> None:
    host.root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(host.root)], check=True)
    try:
        host.commit(**quickstart())
        before = host.digests()
        _fill(host.root)
        connection = host.connect()
        change = {"node": "h1", "owner": "pulumi:p/s", "deletes": ["policy/api"], "puts": []}
        with pytest.raises(DiskFull) as raised:
            connection.call("stage", **change)
        assert str(host.root) in raised.value.where["file"]
        assert raised.value.details["needed"] > raised.value.details["free"]
        (host.root / "filler").unlink()
        assert host.digests() == before
        staged = connection.call("stage", **change)
        # It fills up between the two phases.
        _fill(host.root)
        with pytest.raises(DiskFull):
            connection.call("apply", transaction=staged["transaction"])
        (host.root / "filler").unlink()
        assert host.digests()[0] == before[0]
        assert connection.call("hello")["pending"] is None
        connection.close()
        host.commit(**change)
    finally:
        host.close()
        subprocess.run(["umount", str(host.root)], check=True)


@pytest.mark.root
def test_a_disk_without_a_byte_left_or_read_only_is_told_and_keeps_nobody_from_putting_back(host: Host) -> None:
    host.root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(host.root)], check=True)
    change = {"node": "h1", "owner": "pulumi:p/s", "deletes": ["policy/api"], "puts": []}
    try:
        host.commit(**quickstart())
        before = host.digests()[0]
        connection = host.connect()
        transaction = connection.call("stage", **change)["transaction"]
        connection.call("apply", transaction=transaction)
        os.truncate(host.root / "lock", 0)  # not even who holds it can be noted
        with (host.root / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
            while True:
                filler.write(b"x" * 4096)
        assert connection.call("rollback", transaction=transaction)["rolled_back"] == transaction
        assert host.digests()[0] == before
        (host.root / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,ro", str(host.root)], check=True)
        for method, params in (("stage", change), ("wipe", {})):
            with pytest.raises(HostFailed, match=r"lock cannot be opened: Read-only") as raised:
                connection.call(method, **params)
            assert "writable" in raised.value.remedy
    finally:
        host.close()
        subprocess.run(["umount", str(host.root)], check=True)


def _fill(folder: Path) -> None:
    """Leave less room than a generation and the agent's spare need."""
    room = os.statvfs(folder)
    (folder / "filler").write_bytes(b"x" * (room.f_bavail * room.f_frsize - 40_000))


def test_a_host_that_is_no_node_does_not_say_what_is_declared(host: Host) -> None:
    with pytest.raises(HostFailed, match="the host is no node"):
        host.connect().call("explain", source="a", destination="b", protocol="tcp", port=80)


def test_missing_parameters_are_named(host: Host) -> None:
    host.commit(**quickstart())
    connection = host.connect()
    for method, params, field in (
        ("stage", {}, "node"),
        ("stage", {"node": "h1", "deletes": ["policy/x"]}, "owner"),
        ("apply", {"transaction": 7}, "transaction"),
        ("confirm", {}, "transaction"),
        ("explain", {"source": "a"}, "destination"),
        ("explain", {"source": "a", "destination": "b", "protocol": "tcp"}, "port"),
    ):
        with pytest.raises(InvalidInput) as raised:
            connection.call(method, **params)
        assert raised.value.field == field


def test_apply_without_a_name_takes_what_this_process_staged(host: Host) -> None:
    connection = host.connect()
    with pytest.raises(TransactionFailed, match="nothing is staged here"):
        connection.call("apply")
    connection.send("stage", quickstart())
    connection.send("apply")
    staged, applied = connection.receive()["result"], connection.receive()["result"]
    assert applied["transaction"] == staged["transaction"]


def test_generations_that_nobody_needs_are_removed(host: Host) -> None:
    host.commit(**quickstart())
    (host.root / "generations" / "00000099.json").write_text("left by a transaction that came to nothing")
    host.commit(node="h1", owner="pulumi:p/s", deletes=["policy/api"])
    names = sorted(path.name for path in (host.root / "generations").iterdir())
    assert names == ["00000001.json", "00000002.json"]


def test_what_the_agent_says_of_its_documents(any_host: Host) -> None:
    any_host.commit(**quickstart())
    connection = any_host.connect()
    answer = connection.call("documents", kinds=["policy"])
    assert [item["document"]["name"] for item in answer["items"]] == ["api", "db"]
    answer = connection.call("documents", kinds=["policy", "node"], names=["db", "h1", "api-1"])
    assert [item["document"]["name"] for item in answer["items"]] == ["h1", "db"]
    assert connection.call("state")["attachments"]["eth0 ingress"] == "from_underlay"
    told = connection.call("explain", source="web-1", destination="db-1", protocol="tcp", port=5432)
    assert (told["verdict"], told["judged"][-1]["policy"]) == ("denied", "db")
    status: Dict[str, Any] = connection.call("status")
    assert status["documents"] == {"cluster": 1, "node": 2, "identity": 3, "endpoint": 4, "policy": 2}
    assert len(status["programs"]) == 7
    assert (status["drift"], status["fitness"], status["pending"]) == ([], [], None)
    assert connection.call("events") == {"events": 0, "lost": 0}
    any_host.change_kernel(host_devices={"eth0": (1500, ("192.168.77.1", "192.0.2.7"))})
    late = connection.call("explain", source="web-1", destination="192.0.2.7", protocol="tcp", port=80)
    assert (late["destination"]["node"], late["undeclared"]) == ("h1", ["192.0.2.7"]), "an address of its own"
    assert connection.call("addresses")["held"] == ["192.168.77.1", "192.0.2.7"]
    known = {"h2": {"held": ["192.0.2.8"], "shared": []}}
    far = connection.call("explain", source="web-1", destination="192.0.2.8", protocol="tcp", port=80, known=known)
    assert far["destination"]["node"] == "h2", "as that node told"


def test_errors_keep_their_class_over_the_wire() -> None:
    error = BpfleetError.from_wire(TransactionFailed("x", remedy="y", details={"retry": "stage"}).to_wire())
    assert isinstance(error, TransactionFailed)


def test_both_requests_may_be_sent_before_the_first_is_answered(any_host: Host) -> None:
    channel = any_host.connect()
    with pytest.raises(TransactionFailed, match="nothing is staged"):
        channel.call("apply")
    staged = channel.call("stage", **quickstart())
    applied = channel.call("apply")  # which one to apply is not said: the one that this process has staged
    assert applied["transaction"] == staged["transaction"]
    assert any_host.connect().call("confirm", transaction=staged["transaction"])["generation"] == 1

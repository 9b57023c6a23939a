"""Traffic while documents change: what a change ends, what it must not touch, and that order does not matter."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from bpfleet.loader.real import shows_contexts
from bpfleet.model.document import Document
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.outcome import Changes, Committed, Unchanged
from tests.e2e.traffic import matrix, packets
from tests.e2e.traffic.ground import FAMILIES, NO_TCX, OPEN_PORTS, OWNER, Ground, eventually, succeeded
from tests.e2e.traffic.streams import Streams
from tests.fleet import document, identity, policy

pytest_plugins = ["tests.e2e.traffic.fixtures"]

WEB_ONLY = [{"peers": [{"labels": {"app": "web"}}], "ports": [{"protocol": "tcp", "port": 7001}]}]
PAIRS = [("web-1", "db-1"), ("web-1", "db-2")]


def db_policy(ingress: list[dict[str, Any]]) -> Document:
    return policy("db", {"app": "db"}, ingress=ingress)


# --- what a change ends -------------------------------------------------------------------------------------------


def test_a_removed_policy_opens_again(ground: Ground) -> None:
    ground.declare(*ground.base(), db_policy(WEB_ONLY))
    flows = matrix.flows(ground, [("tcp", 7001), ("udp", 7002), ("icmp", 0)])
    assert matrix.wrong(ground, [db_policy(WEB_ONLY)], ground.reached(flows)) == []
    ground.change(deletes=["policy/db"])
    assert matrix.wrong(ground, [], ground.reached(flows, 3.0)) == []
    ground.change(db_policy(WEB_ONLY))
    assert matrix.wrong(ground, [db_policy(WEB_ONLY)], ground.reached(flows)) == []


ENDINGS: dict[str, tuple[list[dict[str, Any]], str]] = {
    # what replaces the allow, and what the event then says: the deny rule, or default deny
    "the allow is removed": ([], "default deny"),
    "a deny is added": (
        [*WEB_ONLY, {"action": "deny", "peers": [{"labels": {"tier": "front"}}], "ports": [{"protocol": "tcp"}]}],
        "ingress[1]",
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("source", "destination"), PAIRS)
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_removed_allow_ends_an_established_connection(
    ground: Ground, ending: str, source: str, destination: str, family: int
) -> None:
    """At its next packet: what is sent afterwards never arrives, and the event names why."""
    ground.declare(*ground.base(), db_policy(WEB_ONLY))
    sender, receiver = ground.at(source), ground.at(destination)
    receiver.do("report", clear=True)
    name = f"{ending}-{destination}-{family}"
    to = ground.address(destination, family)
    own_port = sender.do("dial", name=name, address=to, port=7001, timeout=3.0)
    assert own_port is not None
    assert sender.do("say", name=name, text="before", timeout=3.0)
    rules, said = ENDINGS[ending]
    ground.change(db_policy(rules))
    assert not sender.do("say", name=name, text="after", timeout=0.5)
    (heard,) = receiver.do("report")["connections"]
    assert (heard["port"], heard["data"]) == (own_port, "before\n")
    denied = ground.events(ground.workloads[destination].host, verdict="denied", source=source, port=7001)
    ours = [event for event in denied if event["source"].get("port") == own_port]
    assert ours, denied
    assert {(event["policy"], event["rule"], event["direction"]) for event in ours} == {("db", said, "ingress")}
    # The allow comes back: new connections pass.
    assert not sender.reaches(ground.flow("tcp", destination, 7001, family), 0.3)
    ground.change(db_policy(WEB_ONLY))
    assert sender.reaches(ground.flow("tcp", destination, 7001, family))
    sender.do("hang_up", name=name)


def test_an_egress_change_ends_connections_too(ground: Ground) -> None:
    ground.declare(*ground.base())
    sender, receiver = ground.at("web-1"), ground.at("db-2")
    receiver.do("report", clear=True)
    assert sender.do("dial", name="egress", address=ground.address("db-2", 4), port=7001, timeout=3.0)
    ground.change(policy("web", {"app": "web"}, egress=[{"peers": [{"labels": {"app": "free"}}]}]))
    assert not sender.do("say", name="egress", text="after", timeout=0.5)
    assert [one["data"] for one in receiver.do("report")["connections"]] == [""]
    sender.do("hang_up", name="egress")


def test_the_answering_side_cannot_go_on_either(ground: Ground) -> None:
    """Packets of the responder belong to the connection: when its allow goes, they end with it."""
    ground.declare(*ground.base(), db_policy(WEB_ONLY))
    asking, answering = ground.at("web-1"), ground.at("db-2")
    to = ground.address("db-2", 4)
    asking.do("number", stream="answers", protocol="tcp", address=to, port=7001, interval=0.01)

    def count() -> int:
        return int(answering.do("numbers", stream="answers")["count"])

    assert eventually(count, lambda heard: heard > 10) > 10
    ground.change(db_policy([]))
    before = count()
    asking.do("sniff", name="answers", device="eth0")
    time.sleep(0.3)  # the sender goes on meanwhile
    seen = [packets.read(bytes.fromhex(frame)) for way, frame in asking.do("sniffed", name="answers") if way == "in"]
    assert asking.do("enough", stream="answers") > before
    assert count() == before
    assert [one for one in seen if one is not None and one.source == to] == []


def test_another_identity_counts_at_once(ground: Ground) -> None:
    """An endpoint that becomes somebody else loses what only its old identity was allowed, under way or new."""
    ground.declare(*ground.base(), db_policy(WEB_ONLY))
    sender = ground.at("web-1")
    for destination in ("db-1", "db-2"):
        to = ground.address(destination, 4)
        assert sender.do("dial", name=f"other-{destination}", address=to, port=7001, timeout=3.0)
    ground.change(ground.endpoint("web-1", identity="free"))
    for destination in ("db-1", "db-2"):
        assert not sender.do("say", name=f"other-{destination}", text="after", timeout=0.3)
        assert not sender.reaches(ground.flow("tcp", destination, 7001), 0.3)
        sender.do("hang_up", name=f"other-{destination}")
    ground.change(ground.endpoint("web-1"))
    assert all(sender.reaches(ground.flow("tcp", destination, 7001)) for destination in ("db-1", "db-2"))


def test_an_endpoint_that_goes_is_nobody(ground: Ground) -> None:
    """Its connections end, what is sent to it is dropped and counted; when it is declared again, it is back."""
    ground.declare(*ground.base())
    sender = ground.at("web-1")
    assert sender.do("dial", name="gone", address=ground.address("db-2", 4), port=7001, timeout=3.0)
    ground.change(deletes=["endpoint/db-2"])
    before = ground.drops("h1")["not_host_source"]
    assert not sender.do("say", name="gone", text="after", timeout=0.3)
    assert not sender.reaches(ground.flow("tcp", "db-2", 7001), 0.3)
    assert ground.drops("h1")["not_host_source"] > before  # unknown to the programs, the stack would have sent it on
    sender.do("hang_up", name="gone")
    ground.change(ground.endpoint("db-2"))
    assert all(sender.reaches(ground.flow("tcp", "db-2", 7001, family)) for family in FAMILIES)


def test_a_former_member_is_not_believed(ground: Ground) -> None:
    """A node that was left out of the cluster without knowing it goes on sending, and is dropped by the others."""
    ground.declare(*ground.base())
    cluster, *others = ground.base()
    smaller = document("cluster", cluster.name, **{**cluster.spec, "members": ["h1", "h2"]})
    told = {name: ground.targets[name] for name in ("h1", "h2")}
    items = [ground.item(one) for one in (smaller, *others)]
    succeeded(ground.fleet.transact(told, Changes(items, (), OWNER)))
    before = ground.drops("h1")["underlay_tunnel"]
    flows = {"web-3": [ground.flow("udp", "web-1", 7001, family) for family in FAMILIES]}
    assert set(ground.reached(flows, 0.3).values()) == {None}
    assert ground.drops("h1")["underlay_tunnel"] == before + len(flows["web-3"])
    assert not ground.at("web-1").reaches(ground.flow("udp", "web-3", 7001), 0.3)
    assert ground.at("web-1").reaches(ground.flow("udp", "web-2", 7001))
    assert {one["document"] for one in ground.status("h1")["waiting"]} == {
        "endpoint/web-3",
        "endpoint/db-3",
        "endpoint/free-3",
    }
    ground.declare(*ground.base())
    assert ground.at("web-3").reaches(ground.flow("udp", "web-1", 7001))


# --- what a change does not touch ---------------------------------------------------------------------------------


ROUTES = [
    ("web-1", "db-1", "udp", 4),
    ("web-1", "db-2", "udp", 6),
    ("web-2", "db-3", "udp", 4),
    ("web-3", "db-1", "tcp", 4),
    ("web-2", "db-2", "tcp", 6),
]
BOTH = [{"peers": [{"labels": {"app": "web"}}], "ports": [{"port": 7001}]}]


def test_established_connections_survive_unrelated_changes(ground: Ground) -> None:
    """Every numbered packet arrives while policies, identities and endpoints of others come and go."""
    base = [*ground.base(), db_policy(BOTH), policy("web", {"app": "web"}, egress=[{"peers": [{"labels": {}}]}])]
    ground.declare(*base)
    streams = Streams(ground, ROUTES)
    ground.change(policy("free", {"app": "free"}, ingress=[], egress=[]))
    ground.change(identity("late", {"app": "late"}))
    ground.change(document("endpoint", "free-3", **{**ground.endpoint("free-3").spec, "identity": "late"}))
    ground.change(deletes=["endpoint/free-1"])
    ground.change(ground.endpoint("free-1"), db_policy([*BOTH, {"peers": [{"labels": {"app": "free"}}]}]))
    ground.change(*base)
    ground.declare(*base)
    ground.change(deletes=["policy/db"])
    assert streams.end() == {}


def test_programs_are_replaced_without_losing_a_packet(ground: Ground) -> None:
    """Another tunnel port is another constant in every program: on one host nothing is lost while they are swapped."""
    ground.declare(*ground.base(), db_policy(BOTH))
    streams = Streams(ground, [("web-1", "db-1", "udp", 4), ("web-2", "db-2", "udp", 6), ("web-3", "db-3", "tcp", 4)])
    for outcomes in (ground.change(*ground.base(port=18472)), ground.change(*ground.base())):
        for outcome in outcomes.values():
            assert isinstance(outcome, Committed) and outcome.steps["Attach"] >= 9, outcome
    assert streams.end() == {}
    assert ground.at("web-1").reaches(ground.flow("tcp", "db-2", 7001), 3.0)


def filters(ground: Ground) -> int:
    """How many clsact filters hold programs of ours, on all hosts."""
    script = "for d in $(ls /sys/class/net); do for h in ingress egress; do tc filter show dev $d $h; done; done"
    return sum(host.run(["sh", "-c", script]).stdout.count("name bpfl_") for host in ground.hosts.values())


def test_the_way_programs_are_attached_changes_under_traffic(ground: Ground) -> None:
    """From tcx links to clsact filters and back, or the other way round, when the operator turns the switch.

    Nothing passes unjudged meanwhile. A packet may be lost: the kernel stops a device's queues for a moment whenever a
    clsact qdisc comes or goes. So what is allowed is TCP here.
    """
    documents = [*ground.base(), db_policy(BOTH)]
    ground.declare(*documents)
    of_a_node = 4 if shows_contexts() else 3  # packets may go directly, and one program sees how others leave
    hooks = len(ground.hosts) * (of_a_node + 2 * 3)
    assert filters(ground) == (hooks if NO_TCX else 0)
    before = ground.all_drops()
    streams = Streams(ground, [route for route in ROUTES if route[2] == "tcp"])
    denied = {"free-1": "db-1", "free-2": "db-3", "free-3": "db-2"}
    for source, to in denied.items():
        ground.at(source).do(
            "number", stream=to, protocol="udp", address=ground.address(to, 4), port=7001, interval=0.002
        )
    for use_tcx in (NO_TCX, not NO_TCX):
        ground.switch_tcx(use_tcx)
        with Fleet() as another:  # agents that are there already keep their way
            drifted = {name: another.call(target, "status")["drift"] for name, target in ground.targets.items()}
            assert all(len(one) == hooks / len(ground.hosts) for one in drifted.values()), drifted
            changes = Changes([ground.item(one) for one in documents], [], OWNER, True)
            succeeded(another.transact(ground.targets, changes))
            assert [another.call(target, "status")["drift"] for target in ground.targets.values()] == [[], [], []]
        assert filters(ground) == (0 if use_tcx else hooks)
    assert streams.end() == {}
    for source, to in denied.items():
        assert ground.at(source).do("enough", stream=to) > 50
        assert ground.at(to).do("numbers", stream=to)["count"] == 0
    for host, after in ground.all_drops().items():
        assert set(after - before[host]) <= {"denied_by_default", "multicast"}  # a new veth says hello


def test_applying_the_same_again_writes_nothing(ground: Ground) -> None:
    documents = [*ground.base(), db_policy(WEB_ONLY)]
    ground.declare(*documents)
    before = ground.writes()
    for outcomes in (ground.transact(documents), ground.transact(reversed(documents), replace_all=True)):
        assert {name: type(outcome) for name, outcome in outcomes.items()} == dict.fromkeys(ground.targets, Unchanged)
    assert ground.writes() == before
    ground.change(db_policy(BOTH))
    assert all(after > before[host] for host, after in ground.writes().items())


# --- order --------------------------------------------------------------------------------------------------------


def test_an_endpoint_without_its_identity_passes_nothing(ground: Ground) -> None:
    """...and is like any other as soon as it comes; to policies of others it is nobody."""
    waiting = ground.endpoint("free-1", identity="late")
    ground.declare(*(one for one in ground.base() if one.name != "free-1"), waiting)
    flows = {
        "free-1": [
            ground.flow(protocol, to, 7001 if protocol != "icmp" else 0, family)
            for to in ("web-1", "web-2", "h1", "world")
            for protocol in ("tcp", "udp", "icmp")
            for family in FAMILIES
        ],
        **{
            source: [ground.flow("tcp", "free-1", 7001, family) for family in FAMILIES]
            for source in ("web-1", "web-2", "h1")
        },
    }
    before = ground.drops("h1")["waiting"]
    reached = ground.reached(flows, 0.3)
    assert [key for key, seen in reached.items() if seen is not None] == []
    assert ground.drops("h1")["waiting"] >= before + len(flows["free-1"])
    for host in ground.targets:
        assert [one["document"] for one in ground.status(host)["waiting"]] == ["endpoint/free-1"]
    ground.change(identity("late", {"app": "late"}))
    assert [key for key, seen in ground.reached(flows, 3.0).items() if seen is None] == []
    assert [ground.status(host)["waiting"] for host in ground.targets] == [[]] * len(ground.targets)


FINAL_POLICIES = (
    db_policy([*WEB_ONLY, {"action": "deny", "ports": [{"protocol": "udp", "port": 7002}]}]),
    policy(
        "free", {"app": "free"}, egress=[{"peers": [{"labels": {"tier": "front"}}], "ports": [{"protocol": "udp"}]}]
    ),
)
DETOURS = (
    policy("free", {"app": "free"}, ingress=[]),
    policy("passing", {}, ingress=[{"action": "deny", "peers": [{"entity": "all"}]}]),
    identity("passing", {"app": "passing"}),
)


@pytest.mark.parametrize("seed", [1, 2])
def test_any_order_and_batches_end_in_the_same_state(ground: Ground, seed: int) -> None:
    """Resources applied and destroyed in random order and batch size, with detours: the same state as at one go."""
    final = [*ground.base(), *FINAL_POLICIES]
    ground.declare(*final)
    wanted = {host: ground.status(host) for host in ground.targets}
    ground.declare()
    rng = random.Random(seed)
    # Of each key its own course, which ends as it is to be: perhaps something else first, perhaps a delete in between.
    courses: dict[str, list[Document | None]] = {}
    for one in [*rng.sample(final, len(final) // 2), *DETOURS]:
        courses[one.key] = [one] if one.kind == "node" else [one, None]
    for one in final:
        courses.setdefault(one.key, []).append(one)
    while courses:
        batch = {key: courses[key].pop(0) for key in rng.sample(sorted(courses), min(len(courses), rng.randint(3, 12)))}
        courses = {key: course for key, course in courses.items() if course}
        puts = [one for one in batch.values() if one is not None]
        ground.change(*puts, deletes=[key for key, one in batch.items() if one is None])
    for host, status in wanted.items():
        now = ground.status(host)
        for field in ("documents_digest", "state_digest", "documents", "programs", "waiting"):
            assert now[field] == status[field], (host, field)
        assert now["drift"] == []
    flows = matrix.flows(ground, [("tcp", 7001), ("udp", OPEN_PORTS[1])])
    assert matrix.wrong(ground, FINAL_POLICIES, ground.reached(flows)) == []


# --- limits ---------------------------------------------------------------------------------------------------------


def test_changed_limits_cut_nothing(ground: Ground) -> None:
    """Maps are made anew, larger and smaller, under connections that only policy and records let pass; and what policy
    denies gets through at no time."""
    allowed = [{"peers": [{"labels": {"app": "web"}}], "ports": [{"port": 7001}]}]
    ground.declare(*ground.base(), db_policy(allowed), policy("web", {"app": "web"}, ingress=[]))
    cluster = ground.base()[0]
    routes = [
        ("web-1", f"db-{host}", protocol, family) for host in (1, 2) for protocol, family in (("tcp", 4), ("udp", 6))
    ]

    def drops() -> list[dict[str, int]]:
        """But for what the workloads' stacks send of their own accord."""
        return [{**ground.drops(name), "multicast": 0} for name in ground.hosts]

    before = drops()
    streams = Streams(ground, routes)
    larger = {"addresses": 1 << 18, "connections": 1 << 18, "endpoints": 9000, "frontends": 100, "blocked_cidrs": 100}
    for limits in (larger, {"addresses": 4096, "connections": 4096}, larger, {}):
        ground.change(document("cluster", cluster.name, **{**cluster.spec, "limits": limits}))
        for host in ground.hosts:
            status = ground.status(host)
            room = {gauge["map"]: gauge["limit"] for gauge in status["maps"]}
            for name in ("addresses", "connections"):
                assert (status["drift"], status["warnings"], room[name]) == ([], [], limits.get(name, 1 << 17))
    assert streams.end() == {}
    assert drops() == before
    assert not ground.at("free-1").reaches(ground.flow("tcp", "db-2", 7001), 0.3)

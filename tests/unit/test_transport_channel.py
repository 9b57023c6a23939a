"""One contract, two channels: what a fleet promises about requests, over SSH (a real sshd) and over a local process."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FuturesTimeout
from pathlib import Path
from typing import Any

import pytest

from bpfleet.errors import BpfleetError, HostFailed, ProtocolFailed, TransactionFailed, Unreachable
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.node import Timeouts
from tests.unit.transport_support import Hosts, eventually, small_agent

pytestmark = pytest.mark.root


@pytest.fixture(scope="module", params=["local", "ssh"])
def hosts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    made = Hosts(request.param, tmp_path_factory.mktemp("hosts"))
    yield made
    made.stop()


@pytest.fixture
def fleet(hosts: Hosts) -> Iterator[Fleet]:
    with hosts.fleet() as made:
        yield made


def test_the_agent_is_delivered_once(hosts: Hosts, fleet: Fleet) -> None:
    target = hosts.target()
    artefact = small_agent("delivered once")
    options: dict[str, Any] = {"root": fleet.root}
    assert fleet.installed(target) is None
    with hosts.fleet(artefact=artefact, **options) as first:
        assert first.install(target)["artefact"] == artefact.digest
        assert first.counters(target).deliveries == 1
        assert first.counters(target).bytes_sent > len(artefact.data)
        first.install(target)
        assert first.counters(target).deliveries == 1
    with hosts.fleet(artefact=artefact, **options) as again:
        assert again.installed(target) is not None
        again.install(target)
        assert again.counters(target).deliveries == 0
        assert again.counters(target).bytes_sent < len(artefact.data)
    another = small_agent("another")
    with hosts.fleet(artefact=another, **options) as other:
        # Who left something there with another agent is answered by this one.
        assert other.installed(target) == other.install(target)
        assert other.install(target)["artefact"] == another.digest
        assert other.counters(target).deliveries == 1
        other.remove_agent(target)
        assert other.installed(target) is None


def test_requests_share_one_connection_and_one_agent(hosts: Hosts, fleet: Fleet) -> None:
    target = hosts.target()
    pids = {fleet.call(target, "hello")["pid"] for _ in range(5)}
    assert len(pids) == 1
    assert fleet.counters(target).connections == 1
    assert fleet.counters(target).requests == 5
    assert fleet.totals() == fleet.counters(target)


def test_text_of_every_kind_arrives_as_sent(hosts: Hosts, fleet: Fleet) -> None:
    params = {"text": 'naïve ☃ \u2028 \x00 " \\ \n', "number": 1.5, "nothing": None, "list": [{}, []]}
    assert fleet.call(hosts.target(), "echo", params) == params


def test_huge_answers_and_requests(hosts: Hosts, fleet: Fleet) -> None:
    target = hosts.target()
    assert len(fleet.call(target, "long", {"bytes": 5_000_000})) == 5_000_000
    big = {"text": "z" * 5_000_000}
    assert fleet.call(target, "echo", big) == big


def test_an_agent_that_floods_stderr_is_not_stalled(hosts: Hosts, fleet: Fleet) -> None:
    for _ in range(2):
        assert fleet.call(hosts.target(), "grumble", {"bytes": 4_000_000}) == "done"


def test_an_error_of_the_agent_names_the_node(hosts: Hosts, fleet: Fleet) -> None:
    target = hosts.target()
    fleet.call(target, "fail", {"methods": ["state"]})
    with pytest.raises(HostFailed, match="state failed as told") as caught:
        fleet.call(target, "state")
    assert caught.value.where["node"] == "h1"
    assert fleet.call(target, "echo", {"still": "there"}) == {"still": "there"}


def test_an_agent_killed_in_a_request_is_a_clean_error(hosts: Hosts, fleet: Fleet) -> None:
    target = hosts.target()
    with pytest.raises(HostFailed) as caught:
        fleet.call(target, "die")
    assert "about to die" in caught.value.what
    assert "remove /var/lib/bpfleet/agent" in caught.value.remedy
    assert caught.value.where["node"] == "h1"
    assert caught.value.details["exit_status"] is None
    # The request is not sent again; the next one gets a new agent over the same connection.
    assert fleet.call(target, "state")["wipes"] == 1
    assert fleet.counters(target).connections == 1


def test_an_agent_that_exits_is_a_clean_error(hosts: Hosts, fleet: Fleet) -> None:
    with pytest.raises(HostFailed, match="exit status 7") as caught:
        fleet.call(hosts.target(), "exit", {"status": 7})
    assert caught.value.details["exit_status"] == 7


def test_an_agent_that_falls_silent_does_not_hang_the_run(hosts: Hosts) -> None:
    target = hosts.target()
    with hosts.fleet(timeouts=Timeouts(by_method={"silence": 0.3})) as fleet:
        with pytest.raises(Unreachable, match="no answer to silence"):
            fleet.call(target, "silence", {"seconds": 30})
        # What it says later is nobody's answer: the connection is another one.
        assert fleet.call(target, "echo", {"next": 1}) == {"next": 1}
        assert fleet.counters(target).connections == 2


def test_those_behind_a_silent_request_do_not_wait_for_ever(hosts: Hosts) -> None:
    target = hosts.target()
    with hosts.fleet(timeouts=Timeouts(by_method={"silence": 5.0, "echo": 0.2})) as fleet:
        fleet.install(target)
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(fleet.call, target, "silence", {"seconds": 2})
            assert eventually(lambda: fleet.counters(target).requests == 2)
            with pytest.raises(Unreachable, match="busy"):
                fleet.call(target, "echo")
            assert slow.result() == "late"


def test_a_host_that_prints_at_login_is_told_so(hosts: Hosts, fleet: Fleet) -> None:
    target = hosts.target()
    with pytest.raises(ProtocolFailed, match="welcome to this host") as caught:
        fleet.call(target, "garbage")
    assert "login script" in caught.value.remedy
    assert fleet.call(target, "echo", {"next": 1}) == {"next": 1}


def test_many_threads_get_their_own_answers(hosts: Hosts, fleet: Fleet) -> None:
    target = hosts.target()
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda n: fleet.call(target, "echo", {"n": n}), range(320)))
    assert [answer["n"] for answer in answers] == list(range(320))
    assert fleet.counters(target).connections == 1
    assert fleet.counters(target).deliveries == 1


def test_events_stream_while_requests_go_on(hosts: Hosts, fleet: Fleet) -> None:
    target = hosts.target()
    events = fleet.stream(target, "events", {"count": 3, "follow": True})
    assert [next(events)["count"] for _ in range(3)] == [0, 1, 2]
    assert fleet.call(target, "echo", {"n": 1}) == {"n": 1}
    events.close()  # type: ignore[attr-defined]
    assert [event["count"] for event in fleet.stream(target, "events", {"count": 1000})] == list(range(1000))
    assert fleet.counters(target).connections == 1


def test_a_stream_that_follows_waits_as_long_as_nothing_happens(hosts: Hosts) -> None:
    timeouts = Timeouts(event=0.3)
    with hosts.fleet(timeouts=timeouts) as fleet, ThreadPoolExecutor(1) as pool:
        events = fleet.stream(hosts.target(), "events", {"count": 1, "follow": True})
        assert next(events) == {"count": 0}
        quiet = pool.submit(next, events)
        with pytest.raises(FuturesTimeout):
            quiet.result(1.5)
        fleet.close()
        with pytest.raises(BpfleetError):
            quiet.result(10)


def test_a_stream_whose_agent_dies_says_so(hosts: Hosts, fleet: Fleet) -> None:
    events = fleet.stream(hosts.target(), "events", {"count": 2, "then": "die"})
    assert [next(events), next(events)] == [{"count": 0}, {"count": 1}]
    with pytest.raises(HostFailed) as caught:
        next(events)
    assert caught.value.where["node"] == "h1"


def test_each_asks_all_and_keeps_errors_apart(hosts: Hosts, fleet: Fleet) -> None:
    targets = [hosts.target(name) for name in ("h1", "h2", "h3")]
    fleet.call(targets[1], "fail", {"methods": ["state"]})
    answers = fleet.each(targets, lambda target: fleet.call(target, "state"))
    assert list(answers) == ["h1", "h2", "h3"]
    assert isinstance(answers["h2"], BpfleetError)
    assert answers["h1"]["generation"] == answers["h3"]["generation"] == 0


def test_progress_is_told_by_node_and_may_fail(hosts: Hosts) -> None:
    seen: list[tuple[str, str]] = []

    def progress(node: str, phase: str, detail: str) -> None:
        seen.append((node, phase))
        raise RuntimeError("a broken terminal")

    with hosts.fleet(progress=progress) as fleet:
        fleet.install(hosts.target())
    assert seen == [("h1", "dial"), ("h1", "install")]


def open_files() -> set[str]:
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{link.name} {link.readlink()}")
        except FileNotFoundError:
            continue  # the one that listed them
    return found


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_close_leaves_nothing_open(hosts: Hosts) -> None:
    targets = [hosts.target(name) for name in ("h1", "h2", "h3")]
    before = open_files(), {thread.name for thread in threading.enumerate()}, children()
    fleet = hosts.fleet()
    fleet.each(targets, fleet.install)
    with pytest.raises(HostFailed):
        fleet.call(targets[0], "die")
    fleet.call(targets[0], "hello")
    events = fleet.stream(targets[1], "events", {"count": 1, "follow": True})
    next(events)
    fleet.close()
    with pytest.raises(BpfleetError):
        next(events)
    fleet.close()
    assert (open_files(), {thread.name for thread in threading.enumerate()}, children()) == before
    with pytest.raises(TransactionFailed, match="closed"):
        fleet.call(targets[0], "hello")


def test_close_ends_a_request_under_way(hosts: Hosts) -> None:
    target = hosts.target()
    fleet = hosts.fleet()
    with ThreadPoolExecutor(1) as pool:
        fleet.install(target)
        slow = pool.submit(fleet.call, target, "silence", {"seconds": 600})
        assert eventually(lambda: fleet.counters(target).requests == 2)
        fleet.close()
        with pytest.raises(Unreachable):
            slow.result(60)

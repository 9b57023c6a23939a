"""What is kept: connection records and how long they count, and the events that readers see."""

from __future__ import annotations

import os
import time
from typing import Any, Dict

import pytest

from bpfleet.loader import layout
from bpfleet.loader.generated.layouts import ENUMS, MAPS
from bpfleet.loader.real import jiffy_ns
from tests.packet import frames as f
from tests.packet.kernel import SLOTS, Datapath
from tests.packet.world import ADDRESSES, DEVICES, IDENTITIES, UNDERLAY_2

pytestmark = pytest.mark.root

X = ADDRESSES[4]
PORTS, BACK = (40000, 80), (80, 40000)
TIMES, STATES = ENUMS["connection_time"], ENUMS["connection_state"]


def send(datapath: Datapath, packet: bytes, to: str = "a") -> int:
    """How many events a packet from an endpoint makes: 0 within a connection."""
    result = datapath.run("from_endpoint", f.ether(packet), DEVICES[to])
    assert result.action == "redirect"
    return len(result.events)


def record(datapath: Datapath) -> Dict[str, Any]:
    """The only connection."""
    ((_, value),) = datapath.maps["connections"].items()
    return value


def age(datapath: Datapath, ticks: int) -> None:
    """Make the only connection older."""
    ((key, value),) = datapath.maps["connections"].items()
    now = time.monotonic_ns() >> TIMES["tick_shift"]
    datapath.maps["connections"].update(key, {**value, "last_seen": (now - ticks) & 0xFFFFFFFF})


def test_record_of_a_connection(datapath: Datapath) -> None:
    send(datapath, f.tcp(X["a"], X["c"], PORTS))
    ((key, value),) = datapath.maps["connections"].items()
    assert key == {
        "source": X["a"],
        "destination": X["c"],
        "source_port": 40000,
        "destination_port": 80,
        "protocol": 6,
        "direction": ENUMS["direction"]["egress"],
    }
    seen = value.pop("last_seen")
    assert 0 <= (time.monotonic_ns() >> TIMES["tick_shift"]) - seen <= 60
    assert value == {
        "policy_revision": 1,
        "addresses_revision": 1,
        "next_hop": UNDERLAY_2,
        "flow": ENUMS["flow_slot"]["first"],
        "ifindex": DEVICES["a"],
        "translated": 0,
        "peer": IDENTITIES["c"],
        "route": ENUMS["route"]["tunnel"],
        "state": 0,
    }


@pytest.mark.parametrize(
    ("packet", "state", "limit"),
    [
        (f.tcp(X["a"], X["c"], PORTS, f.ACK), 0, "other_ticks"),
        (f.tcp(X["a"], X["c"], PORTS, f.ACK), STATES["replied"], "tcp_ticks"),
        (f.tcp(X["a"], X["c"], PORTS, f.ACK), STATES["replied"] | STATES["end_initiator"], "tcp_ticks"),
        (
            f.tcp(X["a"], X["c"], PORTS, f.ACK),
            STATES["replied"] | STATES["end_initiator"] | STATES["end_responder"],
            "closing_ticks",
        ),
        (f.udp(X["a"], X["c"], PORTS), STATES["replied"], "other_ticks"),
        (f.echo(X["a"], X["c"], 7), STATES["replied"], "other_ticks"),
    ],
)
def test_lifetime(datapath: Datapath, packet: bytes, state: int, limit: str) -> None:
    """Just within its time a record counts, and past it the packet opens a new one."""
    send(datapath, packet)
    ((key, value),) = datapath.maps["connections"].items()
    datapath.maps["connections"].update(key, {**value, "state": state})
    age(datapath, TIMES[limit] - 5)
    assert send(datapath, packet) == 0
    age(datapath, TIMES[limit] + 5)
    assert send(datapath, packet) == 1


def test_a_tick_ahead_is_not_old(datapath: Datapath) -> None:
    """Another CPU may have written a later tick."""
    send(datapath, f.udp(X["a"], X["c"], PORTS))
    age(datapath, -3)
    assert send(datapath, f.udp(X["a"], X["c"], PORTS)) == 0


def test_states_of_tcp(datapath: Datapath) -> None:
    def state() -> int:
        return int(record(datapath)["state"])

    send(datapath, f.tcp(X["a"], X["c"], PORTS))
    answer = f.tcp(X["c"], X["a"], BACK, f.SYN | f.ACK)
    datapath.run("to_endpoint", f.ether(answer), DEVICES["a"], DEVICES["vxlan"])
    assert state() == STATES["replied"]
    send(datapath, f.tcp(X["a"], X["c"], PORTS, f.FIN | f.ACK))
    assert state() == STATES["replied"] | STATES["end_initiator"]
    datapath.run("to_endpoint", f.ether(f.tcp(X["c"], X["a"], BACK, f.FIN | f.ACK)), DEVICES["a"], DEVICES["vxlan"])
    assert state() == STATES["replied"] | STATES["end_initiator"] | STATES["end_responder"]
    send(datapath, f.tcp(X["a"], X["c"], PORTS))
    assert state() == 0, "a SYN starts over"
    send(datapath, f.tcp(X["a"], X["c"], PORTS, f.RST))
    assert state() == STATES["end_initiator"], "a reset is its sender's end"


def test_events_overwrite_the_oldest_and_number_all(datapath: Datapath) -> None:
    """The latest are always there, in order, and the numbers say how many there were."""
    home = os.sched_getaffinity(0)
    cpu = min(home)
    os.sched_setaffinity(0, {cpu})
    try:
        cursor = datapath.maps["event_cursor"]
        before = cursor.lookup({"index": cpu})["written"]
        context = bytearray(192)
        context[40:44] = DEVICES["a"].to_bytes(4, "little")
        for port in range(SLOTS + 50):
            datapath.run_raw("from_endpoint", f.ether(f.tcp(X["b"], X["a"], (port, 80))), bytes(context))
        written = cursor.lookup({"index": cpu})["written"]
    finally:
        os.sched_setaffinity(0, home)
    assert written == before + SLOTS + 50
    events = datapath.maps["events"]
    found = [events.lookup({"index": cpu * SLOTS + slot}) for slot in range(SLOTS)]
    found.sort(key=lambda event: event["sequence"])
    assert [event["sequence"] for event in found] == list(range(written - SLOTS + 1, written + 1))
    assert [event["source_port"] for event in found] == list(range(50, SLOTS + 50))
    assert [event["time_ns"] for event in found] == sorted(event["time_ns"] for event in found)


def test_slots_lie_as_the_layout_says(datapath: Datapath) -> None:
    """Readers map the arrays: elements must lie one after the other without padding."""
    for name in ("events", "event_cursor"):
        assert MAPS[name]["value"]["size"] % 8 == 0
        assert layout.layout(name, "value").size == MAPS[name]["value"]["size"]


def test_the_clock_that_counts_the_kernels_ticks_is_the_monotonic_one(datapath: Datapath) -> None:
    assert 10**9 % jiffy_ns() < 1000  # a whole number a second: what programs count by is known on this kernel
    before = time.monotonic_ns() >> TIMES["tick_shift"]
    send(datapath, f.tcp(X["a"], X["c"], PORTS))
    after = time.monotonic_ns() >> TIMES["tick_shift"]
    assert before - 1 <= record(datapath)["last_seen"] <= after  # coarse: it may lag

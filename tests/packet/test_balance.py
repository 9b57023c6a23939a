"""Balancing at tc over many flows: who is chosen, who is kept, and that checksums stay true."""

from __future__ import annotations

import ipaddress
from collections import Counter
from typing import Any, List, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import fleet
from tests.packet import frames as f
from tests.packet import world
from tests.packet.cases_services import BACKEND, CLIENT, FRONTENDS, PORT
from tests.packet.kernel import Datapath
from tests.packet.place import Place, state_of, two_ends
from tests.packet.world import ADDRESSES, DEVICES, Frontend

pytestmark = pytest.mark.root

OTHERS = {4: [f"198.51.100.{n}" for n in range(1, 102)], 6: [f"2001:db8:99::{n:x}" for n in range(1, 102)]}
"""Backends in the world: packets to them are passed on, with nothing but the exchange done to them."""


def chosen(datapath: Datapath, packet: bytes) -> Tuple[str, int]:
    """The address and port that a packet of `a` goes to in the end."""
    result = datapath.run("from_endpoint", f.ether(packet), DEVICES["a"])
    assert result.action == "pass", result
    start, size, transport = (38, 16, 54) if packet[0] >> 4 == 6 else (30, 4, 34)
    address = ipaddress.ip_address(result.frame[start : start + size])
    return str(address), int.from_bytes(result.frame[transport + 2 : transport + 4], "big")


def put(datapath: Datapath, family: int, backends: List[Tuple[str, int]], number: int = 1) -> None:
    """The frontend's UDP backends."""
    world.apply(datapath, Frontend(FRONTENDS[family], PORT, f.UDP, tuple(backends), number))


def query(family: int, port: int = CLIENT, **more: Any) -> bytes:
    """A datagram of `a` to the frontend."""
    return f.udp(ADDRESSES[family]["a"], FRONTENDS[family], (port, PORT), **more)


@pytest.mark.parametrize("step", [1, 2, 256])
def test_neighbouring_ports_are_spread_over_the_backends(datapath: Datapath, family: int, step: int) -> None:
    put(datapath, family, [(one, BACKEND) for one in OTHERS[family][:4]])
    ports = [(CLIENT + step * n) % 65536 for n in range(200)]
    counts = Counter(chosen(datapath, query(family, port)) for port in ports)
    assert set(counts) == {(one, BACKEND) for one in OTHERS[family][:4]}
    assert min(counts.values()) >= 25 and max(counts.values()) <= 90, counts


def test_a_flow_that_lost_its_record_finds_the_same_backend(datapath: Datapath, family: int) -> None:
    put(datapath, family, [(one, BACKEND) for one in OTHERS[family]])
    before = [chosen(datapath, query(family, CLIENT + n)) for n in range(40)]
    datapath.maps["translations"].clear()
    assert [chosen(datapath, query(family, CLIENT + n)) for n in range(40)] == before


@pytest.mark.parametrize("count", [1, 2, 3, 64, 101])
def test_a_backend_that_is_listed_is_kept_wherever_it_lies(datapath: Datapath, family: int, count: int) -> None:
    """Every flow has chosen from a list of one; the longer list has it too, at every place in turn."""
    listed = [(one, port) for one in OTHERS[family] for port in (BACKEND, BACKEND + 1)][:count]
    for number, one in enumerate(listed):
        put(datapath, family, [one], 100 + number)
        assert chosen(datapath, query(family, CLIENT + number)) == one
    put(datapath, family, listed)
    assert [chosen(datapath, query(family, CLIENT + number)) for number in range(count)] == listed


def test_a_list_of_backends_goes_once_no_program_knows_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who found the frontend as it was is about to look for the list, and would refuse the client without it."""
    old, new = (
        state_of([*two_ends(), fleet.service("s", [f"{FRONTENDS[4]}:80"], [{"address": one}])]) for one in OTHERS[4][:2]
    )
    place.bring(old)
    maps, seen = place.kernel._maps, []
    wait = maps.let_programs_end

    def waiting() -> None:
        there = place.kernel.read(new)
        seen.append((there.tables["services"], set(there.nested["backends"])))
        wait()

    monkeypatch.setattr(maps, "let_programs_end", waiting)
    place.bring(new)
    assert seen == [(new.tables["services"], {*old.nested["backends"], *new.nested["backends"]})]
    assert set(place.kernel.read(new).nested["backends"]) == set(new.nested["backends"])


PROTOCOLS = st.sampled_from([f.TCP, f.UDP])


@settings(max_examples=60, deadline=None)
@given(
    family=st.sampled_from([4, 6]),
    protocol=PROTOCOLS,
    payload=st.binary(max_size=64),
    port=st.integers(1, 65535) | st.just(PORT),
)
def test_checksums_stay_true(loaded: Datapath, family: int, protocol: int, payload: bytes, port: int) -> None:
    """There and back, whatever is in the packet: out with the backend's checksum, in with the frontend's."""
    loaded.reset()
    world.build(loaded)
    x, front = ADDRESSES[family], FRONTENDS[family]
    world.apply(loaded, Frontend(front, PORT, protocol, ((x["world"], port),)))
    packet = _whole(x["a"], front, (CLIENT, PORT), protocol, payload)
    out = loaded.run("from_endpoint", f.ether(packet), DEVICES["a"])
    assert _plain(out.frame) == f.ether(_whole(x["a"], x["world"], (CLIENT, port), protocol, payload))
    back = loaded.run(
        "to_endpoint",
        f.ether(_whole(x["world"], x["a"], (port, CLIENT), protocol, payload)),
        DEVICES["a"],
        DEVICES["eth0"],
    )
    assert _plain(back.frame) == f.ether(_whole(front, x["a"], (PORT, CLIENT), protocol, payload))


def _whole(source: str, destination: str, ports: Tuple[int, int], protocol: int, payload: bytes) -> bytes:
    head = f.tcp_header(*ports, f.ACK) if protocol == f.TCP else f.udp_header(*ports, len(payload))
    return f.summed(f.ip(source, destination, protocol, head + payload))


def _plain(frame: bytes) -> bytes:
    """With one of the two ways to write a checksum of nothing, 0 and 0xffff (RFC 1624): UDP has only the latter."""
    start, protocol = (54, frame[20]) if frame[14] >> 4 == 6 else (34, frame[23])
    at = start + (16 if protocol == f.TCP else 6)
    return frame[:at] + b"\xff\xff" + frame[at + 2 :] if frame[at : at + 2] == bytes(2) else frame


@pytest.fixture(params=[4, 6], ids=["v4", "v6"])
def family(request: pytest.FixtureRequest) -> int:
    """Of the packets."""
    return int(request.param)

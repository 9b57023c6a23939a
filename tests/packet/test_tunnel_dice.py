"""The tunnel's program does with real VXLAN packets, one after the other, what the model says: fate, counters, verdicts
and rules of each. In between workloads and the host send, policies and services change, time passes, and addresses move
from node to node.

`make fuzz` does it for longer: by BPFLEET_FUZZ_EXAMPLES.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import random
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Tuple, Union

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.packet import frames as f
from tests.packet import test_node as node
from tests.packet import world
from tests.packet.kernel import Datapath, Result, detach
from tests.packet.modelled import readable
from tests.packet.test_reference import NUMBERS
from tests.packet.world import DEVICES, IDENTITIES, UNDERLAY_2, UNDERLAY_6, UNDERLAY_MAC, Forget, Frontend, Wait
from tests.reference import fleets, tunnelled
from tests.reference.ends import WAITING
from tests.reference.traffic import Sent
from tests.reference.tunnel import Tunnel
from tests.reference.tunnelled import Arrived

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("one_cpu")]

STEPS = 80
"""Of a story: more than Hypothesis makes elsewhere, as its own choices take the most time, so of fewer stories."""
EXAMPLES = int(os.environ.get("BPFLEET_FUZZ_EXAMPLES", "40")) // 2
ADDRESSES = {
    number: {**family, **{name: world.ADDRESSES[number][name] for name in ("d", "q")}}
    for number, family in node.ADDRESSES.items()
}
NODES = tunnelled.Nodes(
    {"c": UNDERLAY_2, "d": UNDERLAY_6, "node2": UNDERLAY_2},
    {"c": NUMBERS["c"], "d": NUMBERS["b"], "node2": IDENTITIES["node2"]},
    ("192.0.2.66", "2001:db8::66", "10.1.0.2", "2001:db8::2"),
)
"""An endpoint elsewhere may be of an identity that is here as well."""
PLACES = {"c": "tunnel/c", "d": "tunnel/b", "node2": "remote-node"}
RESERVED = frozenset({0, 1, 2, 5})
PATIENCE_SECONDS = 5
EVERY_PROTOCOL = 3  # ETH_P_ALL


@dataclass(frozen=True)
class Moved:
    """Every address of somebody beyond the tunnel is that node's from now on."""

    name: str
    outer: str


Step = Union[node.Step, Arrived, Moved]


class Wire:
    """The network's end of a node's device, with the programs at its tunnel device and at that of the endpoint t, and
    the end of t."""

    def __init__(self, datapath: Datapath, is_judged: bool) -> None:
        self.datapath, self.is_judged = datapath, is_judged
        self._links = [
            datapath.attach("from_tunnel", DEVICES["vxlan"]),
            datapath.attach("to_endpoint", DEVICES["t"], egress=True),
        ]
        self._network = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._network.bind(("wire", 0))
        self._machine = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERY_PROTOCOL))
        self._machine.bind(("machine", EVERY_PROTOCOL))
        self._machine.setblocking(False)

    def close(self) -> None:
        """Take the programs off."""
        self._network.close()
        self._machine.close()
        for link in self._links:
            detach(link)

    def send(self, arrived: Arrived) -> Result:
        """What came of a tunnel packet; the frame that t got."""
        local = world.ADDRESSES[6 if f.is_v6(arrived.outer) else 4]["host"]
        packet = f.vxlan(arrived.outer, local, world.TUNNEL_PORT, arrived.number, arrived.frame)
        before = self.datapath.counters()
        with self.datapath.watch() as seen:
            self._network.send(f.ether(packet, destination=UNDERLAY_MAC))
            until = time.monotonic() + PATIENCE_SECONDS
            while not self._is_decided(before) and time.monotonic() < until:
                time.sleep(0.001)  # the kernel has put it off
        return seen[0]._replace(frame=self._got())

    def _is_decided(self, before: Dict[str, int]) -> bool:
        """Whether a packet was counted since, by more than the mark that it passed for audit alone."""
        return any(count != before[name] for name, count in self.datapath.counters().items() if name != "audited")

    def _got(self) -> bytes:
        """The next frame that came to t. Its kernel's own reports of groups, soon after it is up, go the other way."""
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, origin = self._machine.recvfrom(65536)
                if origin[2] != socket.PACKET_OUTGOING:
                    return bytes(frame)
        return b""


@pytest.fixture(params=["open host", "judged host"])
def wire(request: pytest.FixtureRequest) -> Iterator[Wire]:
    """Of a node that no policy selects, and of one that policies may select."""
    is_judged = request.param == "judged host"
    one = Wire(request.getfixturevalue("host_datapath" if is_judged else "datapath"), is_judged)
    try:
        yield one
    finally:
        one.close()


class Played(node.Played):
    """A node with a tunnel, in the kernel and in the model."""

    def __init__(self, wire: Wire, identity: str) -> None:
        super().__init__(wire.datapath, wire.is_judged, identity)
        self.wire, ends = wire, self.model.node.ends
        ends.identities = {**ends.identities, "q": WAITING}
        datapath, outer = wire.datapath, ipaddress.ip_address(UNDERLAY_6)
        datapath.maps["endpoints"].update({"ifindex": DEVICES["q"]}, world.endpoint_record("q"))
        record = {"identity": IDENTITIES["node2"], "ifindex": 0, "tunnel_endpoint": UNDERLAY_6}
        datapath.maps["addresses"].update({"address": UNDERLAY_6}, record)
        ends.places[outer] = "remote-node"
        numbers = {PLACES[name]: number for name, number in NODES.numbers.items()}
        self.tunnel = Tunnel(self.model.node, {outer: outer}, numbers, RESERVED)
        for family in ADDRESSES.values():
            datapath.maps["addresses"].update({"address": family["q"]}, world.address_record("q"))
            ends.places[ipaddress.ip_address(family["q"])] = "q"
            for name, place in PLACES.items():
                ends.places[ipaddress.ip_address(family[name])] = place
        for name, member in NODES.members.items():
            self.move(Moved(name, member))

    def move(self, moved: Moved) -> None:
        """The agent writes addresses, then the revision."""
        record = {"identity": NODES.numbers[moved.name], "ifindex": 0, "tunnel_endpoint": moved.outer}
        for family in ADDRESSES.values():
            self.datapath.maps["addresses"].update({"address": family[moved.name]}, record)
            self.tunnel.members[ipaddress.ip_address(family[moved.name])] = ipaddress.ip_address(moved.outer)
        self.apply(node.NewAddresses())

    def arrive(self, step: Arrived, told: str) -> None:
        """A frame by the tunnel, and compare all that comes of it."""
        hooks, fates = ["from_tunnel"], [self.tunnel.arrives(ipaddress.ip_address(step.outer), step.number, step.frame)]
        if fates[0].passes and not fates[0].reason:  # transmitted to a device, where it passes another hook
            hooks.append("to_endpoint")
            fates.append(self.model.node.receives("t", step.frame, "vxlan"))
        result = self.wire.send(step)
        have: Dict[str, Any] = {
            "counters": result.counters,
            "events": [(*node.heard(event), event["hook"]) for event in result.events],
            "got": readable(result.frame),
        }
        is_got = len(fates) == 2 and fates[1].passes
        want: Dict[str, Any] = {
            "counters": dict(sum((Counter(fate.counters) for fate in fates), Counter())),
            "events": [(*event, hook) for hook, fate in zip(hooks, fates) for event in fate.events],
            "got": fates[-1].left or readable(step.frame) if is_got else None,
        }
        assert have == want, f"{told}: from {step.outer} as {step.number}: {step.frame[12:].hex()}"
        if is_got:
            assert result.frame[:6] == bytes.fromhex(world.MACHINE_MAC.replace(":", ""))

    def take(self, step: Step, told: str) -> None:
        """Any step."""
        self.stand_still()
        if isinstance(step, Arrived):
            self.arrive(step, told)
        elif isinstance(step, Moved):
            self.move(step)
        elif isinstance(step, Sent):
            self.send(step, told)
        else:
            self.apply(step)


def frontend(dice: random.Random) -> Frontend:
    """Mostly one whose only backend is beyond the tunnel."""
    only_c = 64 << node.BACKENDS_AND_CLIENT.index("c") | 32 | dice.getrandbits(2)
    return node.frontend(only_c if dice.random() < 0.7 else dice.getrandbits(32))


@st.composite
def stories(draw: st.DrawFn, of_node: bool) -> Tuple[str, List[Step]]:
    """The identity of the endpoint t. Policies, then packets of a few conversations, with changes in between."""
    policies = draw(st.lists(fleets.clusters(NUMBERS, of_node), min_size=1, max_size=3))
    dice = random.Random(f"{draw(st.integers(0, 2**64 - 1))} {policies}")
    talks = tuple(tunnelled.talk(dice.getrandbits(32)) for _ in range(dice.randint(1, 4)))
    steps: List[Step] = [policies[0]]
    steps += [frontend(dice) for _ in range(dice.randint(2, 8))]
    for _ in range(STEPS):
        chance = dice.random()
        if chance < 0.05:
            steps.append(dice.choice(policies))
        elif chance < 0.07:
            steps.append(frontend(dice))
        elif chance < 0.09:
            steps.append(Wait(dice.choice(node.WAITS)))
        elif chance < 0.10:
            steps.append(
                dice.choice((node.NewAddresses(), Forget("translations"), Forget("connections"), node.Settle()))
            )
        elif chance < 0.12:
            steps.append(Moved("c", dice.choice((UNDERLAY_2, UNDERLAY_6))))
        elif chance < 0.35:
            steps += node.again(dice, steps)
        else:
            steps.append(tunnelled.sent(dice.getrandbits(32), talks, ADDRESSES, NODES))
    return draw(st.sampled_from(("a", "c"))), steps


@settings(
    max_examples=EXAMPLES,
    phases=[Phase.explicit, Phase.generate],  # making an example smaller takes minutes, and a step says enough
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.data())
def test_the_tunnel_is_the_model(wire: Wire, data: st.DataObject) -> None:
    identity, steps = data.draw(stories(wire.is_judged))
    played = Played(wire, identity)
    for number, step in enumerate(steps):
        played.take(step, f"step {number}")


def test_a_packet_that_the_kernel_puts_off_is_seen_whenever_it_comes(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the harness has counted, and reads events."""
    read, network = wire.datapath._events_since, wire._network

    class Late:
        """Sends in a moment."""

        def send(self, frame: bytes) -> None:
            threading.Timer(0.005, network.send, [frame]).start()

    def read_slowly(written: List[int]) -> List[Dict[str, Any]]:
        time.sleep(0.05)
        return read(written)

    monkeypatch.setattr(wire, "_network", Late())  # put back before `wire` is closed
    monkeypatch.setattr(wire.datapath, "_events_since", read_slowly)
    frame = f.ether(f.udp("10.2.0.1", "10.1.0.1", (40000, 80)))
    assert wire.send(Arrived("192.0.2.66", 70003, frame)).counters == {"tunnel_unknown_node": 1}

"""The programs at sockets do with one operation after the other what the model says: whom a socket reaches, which error
it gets, what its process is told, what is counted. The sockets are real, those of a process in a cgroup of its own.

`make fuzz` does it for longer: BPFLEET_FUZZ_EXAMPLES sequences.
"""

from __future__ import annotations

import ipaddress
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple, Union

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bpfleet.compile.compiler import Compiler
from bpfleet.loader import cgroup, syscall
from bpfleet.model.document import Document, DocumentSet
from tests import fleet
from tests.contract.sandbox import new_cgroup, remove_cgroup
from tests.packet.kernel import Datapath, Result, detach
from tests.packet.test_reference import rows
from tests.reference.sockets import NOT_CONNECTED, UNREACHABLE, Expected, Socket, Sockets, Target, frontends_of

pytestmark = pytest.mark.root

STEPS = 40
EXAMPLES = int(os.environ.get("BPFLEET_FUZZ_EXAMPLES", "40"))
WORKER = Path(__file__).with_name("sockets_worker.py")
ENDPOINTS = (("a-1", 1, 1, "a"), ("a-2", 2, 1, "a"), ("b-1", 1, 2, "b"))
OUTSIDE = ("198.51.100.7", "2001:db8:ffff::7")
PORTS = (80, 7100)
CLOSED = 9
PLACES = [
    *(address for one in ENDPOINTS for address in fleet.endpoint(*one).spec["addresses"]),
    *OUTSIDE,
]  # fmt: skip
FRONTENDS = {4: ("10.96.0.1", "10.96.0.2"), 6: ("fd96::1", "fd96::2")}


class Kind(NamedTuple):
    """A socket's protocol and family, and of which family its targets are; whether it is ever connected."""

    protocol: str
    v6: bool
    families: Tuple[int, ...]
    is_connected: bool = True


KINDS = {
    "tcp4": Kind("tcp", False, (4,)),
    "tcp6": Kind("tcp", True, (6,)),
    "tcp6 mapped": Kind("tcp", True, (4,)),
    "udp4": Kind("udp", False, (4,)),
    "udp6": Kind("udp", True, (6,)),
    "udp6 mapped": Kind("udp", True, (4,)),
    "udp6 both": Kind("udp", True, (4, 6), False),
}
VERBS = {"tcp": ("connect", "connect", "fastopen"), "udp": ("connect", "send", "send_to", "send_to", "send_to")}


class Step(NamedTuple):
    """verb: connect, fastopen, send (to whom it is connected), send_to, peer, renew."""

    verb: str
    socket: str
    target: Target


def targets(family: int) -> List[Target]:
    """Frontends, more often as they are what matters, and places themselves."""
    addresses = (*FRONTENDS[family] * 5, *(one for one in PLACES if (":" in one) == (family == 6)))
    return [(ipaddress.ip_address(one), port) for one in addresses for port in PORTS]


def world(services: List[Document]) -> List[Document]:
    """Two nodes and their endpoints."""
    return [
        fleet.cluster(["h1", "h2"]),
        fleet.node(1),
        fleet.node(2),
        *(fleet.identity(name) for name in ("a", "b", "nobody")),
        *(fleet.endpoint(*one) for one in ENDPOINTS),
        *services,
    ]


@st.composite
def worlds(draw: st.DrawFn) -> List[Document]:
    """A service at the first frontend address of each family, another at the second, mostly; with some backends."""
    services = []
    for index, name in enumerate(("one", "two")):
        if not draw(st.integers(0, 7)):
            continue
        frontends = [
            {"address": family[index], "port": port, "protocol": protocol}
            for family in FRONTENDS.values()
            for port in PORTS
            for protocol in ("tcp", "udp")
        ]
        backends: List[Dict[str, Any]] = []
        for backend in draw(st.sets(st.sampled_from(("a", "b", "nobody", "outside")), max_size=3)):
            port = draw(st.sampled_from(({}, {"port": 80}, {"port": 7100})))
            if backend == "outside":
                backends += [{"address": address, **port} for address in OUTSIDE]
            else:
                backends.append({"labels": {"app": backend}, **port})
        services.append(fleet.document("service", name, frontends=frontends, backends=backends))
    return world(services)


def operations(dice: random.Random) -> List[Union[int, Step]]:
    """Of few sockets with few targets, so that they come back to them; a number declares another world."""
    every: List[Step] = []
    for name in dice.sample(sorted(KINDS), 2):
        kind = KINDS[name]
        choices = [one for family in kind.families for one in targets(family)]
        verbs = VERBS[kind.protocol] if kind.is_connected else ("send_to",)
        every += [Step(verb, name, target) for target in dice.sample(choices, 3) for verb in verbs]
        if kind.protocol == "tcp":
            every.append(Step("connect", name, (choices[-1][0], CLOSED)))
        every += [Step(verb, name, choices[0]) for verb in ("peer", "renew")]
    return [dice.choice(every) if dice.random() < 0.85 else dice.randrange(3) for _ in range(STEPS)]


class Process:
    """It has the sockets."""

    def __init__(self, group: Path) -> None:
        command = ["unshare", "--net", sys.executable, "-S", str(WORKER)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        (group / "cgroup.procs").write_text(str(self._process.pid))
        self.tell(addresses=PLACES, ports=PORTS)

    def tell(self, **what: Any) -> Dict[str, Any]:
        """What it answers."""
        process = self._process
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps(what) + "\n")
        process.stdin.flush()
        answer: Dict[str, Any] = json.loads(process.stdout.readline())
        return answer

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=20)


class Rig(NamedTuple):
    """The process, and the programs at its cgroup."""

    datapath: Datapath
    process: Process


@pytest.fixture
def rig(datapath: Datapath) -> Iterator[Rig]:
    """Only a cgroup of this test has the programs."""
    group = new_cgroup()
    assert group, cgroup.NO_CGROUP
    place = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
    links = []
    try:
        for hook, number in cgroup.ATTACH_TYPES.items():
            links.append(syscall.cgroup_attach(datapath.programs[f"socket_{hook}"], place, number))
        process = Process(group)
        try:
            yield Rig(datapath, process)
        finally:
            process.close()
    finally:
        for link in links:
            detach(link)
        os.close(place)
        remove_cgroup(group)


class Pair:
    """Sockets in the kernel, and the same in the model."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        listening = {((ipaddress.ip_address(one), port), protocol) for one in PLACES for port in PORTS
                     for protocol in ("tcp", "udp")}  # fmt: skip
        self.model = Sockets(frozenset(listening))
        self.sockets: Dict[str, Socket] = {}
        for name in KINDS:
            self.renew(name)

    def renew(self, name: str) -> None:
        """A new socket."""
        kind = KINDS[name]
        assert self.rig.process.tell(do="open", socket=name, protocol=kind.protocol, v6=kind.v6) == {}
        self.sockets[name] = Socket(kind.protocol)

    def declare(self, documents: List[Document]) -> None:
        """Services as the compiler makes them: lists first."""
        state = Compiler().compile(DocumentSet(documents), fleet.facts(1)).state
        maps = self.rig.datapath.maps
        for number, table in state.nested["backends"].items():
            self.rig.datapath.set_inner("backends", {"id": number}, rows(table))
        maps["services"].clear()
        for key, value in rows(state.tables["services"]):
            maps["services"].update(key, value)
        self.model.frontends = frontends_of(documents)

    def do(self, step: Step) -> None:
        """Take a step in both, and compare."""
        socket = self.sockets[step.socket]
        if step.verb == "renew":
            self.renew(step.socket)
        elif step.verb == "peer":
            self._peer(step.socket, socket)
        elif step.verb in ("connect", "fastopen"):
            self._connect(step, socket)
        elif step.verb == "send" and socket.peer:
            self._send(step.socket, socket)
        else:
            self._send_to(step, socket)

    def _connect(self, step: Step, socket: Socket) -> None:
        want = self.model.connect(socket, step.target)
        how = "datagram" if socket.protocol == "udp" else "connect" if socket.peer else step.verb
        with self.rig.datapath.watch() as seen:
            have = self.rig.process.tell(
                do="connect", socket=step.socket, target=self._named(step.socket, step.target), how=how
            )
        self._counted(seen[0], want, step.target)
        assert have.get("error", "") == want.error
        if want.error == UNREACHABLE and socket.peer:
            # Such a socket is between two peers: Linux keeps half of what the connect that failed was about.
            self.renew(step.socket)
        if want.error:
            return
        if how == "datagram":
            have = self.rig.process.tell(do="send", socket=step.socket, target=None)
        peer = self._target(have["peer"])
        assert peer in want.peers, step
        self.model.connected(socket, step.target, peer)
        if how == "datagram":
            self._answer(step.socket, socket, peer)
        self._peer(step.socket, socket)

    def _peer(self, name: str, socket: Socket) -> None:
        have = self.rig.process.tell(do="peer", socket=name)
        if not socket.peer:
            assert have == {"error": NOT_CONNECTED}
        else:
            assert have == {"seen": self._named(name, self.model.seen(socket, socket.peer))}

    def _send_to(self, step: Step, socket: Socket) -> None:
        want = self.model.send_to(socket, step.target)
        with self.rig.datapath.watch() as seen:
            have = self.rig.process.tell(do="send", socket=step.socket, target=self._named(step.socket, step.target))
        self._counted(seen[0], want, step.target)
        assert have.get("error", "") == want.error
        if not want.error:
            peer = self._target(have["peer"])
            assert peer in want.peers
            self.model.sent_to(socket, step.target, peer)
            self._answer(step.socket, socket, peer)

    def _send(self, name: str, socket: Socket) -> None:
        """To whom it is connected; no service has a part in it."""
        with self.rig.datapath.watch() as seen:
            have = self.rig.process.tell(do="send", socket=name, target=None)
        assert socket.peer and not seen[0].counters
        assert self._target(have["peer"]) == socket.peer
        self._answer(name, socket, socket.peer)

    def _answer(self, name: str, socket: Socket, peer: Target) -> None:
        """Whom the process takes the answer to be from."""
        is_due = self.model.is_heard(socket, peer)
        have = self.rig.process.tell(do="receive", socket=name, is_due=is_due)
        want = self._named(name, self.model.seen(socket, peer)) if is_due else None
        assert have == {"source": want}

    @staticmethod
    def _counted(result: Result, want: Expected, target: Target) -> None:
        """A refusal is counted and told of; nobody else would, as no packet is sent."""
        assert result.counters == ({want.counted: 1} if want.counted else {})
        told = [
            (event["hook"], event["reason"], event["destination"], event["destination_port"]) for event in result.events
        ]
        is_refused = want.counted == "service_no_backend"
        assert told == ([("socket", want.counted, str(target[0]), target[1])] if is_refused else [])

    @staticmethod
    def _named(name: str, target: Target) -> List[Any]:
        """As that socket's process has it."""
        mapped = KINDS[name].v6 and target[0].version == 4
        return [f"::ffff:{target[0]}" if mapped else str(target[0]), target[1]]

    @staticmethod
    def _target(named: List[Any]) -> Target:
        assert named, "it came nowhere, or to several"
        return ipaddress.ip_address(named[0]), named[1]


@settings(
    max_examples=EXAMPLES,
    phases=[Phase.explicit, Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.lists(worlds(), min_size=2, max_size=3), st.integers(0, 2**64 - 1))
def test_sockets_are_the_model(rig: Rig, declared: List[List[Document]], number: int) -> None:
    play(rig, declared, operations(random.Random(f"{number} {declared}")))


def play(rig: Rig, declared: List[List[Document]], steps: List[Union[int, Step]]) -> None:
    """Declare, and take the steps; a number declares another of the worlds."""
    pair = Pair(rig)
    pair.declare(declared[0])
    for number, step in enumerate(steps):
        if isinstance(step, int):
            pair.declare(declared[step % len(declared)])
        else:
            try:
                pair.do(step)
            except AssertionError as differs:
                raise AssertionError(f"step {number}, {step}, after {steps[:number]}: {differs}") from differs


def test_answers_come_from_where_the_latest_datagram_was_sent(rig: Rig) -> None:
    """Two frontends with the same backend, by turns; as a resolver asks two name servers."""
    frontends = [f"{address}:80/udp" for family in FRONTENDS.values() for address in family]
    service = fleet.service("shop", frontends, [{"labels": {"app": "b"}}])
    for name, family in (("udp4", 4), ("udp6", 6), ("udp6 mapped", 4)):
        first, second = ((ipaddress.ip_address(one), 80) for one in FRONTENDS[family])
        play(rig, [world([service])], [Step("send_to", name, one) for one in (first, second, first, first, second)])

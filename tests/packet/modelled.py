"""The world of the packet cases as a model of a node has it, and the cases played in that."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from tests.packet import world
from tests.packet.world import ADDRESSES, DEFAULT_DENY, IDENTITIES, Case, Forget, Frontend, Move, Rule, Send, Wait
from tests.reference.ends import HOST, WAITING, Ends
from tests.reference.judge import ALLOW, DENY, Flow, Verdict
from tests.reference.judge import DEFAULT_DENY as BY_DEFAULT
from tests.reference.node import Fate, Node
from tests.reference.reading import Address, Reading, Unreadable, read
from tests.reference.services import Services, Target

HELD = {
    "a": "a", "b": "b", "q": "q", "t": "t", "u": "unattached/u", "c": "tunnel/c", "d": "tunnel/d",
    "host": "host", "gateway": "host", "node2": "remote-node",
}  # fmt: skip
"""Where the names of the world are; what is not here is the world at large."""
FAILSAFE = frozenset({("tcp", 22, "ingress"), ("udp", 53, "egress"), ("tcp", 853, "egress")})
PEERS = {"host": 1, "remote-node": 6}
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1, "icmpv6": 58}


def places() -> Dict[Address, str]:
    """Of all addresses of the world."""
    found = {
        ipaddress.ip_address(address): HELD[name]
        for family in ADDRESSES.values()
        for name, address in family.items()
        if name in HELD
    }
    return {**found, ipaddress.ip_address(world.UNDERLAY_6): "remote-node"}


LATE = {4: "192.0.2.70", 6: "2001:db8::70"}
"""Addresses that the host was given after bpfleet was told of its others."""
TAKEN = {ipaddress.ip_address(address) for address in (*LATE.values(), "192.0.2.0", "192.0.2.255", "2001:db8::")}


def takes_in(source: Address, destination: Address) -> bool:
    """Whether the stack takes in what goes to an address that is nobody's.

    It forwards nothing of a link: RFC 4291 2.5.6.
    """
    is_of_link = source.is_link_local or destination.is_link_local
    return destination in TAKEN or (destination.version == 6 and is_of_link)


@dataclass
class Listed:
    """The policies of a case, judged rule by rule."""

    policies: Dict[str, world.Policy] = field(default_factory=dict)

    def judge(self, flow: Flow) -> Verdict:
        """The verdict on a flow: denies before allows, then the most exact port, then the lowest id."""
        policy = self.policies.get(flow.subject)
        if not policy or flow.direction not in policy.selected:
            return Verdict(ALLOW, 0)
        rules = sorted(
            (rule.action != "deny", not rule.port, not rule.protocol, rule.rule_id)
            for rule in policy.rules
            if _matches(rule, flow)
        )
        if not rules:
            return Verdict(BY_DEFAULT, DEFAULT_DENY[flow.direction])
        return Verdict(ALLOW if rules[0][0] else DENY, rules[0][3])

    def rules_with_ports(self, flow: Flow) -> List[Mapping[str, Any]]:
        """The rules of a flow's direction that name a port, in the notation of a declared rule."""
        policy = self.policies.get(flow.subject)
        if not policy or flow.direction not in policy.selected:
            return []
        return [{} for rule in policy.rules if rule.direction == flow.direction and rule.port]


def _matches(rule: Rule, flow: Flow) -> bool:
    kind, _, name = flow.peer.partition("/")
    peer = IDENTITIES[name] if kind == "identity" else PEERS.get(flow.peer, IDENTITIES["world"])
    return (
        rule.direction == flow.direction
        and rule.peer in (0, peer)
        and rule.protocol in (0, PROTOCOLS.get(flow.protocol))
        and rule.port in (0, flow.port)
    )


class Modelled:
    """A node in the model, to which steps of cases are taken. identities: see Ends."""

    def __init__(self, is_judged: bool, where: Mapping[Address, str], identities: Mapping[str, str]) -> None:
        self.listed = Listed()
        self.wanted: Optional[bytes] = None
        self.gone_to: Optional[Target] = None
        self.node = Node(
            Ends(dict(where), identities, self.listed),
            world.TUNNEL_PORT,
            {family: ipaddress.ip_address(one["gateway"]) for family, one in ADDRESSES.items()},
            taps=frozenset({"t"}),
            is_judged=is_judged,
            failsafe=FAILSAFE,
            takes_in=takes_in,
            services=Services(self._chosen),
        )

    def _chosen(self, packet: Reading, backends: Tuple[Target, ...]) -> Target:
        """Any that may be: the one that the step expects, if it is one of those."""
        if self.gone_to in backends:
            return self.gone_to
        left = readable(self.wanted)
        for backend in backends:
            # A later fragment says no port.
            if left and backend[0] == left.ends[1] and (left.part == "later" or backend[1] == left.ports[1]):
                return backend
        return backends[0]

    def send(
        self,
        program: str,
        at: str,
        frame: bytes,
        via: str,
        out: Optional[bytes],
        gone_to: Optional[Target] = None,
    ) -> Fate:
        """What becomes of a frame at that device; it came in by `via`. out: how it goes on, where there is a choice.
        gone_to: the backend, where that does not show it."""
        self.wanted, self.gone_to, node = out, gone_to, self.node
        if program == "from_endpoint":
            return node.sends(at, frame)
        if program == "to_endpoint":
            return node.receives(at, frame, via)
        if program == "from_underlay":
            return node.comes(at, frame)
        if program == "to_underlay":
            return node.leaves(at, frame, via)
        assert program == "to_tunnel", program
        return node.enters_tunnel(frame, via)

    def apply(self, change: world.Change) -> None:
        """What a change of maps means."""
        ends = self.node.ends
        if isinstance(change, world.Policy):
            self.listed.policies[change.name] = change
            ends.generation += 1
        elif isinstance(change, Frontend):
            key = ipaddress.ip_address(change.address), change.port, change.protocol
            self.node.services.frontends[key] = tuple(
                (ipaddress.ip_address(one), port) for one, port in change.backends
            )
        elif isinstance(change, Forget):
            {"translations": self.node.services.forget, "connections": ends.records.clear}[change.map]()
        elif isinstance(change, Wait):
            ends.now += change.ticks
        else:
            self._move(change)

    def _move(self, change: Move) -> None:
        ends, value = self.node.ends, change.value
        if change.map == "addresses":
            names = {number: name for name, number in world.DEVICES.items()}
            is_host = value["identity"] == IDENTITIES["host"]
            ends.places[ipaddress.ip_address(change.key["address"])] = HOST if is_host else names[value["ifindex"]]
        else:
            assert change.map == "node", change.map
            ends.addresses_revision = value["addresses_revision"]
            self.node.tunnel = bool(value["tunnel_ifindex"])


def readable(frame: Optional[bytes]) -> Optional[Reading]:
    """What a frame is read as, if it can be."""
    try:
        return read(frame) if frame else None
    except Unreadable:
        return None


def play(case: Case, is_judged: bool) -> None:
    """Take the steps of a case in the model, and compare what it says with what the case does."""
    model = Modelled(is_judged, places(), {"a": "a", "b": "b", "t": "t", "q": WAITING})
    for number, step in enumerate(case.steps, 1):
        if not isinstance(step, Send):
            model.apply(step)
            continue
        fate = model.send(step.program, step.at, step.frame, step.via, step.out)
        have = {"passes": fate.passes, "counters": fate.counters, "left": fate.left or readable(step.frame)}
        want = {"passes": step.action != "shot", "counters": dict(step.counters), "left": readable(step.out)}
        if step.out is None:
            have["left"] = want["left"]
        if step.events is not None:
            have["events"], want["events"] = _events(fate.events, step.events), list(step.events)
        assert have == want, f"step {number} of {case}"


def _events(heard: Sequence[Tuple[str, int, str]], expected: Sequence[Mapping[str, Any]]) -> List[Dict[str, Any]]:
    """What the model says of each event, and the rest as it is expected."""
    said = [dict(zip(("verdict", "rule_id", "direction"), event)) for event in heard]
    if len(said) != len(expected):
        return said
    found = []
    for event, want in zip(said, expected):
        if event["verdict"] == "drop":
            del event["direction"]
        found.append({name: event.get(name, value) for name, value in want.items()})
    return found

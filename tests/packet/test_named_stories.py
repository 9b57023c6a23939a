"""What entries written by hand cannot say (ranges, audit), packet after packet: the programs, the model, and what is
written here agree.

Each step is a frame between a and b on one node, or between b and the world, or a change of policies; of a frame the
reasons that it is counted under, and the verdicts of its events. The policies are those of b, as the compiler makes them.
"""

# ruff: noqa: E501 - a row of a table is read as one line
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Tuple, Union

import pytest

from tests import fleet
from tests.packet import frames as f
from tests.packet.kernel import Datapath
from tests.packet.test_node import Played
from tests.packet.test_reference import NUMBERS
from tests.packet.world import ADDRESSES, DEVICES
from tests.reference import fleets
from tests.reference.traffic import Sent

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("one_cpu")]

Policies = Mapping[str, Mapping[str, Any]]
PORTS, BACK = (40000, 80), (80, 40000)
OPEN = ("allow", "allow")
"""The sender's egress, which nothing closes, and the receiver's ingress."""


@dataclass(frozen=True)
class Frame:
    """A packet, the reasons it is counted under, and the verdicts of its events."""

    packet: bytes
    counters: Mapping[str, int]
    verdicts: Tuple[str, ...] = ()
    at: str = "a"
    program: str = "from_endpoint"
    via: str = ""


Step = Union[Policies, Frame]


def ingress(*rules: Mapping[str, Any], **more: Any) -> Policies:
    """One policy of b."""
    return {"p": {"selector": {"app": "b"}, "ingress": list(rules), **more}}


def passes(packet: bytes, *verdicts: str, at: str = "a", **more: int) -> Frame:
    return Frame(packet, {"to_endpoint": 1, **more}, verdicts, at)


def goes_out(packet: bytes, *verdicts: str) -> Frame:
    """Of b to the world."""
    return Frame(packet, {"to_stack": 1}, verdicts, "b")


def comes_in(packet: bytes, *verdicts: str, **reasons: int) -> Frame:
    """Of the world to b."""
    return Frame(packet, reasons or {"to_endpoint": 1}, verdicts, "b", "to_endpoint", "eth0")


def lost(packet: bytes, at: str = "a") -> Frame:
    """A fragment of which nobody knows the ports, where ports matter."""
    return Frame(packet, {"fragment": 1}, ("drop",), at)


def stories(family: int) -> Dict[str, List[Step]]:
    x = ADDRESSES[family]
    a, b = x["a"], x["b"]
    udp, first = f.udp(a, b, PORTS), f.udp(a, b, PORTS, more=True)
    later = f.ip(a, b, f.UDP, b"x" * 16, fragment=1480)
    everybody, someone = {}, {"peers": [{"labels": {"app": "a"}}]}
    range_ = {"ports": [{"protocol": "udp", "port": 100, "end_port": 200}]}
    message = {"ports": [{"protocol": "icmp", "type": 3}]}
    web = {"ports": [{"protocol": "udp", "port": 80}]}
    audit = {"mode": "audit"}
    error = f.icmp(b, a, *((1,) if family == 6 else (3,)), bytes(4) + udp[:64], code=1, more=True)
    after_error = f.ip(b, a, f.ICMP6 if family == 6 else f.ICMP, b"x" * 16, fragment=1480)
    world, router = x["world"], "203.0.113.1" if family == 4 else "2001:db8:9::1"
    icmp, kind = ("icmpv6", 139) if family == 6 else ("icmp", 13)
    rest = f.ip(a, b, f.ICMP6 if family == 6 else f.ICMP, b"x" * 16, fragment=1480)
    question, answer, reply = *((128, 129) if family == 6 else (8, 0)), f.echo(b, a, 7, reply=True)

    def typed(number: int) -> Policies:
        """b may be sent messages of that type."""
        return ingress({"ports": [{"protocol": icmp, "type": number}]})

    asked, answered = f.udp(b, world, PORTS), f.udp(world, b, BACK)
    report = f.too_big(router, b, asked)

    def outward(*peers: Mapping[str, Any]) -> Policies:
        """b may send to that port of those, and be sent nothing but answers."""
        return {"p": {"selector": {"app": "b"}, "ingress": [], "egress": [{"peers": [peer], **web} for peer in peers]}}

    there, elsewhere = (
        {"cidr": f"{world}/{128 if family == 6 else 32}"},
        {"cidr": f"{router}/{128 if family == 6 else 32}"},
    )
    return {
        "when policies change an answer is judged by the network that its question went to": [
            outward(there), goes_out(asked, "allow"), comes_in(answered),
            outward(there, elsewhere), comes_in(answered), goes_out(asked),
            outward(elsewhere), comes_in(answered, "default_deny", denied_by_default=1),
        ],
        "so is a router's error, whatever network the router is in": [
            outward(there), goes_out(asked, "allow"), comes_in(report),
            outward(there, {"cidr": "192.0.2.128/25"}), comes_in(report), goes_out(asked),
            outward(elsewhere), comes_in(report, "default_deny", denied_by_default=1),
        ],
        "when policies change an echo's answer is judged by the type of its question": [
            typed(question), passes(f.echo(a, b, 7), *OPEN), passes(reply, at="b"),
            {**typed(question), "q": {"selector": {"app": "b"}, "ingress": [web]}}, passes(reply, at="b"), passes(f.echo(a, b, 7)),
            typed(answer), Frame(reply, {"denied_by_default": 1}, ("default_deny",), "b"),
            Frame(f.echo(a, b, 7), {"denied_by_default": 1}, ("default_deny",)),
        ],
        "parts of a message have its type and code": [
            ingress({"ports": [{"protocol": icmp, "type": kind, "code": 1}]}),
            passes(f.icmp(a, b, kind, bytes(20), code=1, more=True), *OPEN), passes(rest, *OPEN),
            ingress({"ports": [{"protocol": icmp, "type": kind, "code": 0}]}),
            Frame(rest, {"denied_by_default": 1}, ("allow", "default_deny")),
        ],
        "a later fragment passes where nothing asks for ports": [ingress(everybody), passes(later)],
        "not where anybody is denied a range": [ingress(everybody, {"action": "deny", **range_}), lost(later)],
        "not where this peer is denied a range": [ingress(everybody, {"action": "deny", **range_, **someone}), lost(later)],
        "not where anybody is denied a port": [ingress(everybody, {"action": "deny", **web}), lost(later)],
        "not where anybody is denied a type": [ingress(everybody, {"action": "deny", **message}), lost(later)],
        "ports of a policy in audit take no fragment away": [
            {**ingress(everybody), "q": {"selector": {"app": "b"}, "ingress": [{"action": "deny", **web}], **audit}},
            passes(later),
        ],
        "nor does one that would close the direction, which is said": [
            ingress(web, **audit), passes(later, audited=1),
        ],
        "ports that are enforced do, whatever would be": [
            {**ingress(everybody, {"action": "deny", **range_}), "q": {"selector": {"app": "b"}, "ingress": [], **audit}},
            lost(later),
        ],
        "a connection in audit is told once, and once more when policies change": [
            ingress(**audit),
            passes(udp, "allow", "audit", audited=1),
            passes(udp),
            passes(f.udp(b, a, BACK), at="b"),
            ingress(web, **audit),
            passes(udp),
            ingress({"action": "deny"}, **audit),
            passes(udp, "audit", audited=1),
            passes(udp),
            ingress({"action": "deny"}),
            Frame(udp, {"denied_by_rule": 1}, ("deny",)),
        ],
        "a first fragment in audit lets the rest follow": [
            ingress(**audit), passes(first, "allow", "audit", audited=1), passes(later),
        ],
        "what is remembered of an error's first fragment lets none follow it": [
            {**ingress(everybody), "q": {"selector": {"app": "b"}, "egress": []}},
            passes(udp, *OPEN),
            passes(error, at="b"),
            lost(after_error, "b"),
        ],
        "the end of a range counts, and no port beside it": [
            ingress(range_),
            *(Frame(f.udp(a, b, (40000, port)), {"denied_by_default": 1}, ("allow", "default_deny")) for port in (99, 201)),
            *(passes(f.udp(a, b, (40001, port)), *OPEN) for port in (100, 200)),
        ],
    }  # fmt: skip


CASES = {f"v{family}: {name}": steps for family in (4, 6) for name, steps in stories(family).items()}


@pytest.mark.parametrize("steps", CASES.values(), ids=CASES)
@pytest.mark.parametrize("kind", ["datapath", "host_datapath"])
def test_story(request: pytest.FixtureRequest, kind: str, steps: List[Step]) -> None:
    """Where policies may select the node but none does, the same."""
    played = Played(request.getfixturevalue(kind), kind == "host_datapath", "a")
    for number, step in enumerate(steps, 1):
        played.stand_still()
        if not isinstance(step, Frame):
            policies = [fleet.document("policy", name, **spec) for name, spec in step.items()]
            played.change(fleets.world({}, NUMBERS) + policies)
            continue
        result = played.send(Sent(step.program, step.at, f.ether(step.packet), step.via), f"step {number}")
        verdicts = tuple(event["verdict"] for event in result.events)
        assert (result.counters, verdicts) == (dict(step.counters), step.verdicts), f"step {number}"


@pytest.mark.parametrize(
    ("rule", "missing"),
    [
        ({"action": "deny", "ports": [{"protocol": "udp", "port": 100, "end_port": 200}]}, "port_sets"),
        ({"action": "deny", "peers": [{"cidr": "0.0.0.0/0"}, {"cidr": "::/0"}]}, "prefix_sets"),
    ],
    ids=["ports", "CIDRs"],
)
@pytest.mark.parametrize("family", [4, 6])
def test_where_a_set_is_missing_nobody_is_let_in(
    datapath: Datapath, rule: Mapping[str, Any], missing: str, family: int
) -> None:
    """The order of changes rules it out; if it comes to that all the same, what the set denies is not known."""
    played = Played(datapath, False, "a")
    policy = fleet.document("policy", "p", selector={"app": "b"}, ingress=[{}, rule])
    played.change([*fleets.world({}, NUMBERS), policy])
    x = ADDRESSES[family]
    frame = f.ether(f.udp(x["world"], x["b"], PORTS))
    before = datapath.run("to_endpoint", frame, DEVICES["b"], DEVICES["eth0"])
    datapath.maps[missing].clear()
    played.datapath.next_generation()
    after = datapath.run("to_endpoint", frame, DEVICES["b"], DEVICES["eth0"])
    assert (before.action, after.action) == ("pass" if missing == "port_sets" else "shot", "shot")
    assert after.counters == {"denied_by_default": 1}


@pytest.mark.parametrize("family", [4, 6])
def test_what_the_host_sends_as_an_endpoint_takes_over_its_connection(host_datapath: Datapath, family: int) -> None:
    """Under an endpoint's address and to the device of another, while that endpoint's packets go by a copy."""
    played = Played(host_datapath, True, "a")
    audited = fleet.document("policy", "p", selector={"app": "a"}, egress=[{"action": "deny"}], mode="audit")
    played.change([*fleets.world({}, NUMBERS), audited, fleet.node_policy("node", {}, egress=[{}])])
    x = ADDRESSES[family]
    frame = f.ether(f.udp(x["a"], x["world"], PORTS))
    sent, by_host = Sent("from_endpoint", "a", frame, ""), Sent("to_endpoint", "t", frame, "")
    for number, step in enumerate((sent, sent, sent, by_host, sent, sent)):
        played.stand_still()
        played.send(step, f"step {number}")

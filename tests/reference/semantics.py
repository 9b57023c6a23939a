"""What docs/policy.md says, statement by statement, each with flows and what becomes of them, written down by hand.

The reference judge, the compiled maps, `explain` and the programs in the kernel are all held to it (test_each_statement_by_hand
in tests/property and tests/packet). An answer is written "allow out egress[0]": verdict, policy, rule.
"""

# ruff: noqa: E501 - a row of a table is read as one line
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, Mapping, Tuple

from tests.reference.judge import Flow

A = {"app": "a"}
OPEN = "allow"
Policies = Dict[str, Dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """A statement; policies by name, settings of the cluster, and what becomes of flows."""

    says: str
    policies: Policies
    flows: Tuple[Tuple[Flow, str], ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.says


def came(peer: str, port: Any = 80, protocol: str = "tcp", subject: str = "a") -> Flow:
    return Flow("ingress", subject, peer, protocol, port)


def sent(peer: str, port: Any = 80, protocol: str = "tcp", subject: str = "a") -> Flow:
    return Flow("egress", subject, peer, protocol, port)


def one(**spec: Any) -> Policies:
    return {"p": {"selector": A, **spec}}


B, C, HOST, OTHER, FAR, FAR6 = "identity/b", "identity/c", "host", "remote-node", "198.51.100.7", "2001:db8:ffff::7"
FROM_B = {"peers": [{"labels": {"app": "b"}}]}
DENY_B = {"action": "deny", **FROM_B}
P0, P1, CLOSED = "p ingress[0]", "p ingress[1]", "default_deny p default deny"
ANYBODY = (B, HOST, OTHER, FAR, FAR6)


def entity(name: str, *means: str) -> Row:
    flows = tuple((came(who), f"allow {P0}" if who in means else CLOSED) for who in ANYBODY)
    return Row(f"entity {name}", one(ingress=[{"peers": [{"entity": name}]}]), flows)


def ports(says: str, listed: Any, *flows: Tuple[Flow, str]) -> Row:
    return Row(says, one(ingress=[{} if listed is None else {"ports": listed}]), flows)


ROWS = (
    # Open and closed
    Row("open until a policy has rules there", {"p": {"selector": {"app": "b"}, "ingress": []}},
        ((came(B), OPEN), (sent(FAR), OPEN))),
    Row("closed by rules, in their direction alone", one(ingress=[FROM_B]),
        ((came(B), f"allow {P0}"), (came(FAR), CLOSED), (sent(FAR), OPEN))),
    Row("an empty list of rules selects and allows nothing", one(egress=[]),
        ((sent(B), CLOSED), (came(B), OPEN))),
    Row("the switch closes a direction without rules", one(default_deny={"ingress": True}),
        ((came(B), CLOSED), (sent(B), OPEN))),
    Row("the switch leaves a direction open in which there are rules", one(default_deny={"ingress": False}, ingress=[DENY_B]),
        ((came(B), f"deny {P0}"), (came(FAR), OPEN))),
    Row("closed if any enforced policy closes", {
        "p": {"selector": A, "default_deny": {"ingress": False}, "ingress": [FROM_B]}, "q": {"selector": A, "ingress": []}},
        ((came(B), f"allow {P0}"), (came(FAR), "default_deny q default deny"))),
    Row("a default deny names all that close", {"p": {"selector": A, "ingress": []}, "q": {"selector": {}, "ingress": []}},
        ((came(B), "default_deny p, q default deny"),)),
    Row("allows are a union", {"p": {"selector": A, "ingress": [FROM_B]},
                               "q": {"selector": {}, "ingress": [{"peers": [{"entity": "world"}]}]}},
        ((came(B), f"allow {P0}"), (came(FAR), "allow q ingress[0]"), (came(OTHER), "default_deny p, q default deny"))),
    Row("a deny beats every allow, however specific", one(ingress=[
        {"peers": [{"labels": {"app": "b"}}], "ports": [{"protocol": "tcp", "port": 80}]}, {"action": "deny", "peers": [{"labels": {}}]}]),
        ((came(B), f"deny {P1}"), (came(FAR), CLOSED))),
    Row("unselected: deny closes what no policy closes", {"q": {"selector": {"app": "b"}, "ingress": []}},
        ((came(B), "default_deny unselected: deny"), (sent(FAR), "default_deny unselected: deny")), {"unselected": "deny"}),
    Row("under unselected: deny, rules that do not close count", one(default_deny={"ingress": False}, ingress=[FROM_B]),
        ((came(B), f"allow {P0}"), (came(FAR), "default_deny unselected: deny")), {"unselected": "deny"}),
    Row("unselected: deny is not about nodes", {}, ((came(FAR, subject="host"), OPEN), (sent(FAR, subject="host"), OPEN)),
        {"unselected": "deny"}),
    # Peers
    Row("no peers given: any peer, nodes and the world included", one(ingress=[{}]),
        tuple((came(who), f"allow {P0}") for who in ANYBODY)),
    Row("an empty list of peers: nobody", one(ingress=[{"peers": []}]), tuple((came(who), CLOSED) for who in ANYBODY)),
    Row("labels mean endpoints only, {} all of them", one(ingress=[{"peers": [{"labels": {}}]}]),
        tuple((came(who), f"allow {P0}" if who == B else CLOSED) for who in ANYBODY)),
    Row("In", one(egress=[{"peers": [{"labels": {}, "expressions": [{"key": "app", "operator": "In", "values": ["b", "x"]}]}]}]),
        ((sent(B), "allow p egress[0]"), (sent(C), CLOSED))),
    Row("NotIn, also where there is no such label", one(egress=[
        {"peers": [{"labels": {}, "expressions": [{"key": "tier", "operator": "NotIn", "values": ["back"]}]}]}]),
        ((sent(B), CLOSED), (sent(C), "allow p egress[0]"), (sent(FAR), CLOSED))),
    Row("Exists", one(egress=[{"peers": [{"labels": {}, "expressions": [{"key": "tier", "operator": "Exists"}]}]}]),
        ((sent(B), "allow p egress[0]"), (sent(C), CLOSED))),
    Row("DoesNotExist", one(egress=[{"peers": [{"labels": {}, "expressions": [{"key": "tier", "operator": "DoesNotExist"}]}]}]),
        ((sent(B), CLOSED), (sent(C), "allow p egress[0]"))),
    Row("a selector's expressions select", {
        "p": {"selector": {}, "expressions": [{"key": "app", "operator": "NotIn", "values": ["a"]}], "ingress": []},
        "q": {"selector": {"app": "a"}, "expressions": [{"key": "tier", "operator": "Exists"}], "egress": []}},
        ((came(B), OPEN), (sent(B), "default_deny q default deny"))),
    entity("host", HOST),
    entity("remote-node", OTHER),
    entity("cluster", B, HOST, OTHER),
    entity("world", FAR, FAR6),
    entity("all", *ANYBODY),
    entity("none"),
    Row("CIDR means addresses without identity: never endpoints or nodes", one(egress=[{"peers": [{"cidr": "0.0.0.0/0"}]}]),
        ((sent(FAR), "allow p egress[0]"), (sent(FAR6), CLOSED), (sent(B), CLOSED), (sent(C), CLOSED), (sent(OTHER), CLOSED))),
    Row("except narrows its own peer only", one(egress=[{"peers": [
        {"cidr": "198.51.100.0/24", "except": ["198.51.100.0/28"]}, {"cidr": "198.51.100.8/32"}]}]),
        ((sent(FAR), CLOSED), (sent("198.51.100.8"), "allow p egress[0]"), (sent("198.51.100.200"), "allow p egress[0]"))),
    Row("an IPv6 network means no IPv4 address, though it holds ::ffff:0:0/96", one(egress=[{"peers": [{"cidr": "::/0"}]}]),
        ((sent(FAR), CLOSED), (sent(FAR6), "allow p egress[0]"))),
    Row("world means addresses that CIDRs of other rules name, too", one(egress=[
        {"peers": [{"entity": "world"}]}, {"action": "deny", "peers": [{"cidr": "198.51.100.0/24"}], "ports": [{"port": 81}]}]),
        ((sent(FAR), "allow p egress[0]"), (sent(FAR, 81), "deny p egress[1]"), (sent("8.8.8.8", 81), "allow p egress[0]"))),
    Row("every exception counts, also one inside another", one(egress=[{"peers": [
        {"cidr": "198.51.0.0/16", "except": ["198.51.7.0/24", "198.51.100.0/28", "198.51.100.0/24", "198.51.200.0/24"]}]}]),
        (*((sent(f"198.51.{rest}"), CLOSED) for rest in ("7.7", "100.7", "100.200", "200.0", "200.255")),
         *((sent(f"198.51.{rest}"), "allow p egress[0]") for rest in ("6.255", "8.0", "99.255", "101.0", "199.255", "201.0")))),
    Row("except of an allow is no deny", one(egress=[
        {"peers": [{"cidr": "198.51.100.0/24", "except": ["198.51.100.0/28"]}]}, {"peers": [{"cidr": "198.51.0.0/16"}]}]),
        ((sent(FAR), "allow p egress[1]"),)),
    Row("except of a deny is no allow", one(egress=[
        {"action": "deny", "peers": [{"cidr": "198.51.100.0/24", "except": ["198.51.100.0/28"]}]}]),
        ((sent(FAR), CLOSED), (sent("198.51.100.200"), "deny p egress[0]"))),
    Row("every covering prefix counts, not the longest", one(egress=[
        {"peers": [{"cidr": "198.51.100.0/24"}]}, {"action": "deny", "peers": [{"cidr": "198.51.0.0/16"}]}]),
        ((sent(FAR), "deny p egress[1]"),)),
    Row("a group is its networks", one(egress=[{"peers": [{"cidr_group": "office"}]}]),
        ((sent(FAR), "allow p egress[0]"), (sent(FAR6), "allow p egress[0]"), (sent("8.8.8.8"), CLOSED), (sent(OTHER), CLOSED))),
    Row("an empty group: no address", one(egress=[{"peers": [{"cidr_group": "empty"}]}]), ((sent(FAR), CLOSED),)),
    Row("a group without document: an allow means nobody, a deny the world", one(
        egress=[{"peers": [{"cidr_group": "missing"}]}], ingress=[{}, {"action": "deny", "peers": [{"cidr_group": "missing"}]}]),
        ((sent(FAR), CLOSED), (came(FAR), f"deny {P1}"), (came(B), f"allow {P0}"))),
    Row("a node's own processes only where policy lets host", one(ingress=[{"peers": [{"entity": "remote-node"}]}]),
        ((came(HOST), CLOSED), (came(OTHER), f"allow {P0}"))),
    Row("allow_local_host lets them in, and nobody else", one(ingress=[]),
        ((came(HOST), "allow allow_local_host"), (came(OTHER), CLOSED), (sent(HOST), OPEN)), {"allow_local_host": True}),
    Row("it says nothing where nothing closes", one(default_deny={"ingress": False}, ingress=[DENY_B]),
        ((came(HOST), OPEN), (came(FAR), OPEN), (came(B), f"deny {P0}")), {"allow_local_host": True}),
    Row("but for what a rule denies", one(ingress=[{"action": "deny", "peers": [{"entity": "host"}]}]),
        ((came(HOST), f"deny {P0}"),), {"allow_local_host": True}),
    # Ports
    ports("no ports given: every protocol", None, *(
        (came(B, *what), f"allow {P0}") for what in ((80, "tcp"), (80, "sctp"), ((8, 0), "icmp"), ((128, 0), "icmpv6")))),
    ports("an empty list of ports: nothing", [], (came(B), CLOSED), (came(B, (8, 0), "icmp"), CLOSED)),
    ports("protocol omitted, with a port: TCP, UDP and SCTP, no ICMP", [{"port": 80}],
          *((came(B, 80, name), f"allow {P0}") for name in ("tcp", "udp", "sctp")), (came(B, (8, 0), "icmp"), CLOSED),
          (came(B, 81), CLOSED)),
    ports("any with a port is the same", [{"protocol": "any", "port": 80}],
          *((came(B, 80, name), f"allow {P0}") for name in ("tcp", "udp", "sctp")), (came(B, (8, 0), "icmp"), CLOSED)),
    ports("any without a port: everything", [{"protocol": "any"}], (came(B, (8, 0), "icmp"), f"allow {P0}"),
          (came(B, 443, "sctp"), f"allow {P0}")),
    ports("a protocol: all its ports", [{"protocol": "sctp"}], (came(B, 1, "sctp"), f"allow {P0}"), (came(B, 1, "udp"), CLOSED)),
    ports("a range, both ends included", [{"protocol": "udp", "port": 80, "end_port": 82}],
          *((came(B, port, "udp"), f"allow {P0}") for port in (80, 81, 82)), (came(B, 79, "udp"), CLOSED),
          (came(B, 443, "udp"), CLOSED), (came(B, 81), CLOSED)),
    ports("the range of all ports", [{"protocol": "tcp", "port": 1, "end_port": 65535}], (came(B, 1), f"allow {P0}"),
          (came(B, 65535), f"allow {P0}"), (came(B, 1, "udp"), CLOSED)),
    ports("ICMP: every type", [{"protocol": "icmp"}], (came(B, (8, 0), "icmp"), f"allow {P0}"),
          (came(B, (5, 1), "icmp"), f"allow {P0}"), (came(B, (128, 0), "icmpv6"), CLOSED)),
    ports("a type: every code", [{"protocol": "icmp", "type": 5}], (came(B, (5, 1), "icmp"), f"allow {P0}"),
          (came(B, (8, 0), "icmp"), CLOSED)),
    ports("the last code is one of its type, the next type's first is none", [{"protocol": "icmp", "type": 5}],
          (came(B, (5, 255), "icmp"), f"allow {P0}"), (came(B, (5, 254), "icmp"), f"allow {P0}"), (came(B, (4, 255), "icmp"), CLOSED),
          (came(B, (6, 0), "icmp"), CLOSED)),
    ports("the last code of the last type", [{"protocol": "icmpv6", "type": 255, "code": 255}, {"protocol": "icmp", "type": 255}],
          (came(B, (255, 255), "icmpv6"), f"allow {P0}"), (came(B, (255, 254), "icmpv6"), CLOSED),
          (came(B, (255, 255), "icmp"), f"allow {P0}"), (came(B, (255, 0), "icmp"), f"allow {P0}"), (came(B, (254, 255), "icmp"), CLOSED)),
    ports("a code beside its type", [{"protocol": "icmp", "type": 5, "code": 1}], (came(B, (5, 1), "icmp"), f"allow {P0}"),
          (came(B, (5, 0), "icmp"), CLOSED)),
    # Audit
    Row("audit lets pass what it would drop", one(mode="audit", ingress=[DENY_B]),
        ((came(B), f"audit {P0}"), (came(FAR), "audit p default deny"))),
    Row("what is enforced is as though audit policies were not there", {
        "p": {"selector": A, "mode": "audit", "ingress": [{}]}, "q": {"selector": A, "ingress": [FROM_B]}},
        ((came(B), "allow q ingress[0]"), (came(FAR), "default_deny q default deny"))),
    Row("audit and enforced: the second answer names", {
        "p": {"selector": A, "mode": "audit", "ingress": [DENY_B]}, "q": {"selector": A, "ingress": [{}]}},
        ((came(B), f"audit {P0}"), (came(FAR), "allow q ingress[0]"))),
    Row("audit of the cluster is that of all policies and of unselected", one(ingress=[FROM_B]),
        ((came(B), OPEN), (came(FAR), "audit p default deny"), (sent(FAR), "audit unselected: deny")),
        {"mode": "audit", "unselected": "deny"}),
    # Which rule is named
    Row("denies before allows, then port, range, protocol, any", one(ingress=[
        {}, {"ports": [{"protocol": "tcp"}]}, {"ports": [{"protocol": "tcp", "port": 79, "end_port": 443}]},
        {"ports": [{"protocol": "tcp", "port": 80}]}, {"action": "deny", "ports": [{"protocol": "tcp", "port": 443}]},
        {"action": "deny", "ports": [{"protocol": "tcp", "port": 440, "end_port": 450}]}]),
        ((came(B, 80), "allow p ingress[3]"), (came(B, 81), "allow p ingress[2]"), (came(B, 8080), "allow p ingress[1]"),
         (came(B, 80, "udp"), f"allow {P0}"), (came(B, 443), "deny p ingress[4]"))),
    Row("the peer plays no part", one(ingress=[
        {"ports": [{"protocol": "tcp", "port": 80}]}, {"peers": [{"labels": {"app": "b"}}], "ports": [{"protocol": "tcp"}]}]),
        ((came(B), f"allow {P0}"), (came(B, 81), f"allow {P1}"))),
    Row("a type of ICMP counts as a range, with or without its code", one(ingress=[
        {"ports": [{"protocol": "icmp"}]}, {"ports": [{"protocol": "icmp", "type": 8}]}, {"ports": [{"protocol": "any"}]},
        {"action": "deny", "ports": [{"protocol": "icmp", "type": 5, "code": 1}]}, {"action": "deny", "ports": [{"protocol": "icmp", "type": 13}]}]),
        ((came(B, (8, 0), "icmp"), f"allow {P1}"), (came(B, (3, 1), "icmp"), f"allow {P0}"), (came(B, 80), "allow p ingress[2]"),
         (came(B, (5, 1), "icmp"), "deny p ingress[3]"), (came(B, (5, 0), "icmp"), f"allow {P0}"),
         (came(B, (13, 0), "icmp"), "deny p ingress[4]"))),
    Row("a port of any protocol is exact, and so is a range of one", one(ingress=[
        {"ports": [{"protocol": "tcp", "port": 79, "end_port": 81}]}, {"ports": [{"port": 80}]},
        {"ports": [{"protocol": "udp", "port": 81, "end_port": 81}, {"protocol": "udp", "port": 82}]},
        {"ports": [{"protocol": "udp", "port": 80, "end_port": 443}]}]),
        ((came(B), f"allow {P1}"), (came(B, 81), f"allow {P0}"), (came(B, 81, "udp"), "allow p ingress[2]"),
         (came(B, 443, "udp"), "allow p ingress[3]"))),
    # printf '%s\0%s\0%s' p ingress '{"action":"allow"}' | sha256sum: b5819450; those of the others c43458f7, a1ee465a, feeb1159,
    # 5020064c. An id is the first four bytes.
    Row("of rules alike the lowest id, whoever the peer is", one(ingress=[{}, FROM_B, {"peers": [{"labels": {}}]}]),
        ((came(FAR), f"allow {P0}"), (came(B), "allow p ingress[2]"), (came(OTHER), f"allow {P0}"))),
    Row("of denies alike the lowest id", one(ingress=[
        {"action": "deny", "peers": [{"entity": "host"}]}, {"action": "deny", "peers": [{"entity": "cluster"}]}, {}]),
        ((came(HOST), f"deny {P1}"), (came(B), f"deny {P1}"), (came(FAR), "allow p ingress[2]"))),
    # Nodes
    Row("a node selector is about the node, not its endpoints", {"p": {"node_selector": {"rack": "a"}, "ingress": [FROM_B]}},
        ((came(B, subject="host"), f"allow {P0}"), (came(FAR, subject="host"), CLOSED), (came(FAR), OPEN),
         (sent(FAR, subject="host"), OPEN))),
    Row("another node's policies are not this one's", {"p": {"node_selector": {"rack": "b"}, "ingress": [], "egress": []}},
        ((came(FAR, subject="host"), OPEN), (sent(FAR, subject="host"), OPEN))),
    Row("a selector of endpoints is not about nodes", {"p": {"selector": {}, "ingress": [], "egress": []}},
        ((came(FAR, subject="host"), OPEN), (sent(OTHER, subject="host"), OPEN))),
    Row("to a node, world is what is neither endpoint nor node", {"p": {"node_selector": {}, "egress": [{"peers": [{"entity": "world"}]}]}},
        ((sent(FAR, subject="host"), "allow p egress[0]"), (sent(B, subject="host"), CLOSED), (sent(OTHER, subject="host"), CLOSED))),
    Row("audit of the cluster is that of its nodes' policies as well", {"p": {"node_selector": {}, "ingress": [FROM_B]}},
        ((came(B, subject="host"), OPEN), (came(FAR, subject="host"), "audit p default deny")), {"mode": "audit"}),
    Row("failsafe: TCP port 22 inward, by default", {"p": {"node_selector": {}, "ingress": []}},
        ((came(FAR, 22, subject="host"), OPEN), (came(FAR, 22, "udp", "host"), CLOSED))),
    Row("failsafe ports that are declared replace that", {"p": {"node_selector": {}, "ingress": [], "egress": []}},
        ((came(FAR, 22, subject="host"), CLOSED), (came(FAR, 80, subject="host"), OPEN), (sent(FAR, 8080, subject="host"), OPEN)),
        {"failsafe_ports": [{"protocol": "tcp", "port": 80, "direction": "ingress"},
                            {"protocol": "tcp", "port": 8080, "direction": "egress"}]}),
)  # fmt: skip
"""Both ends must agree, replies, related errors and traffic to oneself are about more than one judgement: they are cases
of tests/packet/cases_endpoint.py and of tests/e2e/test_traffic_policy.py."""

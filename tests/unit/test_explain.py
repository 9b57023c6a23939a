"""What `explain` says where not policy decides, or not a policy of the address that was asked about."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Callable, Dict, Iterable, List, Mapping, Tuple

import pytest

from bpfleet.cli.explain import decided, render
from bpfleet.compile import entries
from bpfleet.compile.compiler import Compiler
from bpfleet.compile.lookup import Answer, Maps, Question, judge
from bpfleet.errors import BpfleetError, InvalidInput, Unreachable
from bpfleet.model.document import Document, DocumentSet
from bpfleet.observe.explain import explain
from bpfleet.transport.target import Target
from tests import fleet

WORLD_ONLY = fleet.policy("web", {"app": "web"}, egress=[{"peers": [{"entity": "world"}]}])
CLOSED = fleet.node_policy("closed", {}, ingress=[], egress=[])
HELD = {"h1": ("fd00:bf:77::1", "172.17.0.1"), "h2": ("fd00:bf:77::2", "172.17.0.1")}
SHARED = dict.fromkeys(("h1", "h2"), ("192.168.77.255", "fd00:bf:77::"))


def documents(*more: Document, **cluster: Any) -> DocumentSet:
    base = fleet.document("cluster", "fleet", id=1, members=["h1", "h2"], **cluster)
    return DocumentSet([base, *(one for one in fleet.quickstart() if one.kind not in ("cluster", "policy")), *more])


def said(declared: DocumentSet, source: str, destination: str, port: Any, **known: Any) -> Dict[str, Any]:
    """port: 80/tcp, or type/icmp."""
    number, _, protocol = port.partition("/")
    if protocol.startswith("icmp"):
        return explain(declared, source, destination, protocol, None, (int(number), None), **known)
    return explain(declared, source, destination, protocol, int(number), **known)


def ways(answer: Dict[str, Any]) -> List[Tuple[str, str, str, str]]:
    return [
        (entry["direction"], entry["node"], entry["verdict"], entry.get("reason") or entry.get("policy", ""))
        for entry in answer["judged"]
    ]


def test_rules_have_the_ids_of_the_node_also_where_two_would_have_one() -> None:
    """The hashes of both default denies are 0x46399ef9: where both are in force, the second gets another number."""
    first, second = (
        fleet.policy("p42665", {"app": "web"}, ingress=[]),
        fleet.policy("p63428", {"app": "api"}, ingress=[]),
    )
    declared = documents(first, second)
    for node, destination in ((1, "api-1"), (1, "web-1"), (2, "api-2")):
        rules = Compiler().compile(declared, fleet.facts(node)).rules
        (judged,) = (
            one for one in said(declared, "db-1", destination, "80/tcp")["judged"] if one["direction"] == "ingress"
        )
        assert rules[judged["rule_id"]].policy == judged["policy"]


OUT, IN = "egress", "ingress"
DENIED = (OUT, "h1", "denied", "web")
PASSED = (OUT, "h1", "allowed", "web")
OPEN = (OUT, "h1", "allowed", "")


@pytest.mark.parametrize(
    ("destination", "port", "judged"),
    [
        # The gateway, and whatever else the own node has, is that node.
        ("169.254.1.1", "7001/udp", [DENIED, (IN, "h1", "allowed", "")]),
        ("fe80::1", "7001/udp", [DENIED, (IN, "h1", "allowed", "")]),
        ("fe80::77", "7001/udp", [DENIED, (IN, "h1", "allowed", "")]),
        ("fd00:bf:77::1", "7001/udp", [DENIED, (IN, "h1", "allowed", "")]),
        ("172.17.0.1", "7001/udp", [DENIED, (IN, "h1", "allowed", "")]),
        ("192.168.77.255", "7001/udp", [DENIED, (IN, "h1", "allowed", "")]),
        ("fd00:bf:77::", "7001/udp", [DENIED, (IN, "h1", "allowed", "")]),
        # Of another node only the declared address is that node.
        ("fd00:bf:77::2", "7001/udp", [PASSED, (IN, "h2", "dropped", "underlay_workload")]),
        ("192.168.77.2", "7001/udp", [DENIED, (IN, "h2", "allowed", "")]),
        # An address of another node's workloads that none has; of the own node's it is the world's.
        ("10.77.2.99", "7001/udp", [PASSED, (OUT, "h1", "dropped", "not_host_source")]),
        ("10.77.1.99", "7001/udp", [PASSED]),
        ("198.51.100.1", "7001/udp", [PASSED]),
        ("224.0.0.1", "7001/udp", [(OUT, "h1", "dropped", "multicast")]),
        ("ff02::1", "7001/udp", [(OUT, "h1", "dropped", "multicast")]),
        ("255.255.255.255", "7001/udp", [(OUT, "h1", "dropped", "multicast")]),
        ("255.255.255.255", "67/udp", [(OUT, "h1", "allowed", "")]),
        ("ff02::1", "135/icmpv6", [(OUT, "h1", "allowed", "")]),
        ("ff02::1", "134/icmpv6", [(OUT, "h1", "dropped", "multicast")]),
        ("api-1", "0/icmp", [(OUT, "h1", "dropped", "no_connection")]),
        ("api-2", "129/icmpv6", [(OUT, "h1", "dropped", "no_connection")]),
        ("h2", "8472/udp", [(OUT, "h1", "dropped", "own_tunnel")]),
        ("host", "8472/udp", [(OUT, "h1", "dropped", "own_tunnel")]),
        ("world", "8472/udp", [(OUT, "h1", "dropped", "own_tunnel")]),
    ],
)
def test_what_an_endpoint_sends(destination: str, port: str, judged: Any) -> None:
    assert ways(said(documents(WORLD_ONLY), "web-1", destination, port, held=HELD, shared=SHARED)) == judged


@pytest.mark.parametrize(
    ("source", "destination", "port", "judged"),
    [
        ("h1", "h2", "8472/udp", [OPEN, (IN, "h2", "allowed", "")]),
        ("h1", "remote-node", "8472/udp", [OPEN]),
        ("h1", "world", "8472/udp", [(OUT, "h1", "denied", "closed")]),
        ("world", "h1", "8472/udp", [(IN, "h1", "dropped", "underlay_tunnel")]),
        ("world", "web-1", "8472/udp", [(IN, "h1", "dropped", "underlay_tunnel")]),
        ("remote-node", "h1", "8472/udp", [(IN, "h1", "allowed", "")]),
        ("world", "h1", "135/icmpv6", [(IN, "h1", "allowed", "")]),
        ("h1", "ff02::16", "143/icmpv6", [OPEN]),
        ("h1", "world", "67/udp", [OPEN]),
        ("world", "h1", "68/udp", [(IN, "h1", "allowed", "")]),
        ("world", "h1", "67/udp", [(IN, "h1", "denied", "closed")]),
        ("h1", "world", "547/udp", [(OUT, "h1", "denied", "closed")]),  # h1 is known by an IPv4 address
        ("h1", "web-1", "68/udp", [OPEN, (IN, "h1", "allowed", "")]),
        ("world", "h1", "22/tcp", [(IN, "h1", "allowed", "")]),
        ("world", "h1", "0/icmp", [(IN, "h1", "dropped", "no_connection")]),
        ("h1", "10.77.2.99", "80/tcp", [(OUT, "h1", "dropped", "unknown_destination")]),
        ("h1", "169.254.1.1", "80/tcp", [(OUT, "h1", "denied", "closed")]),  # a neighbour's
        ("h1", "192.168.77.255", "80/tcp", [(OUT, "h1", "denied", "closed")]),
        ("203.0.113.9", "h1", "22/tcp", [(IN, "h1", "dropped", "blocked")]),
        ("203.0.113.9", "web-1", "80/tcp", [(IN, "h1", "dropped", "blocked")]),
    ],
)
def test_what_hosts_and_the_world_send(source: str, destination: str, port: str, judged: Any) -> None:
    held = documents(CLOSED, blocked_cidrs=["203.0.113.0/24"])
    assert ways(said(held, source, destination, port, held=HELD, shared=SHARED)) == judged


@pytest.mark.parametrize(("source", "destination"), [("h1", "fd77:0:0:2::2"), ("172.17.0.1", "db-1")])
def test_a_node_is_believed_beyond_the_tunnel_by_its_declared_address_only(source: str, destination: str) -> None:
    held = {"h1": HELD["h1"]}
    judged = ways(said(documents(), source, destination, "80/tcp", held=held))
    assert judged == [OPEN, (IN, "h2", "dropped", "tunnel_forged_source")]
    assert said(documents(), "h1", "db-1", "80/tcp", held=held)["verdict"] == "allowed"


OF_ONE_FAMILY = [
    fleet.document("endpoint", name, node="h2", identity="api", addresses=[address], attach={"netns": name})
    for name, address in (("old", "10.77.2.7"), ("new", "fd77:0:0:2::7"))
]
V6_SERVICE = fleet.service("six", ["[fd00:96::1]:80"], [{"labels": {"app": "api"}}])


@pytest.mark.parametrize(
    ("source", "destination", "port", "field", "says"),
    [
        ("web-1", "::ffff:10.77.2.1", "80/tcp", "destination", "is the IPv4 address 10.77.2.1 written as IPv6"),
        ("::ffff:10.77.2.1", "web-1", "80/tcp", "source", "is the IPv4 address 10.77.2.1 written as IPv6"),
        ("web-1", "::FFFF:a4d:201", "8/icmp", "destination", "is the IPv4 address 10.77.2.1 written as IPv6"),
        ("web-1", "fe80::1%eth0", "80/tcp", "destination", "has a zone"),
        ("web-1", "127.0.0.1", "80/tcp", "destination", "127.0.0.1 is a loopback address"),
        ("h1", "::1", "80/tcp", "destination", "::1 is a loopback address"),
        ("web-1", "0.0.0.0", "80/tcp", "destination", "0.0.0.0 is nobody's address"),
        ("::", "web-1", "80/tcp", "source", ":: is nobody's address"),
        ("127.0.0.53", "web-1", "80/tcp", "source", "127.0.0.53 is a loopback address"),
        ("224.0.0.1", "web-1", "80/tcp", "source", "no packet comes from there"),
        ("ff02::1", "h1", "80/tcp", "source", "no packet comes from there"),
        ("10.77.1.1", "fd77:0:0:2::1", "80/tcp", "destination", "no packet goes from 10.77.1.1 to fd77:0:0:2::1"),
        ("fd77:0:0:2::1", "10.77.1.1", "80/tcp", "destination", "no packet goes from fd77:0:0:2::1 to 10.77.1.1"),
        ("192.0.2.7", "fd77:0:0:2::1", "80/tcp", "destination", "no packet goes from 192.0.2.7"),
        ("old", "new", "80/tcp", "destination", "no packet goes from old to new"),
        ("old", "2001:db8::9", "80/tcp", "destination", "no packet goes from old"),
        ("h1", "new", "8/icmp", "protocol", "icmp is of IPv4"),
        ("fd77:0:0:1::1", "fd77:0:0:2::1", "8/icmp", "protocol", "icmp is of IPv4"),
        ("10.77.1.1", "10.77.2.1", "128/icmpv6", "protocol", "icmpv6 is of IPv6"),
        ("web-1", "old", "128/icmpv6", "protocol", "icmpv6 is of IPv6"),
        ("h1", "h2", "128/icmpv6", "protocol", "icmpv6 is of IPv6"),
        ("old", "fd00:96::1", "80/tcp", "destination", "no packet goes from old to fd00:96::1"),
        ("web-1", "::ffff:10.96.0.1", "80/tcp", "destination", "is the IPv4 address 10.96.0.1 written as IPv6"),
    ],
)
def test_what_no_packet_can_be_has_no_verdict(source: str, destination: str, port: str, field: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as raised:
        said(documents(*OF_ONE_FAMILY, V6_SERVICE), source, destination, port, held=HELD)
    assert raised.value.field == field
    assert raised.value.remedy


@pytest.mark.parametrize(
    ("source", "destination", "port"),
    [
        ("web-1", "old", "8/icmp"),
        ("web-1", "new", "128/icmpv6"),
        ("h1", "new", "128/icmpv6"),  # by an address that is not declared
        ("host", "fd77:0:0:2::7", "80/tcp"),
        ("world", "h1", "128/icmpv6"),
        ("new", "world", "128/icmpv6"),
        ("192.168.77.1", "h2", "8/icmp"),
        ("web-1", "fd00:96::1", "80/tcp"),
    ],
)
def test_ends_that_have_a_family_in_common_are_judged(source: str, destination: str, port: str) -> None:
    assert said(documents(*OF_ONE_FAMILY, V6_SERVICE), source, destination, port, held=HELD)["verdict"]


def test_what_is_denied_first_is_denied() -> None:
    closed = fleet.policy("web", {"app": "web"}, egress=[])
    assert said(documents(closed), "web-1", "10.77.2.99", "80/tcp")["verdict"] == "denied"
    assert said(documents(), "web-1", "10.77.2.99", "80/tcp")["verdict"] == "dropped"


@pytest.mark.parametrize(("of_peer", "of_all"), [(7, 8), (8, 7)])
@pytest.mark.parametrize("action", ["allow", "deny"])
def test_of_two_rules_at_one_level_the_lower_id_is_named(of_peer: int, of_all: int, action: str) -> None:
    """As the programs have it: tests/packet/cases_endpoint.py."""
    code, number = entries.DIRECTION_NUMBERS["ingress"], entries.DENY if action == "deny" else entries.ALLOW
    rows = {
        (entries.HEADER_PEER, code, entries.HEADER, 0): (9, entries.DENY, 0, 0, 0),
        (300, code, 6, 80): (of_peer, number, 0, 0, 0),
        (0, code, 6, 80): (of_all, number, 0, 0, 0),
    }
    assert judge(Maps(rows, {}, {}), Question("ingress", 300, 6, 80)) == Answer(action, 7)


def test_why_is_said_to_people() -> None:
    text = render(said(documents(), "web-1", "api-1", "0/icmp"))
    assert text.splitlines()[1] == (
        "  egress of web on h1: dropped (no_connection), a reply passes with its connection only"
    )


ROUTED = "h1 has a route to {}: without one its kernel keeps the packet, and policy judges it as the host's"


@pytest.mark.parametrize("declared", [documents(), documents(WORLD_ONLY)], ids=["open", "closed"])
def test_what_only_a_route_makes_the_worlds_is_said_to_assume_one(declared: DocumentSet) -> None:
    for address in ("198.51.100.1", "10.77.1.99", "2001:db8::1"):
        answer = said(declared, "web-1", address, "80/tcp", held=HELD, shared=SHARED)
        assert [entry.get("assumes") for entry in answer["judged"]] == [ROUTED.format(address)]
        (line,) = render(answer).splitlines()[1:]
        assert line.endswith(f", assuming that {ROUTED.format(address)}")
    # What the documents or the nodes' own addresses say needs no route of that kind; nor has the world as such one.
    for end in ("api-1", "db-1", "h1", "h2", "172.17.0.1", "fd00:bf:77::2", "169.254.1.1", "224.0.0.1", "world"):
        answer = said(declared, "web-1", end, "80/tcp", held=HELD, shared=SHARED)
        assert not any("assumes" in entry for entry in answer["judged"]), end
    for source in ("198.51.100.1", "h2"):
        answer = said(declared, source, "web-1", "80/tcp", held=HELD, shared=SHARED)
        assert not any("assumes" in entry for entry in answer["judged"]), source


EVERY_NETWORK = [{"cidr": "0.0.0.0/0"}, {"cidr": "::/0"}]


def test_the_world_as_such_is_said_to_be_in_no_network_where_rules_name_some() -> None:
    """It is allowed, or denied, where every address is not."""
    sends = fleet.policy("web", {"app": "web"}, egress=[{"peers": EVERY_NETWORK}])
    takes = fleet.policy("web", {"app": "web"}, ingress=[{}, {"action": "deny", "peers": EVERY_NETWORK}])
    tried = fleet.document("policy", "web", selector={}, mode="audit", egress=[{"peers": EVERY_NETWORK}])
    for policy, ends, verdicts in (
        (sends, ("web-1", "{}"), ("denied", "allowed")),
        (takes, ("{}", "web-1"), ("allowed", "denied")),
        (tried, ("web-1", "{}"), ("audited", "allowed")),
    ):
        for other, verdict, assumes in (
            ("world", verdicts[0], "the address is in no CIDR that rules there name"),
            ("198.51.100.1", verdicts[1], ""),
        ):
            (entry,) = said(documents(policy), *(end.format(other) for end in ends), "80/tcp")["judged"]
            assert entry["verdict"] == verdict
            assert entry.get("assumes", "").startswith(assumes), entry
    (entry,) = said(documents(sends), "world", "web-1", "80/tcp")["judged"]
    assert "assumes" not in entry, "those rules are about the other direction"


def test_what_is_not_in_force_is_no_end() -> None:
    strangers = [fleet.node(3), fleet.endpoint("far-1", 3, 1, "web")]
    for end in ("far-1", "h3"):
        with pytest.raises(InvalidInput, match=r"h3.* no member of cluster/fleet"):
            said(documents(*strangers), end, "web-1", "80/tcp")
    assert said(documents(*strangers), "web-1", "10.77.3.1", "80/tcp")["destination"]["identity_name"] == "world"
    with pytest.raises(InvalidInput, match="no cluster document"):
        explain(DocumentSet([fleet.node(1)]), "h1", "world", "tcp", 80)


class Members:
    """In place of a Fleet: two nodes with one store, each with addresses of its own, one that lags behind, one that is
    away."""

    def installed(self, target: Target) -> Mapping[str, Any]:
        if target.name not in (*HELD, "lagging"):
            raise Unreachable("away", node=target.name)
        return {"node": target.name, "documents_digest": "0" if target.name == "lagging" else "1"}

    def call(self, target: Target, method: str, params: Mapping[str, Any] = MappingProxyType({})) -> Any:
        node = target.name
        if node not in HELD:
            raise Unreachable("away", node=node)
        own: Dict[str, Any] = {"held": HELD[node], "shared": SHARED[node]}
        if method == "addresses":
            return own
        known = {**params.get("known", {}), node: own}
        held, shared = ({name: one[kind] for name, one in known.items()} for kind in ("held", "shared"))
        ends = params["source"], params["destination"]
        return explain(params["declared"], *ends, params["protocol"], params["port"], held=held, shared=shared)

    def each(self, targets: Iterable[Target], work: Callable[[Target], Any]) -> Dict[str, Any]:
        found: Dict[str, Any] = {}
        for target in targets:
            try:
                found[target.name] = work(target)
            except BpfleetError as error:
                found[target.name] = error
        return found


def asked(source: str, destination: str, *policies: Document, nodes: str = "h2 h1") -> Mapping[str, Any]:
    """What the controller makes of it, which asks the nodes in that order."""
    params = {"source": source, "destination": destination, "protocol": "tcp", "port": 80}
    members: Any = Members()
    return decided(
        members, [Target(name, name) for name in nodes.split()], {**params, "declared": documents(*policies)}
    )


BOTH_ORDERS = pytest.mark.parametrize("nodes", ["h1 h2", "h2 h1", "away h2 h1"])


@BOTH_ORDERS
def test_addresses_that_only_nodes_know_are_asked_of_all(nodes: str) -> None:
    for destination, node, verdict in (
        ("fd00:bf:77::1", "h1", "allowed"),
        ("fd00:bf:77::2", "h2", "dropped"),
        ("172.17.0.1", "h1", "allowed"),  # both have it: the one at home counts
        ("192.168.77.255", "h1", "allowed"),
        ("198.51.100.7", None, "allowed"),
    ):
        answer = asked("web-1", destination, nodes=nodes)
        assert answer["undeclared"] == [destination]
        assert (answer["destination"].get("node"), answer["verdict"]) == (node, verdict)
    with pytest.raises(InvalidInput, match="are one node"):
        asked("h1", "fd00:bf:77::1", nodes=nodes)
    for declared in ("192.168.77.2", "10.77.2.1", "fe80::1", "224.0.0.1", "world"):
        assert "undeclared" not in asked("web-1", declared, nodes=nodes)


@BOTH_ORDERS
@pytest.mark.parametrize("source", ["fd00:bf:77::1", "h1"])
def test_between_two_nodes_by_addresses_that_no_document_has_both_are_judged(source: str, nodes: str) -> None:
    """To each the other is the world: only declared addresses are believed."""
    world, others = ([{"peers": [{"entity": entity}]}] for entity in ("world", "remote-node"))
    for rules, verdict in ((world, "allowed"), (others, "denied")):
        policies = (fleet.node_policy("hosts", {}, ingress=rules, egress=world),)
        answer = asked(source, "fd00:bf:77::2", *policies, nodes=nodes)
        assert ways(answer) == [(OUT, "h1", "allowed", "hosts"), (IN, "h2", verdict, "hosts")]
        assert answer["verdict"] == verdict
    with pytest.raises(InvalidInput, match="no packet goes from h1 to fd00:bf:77::2"):
        said(documents(), "h1", "fd00:bf:77::2", "80/tcp", held={"h2": HELD["h2"]})


@BOTH_ORDERS
def test_an_address_of_a_node_that_no_document_has_is_an_end_for_the_world_and_services(nodes: str) -> None:
    for source, destination, way in (
        ("fd00:bf:77::2", "2001:db8::7", (OUT, "h2", "allowed", "")),
        ("2001:db8::7", "fd00:bf:77::2", (IN, "h2", "allowed", "")),
    ):
        assert ways(asked(source, destination, nodes=nodes)) == [way]
    service = fleet.service("svc", ["[fd00:96::1]:80"], [{"labels": {"app": "db"}}])
    (backend,) = asked("fd00:bf:77::2", "fd00:96::1", service, nodes=nodes)["backends"]
    assert ways(backend) == [(OUT, "h2", "allowed", ""), (IN, "h2", "allowed", "")]
    # A backend may be such an address as well.
    outside = fleet.service("out", ["[fd00:96::2]:80"], [{"address": "fd00:bf:77::2"}])
    rules = fleet.node_policy("hosts", {}, ingress=[])
    for source in ("h1", "fd00:bf:77::1"):
        (backend,) = asked(source, "fd00:96::2", outside, rules, nodes=nodes)["backends"]
        assert ways(backend) == [(OUT, "h1", "allowed", ""), (IN, "h2", "denied", "hosts")]
    everywhere = fleet.service("all", ["10.96.0.3:80"], [{"address": "172.17.0.1"}])
    for source in ("h1", "h2"):
        (backend,) = asked(source, "10.96.0.3", everywhere, nodes=nodes)["backends"]
        assert [entry["rule"] for entry in backend["judged"]] == ["what a node says to itself is not judged"]
    with pytest.raises(InvalidInput, match="neither 2001:db8::7 nor 2001:db8::8 is an endpoint or a node"):
        asked("2001:db8::7", "2001:db8::8", nodes=nodes)


def test_a_member_that_lags_behind_is_named_and_not_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert asked("web-1", "10.77.2.1", nodes="lagging h1 h2")["verdict"] == "allowed"
    assert capsys.readouterr().err.startswith("bpfleet: lagging: holds other documents than most")


def test_who_does_not_say_which_addresses_it_has_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert asked("web-1", "198.51.100.7", nodes="h1 away h2")["verdict"] == "allowed"
    assert capsys.readouterr().err.startswith("bpfleet: whether 198.51.100.7 is an address of away is not known: ")
    asked("web-1", "10.77.2.1", nodes="h1 away h2")
    assert not capsys.readouterr().err, "nobody needs to be asked"
    with pytest.raises(Unreachable, match="no node answered: node away: away"):
        asked("web-1", "198.51.100.7", nodes="away")

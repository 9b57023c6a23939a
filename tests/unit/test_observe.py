"""Names, and explaining flows; and how the command line shows them."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest

from bpfleet.cli import explain as explain_cli
from bpfleet.cli import status as status_cli
from bpfleet.cli.main import main
from bpfleet.compile.compiler import Compiler
from bpfleet.errors import HostUnfit, InvalidInput, Unreachable
from bpfleet.loader.generated.layouts import ENUMS
from bpfleet.model.document import Document, DocumentSet
from bpfleet.model.resources import PROTOCOL_NUMBERS
from bpfleet.observe.explain import explain
from bpfleet.observe.filters import Filter, matcher
from bpfleet.observe.names import Names, short_end
from bpfleet.observe.usage import gauge
from tests import fleet
from tests.unit.observe_support import COMPILED, COUNTS, DOCUMENTS, NUMBER, event, flow, rule_id


def test_an_event_has_names_for_its_numbers() -> None:
    found = event()
    assert found["time"] == 1002.5
    assert (found["verdict"], found["reason"], found["direction"]) == ("allowed", "to_endpoint", "ingress")
    assert (found["policy"], found["rule"], found["node"]) == ("api", "ingress[0]", "h1")
    assert found["source"] == {
        "address": "10.77.1.1",
        "port": 40000,
        "identity": NUMBER["web"],
        "identity_name": "web",
        "labels": {"app": "web", "tier": "front"},
        "endpoint": "web-1",
        "node": "h1",
    }


def test_a_flow_has_names_for_its_numbers() -> None:
    found = flow()
    assert found["first_seen"] == 1002.5
    assert found["last_seen"] == round(1000 + 10 * 2**30 / 1e9, 6)
    assert (found["verdict"], found["direction"], found["policy"], found["rule"]) == (
        "allowed", "ingress", "api", "ingress[0]",
    )  # fmt: skip
    assert found["source"] == {
        "identity": NUMBER["web"],
        "identity_name": "web",
        "labels": {"app": "web", "tier": "front"},
    }
    assert found["destination"]["port"] == 80
    assert {name: found[name] for name in COUNTS} == COUNTS
    assert "reason" not in found
    assert flow(last_seen=0)["last_seen"] == found["first_seen"], "never before it was first seen"
    assert flow(verdict=3)["reason"] == "denied_by_default"
    assert flow(verdict=4, reason=26, rule_id=0)["reason"] == "spoofed_source"
    assert flow(protocol=1, port=3 << 8 | 4)["icmp"] == {"type": 3, "code": 4}


def test_a_flow_between_endpoints_of_one_identity_may_be_that_of_one_with_itself() -> None:
    """Which passes whether or not policies select it, and the history has no addresses to tell."""
    alike = flow(destination_identity=NUMBER["web"], rule_id=0)
    assert alike["rule"] == "no policy closes this direction, or an endpoint's traffic with itself is not judged"
    assert flow(rule_id=0)["rule"] == "no policy closes this direction"
    host = flow(source_identity=1, destination_identity=1, rule_id=0)
    assert host["rule"] == "no policy closes this direction"


def test_a_flow_and_the_event_that_began_it_say_the_same() -> None:
    one, other = event(), flow()
    for name in ("verdict", "direction", "protocol", "rule_id", "policy", "rule", "node"):
        assert one[name] == other[name]


def test_icmp_has_types_instead_of_ports() -> None:
    found = event(protocol=1, source_port=8, destination_port=0)
    assert found["icmp"] == {"type": 8, "code": 0}
    assert "port" not in found["source"]


def test_strangers_hosts_and_unknown_numbers() -> None:
    found = event(source="192.0.2.1", source_identity=2, destination="192.168.77.2", destination_identity=6)
    assert short_end(found["source"]) == "192.0.2.1:40000 (world)"
    assert short_end(found["destination"]) == "node h2:80"
    found = event(source="fd00::1", source_identity=99999, verdict=77, reason=200, protocol=200)
    assert short_end(found["source"]) == "[fd00::1]:40000 (99999)"
    assert (found["verdict"], found["reason"], found["protocol"]) == ("77", "200", "200")


def test_who_has_no_address_yet_is_found_by_the_unspecified_one() -> None:
    """Listener reports come from there. What is too short to have addresses has zeros as well, at both ends."""
    found = event(source="", source_identity=0, source_port=0, destination="ff02::16", destination_identity=0)
    assert short_end(found["source"]) == ":: (unknown)"
    assert all(matcher([Filter(key, "::")])(found) for key in ("ip", "from-ip", "from-any"))
    unread = event(source="", source_identity=0, source_port=0, destination="", destination_identity=0)
    assert not matcher([Filter("ip", "::/0")])(unread)
    assert short_end(unread["source"]) == "? (unknown)"


def test_why_what_no_rule_allows_passes_is_said_as_explain_says_it() -> None:
    assert event(rule_id=0)["rule"] == "no policy closes this direction"
    host = {"source": "192.0.2.1", "source_identity": 2, "destination": "192.168.77.1", "destination_identity": 1}
    found = event(**host, destination_port=22, rule_id=0, reason=ENUMS["reason"]["failsafe"])
    assert found["rule"] == "a failsafe port, which no policy closes"
    said = explain(DOCUMENTS, "192.0.2.1", "h1", "tcp", 22)
    assert [judged["rule"] for judged in said["judged"]] == [found["rule"]]
    alone = event(destination="10.77.1.1", destination_identity=NUMBER["web"], rule_id=0)
    said = explain(DOCUMENTS, "10.77.1.1", "10.77.1.1", "tcp", 80)
    assert {judged["rule"] for judged in said["judged"]} == {alone["rule"]}


def test_a_rule_that_is_gone_is_named_from_an_older_generation() -> None:
    without = Names(DOCUMENTS, {}, "h1")
    number = rule_id("api", "ingress[0]")
    assert without.rule(number, 5, [{}, COMPILED.rules]) == {"policy": "api", "rule": "ingress[0]", "gone": "yes"}
    assert without.rule(number, 5)["gone"] == "yes"
    assert f"{number:#010x}" in without.rule(number, 5)["rule"]
    assert without.rule(0, 5) == {}


@pytest.mark.parametrize(
    ("source", "destination", "protocol", "port", "verdict", "judged"),
    [
        ("web-1", "api-1", "tcp", 80, "allowed", [("egress", "", None), ("ingress", "api", "ingress[0]")]),
        ("web-1", "api-2", "tcp", 81, "denied", [("egress", "", None), ("ingress", "api", "default deny")]),
        ("api-1", "db-1", "tcp", 5432, "allowed", [("egress", "api", "egress[0]"), ("ingress", "db", "ingress[0]")]),
        ("db-1", "api-1", "icmp", None, "denied", [("egress", "", None), ("ingress", "api", "default deny")]),
        ("10.77.2.2", "10.77.1.1", "udp", 53, "allowed", [("egress", "", None), ("ingress", "", None)]),
        ("world", "api-1", "tcp", 80, "denied", [("ingress", "api", "ingress[1]")]),
        ("192.0.2.7", "api-1", "tcp", 80, "denied", [("ingress", "api", "ingress[1]")]),
        ("api-1", "world", "tcp", 443, "denied", [("egress", "api", "default deny")]),
        ("h1", "api-1", "icmp", None, "allowed", [("egress", "", None), ("ingress", "api", "ingress[2]")]),
        ("host", "api-1", "icmp", None, "allowed", [("egress", "", None), ("ingress", "api", "ingress[2]")]),
        ("h2", "api-1", "icmp", None, "denied", [("egress", "", None), ("ingress", "api", "default deny")]),
        ("api-1", "node/h2", "tcp", 22, "allowed", [("egress", "api", "egress[0]"), ("ingress", "", None)]),
    ],
)
def test_explained(source: str, destination: str, protocol: str, port: Any, verdict: str, judged: List[Any]) -> None:
    answer = explain(DOCUMENTS, source, destination, protocol, port)
    assert answer["verdict"] == verdict
    found = [
        (entry["direction"], entry.get("policy", ""), entry["rule"] if entry.get("policy") else None)
        for entry in answer["judged"]
    ]
    assert found == judged


def test_explain_and_the_nodes_name_the_same_rules() -> None:
    answer = explain(DOCUMENTS, "web-1", "api-1", "tcp", 80)["judged"][1]
    assert (answer["node"], answer["subject"]) == ("h1", "api")
    assert COMPILED.rules[answer["rule_id"]].policy == "api"


def test_explain_agrees_with_the_maps_of_the_nodes() -> None:
    """Over all pairs and ports that matter, it says what the compiled maps say."""
    for index in (1, 2):
        state = Compiler().compile(DOCUMENTS, fleet.facts(index)).state
        here = [d for d in DOCUMENTS.of_kind("endpoint").values() if d.spec["node"] == f"h{index}"]
        for subject in here:
            for peer in DOCUMENTS.of_kind("endpoint").values():
                if peer is not subject:
                    for protocol, port in (("tcp", 80), ("tcp", 5432), ("tcp", 1), ("udp", 80), ("icmp", None)):
                        _compare(state.nested["policies"], subject, peer, protocol, port)


def _compare(policies: Any, subject: Document, peer: Document, protocol: str, port: Any) -> None:
    numbers = [NUMBER[document.spec["identity"]] for document in (subject, peer)]
    rows = policies[numbers[0]].rows if numbers[0] in policies else {}
    for code, direction in enumerate(("ingress", "egress")):
        keys = [
            (who, code, *rest)
            for who in (numbers[1], 0)
            for rest in ((PROTOCOL_NUMBERS[protocol], port or 0), (PROTOCOL_NUMBERS[protocol], 0), (0, 0))
        ]
        found = [rows[key][1] for key in keys if key in rows]
        closed = (0xFFFFFFFF, code, 0, 0) in rows
        expected = "denied" if 2 in found or (closed and 1 not in found) else "allowed"
        ends = (peer.name, subject.name) if direction == "ingress" else (subject.name, peer.name)
        judged = explain(DOCUMENTS, *ends, protocol, port)["judged"]
        assert [entry["verdict"] for entry in judged if entry["direction"] == direction] == [expected]


def test_an_endpoint_that_waits_passes_nothing() -> None:
    documents = DocumentSet([*fleet.quickstart(), fleet.endpoint("late", 1, 3, "nobody")])
    answer = explain(documents, "late", "web-1", "tcp", 80)
    assert answer["verdict"] == "dropped"
    assert "no document yet" in answer["judged"][0]["rule"]


@pytest.mark.parametrize(
    ("source", "destination", "protocol", "port", "field"),
    [
        ("web-9", "api-1", "tcp", 80, "source"),
        ("web-1", "nobody", "tcp", 80, "destination"),
        ("web-1", "api-1", "gre", None, "protocol"),
        ("web-1", "api-1", "icmp", 80, "port"),
        ("world", "192.0.2.7", "tcp", 80, "source"),
        ("h1", "node/h1", "tcp", 80, "destination"),
    ],
)
def test_what_cannot_be_explained(source: str, destination: str, protocol: str, port: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        explain(DOCUMENTS, source, destination, protocol, port)
    assert raised.value.field == field
    assert raised.value.remedy


@pytest.mark.parametrize(
    ("protocol", "port", "message", "field"),
    [
        ("tcp", None, (None, None), "port"),
        ("udp", None, (None, None), "port"),
        ("sctp", None, (None, None), "port"),
        ("tcp", 0, (None, None), "port"),
        ("tcp", -1, (None, None), "port"),
        ("tcp", 65536, (None, None), "port"),
        ("tcp", "80", (None, None), "port"),
        ("tcp", True, (None, None), "port"),
        ("tcp", 80, (8, None), "type"),
        ("icmp", None, (300, None), "type"),
        ("icmp", None, (-1, 0), "type"),
        ("icmpv6", None, ("128", 0), "type"),
        ("icmp", None, (3, 999), "code"),
        ("icmp", None, (3, -1), "code"),
    ],
)
def test_what_no_first_packet_can_be_is_not_explained(protocol: str, port: Any, message: Any, field: str) -> None:
    """A port that is left out is none: asked about TCP as such, policies would be said to deny what they allow."""
    with pytest.raises(InvalidInput) as raised:
        explain(DOCUMENTS, "web-1", "api-2", protocol, port, message)
    assert raised.value.field == field
    assert raised.value.remedy


@pytest.mark.parametrize("port", ["tcp", "UDP", "sctp"])
def test_a_flow_without_its_port_is_refused_before_a_node_is_asked(
    port: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["explain", "--seed", "192.0.2.1", "--from", "web-1", "--to", "api-2", "--port", port]
    assert main(words) == 2
    assert f"field port: which port of {port.lower()}" in capsys.readouterr().err


def test_explain_for_people() -> None:
    text = explain_cli.render(explain(DOCUMENTS, "web-1", "db-1", "tcp", 5432))
    assert text.splitlines() == [
        "web-1 (web, h1) to db-1 (db, h2), tcp/5432: denied",
        "  egress of web on h1: allowed, no policy closes this direction",
        "  ingress of db on h2: denied by policy db, default deny",
    ]


def test_explain_keeps_what_old_policies_say_within_its_line() -> None:
    answer = explain(DOCUMENTS, "web-1", "db-1", "tcp", 5432)
    answer["judged"][1]["description"] = "ok\n  ingress of db on h2: allowed\x1b[A"
    lines = explain_cli.render(answer).split("\n")
    assert len(lines) == 3 and lines[2].endswith('"ok\\n  ingress of db on h2: allowed\\x1b[A"')


def status(**changes: Any) -> Dict[str, Any]:
    base: Dict[str, Any] = {
        "generation": 3,
        "documents_digest": "a" * 64,
        "documents": {"node": 2, "cluster": 1},
        "programs": [{}],
        "drift": [],
        "maps": [gauge("addresses", 4, 100), gauge("connections", 3, 1000), gauge("services", 0, 16)],
        "counters": [
            {"reason": "spoofed_source", "drop": True, "packets": 7, "bytes": 700},
            {"reason": "to_stack", "drop": False, "packets": 9, "bytes": 900},
        ],
        "waiting": [],
        "warnings": [],
        "pending": None,
        "fitness": [],
    }
    return {**base, **changes}


def test_status_of_a_healthy_fleet() -> None:
    report = status_cli.summarise({"h2": status(), "h1": status()})
    assert report["healthy"]
    lines = status_cli.render(report).splitlines()
    assert lines[1].split() == ["h1", "ok", "3", "aaaaaaaaaaaa", "3", "(1", "cluster,", "2", "node)", "1", "7", "0",
                                "addresses", "4%", "(4/100)"]  # fmt: skip
    assert "h2: dropped 7 packets: spoofed source" in lines


def test_pressure_is_a_gauge_and_a_remark() -> None:
    maps = [gauge("addresses", 97, 100), gauge("connections", 850, 1000), gauge("policies", 1, 8193)]
    report = status_cli.summarise({"h1": status(maps=maps), "h2": {**status(), "maps": []}})
    lines = status_cli.render(report).splitlines()
    assert lines[1].split()[-3:] == ["addresses", "97%", "(97/100)"] and lines[2].split()[-1] == "-"
    assert (
        "h1: map addresses is 97% full (97 of 100 entries; beyond that a change that needs more is refused); "
        "raise limits.addresses of the cluster"
    ) in lines
    assert any("beyond that the longest idle are forgotten" in line for line in lines)
    forgets = status_cli.summarise({"h1": status(maps=[gauge("connections", 900, 1024, holds=768)])})
    assert (
        "h1: map connections is 100% full (900 of 1024 entries, of which each CPU keeps some free; beyond that the "
        "longest idle are forgotten); raise limits.connections of the cluster"
    ) in status_cli.render(forgets)
    assert "[####################] 100%" in status_cli.gauges(forgets)
    room = {**gauge("flow_slots", 4, 4), "room": "dropped"}
    said = status_cli.render(status_cli.summarise({"h1": status(maps=[room])}))
    assert (
        "h1: map flow_slots is 100% full of flows that were dropped (4 of 4 entries; beyond that packets of new flows "
        "are counted together); raise limits.flows of the cluster"
    ) in said
    drawn = [line.split() for line in status_cli.gauges(report).splitlines()]
    assert drawn[1] == [
        "h1", "addresses", "97", "100", "[####################]", "97%", "critical", "limits.addresses"
    ]  # fmt: skip
    assert drawn[2][4:] == ["[#################", "]", "85%", "high", "limits.connections"]
    assert drawn[3][4:] == ["[#", "]", "<1%", "ok", "limits.endpoints"]


def test_a_node_whose_documents_wait_is_not_plainly_ok_and_no_failure_either() -> None:
    waits = [{"document": "endpoint/web-1", "reason": "identity web has no document yet: passes nothing"}]
    report = status_cli.summarise({"h1": status(), "h2": status(waiting=waits)})
    assert [node["state"] for node in report["nodes"].values()] == ["ok", "waiting"]
    assert report["healthy"]
    assert "h2: waiting: endpoint/web-1: identity web has" in status_cli.render(report)


@pytest.mark.parametrize("command", ["status", "observe", "explain --from a --to b --port 80"])
def test_a_lab_and_a_seed_together_are_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--lab", "--seed", "192.0.2.1"]) == 2
    assert "--lab and --seed name different nodes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "state", "says"),
    [
        (status(documents_digest="b" * 64), "differs", "bbbbbbbbbbbb differs"),
        (status(drift=["attach x to y"]), "drifted", "the next apply would attach x to y"),
        (status(generation=0), "empty", ""),
        (status(fitness=[HostUnfit("no BTF").to_wire()]), "unfit", "no BTF"),
        (Unreachable("did not answer", node="h3"), "unreachable", "did not answer"),
        (
            status(pending={"transaction": "t", "owner": "o", "state": "applied", "seconds_left": 4.0}),
            "pending",
            "transaction t of o is applied; 4 s left to confirm it",
        ),
        *(
            (
                status(pending={"transaction": "t", "owner": "o", "state": state, "seconds_left": 0.0}),
                "pending",
                f"transaction t of o is being {doing}\n",
            )
            for state, doing in (("applying", "applied"), ("putting back", "put back"))
        ),
    ],
)
def test_status_of_a_node_that_needs_attention(answer: Any, state: str, says: str) -> None:
    report = status_cli.summarise({"h1": status(), "h2": status(), "h3": answer})
    assert not report["healthy"]
    assert report["nodes"]["h3"]["state"] == state
    assert says in status_cli.render(report)

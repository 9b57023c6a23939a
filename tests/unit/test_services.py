"""Services: what cannot be declared, which backends a frontend has, what explain and status say of them."""

from __future__ import annotations

from typing import Any, List, Optional

import pytest

from bpfleet.cli import explain as explain_cli
from bpfleet.cli import status as status_cli
from bpfleet.compile.compiler import Compiler
from bpfleet.compile.validate import validate
from bpfleet.errors import InvalidInput
from bpfleet.model.document import Document, DocumentSet, parse_document
from bpfleet.model.state import CGROUP_ROOT, SOCKET_HOOKS, Facts
from bpfleet.observe.explain import explain
from tests import fleet

API = [{"labels": {"app": "api"}}]


def held(*services: Document) -> DocumentSet:
    return DocumentSet([*fleet.quickstart(), *services])


@pytest.mark.parametrize(
    ("services", "field", "other"),
    [
        ([fleet.service("a", ["10.96.0.1:80"], API), fleet.service("b", ["10.96.0.1:80"], [])],
         "frontends", "service/a"),
        ([fleet.service("b", ["192.168.77.2:8000"], API)], "frontends", "node/h2"),
        ([fleet.service("b", ["192.168.77.1:22"], API)], "frontends", "failsafe port"),
        ([fleet.service("b", ["10.77.1.1:80"], API)], "frontends", "endpoint/web-1"),
        ([fleet.service("b", ["[fd77:0:0:1::1]:80"], API)], "frontends", "endpoint/web-1"),
        ([fleet.service("b", ["[fd96::1]:80"], [{"address": "192.0.2.1"}, {"address": "192.0.2.2"}])],
         "frontends", "192.0.2.1"),
        ([fleet.service("a", ["10.96.0.1:80"], API), fleet.service("b", ["10.96.0.2:80"], [{"address": "10.96.0.1"}])],
         "backends", "service/a"),
        ([fleet.service("b", ["127.0.0.53:53"], API)], "frontends", "loopback"),
        ([fleet.service("b", ["169.254.169.254:80"], API)], "frontends", "link-local"),
        ([fleet.service("b", ["[fe80::1]:80"], API)], "frontends", "link-local"),
        ([fleet.service("b", ["224.0.0.1:80"], API)], "frontends", "multicast"),
        ([fleet.service("b", ["0.0.0.0:80"], API)], "frontends", "unspecified"),
        ([fleet.service("b", ["10.96.0.1:80"], [{"address": "127.0.0.1"}])], "backends", "loopback"),
    ],
)  # fmt: skip
def test_refused(services: List[Document], field: str, other: str) -> None:
    (error,) = validate(held(*services), fleet.facts(1))
    assert (error.resource, error.field) == ("service/b", field)
    assert other in str(error) and error.remedy


def only_v4(document: Document) -> Document:
    """A node or endpoint without IPv6."""
    field = {"node": "workload_cidrs", "endpoint": "addresses"}.get(document.kind)
    if field is None:
        return document
    return fleet.document(
        document.kind,
        document.name,
        **{**document.spec, field: [one for one in document.spec[field] if ":" not in one]},
    )


def test_a_family_that_no_backend_can_have() -> None:
    service = fleet.service("s", ["10.96.0.1:80", "[fd96::1]:80"], API)
    (error,) = validate(DocumentSet([*map(only_v4, fleet.quickstart()), service]))
    assert (error.resource, error.field) == ("service/s", "frontends") and error.remedy
    listed = fleet.service("s", ["[fd96::1]:80"], [*API, {"address": "2001:db8::1"}])
    assert validate(DocumentSet([*map(only_v4, fleet.quickstart()), listed])) == []
    assert validate(DocumentSet([service])) == [], "nodes may come later"


def test_a_family_that_no_backend_has_is_said() -> None:
    """Endpoints come and go, so that is no error; it is said with every change until one has an address of it."""
    documents = [
        only_v4(one) if one.kind == "endpoint" else one for one in held(fleet.service("s", ["[fd96::1]:80"], API))
    ]
    assert validate(DocumentSet(documents), fleet.facts(1)) == []
    (warning,) = Compiler().compile(DocumentSet(documents), fleet.facts(1)).warnings
    assert warning.startswith("service/s: [fd96::1]:80/tcp refuses every connection") and "10.77.1.2" in warning
    assert Compiler().compile(held(fleet.service("s", ["[fd96::1]:80"], API)), fleet.facts(1)).warnings == ()
    assert Compiler().compile(held(fleet.service("s", ["[fd96::1]:80"], [])), fleet.facts(1)).warnings == ()


def test_backends_by_labels_that_no_endpoint_has_are_said_with_the_change() -> None:
    """As a policy's selector is that nobody has: nothing else tells a misspelt label before a client is refused."""
    idle = fleet.identity("idle", {"app": "idle"})
    backends = [{"labels": {"app": "apj"}}, {"labels": {"app": "idle"}}, *API, {"address": "192.0.2.1"}]
    documents = held(fleet.service("s", ["10.96.0.1:80"], backends)).changed([idle])
    assert sorted(Compiler().compile(documents, fleet.facts(1)).warnings) == [
        "service/s, backends: no endpoint has app=apj; the nearest label is app=api",
        "service/s, backends: no endpoint has app=idle",
    ]


def test_an_address_that_only_the_node_knows() -> None:
    facts = Facts("h1", {"eth0": (1500, ("192.168.77.1", "203.0.113.1"))}, ("w1", "w2"))
    service = fleet.service("b", ["203.0.113.1:80"], API)
    (error,) = validate(held(service), facts)
    assert error.resource == "service/b" and "node/h1" in str(error) and "eth0" in str(error)
    assert validate(held(service), fleet.facts(2)) == []


@pytest.mark.parametrize(
    "frontends",
    [["10.96.0.1:80", "10.96.0.1:81", "10.96.0.1:80/udp"], ["10.96.0.1:80", "[fd96::1]:80"]],
)
def test_not_refused(frontends: List[str]) -> None:
    """Port and protocol tell frontends apart; labels may bring backends of either family."""
    assert validate(held(fleet.service("b", frontends, API)), fleet.facts(1)) == []


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"frontends": [], "backends": []}, "frontends"),
        ({"frontends": [{"address": "10.96.0.1", "port": 0}], "backends": []}, "frontends[0].port"),
        ({"frontends": [{"address": "10.96.0.1", "port": 1, "protocol": "sctp"}], "backends": []},
         "frontends[0].protocol"),
        ({"frontends": [{"address": "10.96.0.1", "port": 1}], "backends": [{}]}, "backends[0]"),
        ({"frontends": [{"address": "10.96.0.1", "port": 1}]}, "backends"),
    ],
)  # fmt: skip
def test_no_service(spec: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_document({"kind": "service", "name": "s", "spec": spec})
    assert raised.value.field == field


def backends(service: Document, *more: Document, deletes: Optional[List[str]] = None) -> Any:
    """Backends of the service's frontends, in order, as the maps of node h1 hold them."""
    state = Compiler().compile(held(service, *more).changed(deletes=deletes or []), fleet.facts(1)).state
    found = []
    for frontend in service.spec["frontends"]:
        number, count = state.tables["services"].rows[(frontend["address"], frontend["port"], 6)]
        rows = state.nested["backends"][number].rows if number else {}
        assert count == len(rows)
        found.append([row for _, row in sorted(rows.items())])
    return found


def test_backends_are_the_endpoints_of_the_frontends_family() -> None:
    service = fleet.service("s", ["10.96.0.1:80", "[fd96::1]:80"], [{"labels": {"app": "api"}, "port": 8080}])
    assert backends(service) == [
        [("10.77.1.2", 8080), ("10.77.2.1", 8080)],
        [("fd77:0:0:1::2", 8080), ("fd77:0:0:2::1", 8080)],
    ]
    assert backends(service, deletes=["endpoint/api-1"])[0] == [("10.77.2.1", 8080)]
    assert backends(service, deletes=["endpoint/api-1", "endpoint/api-2"]) == [[], []]


def test_listed_and_labelled_backends_count_once() -> None:
    listed = [{"labels": {"tier": "back"}}, {"address": "10.77.1.2"}, {"address": "192.0.2.9", "port": 90}]
    assert backends(fleet.service("s", ["10.96.0.1:80"], listed)) == [
        [("10.77.1.2", 80), ("10.77.2.1", 80), ("10.77.2.2", 80), ("192.0.2.9", 90)]
    ]


def test_sockets_are_hooked_only_where_there_is_a_service() -> None:
    def hooks(*services: Document) -> Any:
        state = Compiler().compile(held(*services), fleet.facts(1)).state
        return {hook for place, hook in state.attachments if place == CGROUP_ROOT}

    assert hooks() == set()
    assert hooks(fleet.service("s", ["10.96.0.1:80"], [])) == set(SOCKET_HOOKS)


def test_explain_to_a_frontend_decides_for_each_backend() -> None:
    closed = fleet.policy("api-2-only-db", {"app": "api"}, ingress=[{"peers": [{"labels": {"app": "db"}}]}])
    listed = [{"labels": {"app": "api"}, "port": 8080}, {"address": "192.0.2.9"}, {"address": "192.168.77.1"}]
    documents = held(fleet.service("s", ["10.96.0.1:80"], listed), closed)
    answer = explain(documents, "web-1", "10.96.0.1", "tcp", 80)
    assert (answer["verdict"], answer["judged"]) == ("mixed", [])
    assert answer["destination"] == {"name": "10.96.0.1", "identity_name": "service/s"}
    for backend in answer["backends"]:
        alone = explain(documents, "web-1", backend["destination"]["name"], "tcp", backend["port"])
        assert {key: alone[key] for key in ("destination", "port", "verdict", "judged")} == backend
    assert [(one["destination"]["name"], one["port"], one["verdict"]) for one in answer["backends"]] == [
        ("10.77.1.2", 8080, "denied"), ("10.77.2.1", 8080, "denied"), ("192.0.2.9", 80, "allowed"),
        ("192.168.77.1", 80, "allowed"),
    ]  # fmt: skip
    text = explain_cli.render(answer)
    assert "web-1 (web, h1) to 10.96.0.1 (service/s), tcp/80: mixed" in text
    assert "backend 10.77.1.2 (api, h1) port 8080: denied" in text and "ingress of api on h2: denied" in text
    assert explain(documents, "web-1", "10.96.0.1", "tcp", 81)["destination"]["identity_name"] == "world"


def test_explain_to_a_frontend_without_backends_and_from_others() -> None:
    documents = held(fleet.service("t", ["10.96.0.2:80"], []), fleet.service("s", ["10.96.0.1:80"], API))
    answer = explain(documents, "web-1", "10.96.0.2", "tcp", 80)
    assert (answer["verdict"], answer["backends"]) == ("refused", [])
    assert "refused at once" in explain_cli.render(answer)
    with pytest.raises(InvalidInput, match=r"world is no endpoint.*service/s"):
        explain(documents, "world", "10.96.0.1", "tcp", 80)


def test_explain_to_a_frontend_with_the_client_among_the_backends() -> None:
    documents = held(fleet.service("s", ["10.96.0.1:80"], [*API, {"address": "192.168.77.1"}]))
    for client, said in (("api-1", "the client itself"), ("h1", "a node says to itself")):
        backends = explain(documents, client, "10.96.0.1", "tcp", 80)["backends"]
        assert [one["verdict"] for one in backends if said in one["judged"][0]["rule"]] == ["allowed"]


@pytest.mark.parametrize(("others", "said"), [([], "are refused"), ([{"address": "192.0.2.9"}], "go to another")])
def test_explain_to_a_frontend_says_where_a_clients_packets_go_that_are_not_given_itself(
    others: List[Any], said: str
) -> None:
    documents = held(fleet.service("s", ["10.96.0.1:80"], [{"address": "10.77.1.2"}, *others]))
    itself = explain(documents, "api-1", "10.96.0.1", "tcp", 80)["backends"][0]
    assert itself["judged"][0]["rule"].endswith(f"packets that passed no hooked socket {said}")


def test_status_shows_services() -> None:
    frontends = [{"frontend": "10.96.0.1:80/tcp", "backends": 2}, {"frontend": "[fd96::1]:80/tcp", "backends": 0}]
    node = {
        "generation": 1, "documents_digest": "d", "documents": {}, "programs": [], "drift": [], "maps": [],
        "counters": [], "waiting": [], "warnings": [], "pending": None, "fitness": [],
        "services": [{"name": "web", "frontends": frontends}],
    }  # fmt: skip
    text = status_cli.render(status_cli.summarise({"h1": node, "h2": node}))
    assert text.count("service web 10.96.0.1:80/tcp: 2 backends") == 1
    assert "service web [fd96::1]:80/tcp: no backends: connections are refused" in text

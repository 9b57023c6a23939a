"""The collection against lab hosts: the tests are steps of one story and run in this order."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bpfleet.agent import wire
from bpfleet.lab import Lab
from bpfleet.model.identity import candidates
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.outcome import Changes, Committed, Refused
from tests.e2e.ansible_play import QUICKSTART, ROOT, Controller, inventory_with, tasks
from tests.e2e.pulumi_stack import Stack, cli_folder
from tools.build_collection import assemble

pytestmark = [pytest.mark.root, pytest.mark.lab]

HOSTS = ("h1", "h2", "h3")


@pytest.fixture(scope="module")
def controller(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    folder = tmp_path_factory.mktemp("ansible")
    assemble(folder / "collections")
    made = Controller(lab, folder / "collections", folder)
    yield made
    made.close()
    made.clear()


def left_on(controller: Controller, name: str) -> list[str]:
    """Files and pins of bpfleet on a host."""
    found = controller.lab.host(name).run(["find", "/var/lib/bpfleet", "/sys/fs/bpf", "-mindepth", "1"], check=False)
    return [line for line in found.stdout.splitlines() if not line.endswith(".debug")]


def test_a_check_of_fresh_hosts_shows_all_and_writes_nothing(controller: Controller) -> None:
    played = controller.quickstart("--check", "--diff")
    for result in played.of("documents").values():
        assert result.changed and result.result["agent_installed"]
        assert len(result.result["put"]) == 21
        agent, *parts = [part for part in result.result["diff"] if "after" in part]
        assert (agent["before_header"], agent["before"]) == ("agent", "") and "digest: " in agent["after"]
        assert [part["before"] for part in parts] == [""] * 21
        assert "".join(part["after"] for part in parts).count("\n  number: ") == 6, "numbers are known"
    whole = controller.play(QUICKSTART / "playbook.yml", "--check", "--diff")
    assert "changed: [h1] => (item=/etc/modules-load.d/bpfleet.conf)" in whole.text, "files of other services too"
    assert "[WARNING]" not in whole.text, "a service that is not installed is nothing to warn of"
    assert [left_on(controller, name) for name in HOSTS] == [[]] * 3


def test_the_quickstart_converges_and_is_idempotent(controller: Controller) -> None:
    first = controller.quickstart()
    assert {result.outcome for result in first.results} == {"ok"}
    documents = first.of("documents")
    assert len({result.result["documents_digest"] for result in documents.values()}) == 1
    assert all(result.result["left_behind"] == [] for result in documents.values())
    before = controller.hellos()
    assert {name: (hello["node"], hello["cluster"]) for name, hello in before.items()} == {
        name: (name, "shop") for name in HOSTS
    }
    again = controller.quickstart("--diff")
    assert again.changed == set()
    assert controller.hellos() == before, "an unchanged run writes nothing"


def test_any_member_can_tell_how_the_others_are_reached(controller: Controller) -> None:
    host = controller.lab.host("h3")
    ssh = controller.items("h1")["node/h3"]["metadata"]["ssh"]
    assert (ssh["host"], ssh["port"], ssh["user"]) == (host.address, 22, "root")


def test_check_and_diff_of_a_change(controller: Controller) -> None:
    checked = controller.quickstart("--check", "--diff", batch_to_db="allow").of("documents")
    assert checked["h3"].result["put"] == ["policy/db-from-backend"]
    (change,) = [part for part in checked["h3"].result["diff"] if "after" in part]
    assert "action: deny" in change["before"] and "action: deny" not in change["after"]
    assert any("policies" in part.get("prepared", "") for part in checked["h3"].result["diff"]), "steps in words"
    counted = {entry["map"]: entry for entry in checked["h3"].result["capacity"]}
    assert counted["addresses"]["used"] == counted["addresses"]["wanted"] > 0
    assert counted["policy_entries"]["wanted"] <= counted["policy_entries"]["limit"] == 262144
    assert "h3" not in {host for host, _ in controller.quickstart("--check").changed}, "the check kept nothing"


def test_modules_for_single_resources_and_info(controller: Controller) -> None:
    put = [
        ("identity", {"cluster": "shop", "name": "extra", "labels": {"role": "extra"}}),
        (
            "policy",
            {
                "cluster": "shop",
                "name": "extra",
                "selector": {"role": "extra"},
                "ingress": [{"peers": [{"entity": "host"}], "ports": [{"protocol": "tcp", "port": "22"}]}],
            },
        ),
        ("documents_info", {"kinds": ["policy"], "names": ["extra"]}),
        ("status_info", {}),
    ]
    first = controller.play(tasks(*put))
    assert {host for host, _ in first.changed} == set(HOSTS)
    assert controller.play(tasks(*put)).changed == set()
    (held,) = first.of("documents_info")["h2"].result["documents"]
    assert held["owner"] == "ansible:shop"
    assert held["spec"]["ingress"][0]["ports"] == [{"protocol": "tcp", "port": 22}]
    status = first.of("status_info")["h2"].result["status"]
    assert (status["documents"]["policy"], status["drift"]) == (5, [])
    gone = [(kind, {"cluster": "shop", "name": "extra", "state": "absent"}) for kind in ("policy", "identity")]
    controller.play(tasks(gone[0]))
    # What is left is not declared in the quickstart: pruned.
    pruned = controller.quickstart().of("documents")
    assert {tuple(result.result["deleted"]) for result in pruned.values()} == {("identity/extra",)}
    assert controller.play(tasks(*gone)).changed == set()


def test_a_task_that_says_something_else_than_it_means_changes_nothing(controller: Controller) -> None:
    before = controller.digests()
    policy: dict[str, Any] = {"cluster": "shop", "name": "slip", "selector": {"role": "db"}, "ingress": []}
    strange = {"kind": "cluster", "name": "other", "spec": {"id": 2, "members": list(HOSTS)}}
    port = {"ports": [{"protocol": "tcp", "port": 5432}]}
    unpeered = {**port, "peers": None}
    slips: list[tuple[str, dict[str, Any], str]] = [
        ("policy", {**policy, "cluster": "shopp"}, "cluster, node h2: the host is of cluster shop, not of shopp"),
        ("documents", {"cluster": "shop", "documents": [strange]}, "node h2: is declared in a task of cluster shop"),
        # In YAML, `peers:` with its items indented wrongly: left out, it means any peer.
        ("policy", {**policy, "ingress": [unpeered]}, "field ingress[0].peers: is given without a value"),
        ("policy", {**policy, "egress": None}, "policy/slip, field egress: is given without a value"),
        ("policy", {**policy, "selector": {"role": None}}, "policy/slip, field selector.role: must be a string"),
        ("policy", {**policy, "mode": "off"}, "value of mode must be one of: enforce, audit, got: off"),
    ]
    for action, arguments, says in slips:
        played = controller.play(tasks((action, arguments)), ok=False).of(action)
        assert {result.outcome for result in played.values()} == {"failed"}
        assert says in played["h2"].message, played["h2"].message
    assert controller.digests() == before
    absent = {"cluster": "shopp", "name": "slip", "state": "absent"}
    assert controller.play(tasks(("policy", absent))).changed == set(), "it is not there, wherever it should not be"
    left_out = {**policy, "ingress": [port], "egress": "{{ omit }}", "state": "present"}
    assert {host for host, _ in controller.play(tasks(("policy", left_out))).changed} == set(HOSTS)
    assert "egress" not in controller.items("h1")["policy/slip"]["document"]["spec"]
    controller.play(tasks(("policy", {**absent, "cluster": "shop"})))


def test_a_limited_run_names_the_members_it_leaves_behind(controller: Controller) -> None:
    limited = controller.quickstart("--limit", "h1", batch_to_db="allow")
    assert limited.of("documents")["h1"].result["left_behind"] == ["h2", "h3"]
    assert "h2, h3" in limited.text
    assert len(controller.items("h1")["cluster/shop"]["document"]["spec"]["members"]) == 3
    rest = controller.quickstart(batch_to_db="allow")
    assert {host for host, _ in rest.changed} == {"h2", "h3"}
    assert len({digest for digest, _ in controller.digests().values()}) == 1


def test_an_inventory_host_that_is_no_member_is_refused_and_the_others_go_on(controller: Controller) -> None:
    h2 = controller.lab.host("h2")
    inventory = inventory_with(controller, stranger={"ansible_host": h2.address})
    documents = [item["document"] for item in controller.items("h1").values()]
    played = controller.play(
        tasks(("documents", {"cluster": "shop", "documents": documents})), inventory=inventory, ok=False
    ).of("documents")
    assert played["stranger"].outcome == "failed"
    # The address leads to a host that is h2 already, which is the nearer mistake.
    assert "this host is node h2, not stranger" in played["stranger"].message
    assert {played[name].outcome for name in HOSTS} == {"ok"}
    controller.clear()
    fresh = controller.play(
        tasks(("documents", {"documents": documents})), "--limit", "stranger", inventory=inventory, ok=False
    ).of("documents")
    assert "stranger is no member of cluster shop (members: h1, h2, h3)" in fresh["stranger"].message


def test_a_bad_document_file_is_refused_with_file_and_line_before_any_host_is_changed(
    controller: Controller, tmp_path: Path
) -> None:
    text = (QUICKSTART / "documents" / "policies.yml").read_text()
    line = text[: text.index("port: 80")].count("\n") + 1
    (tmp_path / "policies.yml").write_text(
        text.replace("port: 80", "port: eighty", 1).replace("selector", "selektor", 1)
    )
    arguments = {"cluster": "shop", "paths": [str(tmp_path)]}
    played = controller.play(tasks(("documents", arguments)), ok=False)
    for result in played.of("documents").values():
        assert f"{tmp_path}/policies.yml:{line}: must be a whole number" in result.message
        assert "unknown field selektor. Did you mean selector?" in result.message
        assert result.result["error"]["code"] == "Invalid"
    assert {hello["generation"] for hello in controller.hellos().values()} == {0}


def settings(lab: Lab) -> dict[str, str]:
    """The configuration of examples/quickstart-pulumi for this lab."""
    path = ROOT / "examples" / "quickstart-pulumi" / "configure.py"
    spec = importlib.util.spec_from_file_location("configure", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    values: dict[str, str] = module.settings(lab.describe())
    return values


def program(lab: Lab) -> dict[str, Any]:
    """The resources of examples/quickstart-pulumi with their configuration filled in."""
    whole = yaml.safe_load((ROOT / "examples" / "quickstart-pulumi" / "Pulumi.yaml").read_text())
    values: dict[str, Any] = {key: entry.get("default") for key, entry in whole["config"].items()}
    values.update(settings(lab))
    values["sshPort"] = int(values["sshPort"])

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: fill(item) for key, item in value.items()}
        if isinstance(value, list):
            return [fill(item) for item in value]
        if not isinstance(value, str):
            return value
        alone = re.fullmatch(r"\$\{(\w+)\}", value)
        if alone and alone.group(1) in values:
            return values[alone.group(1)]
        return re.sub(r"\$\{(\w+)\}", lambda m: str(values[m.group(1)]) if m.group(1) in values else m.group(), value)

    resources: dict[str, Any] = fill(whole["resources"])
    return resources


def test_declared_either_way_it_is_the_same_fleet_and_neither_deletes_the_others_documents(
    controller: Controller, tmp_path: Path
) -> None:
    controller.clear()
    stack = Stack(tmp_path / "stack", cli_folder())
    stack.resources = program(controller.lab)
    stack.up()
    by_pulumi = controller.digests()
    owners = {item["owner"] for item in controller.items("h1").values()}
    assert owners == {"pulumi:e2e/test"}

    # The playbook declares what the stack has, and deletes what it did not put: neither happens.
    refused = controller.quickstart(ok=False).of("documents")
    assert {result.outcome for result in refused.values()} == {"failed"}
    assert "belongs to pulumi:e2e/test, not to ansible:shop" in refused["h2"].message
    absent = tasks(("policy", {"cluster": "shop", "name": "api-from-web", "state": "absent"}))
    assert controller.play(absent, ok=False).of("policy")["h1"].result["error"]["details"]["refused"]
    cleared = controller.play(tasks(("agent", {"state": "absent"})), ok=False).of("agent")
    assert {result.result["error"]["code"] for result in cleared.values()} == {"NotOwner"}
    # A playbook's own document beside a stack's: pruning takes it alone.
    own = [{"kind": "policy", "name": "own", "spec": {"selector": {"role": "own"}, "egress": []}}]
    for documents in (own, []):
        played = controller.play(tasks(("documents", {"cluster": "shop", "documents": documents, "prune": True})))
        assert {host for host, _ in played.changed} == set(HOSTS)
    assert controller.digests() == by_pulumi

    controller.clear()
    controller.quickstart()
    elsewhere = controller.play(tasks(("agent", {"state": "absent", "cluster": "other"})), ok=False).of("agent")
    assert {result.result["error"]["code"] for result in elsewhere.values()} == {"NotOwner"}
    assert controller.digests() == by_pulumi, "the same documents, and the same NodeState on every node"

    # And the other way round.
    other = Stack(tmp_path / "other", cli_folder())
    other.resources = copy.deepcopy(stack.resources)
    run = other.up(ok=False)
    assert "belongs to ansible:shop, not to pulumi:e2e/test" in run.all_errors
    with Fleet() as fleet:
        targets = {name: controller.target(name) for name in HOSTS}
        outcomes = fleet.transact(targets, Changes(deletes=["policy/api-from-web"], owner="pulumi:e2e/test"))
    assert all(isinstance(outcome, Refused) and outcome.refusals for outcome in outcomes.values()), outcomes
    assert controller.digests() == by_pulumi


def colliding(cluster_id: int) -> tuple[dict[str, str], dict[str, str]]:
    """Two sets of labels whose first number is the same."""
    seen: dict[int, dict[str, str]] = {}
    for serial in range(10_000):
        labels = {"serial": str(serial)}
        first = next(candidates(cluster_id, labels))
        if first in seen:
            return seen[first], labels
        seen[first] = labels
    raise AssertionError("no two of 10,000 hashes of 16 bits are equal")


def test_colliding_labels_get_one_number_each_the_same_on_all_hosts(controller: Controller) -> None:
    theirs, ours = colliding(1)
    taken = next(candidates(1, theirs))
    item: wire.Item = {
        "document": {"kind": "identity", "name": "theirs", "spec": {"labels": theirs, "number": taken}},
        "owner": "test:other",
        "metadata": {},
    }
    with Fleet() as fleet:
        # Only one member has it yet, and it is not the first to be asked.
        outcomes = fleet.transact({"h3": controller.target("h3")}, Changes(puts=[item], owner="test:other"))
        assert isinstance(outcomes["h3"], Committed), outcomes
    put = tasks(("identity", {"cluster": "shop", "name": "ours", "labels": ours}))
    controller.play(put)
    numbers = {name: controller.items(name)["identity/ours"]["document"]["spec"]["number"] for name in HOSTS}
    assert len(set(numbers.values())) == 1 and numbers["h1"] != taken
    assert controller.play(put).changed == set(), "it keeps its number"
    with Fleet() as fleet:
        fleet.transact({"h3": controller.target("h3")}, Changes(deletes=["identity/theirs"], owner="test:other"))
    controller.quickstart()
    assert len({digest for digest, _ in controller.digests().values()}) == 1


def test_the_role_takes_everything_off_again(controller: Controller) -> None:
    removed = controller.play(QUICKSTART / "remove.yml", bpfleet_host_files=False)
    assert {host for host, _ in removed.changed} == set(HOSTS)
    for name in HOSTS:
        assert left_on(controller, name) == []
        links = json.loads(controller.lab.host(name).run(["ip", "-json", "link"]).stdout)
        assert not [link["ifname"] for link in links if link["ifname"].startswith("bpf")]
    assert controller.play(QUICKSTART / "remove.yml", bpfleet_host_files=False).changed == set()

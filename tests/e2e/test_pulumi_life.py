"""A stack's life, with the real CLI against real hosts. The tests are steps of one story and run in this order."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpfleet.agent.wire import Hello
from bpfleet.lab import Lab
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.outcome import Changes
from bpfleet.transport.target import Target
from tests.e2e.pulumi_stack import Stack, cli_folder, cluster, inside, node

pytestmark = [pytest.mark.root, pytest.mark.lab]


class Story:
    """The lab, the stack, and a way to ask the hosts past the provider."""

    def __init__(self, lab: Lab, stack: Stack) -> None:
        self.lab = lab
        self.stack = stack

    def target(self, name: str) -> Target:
        host = self.lab.host(name)
        return Target(name, host.address, private_key_file=str(self.lab.private_key), host_key=host.host_key)

    def hellos(self, *names: str) -> dict[str, Hello]:
        with Fleet() as fleet:
            return {name: fleet.install(self.target(name)) for name in names}

    def documents(self, name: str) -> dict[str, dict[str, Any]]:
        with Fleet() as fleet:
            items = fleet.call(self.target(name), "documents")["items"]
        return {f"{item['document']['kind']}/{item['document']['name']}": item for item in items}


def spec_of(item: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = item["document"]["spec"]
    return spec


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, needs_root: None) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("pulumi")
    with Lab.up(f"pulumi-{os.getpid()}", 4, 2, directory=folder / "lab", guarded=True) as lab:
        stack = Stack(folder / "stack", cli_folder())
        for name in ("h1", "h2", "h3"):
            stack.resources[name] = node(lab.host(name), lab.private_key)
        stack.resources["fleet"] = cluster("h1", "h2", "h3")
        stack.resources["web"] = inside("Identity", {"labels": {"role": "web"}})
        stack.resources["db"] = inside("Identity", {"labels": {"role": "db"}})
        for name, host, who in (("web-1", "h1", "web"), ("db-1", "h2", "db")):
            address = lab.host(host).workload_cidrs[0].replace("0/24", "10")
            stack.resources[name] = inside(
                "Endpoint", {"node": host, "identity": who, "addresses": [address], "attach": {"netns": "w1"}}
            )
        rule = {"peers": [{"labels": {"role": "web"}}], "ports": [{"protocol": "tcp", "port": 5432}]}
        stack.resources["db-from-web"] = inside("Policy", {"selector": {"role": "db"}, "ingress": [rule]})
        stack.resources["late"] = inside("Policy", {"selector": {"role": "wep"}, "egress": []})
        yield Story(lab, stack)


def writes(story: Story, *names: str) -> dict[str, int]:
    return {name: hello["writes"] for name, hello in story.hellos(*names).items()}


def test_up_provisions_the_hosts(story: Story) -> None:
    run = story.stack.up()
    assert set(run.ops.values()) == {"create"} and set(run.ops) == set(story.stack.resources)
    hellos = story.hellos("h1", "h2", "h3")
    assert {hello["cluster"] for hello in hellos.values()} == {"fleet"}
    assert {name: hello["node"] for name, hello in hellos.items()} == {"h1": "h1", "h2": "h2", "h3": "h3"}
    assert len({hello["documents_digest"] for hello in hellos.values()}) == 1
    documents = story.documents("h3")
    assert len(documents) == 3 + 1 + 2 + 2 + 2
    assert {item["owner"] for item in documents.values()} == {"pulumi:e2e/test"}
    state = story.stack.state()
    assert state["web"]["outputs"]["number"] == spec_of(documents["identity/web"])["number"]
    assert [state[name]["outputs"]["drift"] for name in story.stack.resources] == [[]] * len(story.stack.resources)
    assert (state["db-1"]["id"], state["h1"]["id"], state["fleet"]["id"]) == ("fleet/db-1", "h1", "fleet")


def test_a_selector_that_matches_nothing_warns_with_the_nearest_label(story: Story) -> None:
    story.stack.resources["late"]["properties"]["description"] = "changed"
    run = story.stack.up()
    assert run.ops == {"late": "update"}
    assert "role=wep" in run.warnings("late") and "role=web" in run.warnings("late")


def test_a_second_up_changes_and_writes_nothing(story: Story) -> None:
    before = writes(story, "h1", "h2", "h3")
    assert story.stack.up().ops == {}
    assert writes(story, "h1", "h2", "h3") == before


def test_a_fourth_node_is_a_change_of_itself_and_the_cluster_only(story: Story) -> None:
    story.stack.resources["h4"] = node(story.lab.host("h4"), story.lab.private_key, onDeleteUnreachable="forget")
    story.stack.resources["fleet"] = cluster("h1", "h2", "h3", "h4")
    assert story.stack.preview().ops == {"h4": "create", "fleet": "update"}
    # In the same update a policy changes and another goes.
    story.stack.resources["db-from-web"]["properties"]["ingress"][0]["ports"][0]["port"] = 3306
    del story.stack.resources["late"]
    run = story.stack.up()
    assert run.ops == {"h4": "create", "fleet": "update", "db-from-web": "update", "late": "delete"}
    hellos = story.hellos("h1", "h2", "h3", "h4")
    assert len({hello["documents_digest"] for hello in hellos.values()}) == 1, "the new member has the whole store"
    documents = story.documents("h4")
    assert "policy/late" not in documents
    assert spec_of(documents["policy/db-from-web"])["ingress"][0]["ports"] == [{"port": 3306, "protocol": "tcp"}]


def test_drift_is_shown_by_refresh_and_repaired_by_up(story: Story) -> None:
    story.lab.host("h3").run(["ip", "link", "del", "bpfleet_vxlan"])
    everywhere = {name: story.target(name) for name in ("h1", "h2", "h3", "h4")}
    with Fleet() as fleet:
        one = Changes(deletes=["policy/db-from-web"], owner="pulumi:e2e/test")
        fleet.transact({"h2": everywhere["h2"]}, one)
        fleet.transact(everywhere, Changes(deletes=["endpoint/web-1"], owner="pulumi:e2e/test"))
        # The transactions above repair what they meet on h2; h3's device is taken away again.
        story.lab.host("h3").run(["ip", "link", "del", "bpfleet_vxlan"], check=False)
    run = story.stack.refresh()
    assert (run.ops["h3"], run.ops["db-from-web"], run.ops["web-1"]) == ("update", "update", "delete")
    state = story.stack.state()
    assert any("bpfleet_vxlan" in line for line in state["h3"]["outputs"]["drift"])
    assert state["db-from-web"]["outputs"]["drift"] == ["h2 does not have it"]
    assert "web-1" not in state
    assert story.stack.up().ops == {"h3": "update", "db-from-web": "update", "web-1": "create"}
    story.lab.host("h3").run(["ip", "link", "show", "bpfleet_vxlan"])
    assert "policy/db-from-web" in story.documents("h2") and "endpoint/web-1" in story.documents("h4")
    story.stack.refresh()
    state = story.stack.state()
    assert [state[name]["outputs"]["drift"] for name in story.stack.resources] == [[]] * len(story.stack.resources)


def test_a_node_that_is_down_leaves_leaves_partially_created(story: Story) -> None:
    story.lab.host("h4").freeze()
    try:
        story.stack.resources["mail"] = inside("Identity", {"labels": {"role": "mail"}})
        del story.stack.resources["db-from-web"]["properties"]["ingress"][0]["ports"]
        run = story.stack.up("--continue-on-error", ok=False)
        assert run.ops == {"mail": "create", "db-from-web": "update"}
        assert "h4" in run.errors("mail") and "h4" in run.errors("db-from-web")
        state = story.stack.state()
        assert "h4" in state["mail"]["initErrors"][0] and state["mail"]["outputs"]["number"]
        assert "identity/mail" in story.documents("h1"), "the other nodes go on"
        refused = story.stack.refresh(ok=False)
        assert "h4" in refused.all_errors, "unreachable is an error that names the node"
        state = story.stack.state()
        assert "h4" in state and "h4" in state["mail"]["initErrors"][0], "and neither deleted nor finished"
    finally:
        story.lab.host("h4").thaw()
    run = story.stack.up()
    assert {"mail": "update", "db-from-web": "update"}.items() <= run.ops.items()
    assert "identity/mail" in story.documents("h4")
    assert not story.stack.state()["mail"].get("initErrors")


def test_deleting_an_identity_that_endpoints_use_warns(story: Story) -> None:
    web = story.stack.resources.pop("web")
    run = story.stack.up()
    assert run.ops == {"web": "delete"}
    assert "endpoint/web-1: waits: identity web has no document" in run.warnings("web")
    story.stack.resources["web"] = web
    run = story.stack.up()
    assert run.ops == {"web": "create"} and "waits" not in run.text


def test_deleting_a_cidr_group_that_policies_name_warns(story: Story) -> None:
    story.stack.resources["office"] = inside("CidrGroup", {"cidrs": ["203.0.113.0/24"]})
    rule = {"action": "deny", "peers": [{"cidrGroup": "office"}]}
    story.stack.resources["not-office"] = inside("Policy", {"selector": {"role": "db"}, "ingress": [rule]})
    story.stack.up()
    del story.stack.resources["office"]
    run = story.stack.up()
    assert run.ops == {"office": "delete"}
    said = "still in use: policy/not-office: waits: CIDR group office has no document yet: ingress[0].peers[0] denies"
    assert said in run.warnings("office")
    del story.stack.resources["not-office"]
    assert "waits" not in story.stack.up().text


def test_import_takes_a_document_over_again(story: Story, tmp_path: Path) -> None:
    host = story.lab.host("h2")
    known = tmp_path / "known_hosts"
    shutil.copy(story.lab.known_hosts, known)
    other = Stack(tmp_path / "other", cli_folder())
    where = f"{host.address}?privateKeyFile={story.lab.private_key}&knownHostsFile={known}"
    done = other.import_resource("Policy", "db-from-web", f"fleet/db-from-web@{where}")
    assert done.returncode == 0, done.stdout + done.stderr
    entry = other.state()["db-from-web"]
    assert entry["id"] == "fleet/db-from-web"
    assert entry["inputs"]["selector"] == {"role": "db"}
    assert sorted(entry["inputs"]["cluster"]["seeds"]) == ["h1", "h2", "h3"]
    done = other.import_resource("Node", "h2", f"h2@{where}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert other.state()["h2"]["inputs"]["ssh"] == story.stack.state()["h2"]["inputs"]["ssh"], "as it was declared"
    for name, identifier, says in (
        ("gone", f"fleet/gone@{where}", "does not exist"),
        ("bare", "fleet/db-from-web", "'fleet/db-from-web' says no host to ask"),
    ):
        refused = other.import_resource("Policy", name, identifier)
        assert refused.returncode != 0 and says in refused.stdout + refused.stderr
        assert name not in other.state()


def test_a_dead_node_can_be_taken_out(story: Story) -> None:
    story.lab.power_off("h4")
    del story.stack.resources["h4"]
    story.stack.resources["fleet"] = cluster("h1", "h2", "h3")
    run = story.stack.up()
    assert run.ops == {"fleet": "update", "h4": "delete"}
    assert "h4" in run.warnings("fleet") and "forgotten" in run.warnings("h4")
    assert "node/h4" not in story.documents("h1")
    assert story.hellos("h1")["h1"]["cluster"] == "fleet"


def test_destroy_leaves_the_hosts_clean(story: Story) -> None:
    run = story.stack.destroy()
    assert "still in use" not in run.text, "identities and the endpoints that use them go together"
    assert story.stack.state() == {}
    for name in ("h1", "h2", "h3"):
        host = story.lab.host(name)
        assert host.run(["ls", "/var/lib/bpfleet"], check=False).returncode != 0
        left = host.run(["sh", "-c", "ls /sys/fs/bpf; ip -o link"]).stdout
        assert "bpfleet" not in left and "bpf-" not in left, left

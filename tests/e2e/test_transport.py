"""The controller's side against lab hosts: the real agent delivered, asked and changed over SSH."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bpfleet.agent import wire
from bpfleet.cli.main import main
from bpfleet.errors import HostKeyMismatch, HostUnfit, TransactionFailed, Unreachable
from bpfleet.lab import Host, Lab
from bpfleet.model.document import parse_document
from bpfleet.transport.artefact import current
from bpfleet.transport.dial import Schedule
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.node import Timeouts
from bpfleet.transport.outcome import Changes, Committed, Refused, Unchanged, Unreached
from bpfleet.transport.target import Jump, Target
from tests.unit.transport_support import small_agent

pytestmark = [pytest.mark.root, pytest.mark.lab]

OWNER = "test:transport"
A = {"labels": {"app": "a"}, "number": 7 << 16 | 4711}


def target_of(lab: Lab, host: Host, host_key: str | None = None) -> Target:
    return Target(
        host.name, host.address, host.ssh_port, host.ssh_user, str(lab.private_key), host_key or host.host_key
    )


@pytest.fixture
def targets(lab: Lab) -> dict[str, Target]:
    return {name: target_of(lab, host) for name, host in lab.hosts.items()}


@pytest.fixture
def fleet(targets: dict[str, Target]) -> Iterator[Fleet]:
    with Fleet() as made:
        yield made
        for target in targets.values():
            hello = made.install(target)
            if hello["node"]:
                made.call(target, "wipe", {"node": hello["node"]})
            made.remove_agent(target)
            assert made.installed(target) is None


def item(kind: str, name: str, spec: dict[str, Any]) -> wire.Item:
    document = parse_document({"kind": kind, "name": name, "spec": spec}).to_json()
    return {"document": document, "owner": OWNER, "metadata": {}}


def node_item(host: Host) -> wire.Item:
    spec = {
        "address": host.address,
        "devices": [{"name": host.device}],
        "workload_cidrs": [str(cidr) for cidr in host.workload_cidrs],
    }
    return item("node", host.name, spec)


def cluster(lab: Lab) -> Changes:
    hosts = lab.hosts.values()
    spec = {"id": 7, "routing": {"mode": "vxlan"}, "members": sorted(host.name for host in hosts)}
    return Changes(puts=[*(node_item(host) for host in hosts), item("cluster", "prod", spec)], owner=OWNER)


def test_install_delivers_once_and_hello_says_who_is_there(targets: dict[str, Target], fleet: Fleet) -> None:
    assert fleet.each(targets.values(), fleet.installed) == dict.fromkeys(targets)
    hellos = fleet.each(targets.values(), fleet.install)
    for name, target in targets.items():
        hello = hellos[name]
        assert not isinstance(hello, Exception), hello
        assert hello["artefact"] == current().digest
        assert (hello["node"], hello["generation"], hello["pending"]) == (None, 0, None)
        assert fleet.counters(target).connections == 1
        assert fleet.counters(target).deliveries == 1
    with Fleet() as again:
        again.each(targets.values(), again.install)
        assert again.totals().deliveries == 0
        assert again.totals().bytes_sent < 1000


def test_a_cluster_is_committed_on_every_host_and_then_unchanged(
    lab: Lab, targets: dict[str, Target], fleet: Fleet
) -> None:
    outcomes = fleet.transact(targets, cluster(lab))
    assert {name: type(outcome) for name, outcome in outcomes.items()} == dict.fromkeys(targets, Committed), outcomes
    digests = {outcome.documents_digest for outcome in outcomes.values() if isinstance(outcome, Committed)}
    assert len(digests) == 1
    assert all(fleet.counters(target).connections == 2 for target in targets.values())
    writes = {name: fleet.call(target, "hello")["writes"] for name, target in targets.items()}
    with Fleet() as again:
        unchanged = again.transact(targets, cluster(lab))
        assert {name: type(outcome) for name, outcome in unchanged.items()} == dict.fromkeys(targets, Unchanged)
        assert all(again.counters(target).connections == 1 for target in targets.values())
        assert writes == {name: again.call(target, "hello")["writes"] for name, target in targets.items()}
    for name, target in targets.items():
        assert fleet.call(target, "hello")["node"] == name
        assert {entry["document"]["kind"] for entry in fleet.call(target, "documents")["items"]} == {"node", "cluster"}


def test_a_refused_document_changes_no_host(lab: Lab, targets: dict[str, Target], fleet: Fleet) -> None:
    bad = item("node", "h1", {"address": "192.0.2.1", "devices": [{"name": "eth0"}], "workload_cidrs": ["10.0.0.0/24"]})
    worse: dict[str, Any] = {**bad, "document": {**bad["document"], "spec": {"addres": "192.0.2.1"}}}
    outcomes = fleet.transact(targets, Changes(puts=[worse], owner=OWNER))  # type: ignore[list-item]
    assert all(isinstance(outcome, Refused) for outcome in outcomes.values()), outcomes
    assert all(fleet.call(target, "hello")["generation"] == 0 for target in targets.values())


def test_another_hosts_key_is_refused(lab: Lab, targets: dict[str, Target], fleet: Fleet) -> None:
    with pytest.raises(HostKeyMismatch):
        fleet.install(replace(targets["h1"], host_key=lab.hosts["h2"].host_key))


def test_a_host_that_is_off_does_not_stop_the_others(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(nodes=2, workloads=0)
    targets = {name: target_of(lab, host) for name, host in lab.hosts.items()}
    lab.power_off("h1")
    with Fleet(schedule=Schedule(attempts=2, seconds=4.0)) as fleet:
        outcomes = fleet.transact(targets, cluster(lab))
        assert isinstance(outcomes["h1"], Unreached)
        assert isinstance(outcomes["h2"], Committed), outcomes["h2"]
    lab.reboot("h1")
    with Fleet() as fleet:
        again = fleet.transact(targets, cluster(lab))
        assert isinstance(again["h1"], Committed), again["h1"]
        assert isinstance(again["h2"], Unchanged)


def test_a_member_that_is_away_keeps_no_question_waiting(
    make_lab: Callable[..., Lab], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither one that is off, nor one that is frozen, to which connections are made all the same. One that was emptied
    does not answer for the others."""
    lab = make_lab(nodes=4, workloads=0)
    with Fleet() as fleet:
        outcomes = fleet.transact({name: target_of(lab, host) for name, host in lab.hosts.items()}, cluster(lab))
        assert all(isinstance(outcome, Committed) for outcome in outcomes.values())
        fleet.call(target_of(lab, lab.hosts["h3"]), "wipe", {"node": "h3"})
    lab.power_off("h1")
    lab.hosts["h2"].freeze()
    known = tmp_path / "known"
    known.write_text("".join(f"{host.address} {host.host_key}\n" for host in lab.hosts.values()))
    keys = ["--identity-file", str(lab.private_key), "--known-hosts", str(known)]
    seeds = [word for host in lab.hosts.values() for word in ("--seed", host.address)]
    try:
        for where in (["--lab", lab.name], [*seeds, *keys]):
            began = time.monotonic()
            assert main(["explain", *where, "--from", "h1", "--to", "world", "--port", "80/tcp"]) == 0
            assert time.monotonic() - began < 12, where
            assert "allowed" in capsys.readouterr().out
        asked = ["observe", "--lab", lab.name, "--node", "h4", "--from", "h1", "--last", "0"]
        assert main(asked) == 0
        assert not capsys.readouterr().err, "h1 is known"
    finally:
        lab.hosts["h2"].thaw()


def test_who_asks_puts_nothing_on_a_host(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    about = ["--from", "h1", "--to", "world", "--port", "80"]
    for command in (["observe"], ["observe", "-f"], ["observe", "--history", "--from", "h1"], ["explain", *about]):
        assert main([*command, "--lab", lab.name]) == 1
        assert "node h1: holds nothing of bpfleet" in capsys.readouterr().err
    for command in (["status"], ["repair", "--check"]):
        main([*command, "--lab", lab.name, "-o", "json"])
        told = json.loads(capsys.readouterr().out)
        assert set(told.get("nodes", told)) == set(lab.hosts)
    for host in lab.hosts.values():
        assert host.run(["ls", "-A", "/var/lib/bpfleet"], check=False).stdout == ""


def test_a_frozen_host_is_unreachable(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(nodes=1, workloads=0)
    target = target_of(lab, lab.hosts["h1"])
    timeouts = Timeouts(by_method={"status": 1.0})
    with Fleet(schedule=Schedule(attempts=2, seconds=4.0), timeouts=timeouts) as fleet:
        fleet.install(target)
        lab.hosts["h1"].freeze()
        try:
            with pytest.raises(Unreachable):
                fleet.call(target, "status")
        finally:
            lab.hosts["h1"].thaw()
        assert fleet.call(target, "hello")["generation"] == 0


JUMP_NODES = 20


def test_twenty_hosts_behind_one_jump_host_with_sshds_usual_limits(make_lab: Callable[..., Lab]) -> None:
    """The hosts' sshds and the jump host's take 10 sessions a connection and drop logins from the tenth on."""
    lab = make_lab(nodes=JUMP_NODES + 1, workloads=0)
    *nodes, bastion = lab.hosts.values()
    limits = "MaxSessions 10\nMaxStartups 10:30:60\nAllowTcpForwarding yes\n"
    bastion.run(["sh", "-c", f"printf '{limits}' >>/etc/ssh/sshd_config && kill -HUP $(cat /run/sshd.pid)"])
    jump = Jump(bastion.address, bastion.ssh_port, bastion.ssh_user, str(lab.private_key), bastion.host_key)
    targets = {host.name: replace(target_of(lab, host), jump=jump) for host in nodes}
    document: Any = {"kind": "policy", "name": "a", "spec": {}}
    changes = Changes([{"document": document, "owner": OWNER, "metadata": {}}], owner=OWNER)
    with Fleet(artefact=small_agent()) as fleet:
        outcomes = fleet.transact(targets, changes)
        assert {type(outcome) for outcome in outcomes.values()} == {Committed}, outcomes
        assert {fleet.counters(target).connections for target in targets.values()} == {2}
        logins = bastion.run(["grep", "-c", "Accepted publickey", "/var/log/sshd.log"]).stdout
        assert int(logins) == 1
        for node in nodes:
            # As the node's own sshd saw it: from the jump host, twice.
            seen = node.run(["grep", "Accepted publickey", "/var/log/sshd.log"]).stdout.splitlines()
            assert len(seen) == 2
            assert all(f"from {bastion.address} " in line for line in seen)


needs_sudo = pytest.mark.skipif(shutil.which("sudo") is None, reason="sudo is not installed here, so on no lab host")


def add_user(host: Host, name: str) -> None:
    """A user who may log in as root may."""
    home = f"~{name}/.ssh"
    script = (
        f"useradd -m -p '*' {name} && mkdir {home} && cp /root/.ssh/authorized_keys {home}/ && chown -R {name}: {home}"
    )
    host.run(["sh", "-c", script])


@needs_sudo
def test_a_seed_is_asked_as_a_user_with_sudo_through_a_jump_host(
    make_lab: Callable[..., Lab], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = make_lab(nodes=2, workloads=0)
    node, bastion = lab.hosts.values()
    add_user(node, "op")
    add_user(bastion, "hop")
    node.run(["sh", "-c", "echo 'op ALL=(root) NOPASSWD: ALL' >/etc/sudoers.d/op"])
    bastion.run(["sh", "-c", "echo 'AllowTcpForwarding yes' >>/etc/ssh/sshd_config && kill -HUP $(cat /run/sshd.pid)"])
    (tmp_path / "known").write_text("".join(f"{host.address} {host.host_key}\n" for host in (node, bastion)))
    keys = ["--identity-file", str(lab.private_key), "--known-hosts", str(tmp_path / "known")]
    seed = f"op@{node.address}"
    assert main(["status", "--seed", seed, "--jump", f"hop@{bastion.address}:22", *keys]) == 2
    assert f"node {seed}: holds nothing of bpfleet" in capsys.readouterr().err
    assert node.run(["ls", "-A", "/var/lib/bpfleet"], check=False).stdout == "", "who only asks puts nothing there"
    assert "Accepted publickey for hop" in bastion.run(["cat", "/var/log/sshd.log"]).stdout
    logins = node.run(["grep", "Accepted publickey for", "/var/log/sshd.log"]).stdout.splitlines()
    assert logins and all(f"for op from {bastion.address} " in line for line in logins)


@needs_sudo
class TestSudo:
    @pytest.fixture
    def target(self, make_lab: Callable[..., Lab]) -> Target:
        """A host whose user `op` may log in, and may not yet use sudo."""
        lab = make_lab(nodes=1, workloads=0)
        host = lab.hosts["h1"]
        add_user(host, "op")
        self.host = host
        self.lab = lab
        return replace(target_of(lab, host), user="op", sudo=True)

    def allow(self, rule: str) -> None:
        self.host.run(["sh", "-c", f"printf '%s\\n' '{rule}' >/etc/sudoers.d/op && chmod 440 /etc/sudoers.d/op"])

    def test_a_change_by_another_user_is_made_and_confirmed(self, target: Target) -> None:
        with Fleet() as fleet:
            with pytest.raises(HostUnfit, match="sudo wants a password of op") as caught:
                fleet.install(target)
            assert "op ALL=(root) NOPASSWD: ALL" in caught.value.remedy
            assert fleet.counters(target).deliveries == 0
            self.allow("op ALL=(root) ALL")
            with pytest.raises(HostUnfit, match="sudo wants a password of op"):
                fleet.install(target)
            self.allow("op ALL=(root) NOPASSWD: ALL")
            outcomes = fleet.transact({"h1": target}, cluster(self.lab))
            assert isinstance(outcomes["h1"], Committed), outcomes
            assert fleet.call(target, "hello")["node"] == "h1"
            # The agent looks for the connection's sshd above sudo: a confirmation over the old one does not count.
            staged = fleet.call(target, "stage", {"node": "h1", "puts": [item("identity", "a", A)], "owner": OWNER})
            fleet.call(target, "apply", {"transaction": staged["transaction"]})
            with pytest.raises(TransactionFailed, match="made before the change"):
                fleet.call(target, "confirm", {"transaction": staged["transaction"]})
            fleet.call(target, "rollback")
            fleet.call(target, "wipe", {"node": "h1"})
            fleet.remove_agent(target)
            assert fleet.installed(target) is None

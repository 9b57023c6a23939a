"""The agent behind a real sshd: which connections are new, and what the command line shows of a lab."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bpfleet.agent.install import install_command, launch_command
from bpfleet.cli.main import main
from bpfleet.errors import TransactionFailed
from bpfleet.lab import Lab
from bpfleet.transport.artefact import current
from tests.agent.conftest import Connection, items
from tests.fleet import document

pytestmark = [pytest.mark.root, pytest.mark.lab]


def _documents(host: dict[str, Any]) -> list[dict[str, Any]]:
    node = document(
        "node",
        "h1",
        address=host["address"],
        devices=[{"name": host["device"]}],
        workload_cidrs=host["workload_cidrs"],
    )
    cluster = document("cluster", "fleet", id=1, members=["h1"])
    found = items([cluster, node], "test")
    found[1]["metadata"] = {"ssh": host["ssh"]}
    return found


def test_a_multiplexed_connection_is_not_a_new_one(make_lab: Any, tmp_path: Path, capsys: Any) -> None:
    lab: Lab = make_lab(nodes=1, workloads=1)
    folder = next(tmp_path.rglob("lab.json")).parent
    description = json.loads((folder / "lab.json").read_text())
    host = description["hosts"]["h1"]
    made = current()
    ssh = ["ssh", "-F", str(folder / "ssh_config")]
    # What Ansible's ControlPersist does: several sessions over one TCP connection. The path of a socket is short.
    shared = ["-o", "ControlMaster=auto", "-o", f"ControlPath=/tmp/bpfleet-{lab.name}-%C", "-o", "ControlPersist=60"]
    subprocess.run([*ssh, "h1", install_command(made.digest)], input=made.data, stdout=subprocess.DEVNULL, check=True)
    launch = launch_command(made.digest)
    first = Connection([*ssh, *shared, "h1", launch])
    second = Connection([*ssh, *shared, "h1", launch])
    third = Connection([*ssh, "h1", launch])
    try:
        third.call("hello")
        staged = first.call("stage", node="h1", owner="test", puts=_documents(host))
        transaction = staged["transaction"]
        first.call("apply", transaction=transaction)
        late = Connection([*ssh, *shared, "h1", launch])
        for old in (first, second, third, late):
            with pytest.raises(TransactionFailed, match="made before the change"):
                old.call("confirm", transaction=transaction)
        late.close()
        new = Connection([*ssh, "h1", launch])
        assert new.call("confirm", transaction=transaction)["generation"] == 1
        new.close()
    finally:
        for connection in (first, second, third):
            connection.close()
        subprocess.run([*ssh, *shared, "-O", "exit", "h1"], stderr=subprocess.DEVNULL, check=False)

    seed = [
        "--seed",
        f"root@{host['address']}",
        "--identity-file",
        host["ssh"]["private_key_file"],
        "--known-hosts",
        description["known_hosts"],
    ]
    for where in (["--lab", lab.name], seed):
        capsys.readouterr()
        assert main(["status", *where, "-o", "json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["healthy"], report["nodes"]["h1"]["generation"]) == (True, 1)
        assert main(["observe", *where, "-o", "json", "--verdict", "denied"]) == 0
        assert capsys.readouterr().out == ""
        assert main(["observe", *where, "--history", "-o", "json", "--not", "--verdict", "dropped"]) == 0
        *flows, rest = map(json.loads, capsys.readouterr().out.splitlines())
        assert flows == []  # nobody was there to talk
        assert (rest["node"], rest["did_not_fit"]["passed"]["packets"]) == ("h1", 0)
        assert main(["observe", *where, "--from", "h-1", "--policy", "gone"]) == 0
        said = capsys.readouterr().err
        assert "did you mean h1?" in said and "there is no policy gone" in said
    # Nothing says where the nodes are.
    assert main(["status"]) == 2
    assert "--seed" in capsys.readouterr().err

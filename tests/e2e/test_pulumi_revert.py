"""An update after which a host takes no new connection: it is reported, the host goes back, the next up works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bpfleet.agent import wire
from bpfleet.lab import Host, Lab
from tests.e2e.cut import cut, mended
from tests.e2e.pulumi_stack import Stack, cli_folder, cluster, inside, node

pytestmark = [pytest.mark.root, pytest.mark.lab]


def journal(host: Host) -> dict[str, Any]:
    """Read past SSH and past any agent."""
    found: dict[str, Any] = json.loads(host.run(["cat", f"{wire.STATE_ROOT}/journal.json"]).stdout)
    return found


def test_an_update_that_cuts_new_connections_is_put_back(make_lab: Any, tmp_path: Path) -> None:
    lab: Lab = make_lab(nodes=1, workloads=1)
    host = lab.hosts["h1"]
    stack = Stack(tmp_path / "stack", cli_folder())
    stack.resources["h1"] = node(host, lab.private_key)
    stack.resources["fleet"] = cluster("h1")
    stack.resources["web"] = inside("Identity", {"labels": {"app": "web"}})
    stack.up()
    before = journal(host)
    stack.resources["closed"] = inside("Policy", {"selector": {"app": "web"}, "ingress": []})
    with mended(host):
        # The update's connection begins; the one that should confirm it does not.
        cut(host, tmp_path, allowed=1)
        run = stack.up(ok=False)
        after = journal(host)
    assert "node h1, resource policy/closed: the change was put back" in run.errors("closed")
    assert "is not reachable" in run.errors("closed")
    assert "keeps new SSH connections from the host" in run.errors("closed")
    assert after["confirmed"] == before["confirmed"]
    assert after["transaction"] is None
    (entry,) = [entry for entry in after["entries"] if entry not in before["entries"] and entry["event"] != "applied"]
    assert entry["event"] == "rolled back"
    # Reachable again, the same program goes through.
    assert stack.up().ops == {"closed": "create"}
    assert journal(host)["confirmed"]["generation"] == before["confirmed"]["generation"] + 1
    assert stack.up().ops == {}

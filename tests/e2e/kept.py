"""What hosts keep of what they ever confirmed, read past agents and controllers."""

from __future__ import annotations

import json
from collections import defaultdict

from bpfleet.agent import wire
from bpfleet.lab import Host, Lab
from bpfleet.model.document import canonical_json


def generations(host: Host) -> list[dict[int, str]]:
    """Labels by identity number in every generation that a host keeps, the latest last."""
    script = f"cd {wire.STATE_ROOT}/generations && for each in $(ls | sort -n); do cat $each; echo; done"
    found = []
    for line in filter(None, host.run(["sh", "-c", script]).stdout.splitlines()):
        items = json.loads(line)["items"]
        specs = [item["document"]["spec"] for item in items if item["document"]["kind"] == "identity"]
        found.append({spec["number"]: canonical_json(spec["labels"]) for spec in specs})
        assert len(found[-1]) == len(specs), f"{host.name} uses a number for two"
    return found


def meanings(lab: Lab) -> dict[int, set[str]]:
    """Every meaning that any host ever confirmed for a number."""
    found: dict[int, set[str]] = defaultdict(set)
    for host in lab.hosts.values():
        for generation in generations(host):
            for number, labels in generation.items():
                found[number].add(labels)
    return found

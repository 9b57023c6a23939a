#!/usr/bin/env python3
"""Set this stack's configuration from a lab: configure.py [LAB_JSON] (default: .lab/lab.json of the checkout).

The stack must exist (`pulumi stack init`) and `pulumi` must be on PATH. What is set is printed.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

HERE = Path(__file__).resolve().parent


def settings(lab: Dict[str, Any]) -> Dict[str, str]:
    """Configuration keys and values for the first three hosts of a lab."""
    hosts = [lab["hosts"][name] for name in ("h1", "h2", "h3")]
    values = {
        "privateKeyFile": hosts[0]["ssh"]["private_key_file"],
        "sshPort": str(hosts[0]["ssh"]["port"]),
        "device": hosts[0]["device"],
    }
    for host in hosts:
        networks = [ipaddress.ip_network(cidr) for cidr in host["workload_cidrs"]]
        four = next(str(network.network_address) for network in networks if network.version == 4)
        six = next(str(network.network_address) for network in networks if network.version == 6)
        values[f"{host['name']}Address"] = host["address"]
        values[f"{host['name']}HostKey"] = host["ssh"]["host_key"]
        values[f"{host['name']}Prefix"] = four.rsplit(".", 1)[0]
        values[f"{host['name']}Prefix6"] = six.removesuffix("::")
    return values


def main() -> int:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent.parent / ".lab" / "lab.json"
    values = settings(json.loads(path.read_text(encoding="utf-8")))
    pairs = [argument for key, value in values.items() for argument in ("--plaintext", f"{key}={value}")]
    subprocess.run(["pulumi", "config", "set-all", *pairs], cwd=HERE, check=True)
    for key, value in values.items():
        print(f"{key} = {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

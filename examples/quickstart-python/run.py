#!/usr/bin/env python3
"""Preview, bring up or destroy the shop of shop.py, by Pulumi's automation API.

The hosts are those of a lab (`bpfleet lab up --nodes 3 --workloads 2`), or your own in a file of the same form; see
README.md. `pulumi` must be on PATH. PULUMI_BACKEND_URL says where the state is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pulumi_bpfleet as bpfleet
from pulumi import automation
from shop import Host, declare

HERE = Path(__file__).resolve().parent
LAB = HERE.parent.parent / ".lab" / "lab.json"


def hosts_of(file: Path) -> dict[str, Host]:
    """The hosts that a lab.json, or a file of its form, describes."""
    hosts = {}
    for name, host in json.loads(file.read_text(encoding="utf-8"))["hosts"].items():
        ssh = host["ssh"]
        hosts[name] = Host(
            name,
            host["address"],
            host["device"],
            host["workload_cidrs"],
            bpfleet.SshArgs(port=ssh["port"], private_key_file=ssh["private_key_file"], host_key=ssh["host_key"]),
        )
    return hosts


def stack_of(name: str, hosts: Mapping[str, Host], batch_to_db: str) -> automation.Stack:
    """The stack, made if it is not there. Its project settings are Pulumi.yaml's."""
    return automation.create_or_select_stack(
        name,
        project_name="quickstart-python",
        program=partial(declare, hosts, batch_to_db),
        opts=automation.LocalWorkspaceOptions(work_dir=str(HERE)),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("preview", "up", "destroy"))
    parser.add_argument(
        "--hosts", type=Path, default=LAB, metavar="FILE", help="lab.json or a file of its form (%(default)s)"
    )
    parser.add_argument("--stack", default="lab", metavar="NAME", help="(%(default)s)")
    parser.add_argument("--batch-to-db", choices=("deny", "allow"), default="deny", help="(%(default)s)")
    arguments = parser.parse_args()
    if not arguments.hosts.is_file():
        parser.error(f"there is no {arguments.hosts}: bring up a lab, or name your own hosts with --hosts (README.md)")
    stack = stack_of(arguments.stack, hosts_of(arguments.hosts), arguments.batch_to_db)
    try:
        if arguments.command == "preview":
            stack.preview(on_output=print)
        elif arguments.command == "up":
            stack.up(on_output=print, suppress_progress=True)
        else:
            stack.destroy(on_output=print, suppress_progress=True)
    except automation.CommandError:
        return 1  # Pulumi has said why
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a lab writes for its users: SSH keys and ssh_config, Ansible's inventory.yml, lab.json."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

from bpfleet.lab import machine, network, state
from bpfleet.lab.plan import DEFAULT_NAME, UNDERLAY_DEVICE, WORLD_ADDRESSES, LabPlan

_FILES = ("ssh_config", "known_hosts", "inventory.yml", "lab.json", "id_ed25519", "id_ed25519.pub")
SCRATCH = "scratch"


def directory_of(base: Path, name: str) -> Path:
    """The default lab's files lie in `base` itself, another's in a folder of its name."""
    base = base.absolute()
    return base if name == DEFAULT_NAME else base / name


def make_keys(plan: LabPlan, keep: int) -> None:
    """The controller's key pair and every host's, in the lab's record."""
    folder = state.folder(plan.name)
    (folder / "host_keys").mkdir(mode=0o700)
    pairs = {f"bpfleet lab {plan.name}": folder / "id_ed25519"}
    pairs.update({host.name: folder / "host_keys" / host.name for host in plan.hosts})
    for comment, path in pairs.items():
        machine.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)], keep=(keep,))


def host_key(name: str, host: str) -> str:
    """A host's public key as recorded, "ssh-ed25519 AAAA..."."""
    text = (state.folder(name) / "host_keys" / f"{host}.pub").read_text()
    return " ".join(text.split()[:2])


def write(plan: LabPlan) -> None:
    """Write the lab's files (again)."""
    folder = plan.directory
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SCRATCH).mkdir(exist_ok=True)
    for key in ("id_ed25519", "id_ed25519.pub"):
        shutil.copy2(state.folder(plan.name) / key, folder / key)
    (folder / "known_hosts").write_text(_known_hosts(plan))
    (folder / "ssh_config").write_text(_ssh_config(plan))
    (folder / "inventory.yml").write_text(_inventory(plan))
    (folder / "lab.json").write_text(json.dumps(describe(plan), indent=2) + "\n")


def remove(plan: LabPlan) -> None:
    """Remove what `write` wrote, the scratch folder with all in it, and folders that are empty then."""
    for name in _FILES:
        (plan.directory / name).unlink(missing_ok=True)
    if (plan.directory / SCRATCH).exists():
        shutil.rmtree(plan.directory / SCRATCH)
    folders = [plan.directory] if plan.name == DEFAULT_NAME else [plan.directory, plan.directory.parent]
    for folder in folders:
        # Not empty: somebody else's files, or other labs. The parent may be the caller's own temporary folder.
        if folder.name == ".lab" or folder == plan.directory:
            with contextlib.suppress(OSError):
                folder.rmdir()


def describe(plan: LabPlan) -> dict[str, Any]:
    """The content of lab.json."""
    private_key = str(plan.directory / "id_ed25519")
    return {
        "name": plan.name,
        "number": plan.number,
        "nodes": plan.shape.nodes,
        "workloads": plan.shape.workloads,
        "mtu": plan.shape.mtu,
        "directory": str(plan.directory),
        "scratch": str(plan.directory / SCRATCH),
        "ssh_config": str(plan.directory / "ssh_config"),
        "known_hosts": str(plan.directory / "known_hosts"),
        "inventory": str(plan.directory / "inventory.yml"),
        "controller": {
            "device": plan.link,
            "address": plan.controller_addresses[0],
            "address6": plan.controller_addresses[1],
        },
        "world": {
            "netns": str(network.switch_path(plan.name)),
            "bridge": network.BRIDGE,
            "address": WORLD_ADDRESSES[0],
            "address6": WORLD_ADDRESSES[1],
            "gateway": plan.gateway_addresses[0],
            "gateway6": plan.gateway_addresses[1],
        },
        "hosts": {
            host.name: {
                "name": host.name,
                "address": host.address,
                "address6": host.address6,
                "device": UNDERLAY_DEVICE,
                "mtu": plan.shape.mtu,
                "workloads": list(host.workloads),
                "workload_cidrs": list(host.workload_cidrs),
                "ssh": {
                    "host": host.address,
                    "port": 22,
                    "user": "root",
                    "private_key_file": private_key,
                    "host_key": host_key(plan.name, host.name),
                },
            }
            for host in plan.hosts
        },
    }


def _known_hosts(plan: LabPlan) -> str:
    return "".join(
        f"{host.name},{host.address},{host.address6} {host_key(plan.name, host.name)}\n" for host in plan.hosts
    )


def _ssh_config(plan: LabPlan) -> str:
    blocks = [f"# ssh -F {plan.directory}/ssh_config h1\n"]
    for host in plan.hosts:
        blocks.append(f"Host {host.name} {host.address}\n    HostName {host.address}\n")
    blocks.append(
        "Host *\n"
        "    User root\n"
        "    Port 22\n"
        f'    IdentityFile "{plan.directory}/id_ed25519"\n'
        "    IdentitiesOnly yes\n"
        "    IdentityAgent none\n"
        f'    UserKnownHostsFile "{plan.directory}/known_hosts"\n'
        "    GlobalKnownHostsFile /dev/null\n"
        "    StrictHostKeyChecking yes\n"
        "    UpdateHostKeys no\n"
        "    ConnectTimeout 10\n"
    )
    return "\n".join(blocks)


def _inventory(plan: LabPlan) -> str:
    """YAML, its scalars quoted as JSON strings (which YAML takes)."""
    text = json.dumps
    known = f"-o UserKnownHostsFile='{plan.directory}/known_hosts' -o GlobalKnownHostsFile=/dev/null"
    lines = [
        "# Written by bpfleet lab up; removed by bpfleet lab down.",
        "all:",
        "  vars:",
        "    ansible_user: root",
        "    ansible_port: 22",
        f"    ansible_ssh_private_key_file: {text(str(plan.directory / 'id_ed25519'))}",
        f"    ansible_ssh_common_args: {text(known + ' -o StrictHostKeyChecking=yes -o IdentityAgent=none')}",
        "    ansible_python_interpreter: /usr/bin/python3",
        "  children:",
        "    lab:",
        "      hosts:",
    ]
    for host in plan.hosts:
        lines += [
            f"        {host.name}:",
            f"          ansible_host: {host.address}",
            f"          underlay_address: {host.address}",
            f"          underlay_address6: {text(host.address6)}",
            f"          underlay_device: {UNDERLAY_DEVICE}",
            f"          workloads: {text(list(host.workloads))}",
            f"          workload_cidrs: {text(list(host.workload_cidrs))}",
        ]
    return "\n".join(lines) + "\n"

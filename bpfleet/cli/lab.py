"""`bpfleet lab up|exec|reboot|down`: hosts in namespaces of this machine."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from bpfleet.lab import Lab


def register(subparsers: Any) -> None:
    """Add `lab` and its commands."""
    lab = subparsers.add_parser(
        "lab",
        help="hosts in namespaces of this machine, to try things on",
        description="Real hosts in namespaces of this machine: own sshd, files, bpffs, cgroup. Needs root.",
    )
    commands = lab.add_subparsers(title="commands", metavar="COMMAND", required=True)
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--name", default="default", help="which lab, if there are several (%(default)s)")

    up = commands.add_parser("up", parents=[named], help="bring a lab up", description=_up.__doc__)
    up.add_argument("--nodes", type=int, default=3, metavar="N", help="hosts h1..hN (%(default)s)")
    up.add_argument(
        "--workloads", type=int, default=2, metavar="M", help="bare network namespaces w1..wM a host (%(default)s)"
    )
    up.add_argument("--mtu", type=int, default=1500, help="the underlay's MTU in bytes (%(default)s)")
    up.add_argument("--directory", type=Path, default=Path(".lab"), help="where its files are written (%(default)s)")
    up.add_argument("--json", action="store_true", help="print lab.json instead of a table")
    up.set_defaults(run=_up)

    enter = commands.add_parser(
        "exec",
        parents=[named],
        usage="bpfleet lab exec [-h] [--name NAME] [--workload W] HOST -- CMD [ARG ...]",
        help="run a command on a host",
        description=_exec.__doc__,
    )
    enter.add_argument("host", metavar="HOST")
    enter.add_argument("--workload", metavar="W", help="in this workload's network namespace")
    enter.add_argument("command", nargs="+", metavar="CMD", help="the command and its arguments")
    enter.set_defaults(run=_exec)

    reboot = commands.add_parser("reboot", parents=[named], help="reboot a host", description=_reboot.__doc__)
    reboot.add_argument("host", metavar="HOST")
    reboot.set_defaults(run=_reboot)

    down = commands.add_parser("down", parents=[named], help="remove a lab", description=_down.__doc__)
    down.set_defaults(run=_down)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _up(options: argparse.Namespace) -> int:
    """Bring up N hosts with M workload namespaces each; with the same shape again it changes nothing."""
    from bpfleet.lab import Lab

    signal.signal(signal.SIGTERM, _terminated)  # so that what was built is removed again
    began = time.monotonic()
    lab = Lab.up(
        options.name,
        options.nodes,
        options.workloads,
        mtu=options.mtu,
        directory=options.directory,
        progress=_say,
    )
    if not lab.created:
        _say(f"lab {lab.name} is already up with {lab.plan.shape}")
    else:
        _say(f"up after {time.monotonic() - began:.1f} s")
    if options.json:
        print(json.dumps(lab.describe(), indent=2))
    else:
        _table(lab)
    return 0


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _table(lab: Lab) -> None:
    rows = [("HOST", "ADDRESS", "ADDRESS6", "WORKLOADS", "WORKLOAD CIDRS")]
    for host in lab.hosts.values():
        workloads = f"{host.workloads[0]}..{host.workloads[-1]}" if host.workloads else "-"
        rows.append((host.name, host.address, host.address6, workloads, ", ".join(host.workload_cidrs)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    named = "" if lab.name == "default" else f" --name {lab.name}"
    print(f"\nssh -F {os.path.relpath(lab.ssh_config)} h1")
    print(f"bpfleet lab exec h1{named} -- ip address")
    print(f"bpfleet lab down{named}")


def _exec(options: argparse.Namespace) -> int:
    """Run a command on a host, in all its namespaces and its cgroup; the exit code is the command's."""
    from bpfleet.lab import Lab, hosts

    lab = Lab.attach(options.name)
    command = lab.host(options.host).enter_command(options.command, options.workload)
    sys.stdout.flush()
    os.execve(command[0], command, hosts.environment())


def _reboot(options: argparse.Namespace) -> int:
    """Drop what a reboot drops (processes, /run, bpffs, devices), keep the disk, start again, run the boot hook."""
    from bpfleet.lab import Lab

    boot = Lab.attach(options.name).reboot(options.host)
    outcome = {None: "no boot hook", 0: "boot hook done"}.get(boot, f"boot hook failed with {boot}")
    _say(f"{options.host} is up again ({outcome})")
    if boot:
        _say(f"see /var/log/boot.log on {options.host}")
    return 1 if boot else 0


def _down(options: argparse.Namespace) -> int:
    """Remove a lab and everything of it, also what a killed `lab up` left."""
    from bpfleet.lab.lab import take_down

    existed = take_down(options.name)
    _say(f"lab {options.name} is removed" if existed else f"lab {options.name} is not up")
    return 0

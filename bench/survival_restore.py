"""How long after `lab reboot` what was confirmed is in force again: from the start of the boot hook to its end.

A reboot takes a host's network namespaces with it, and whoever runs workloads makes them again: here, the hook that
the lab runs is wrapped, so that first all namespaces are there, and then the time of the real hook is taken. Once with
100 endpoints on the host and 900 elsewhere in its cluster, once with 200 on the host and none elsewhere. Not with 1,000
on the host: to take 1,000 namespaces down, the kernel keeps everybody from the devices for longer than a lab's reboot
waits.

    python -m bench.survival_restore
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import List

from bench.report import Measurement, table
from bench.survival_fleet import CLUSTER, Documents, change, document, host_target, identity, node
from bpfleet.agent.wire import STATE_ROOT
from bpfleet.lab import Host, Lab
from bpfleet.loader.pins import DEFAULT
from bpfleet.model.state import DEVICE_PREFIX
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.node import Timeouts

ENDPOINTS, LOCAL, MANY, POLICIES, SERVICES, IDENTITIES = 1_000, 100, 200, 100, 100, 50
APPLY_SECONDS = 290.0
BOOT_SECONDS = 600.0
TOOK = "/root/took"

_NAMESPACES = "seq -f 'netns add e%.0f' 1 {count} | ip -batch -"
# In the background, as a unit would be: the lab ends a hook that takes minutes.
_HOOK = """#!/bin/sh
{namespaces}
(
    began=$(date +%s.%N)
    {root}/boot.real
    code=$?
    echo "$began $(date +%s.%N) $code" >{took}.new
    mv {took}.new {took}
) &
"""


def measure() -> List[Measurement]:
    """restore_1k_seconds and, beside it, restore_200_here_seconds."""
    some = reboot(ENDPOINTS, LOCAL)
    load = os.getloadavg()[0]
    many = reboot(MANY, MANY)
    rest = f"{POLICIES} policies, no services; from the start of the boot hook to its end, the namespaces being there"
    return [
        Measurement(
            "restore_1k_seconds",
            some,
            "s",
            at_most=2.0,
            sides={"load average": load},
            note=f"{ENDPOINTS} endpoints in the cluster, {LOCAL} of them on this host, {rest}",
        ),
        Measurement(
            "restore_200_here_seconds",
            many,
            "s",
            sides={"milliseconds an endpoint": 1000 * many / MANY, "load average": os.getloadavg()[0]},
            note=f"{MANY} endpoints, all on this host, {rest}",
        ),
    ]


def reboot(endpoints: int, local: int) -> float:
    """Seconds that the boot hook of a rebooted host took. Raises RuntimeError unless all its endpoints are back."""
    name = f"bench-boot-{os.getpid()}"
    timeouts = Timeouts(by_method={"stage": APPLY_SECONDS, "apply": APPLY_SECONDS, "rollback": APPLY_SECONDS})
    with tempfile.TemporaryDirectory() as directory:
        with Lab.up(name, 2, 0, directory=Path(directory), guarded=True) as lab, Fleet(timeouts=timeouts) as fleet:
            host = lab.host("h1")
            namespaces = _NAMESPACES.format(count=local)
            host.run(["sh", "-c", namespaces], timeout=APPLY_SECONDS)
            # The other host is a member that nothing is asked of here.
            change(fleet, {"h1": host_target(lab, host)}, documents(lab, endpoints, local))
            hook = _HOOK.format(namespaces=namespaces, root=STATE_ROOT, took=TOOK)
            boot = f"{STATE_ROOT}/boot"
            script = f"mv {boot} {boot}.real && cat >{boot} && chmod 755 {boot}"
            host.run(["sh", "-c", script], input=hook)
            lab.reboot("h1")
            wait = f"until [ -e {TOOK} ]; do sleep 0.2; done; cat {TOOK}"
            began, ended, code = host.run(["sh", "-c", wait], timeout=BOOT_SECONDS).stdout.split()
            if int(code):
                raise RuntimeError(f"the boot hook ended with {code}: {host.run(['cat', '/var/log/boot.log']).stdout}")
            there = _attached(host)
            if there != local:
                raise RuntimeError(f"{there} endpoints are attached where {local} were")
    return float(ended) - float(began)


def _attached(host: Host) -> int:
    """Endpoints whose device has its program, by the links that are pinned."""
    script = f"ls {DEFAULT}/links | grep -c '^{DEVICE_PREFIX}.*-ingress$'"
    return int(host.run(["sh", "-c", script], check=False).stdout or 0)


def documents(lab: Lab, endpoints: int, local: int) -> Documents:
    """The cluster: the first `local` endpoints on h1, the others on h2."""
    hosts = [lab.host("h1"), lab.host("h2")]
    cidrs = {"h1": "10.201.0.0/16", "h2": "10.202.0.0/16"}
    found: Documents = [document("cluster", CLUSTER, id=1, members=["h1", "h2"])]
    for host in hosts:
        one = node(host)
        one["spec"]["workload_cidrs"] = [cidrs[host.name]]
        found.append(one)
    for index in range(IDENTITIES):
        found.append(identity(f"app{index}", {"app": f"app{index}", "tier": f"tier{index % 10}"}))
    for index in range(endpoints):
        where = "h1" if index < local else "h2"
        found.append(
            document(
                "endpoint",
                f"e{index + 1}",
                node=where,
                identity=f"app{index % IDENTITIES}",
                addresses=[f"10.{201 if where == 'h1' else 202}.{1 + index // 200}.{1 + index % 200}"],
                attach={"netns": f"e{index + 1}"},
            )
        )
    for index in range(POLICIES):
        rule = {
            "peers": [{"labels": {"tier": f"tier{index % 10}"}}],
            "ports": [{"protocol": "tcp", "port": 8000 + index}],
        }
        found.append(document("policy", f"p{index}", selector={"app": f"app{index % IDENTITIES}"}, ingress=[rule]))
    for index in range(SERVICES):
        frontend = {"address": f"10.203.0.{1 + index}", "port": 80}
        backend = {"labels": {"app": f"app{index % IDENTITIES}"}, "port": 8000 + index}
        found.append(document("service", f"s{index}", frontends=[frontend], backends=[backend]))
    return found


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(reboot(int(sys.argv[1]), int(sys.argv[2])))
    else:
        measured = measure()
        print(table(measured), json.dumps([one.to_json() for one in measured]), sep="\n")

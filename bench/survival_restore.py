"""How long after `lab reboot` what was confirmed is in force again: from the start of the boot hook to its end.

A reboot takes a host's network namespaces with it, and whoever runs workloads makes them again: here, the hook that
the lab runs is wrapped, so that first all namespaces are there, and then the time of the real hook is taken. Once with
1,000 endpoints on the host, once with 100 on it and 900 elsewhere in its cluster. A machine that really was off has
nothing left to tidy away; here the kernel takes the old namespaces down first, which keeps everybody from the devices.

    python -m bench.survival_restore
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
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

ENDPOINTS, SOME, POLICIES, SERVICES, IDENTITIES = 1_000, 100, 100, 100, 50
APPLY_SECONDS = 290.0
BOOT_SECONDS = 600.0
QUIET_SECONDS = 90.0
TOOK = "/root/took"

_NAMESPACES = "seq -f 'netns add e%.0f' 1 {count} | ip -batch -"
# In the background, as a unit would be: the lab ends a hook that takes minutes.
_HOOK = """#!/bin/sh
{namespaces}
(
    began=$(date +%s.%N)
    {root}/boot.real
    code=$?
    ended=$(date +%s.%N)
    # A pin is as old as what it holds: the underlay's first program is the last of what needs no endpoint's device.
    judged=$(stat -c %.9Y {pins}/{device}-ingress)
    times >{took}.times
    cpu=$(awk 'NR == 2 {{ split($1 "m" $2, t, "[ms]+"); print 60 * (t[1] + t[3]) + t[2] + t[4] }}' {took}.times)
    echo "$began $judged $ended $cpu $code" >{took}.new
    mv {took}.new {took}
) &
"""
# The same devices by one `ip -batch`, which does nothing else: what the kernel alone needs for them.
_FLOOR = """
mount -t tmpfs none /run/netns
{namespaces}
began=$(date +%s.%N)
seq -f '%.0f' 1 {count} | sed 's/.*/link add bpf-& type veth peer name eth0 netns e&\\nlink set bpf-& up/' | ip -batch -
echo "$began $(date +%s.%N)"
"""
_DEVICE_MADE = "ip link add name q0 type veth peer name q1 && ip link del dev q0"


@dataclass(frozen=True)
class Restored:
    """Seconds from the start of the boot hook: until everything but endpoints' devices is in force, and until its end;
    and of processor time, of all its processes."""

    judged: float
    whole: float
    processor: float


def measure() -> List[Measurement]:
    """restore_1k_seconds and, beside it, restore_100_of_1k_seconds."""
    least = floor(ENDPOINTS)
    loads = [os.getloadavg()[0]]
    here = reboot(ENDPOINTS, ENDPOINTS)
    loads.append(os.getloadavg()[0])
    some = reboot(ENDPOINTS, SOME)
    loads.append(os.getloadavg()[0])
    rest = f"{POLICIES} policies, {SERVICES} services; from the start of the boot hook to its end, the namespaces there"

    def figure(name: str, restored: Restored, load: float, **more: float) -> Measurement:
        sides = {
            "all but endpoints' devices": restored.judged,
            "processor time": restored.processor,
            **{key.replace("_", " "): value for key, value in more.items()},
            "load average": load,
        }
        local = ENDPOINTS if more else SOME
        note = f"{ENDPOINTS} endpoints in the cluster, {local} of them on this host, {rest}"
        return Measurement(name, restored.whole, "s", at_most=2.0 if more else None, sides=sides, note=note)

    return [
        figure("restore_1k_seconds", here, loads[1], ip_batch_alone=least),
        figure("restore_100_of_1k_seconds", some, loads[2]),
    ]


def floor(count: int) -> float:
    """Seconds that the kernel takes to make as many veths into namespaces that are there, and to set them up."""
    await_quiet()
    script = _FLOOR.format(namespaces=_NAMESPACES.format(count=count), count=count)
    words = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-ec", script]
    began, ended = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    return float(ended) - float(began)


def await_quiet() -> None:
    """Wait until the kernel makes and removes devices at once, as it does when it takes no namespaces down."""
    until, quick = time.monotonic() + QUIET_SECONDS, 0
    while quick < 10 and time.monotonic() < until:
        began = time.monotonic()
        subprocess.run(["unshare", "--net", "sh", "-ec", _DEVICE_MADE], check=True)
        quick = quick + 1 if time.monotonic() - began < 0.15 else 0
        time.sleep(0.2)


def reboot(endpoints: int, local: int) -> Restored:
    """What the boot hook of a rebooted host took. Raises RuntimeError unless all its endpoints are back."""
    name = f"bench-boot-{os.getpid()}"
    timeouts = Timeouts(by_method={"stage": APPLY_SECONDS, "apply": APPLY_SECONDS, "rollback": APPLY_SECONDS})
    with tempfile.TemporaryDirectory() as directory:
        with Lab.up(name, 2, 0, directory=Path(directory), guarded=True) as lab, Fleet(timeouts=timeouts) as fleet:
            host = lab.host("h1")
            namespaces = _NAMESPACES.format(count=local)
            host.run(["sh", "-c", namespaces], timeout=APPLY_SECONDS)
            # The other host is a member that nothing is asked of here.
            change(fleet, {"h1": host_target(lab, host)}, documents(lab, endpoints, local))
            pins = f"{DEFAULT}/links"
            hook = _HOOK.format(namespaces=namespaces, root=STATE_ROOT, took=TOOK, pins=pins, device=host.device)
            boot = f"{STATE_ROOT}/boot"
            script = f"mv {boot} {boot}.real && cat >{boot} && chmod 755 {boot}"
            host.run(["sh", "-c", script], input=hook)
            lab.power_off("h1")
            await_quiet()
            lab.reboot("h1")
            wait = f"until [ -e {TOOK} ]; do sleep 0.2; done; cat {TOOK}"
            told = host.run(["sh", "-c", wait], timeout=BOOT_SECONDS).stdout.split()
            began, judged, ended, processor, code = map(float, told)
            if code:
                raise RuntimeError(f"the boot hook ended with {code}: {host.run(['cat', '/var/log/boot.log']).stdout}")
            there = _attached(host)
            if there != local:
                raise RuntimeError(f"{there} endpoints are attached where {local} were")
    return Restored(judged - began, ended - began, processor)


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

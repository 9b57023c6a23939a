"""Nothing of bpfleet is on the hosts."""

from __future__ import annotations

import json
from typing import Any

# How many programs are attached to eth0 by tcx links, at ingress and at egress: bpf(BPF_PROG_QUERY), see bpf(2).
PROGRAMS = """
import ctypes, os, socket, struct
SYS_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
for attach_type in (46, 47):
    query = struct.pack("=IIIIQI", socket.if_nametoindex("eth0"), attach_type, 0, 0, 0, 0)
    attributes = ctypes.create_string_buffer(query, 64)
    assert ctypes.CDLL(None, use_errno=True).syscall(SYS_BPF, 16, attributes, 64) == 0, os.strerror(ctypes.get_errno())
    print(struct.unpack_from("=I", attributes, 24)[0])
"""


def test_no_files(host: Any) -> None:
    for path in ("/var/lib/bpfleet", "/sys/fs/bpf/bpfleet"):
        assert not host.file(path).exists, path
    for path in ("/etc/modules-load.d/bpfleet.conf", "/etc/systemd/network/05-bpfleet.network"):
        assert not host.file(path).exists, path


def test_no_devices_and_no_routes(host: Any) -> None:
    names = [link["ifname"] for link in json.loads(host.check_output("ip -json link"))]
    assert [name for name in names if name.startswith("bpf")] == []
    assert sorted(name for name in names if name != "lo") == ["eth0"]
    for family in ("-4", "-6"):
        devices = {route["dev"] for route in json.loads(host.check_output(f"ip {family} -json route"))}
        assert devices <= {"eth0", "lo"}
    for workload in host.ansible.get_variables()["workloads"]:
        inside = json.loads(host.check_output(f"nsenter --net=/run/netns/{workload} ip -json link"))
        assert [link["ifname"] for link in inside if link["ifname"] != "lo"] == []


def test_no_programs_and_no_processes(host: Any) -> None:
    assert host.check_output(f"python3 -c '{PROGRAMS}'").split() == ["0", "0"]
    assert "clsact" not in host.check_output("tc qdisc show dev eth0")
    assert [process.args for process in host.process.filter() if "bpfleet/agent" in process.args] == []

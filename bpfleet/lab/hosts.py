"""Starting, entering and ending the hosts of a lab.

Every process of a host sits in the host's cgroup, <cgroup2>/bpfleet-lab/<lab>/<host>, joined before anything else
is done; so all of them can be found, and ended at once by the kernel (cgroup.kill), whatever else is lost.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bpfleet.errors import HostFailed, Unreachable
from bpfleet.lab import machine, network, state
from bpfleet.lab.plan import HostPlan, LabPlan

START_SECONDS = 150.0  # more than a boot hook may take
ANSWER_SECONDS = 15.0
END_SECONDS = 15.0
CGROUPS = "bpfleet-lab"
_INIT = Path(__file__).with_name("host_init.py")
# Folders of a host that show nothing of the machine's, with their modes.
_PRIVATE = {
    "/root": 0o700,
    "/tmp": 0o1777,
    "/var/tmp": 0o1777,
    "/var/log": 0o755,
    "/var/lib/bpfleet": 0o700,
    "/etc/bpfleet": 0o755,
    "/usr/local": 0o755,
}
_SSHD_CONFIG = """\
# A lab host's sshd: root by key, nothing else.
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PrintMotd no
PidFile /run/sshd.pid
AcceptEnv LANG LC_*
Subsystem sftp internal-sftp
"""


@dataclass(frozen=True)
class Started:
    """A host that has just started: its process 1, and the boot hook's exit code (None: it has none)."""

    pid: int
    start: int
    boot: int | None


def cgroup(name: str, host: str | None = None) -> Path:
    """The cgroup of a lab, or of one of its hosts."""
    lab = machine.cgroup_root() / CGROUPS / name
    return lab / host if host else lab


def start(plan: LabPlan, hosts: Sequence[HostPlan], lock: int) -> dict[str, Started]:
    """Start hosts side by side. All or none: if one fails, HostFailed with the words of its start."""
    starting: dict[str, subprocess.Popen[str]] = {}
    logs = state.folder(plan.name) / "logs"
    logs.mkdir(exist_ok=True)
    for host in hosts:
        cgroup(plan.name, host.name).mkdir(parents=True, exist_ok=True)
        with (logs / f"{host.name}.log").open("a") as log:
            process = subprocess.Popen(
                ["/usr/bin/python3", "-I", "-S", str(_INIT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                pass_fds=(lock,),
                env={"PATH": machine.PATH, "LANG": "C.UTF-8"},
                cwd="/",
            )
        starting[host.name] = process
        assert process.stdin is not None
        process.stdin.write(json.dumps(_config(plan, host, lock)))
        process.stdin.close()
        process.stdin = None
    deadline = time.monotonic() + START_SECONDS
    return {host: _started(plan, host, process, deadline) for host, process in starting.items()}


def _started(plan: LabPlan, host: str, process: subprocess.Popen[str], deadline: float) -> Started:
    log = state.folder(plan.name) / "logs" / f"{host}.log"
    try:
        said, _ = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired as expired:
        raise HostFailed(
            "did not start in time", node=host, file=str(log), remedy="Run bpfleet lab down and try again"
        ) from expired
    if process.returncode != 0:
        words = log.read_text().strip().splitlines()
        raise HostFailed(
            f"did not start: {words[-1] if words else 'without a word'}",
            node=host,
            remedy="The details hold the whole log of the start",
            details={"log": words},
        )
    report = json.loads(said)
    born = machine.started(report["pid"])
    if born is None:
        raise HostFailed("ended as soon as it had started", node=host, file=str(log))
    return Started(report["pid"], born, report["boot"])


def _config(plan: LabPlan, host: HostPlan, lock: int) -> dict[str, object]:
    folder = state.folder(plan.name)
    keys = folder / "host_keys"
    names = "".join(f"{h.address} {h.name}\n{h.address6} {h.name}\n" for h in plan.hosts)
    files = {
        "/etc/ssh/sshd_config": (0o644, _SSHD_CONFIG),
        "/etc/ssh/ssh_host_ed25519_key": (0o600, (keys / host.name).read_text()),
        "/etc/ssh/ssh_host_ed25519_key.pub": (0o644, (keys / f"{host.name}.pub").read_text()),
        "/root/.ssh/authorized_keys": (0o600, (folder / "id_ed25519.pub").read_text()),
        "/etc/hostname": (0o644, f"{host.name}\n"),
        "/etc/hosts": (0o644, f"127.0.0.1 localhost\n::1 localhost\n{names}"),
        "/etc/resolv.conf": (0o644, "# a lab host has no name server\n"),
    }
    return {
        "name": host.name,
        "cgroup": str(cgroup(plan.name, host.name)),
        "lock": lock,
        "disk": str(folder / "disks" / host.name),
        "root": str(folder / "root"),
        "private": _PRIVATE,
        "files": files,
        "share": plan.share,
        "sysctls": network.SYSCTLS,
        "network": network.host_commands(plan, host),
        "workloads": host.workloads,
    }


def await_answer(plan: LabPlan, hosts: Sequence[HostPlan]) -> None:
    """Wait until every host's sshd shows its banner to the controller."""
    deadline = time.monotonic() + ANSWER_SECONDS
    for host in hosts:
        while True:
            try:
                with socket.create_connection((host.address, 22), timeout=2) as connection:
                    if connection.recv(255).startswith(b"SSH-"):
                        break
            except OSError:
                pass  # not listening yet; the deadline decides
            if time.monotonic() > deadline:
                raise Unreachable(
                    f"sshd at {host.address} does not answer the controller",
                    node=host.name,
                    remedy=f"See {state.folder(plan.name)}/logs, and whether a firewall here holds {plan.link}",
                )
            time.sleep(0.02)


def enter_command(
    group: Path,
    arguments: Sequence[str],
    *,
    pid: int | None = None,
    workload: str | None = None,
    netns: Path | None = None,
) -> list[str]:
    """The command line that runs `arguments` in a cgroup and in the namespaces of process `pid` (and, there, of a
    workload), or in the network namespace at `netns`.

    The cgroup comes first: what is started without it bypasses the host's cgroup programs. The command dies with
    nsenter; nsenter itself leaves Ctrl-C to the command.
    """
    join = 'echo $$ > "$0/cgroup.procs" && trap "" INT QUIT && exec "$@"'
    command = ["/bin/sh", "-c", join, str(group), "nsenter"]
    if netns is not None:
        command += [f"--net={netns}", "--"]
    if pid is not None:
        spaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wdns=/root"]
        command += [f"--target={pid}", *spaces, "--", "setpriv", "--pdeathsig", "KILL", "--"]
    if workload is not None:
        command += ["nsenter", f"--net=/run/netns/{workload}", "--"]
    return [*command, "env", "--default-signal=INT,QUIT", "--", *arguments]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """A root login's environment on a host; of the caller's only what a terminal needs."""
    home = {"HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/bash", "LANG": "C.UTF-8"}
    terminal = {key: os.environ[key] for key in ("TERM", "COLUMNS", "LINES") if key in os.environ}
    return {"PATH": machine.PATH, **home, **terminal, **(extra or {})}


def end(name: str, host: str | None = None) -> None:
    """End every process of a host (or of the whole lab) at once, and remove its cgroups."""
    top = cgroup(name, host)
    deadline = time.monotonic() + END_SECONDS
    while top.exists():
        (top / "cgroup.kill").write_text("1")
        if _remove_tree(top):
            break
        if time.monotonic() > deadline:
            left = " ".join((top / "cgroup.procs").read_text().split())
            raise HostFailed(
                f"processes do not end (pids {left or 'in cgroups below'})",
                file=str(top),
                remedy="Something holds them in the kernel; see their /proc/PID/stack, then run lab down again",
            )
        time.sleep(0.01)


def remove_cgroups() -> None:
    """Remove the folder of all labs' cgroups, if this was the last lab."""
    _remove_empty(machine.cgroup_root() / CGROUPS)


def _remove_tree(top: Path) -> bool:
    children = [_remove_tree(path) for path in top.iterdir() if path.is_dir()]  # each, whatever became of another
    return all(children) and _remove_empty(top)


def _remove_empty(path: Path) -> bool:
    """Remove an empty cgroup; False while it still has processes or children."""
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:  # EBUSY: dying processes stay a moment
        return False
    return True

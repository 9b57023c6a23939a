"""Lab, Host and World: what tests and the command line use of a lab.

with Lab.up("mine", nodes=2, workloads=1, directory=tmp_path, guarded=True) as lab:
    lab.host("h1").run(["ping", "-c1", lab.host("h2").address])
    lab.host("h1").run(["ip", "address"], workload="w1")
    lab.reboot("h1")
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from bpfleet.errors import Conflict, HostFailed, InvalidInput
from bpfleet.lab import files, guard, hosts, machine, network, state
from bpfleet.lab.plan import (
    DEFAULT_NAME,
    UNDERLAY_DEVICE,
    WORLD_ADDRESSES,
    HostPlan,
    LabPlan,
    Shape,
    check_name,
    choose_number,
)

Progress = Callable[[str], None]
DEFAULT_DIRECTORY = Path(".lab")
RUN_SECONDS = 60.0


def _silent(_: str) -> None:
    return None


class _Place:
    """Somewhere commands run: a host, or the world."""

    def _enter(self, arguments: Sequence[str], workload: str | None) -> list[str]:
        raise NotImplementedError

    def run(
        self,
        arguments: Sequence[str],
        *,
        workload: str | None = None,
        check: bool = True,
        input: str | None = None,
        timeout: float = RUN_SECONDS,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and return its code and output (text).

        `check`: raise HostFailed with its words when it fails. `timeout` (seconds): end it and raise
        subprocess.TimeoutExpired. `env` is added to a root login's environment.
        """
        done = subprocess.run(
            self._enter(arguments, workload),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=hosts.environment(env),
        )
        if check and done.returncode != 0:
            words = done.stderr.strip() or done.stdout.strip()
            raise HostFailed(
                f"{' '.join(arguments)} ended with {done.returncode}: {words}",
                node=getattr(self, "name", None),
                details={"stdout": done.stdout, "stderr": done.stderr, "exit_code": done.returncode},
            )
        return done

    def popen(
        self,
        arguments: Sequence[str],
        *,
        workload: str | None = None,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.Popen[Any]:
        """Start a command; `options` go to subprocess.Popen. Ending the process ends the command (SIGKILL)."""
        return subprocess.Popen(self._enter(arguments, workload), env=hosts.environment(env), **options)


class Host(_Place):
    """One host of a lab: its addresses, how SSH reaches it, and a way in past SSH."""

    def __init__(self, lab: Lab, plan: HostPlan) -> None:
        self._lab = lab
        self._plan = plan
        self.name = plan.name
        self.index = plan.index
        self.address = plan.address  # IPv4, underlay
        self.address6 = plan.address6
        self.mac = plan.mac  # of the underlay device
        self.device = UNDERLAY_DEVICE
        self.mtu = lab.plan.shape.mtu
        self.workloads = plan.workloads
        self.workload_cidrs = plan.workload_cidrs  # suggested: (IPv4, IPv6)
        self.ssh_port = 22
        self.ssh_user = "root"
        self.host_key = files.host_key(lab.name, plan.name)  # "ssh-ed25519 AAAA..."

    @property
    def node_spec(self) -> dict[str, Any]:
        """The spec of the node that this host is."""
        devices = [{"name": self.device}]
        return {"address": self.address, "devices": devices, "workload_cidrs": list(self.workload_cidrs)}

    @property
    def pid(self) -> int:
        """The host's process 1 as this machine sees it; HostFailed if the host is not running."""
        record = state.require(self._lab.name)
        identity = record.hosts.get(self.name)
        if identity is None or machine.started(identity[0]) != identity[1]:
            named = "" if self._lab.name == DEFAULT_NAME else f" --name {self._lab.name}"
            raise HostFailed(
                "the host is not running",
                node=self.name,
                remedy=f"bpfleet lab reboot {self.name}{named} starts it",
            )
        return identity[0]

    @property
    def running(self) -> bool:
        """Whether the host's process 1 lives."""
        identity = state.require(self._lab.name).hosts.get(self.name)
        return identity is not None and machine.started(identity[0]) == identity[1]

    @property
    def cgroup(self) -> Path:
        """The host's cgroup as this machine sees it (the host itself sees it as /sys/fs/cgroup)."""
        return hosts.cgroup(self._lab.name, self.name)

    def freeze(self) -> None:
        """Stop every process of the host where it stands: TCP is still accepted, nobody answers."""
        (self.cgroup / "cgroup.freeze").write_text("1")

    def thaw(self) -> None:
        """Let a frozen host go on."""
        (self.cgroup / "cgroup.freeze").write_text("0")

    def enter_command(self, arguments: Sequence[str], workload: str | None = None) -> list[str]:
        """The command line that runs `arguments` on this host; see hosts.enter_command."""
        return self._enter(arguments, workload)

    def _enter(self, arguments: Sequence[str], workload: str | None) -> list[str]:
        if workload is not None and workload not in self.workloads:
            raise InvalidInput(
                f"no workload {workload!r}",
                node=self.name,
                remedy=f"It has {', '.join(self.workloads) or 'none (lab up --workloads N makes some)'}",
            )
        return hosts.enter_command(self.cgroup, arguments, pid=self.pid, workload=workload)


class World(_Place):
    """The network outside the hosts: the switch, on which every underlay frame can be seen (bridge br0, a port per
    host), and an address that is no member's."""

    name = "world"

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.netns = network.switch_path(lab.name)
        self.bridge = network.BRIDGE
        self.address, self.address6 = WORLD_ADDRESSES
        self.gateway, self.gateway6 = lab.plan.gateway_addresses

    def _enter(self, arguments: Sequence[str], workload: str | None) -> list[str]:
        if workload is not None:
            raise InvalidInput("the world has no workloads", field="workload")
        group = hosts.cgroup(self._lab.name, self.name)
        group.mkdir(exist_ok=True)
        return hosts.enter_command(group, arguments, netns=self.netns)


class Lab:
    """A lab that is up. `created`: whether this object's `up` built it, or found it."""

    def __init__(self, plan: LabPlan, *, created: bool = False) -> None:
        self.plan = plan
        self.name = plan.name
        self.directory = plan.directory
        self.created = created
        self.ssh_config = plan.directory / "ssh_config"
        self.known_hosts = plan.directory / "known_hosts"
        self.inventory = plan.directory / "inventory.yml"
        self.private_key = plan.directory / "id_ed25519"
        self.scratch = plan.directory / files.SCRATCH  # what lies in it goes with the lab
        self.hosts = {host.name: Host(self, host) for host in plan.hosts}
        self.world = World(self)
        self._guard: guard.Guard | None = None

    @classmethod
    def up(
        cls,
        name: str = DEFAULT_NAME,
        nodes: int = 3,
        workloads: int = 2,
        *,
        mtu: int = 1500,
        directory: Path = DEFAULT_DIRECTORY,
        share: Sequence[str] = (),
        guarded: bool = False,
        progress: Progress = _silent,
    ) -> Lab:
        """Bring a lab up and wait until every host answers over SSH.

        Idempotent: a lab that is up with the same shape is returned as it is, with another shape it is Conflict.
        `share`: folders of this machine to show to the hosts, read-only, where they would be hidden (/root,
        /tmp, ...). `guarded`: take the lab down when this process ends in whatever way, if it made the lab.
        """
        check_name(name)
        shape = Shape(nodes, workloads, mtu)
        shape.check()
        machine.check()
        plan = LabPlan(name, 0, shape, files.directory_of(directory, name), tuple(share))
        watch = guard.Guard(name) if guarded else None
        try:
            lab = _build(plan, progress)
        except BaseException:
            if watch is not None:
                watch.dismiss()
            raise
        if watch is not None and lab.created:
            lab._guard = watch
        elif watch is not None:
            watch.dismiss()
        return lab

    @classmethod
    def attach(cls, name: str = DEFAULT_NAME) -> Lab:
        """The lab `name`, which is up; InvalidInput if there is none."""
        check_name(name)
        machine.check_root()
        record = state.require(name)
        if not record.complete:
            raise HostFailed(f"lab {name} was never finished", remedy=f"bpfleet lab up --name {name} begins it anew")
        return cls(record.plan)

    def host(self, name: str) -> Host:
        """A host by name; InvalidInput if there is none."""
        try:
            return self.hosts[name]
        except KeyError:
            raise InvalidInput(
                f"lab {self.name} has no host {name!r}", remedy=f"It has {', '.join(self.hosts)}"
            ) from None

    def describe(self) -> dict[str, Any]:
        """The content of lab.json."""
        return files.describe(self.plan)

    def power_off(self, name: str) -> None:
        """End a host as if its power failed. `reboot` starts it again, with the disk it had."""
        self.host(name)
        with state.locked(state.folder(self.name)) as lock:
            _power_off(self.name, name, lock)

    def reboot(self, name: str) -> int | None:
        """End a host, start it again, and wait until it answers: its disk stays, all else is new.

        Returns the exit code of the boot hook (/var/lib/bpfleet/boot); None if the host has none.
        """
        host = self.host(name)
        with state.locked(state.folder(self.name)) as lock:
            record = _power_off(self.name, name, lock)
            started = hosts.start(self.plan, [host._plan], lock)[name]
            record.hosts[name] = (started.pid, started.start)
            state.write(record)
        hosts.await_answer(self.plan, [host._plan])
        return started.boot

    def down(self) -> None:
        """Remove the lab and everything of it."""
        take_down(self.name)
        if self._guard is not None:
            self._guard.dismiss()
            self._guard = None

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()


def take_down(name: str) -> bool:
    """Remove a lab, finished or not, by what is recorded and by what carries its name. Whether there was one."""
    check_name(name)
    machine.check_root()
    existed = state.folder(name).exists() or hosts.cgroup(name).exists()
    with state.locked(state.folder(name)) as lock:
        _remove(name, lock)
        state.folder(name).rmdir()
    with state.locked(state.RUN):
        hosts.remove_cgroups()
        if not any(state.RUN.iterdir()):
            state.RUN.rmdir()
    return existed


def _build(wanted: LabPlan, progress: Progress) -> Lab:
    name = wanted.name
    with state.locked(state.folder(name)) as lock:
        known = state.read(name)
        if known is not None and known.complete:
            return _found(known, wanted)
        if known is not None:
            progress("an earlier lab up did not finish: removing what it left")
            _remove(name, lock)
        try:
            record = _claim(wanted)
            plan = record.plan
            progress(f"lab {name}: {plan.shape}; underlay 192.168.{plan.number}.0/24")
            files.make_keys(plan, lock)
            disks = state.folder(name) / "disks"
            disks.mkdir()
            (state.folder(name) / "root").mkdir()
            machine.run(["mount", "-t", "tmpfs", "-o", "mode=700", "bpfleet-lab", str(disks)], keep=(lock,))
            network.build_switch(plan, keep=(lock,))
            progress("starting " + ", ".join(host.name for host in plan.hosts))
            for host, started in hosts.start(plan, plan.hosts, lock).items():
                record.hosts[host] = (started.pid, started.start)
            state.write(record)
            hosts.await_answer(plan, plan.hosts)
            files.write(plan)
            record.complete = True
            state.write(record)
        except BaseException:
            _remove(name, lock)
            state.folder(name).rmdir()
            raise
    return Lab(plan, created=True)


def _claim(wanted: LabPlan) -> state.Record:
    """Choose the lab's number and record the lab, before anything of it exists; then make its cgroup."""
    with state.locked(state.RUN):
        records = [state.read(name) for name in state.names()]
        taken = {record.plan.number for record in records if record is not None}
        number = choose_number(taken, network.machine_routes())
        record = state.Record(dataclasses.replace(wanted, number=number))
        state.write(record)
        hosts.cgroup(wanted.name).mkdir(parents=True, exist_ok=True)
    return record


def _found(record: state.Record, wanted: LabPlan) -> Lab:
    """A lab that is up already, if it is the wanted one."""
    plan = record.plan
    down = "bpfleet lab down" + ("" if plan.name == DEFAULT_NAME else f" --name {plan.name}")
    if plan.shape != wanted.shape or plan.share != wanted.share:
        raise Conflict(
            f"lab {plan.name} is up with {plan.shape}, not {wanted.shape}",
            remedy=f"Take it down first ({down}), or give the other one a name (--name)",
        )
    if plan.directory != wanted.directory:
        raise Conflict(
            f"lab {plan.name} is up and has its files in {plan.directory}, not in {wanted.directory}",
            remedy=f"Use that one, take it down first ({down}), or give the other one a name (--name)",
        )
    lab = Lab(plan)
    dead = [host.name for host in lab.hosts.values() if not host.running]
    if dead:
        raise HostFailed(
            f"lab {plan.name} is up, but not running: {', '.join(dead)}",
            remedy=f"bpfleet lab reboot HOST starts one again; {down} removes the lab",
        )
    files.write(plan)
    return lab


def _power_off(name: str, host: str, lock: int) -> state.Record:
    record = state.require(name)
    hosts.end(name, host)
    network.unplug(name, host, keep=(lock,))
    if record.hosts.pop(host, None) is not None:
        state.write(record)
    return record


def _remove(name: str, lock: int) -> None:
    """Remove everything of a lab but its (then empty) folder, which the caller has locked."""
    record = state.read(name)
    hosts.end(name)
    network.remove(name, keep=(lock,))
    folder = state.folder(name)
    disks = folder / "disks"
    if network.is_mounted(disks):
        machine.run(["umount", "--lazy", str(disks)], keep=(lock,))
    if record is not None:
        files.remove(record.plan)
    # The record goes last: until then another `down` finds the rest by it.
    for path in sorted(folder.iterdir(), key=lambda path: path.name == "state.json"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

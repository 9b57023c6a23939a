"""The lab: hosts that are as separate as hosts are, and that leave nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from bpfleet.errors import Conflict, HostFailed, HostUnfit, InvalidInput
from bpfleet.lab import Lab, machine, plan, state
from bpfleet.lab.hosts import cgroup
from bpfleet.lab.lab import take_down

pytestmark = [pytest.mark.root, pytest.mark.lab]

MakeLab = Callable[..., Lab]
BPFLEET = [sys.executable, "-m", "bpfleet.cli.main"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A fresh lab: what a lab looks like cannot be seen on one that other tests have provisioned."""
    name = f"test-{os.getpid()}-fresh"
    with Lab.up(name, 3, 2, directory=tmp_path_factory.mktemp("fresh"), guarded=True) as up:
        yield up


def bpfleet(*arguments: str, cwd: Path | None = None, input: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*BPFLEET, *arguments], capture_output=True, text=True, cwd=cwd, input=input, timeout=60)


def ssh(lab: Lab, host: str, *command: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    line = ["ssh", "-F", str(lab.ssh_config), "-o", "BatchMode=yes", *options, host, *command]
    return subprocess.run(line, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)


def eventually(holds: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


# --- what of a lab can be seen on the machine -------------------------------------------------------------------


def processes_in(name: str) -> dict[int, int]:
    """pid -> start time of every live process in the lab's cgroups."""
    found: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            where = (folder / "cgroup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        start = machine.started(int(folder.name))
        if f"/bpfleet-lab/{name}/" in where.replace("\n", "/") and start is not None:
            found[int(folder.name)] = start
    return found


def namespaces_of(pids: dict[int, int]) -> set[str]:
    """Namespaces that these processes are in and this one is not."""
    found: set[str] = set()
    for pid in pids:
        found |= _namespaces(Path("/proc", str(pid)))
    return found - _namespaces(Path("/proc/self"))


def _namespaces(process: Path) -> set[str]:
    try:
        return {str(link.readlink()) for link in (process / "ns").iterdir()}
    except (FileNotFoundError, ProcessLookupError):
        return set()
    except PermissionError:  # the machine's process 1 may hide from root too; it is in no namespace of a lab
        assert process.name == "1"
        return set()


def namespaces_in_use() -> set[str]:
    found: set[str] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        if machine.started(int(folder.name)) is not None:
            found |= _namespaces(folder)
    return found


def linked(name: str) -> bool:
    """Whether the lab's link is there already, alias and all."""
    aliases = []
    for link in Path("/sys/class/net").glob("bpfleet-lab*"):
        with contextlib.suppress(OSError):  # another lab's, just going
            aliases.append((link / "ifalias").read_text().strip())
    return plan.link_alias(name) in aliases


def populated(group: Path) -> bool:
    """Whether a cgroup has processes already."""
    try:
        return (group / "cgroup.procs").read_text() != ""
    except FileNotFoundError:
        return False


def traces(name: str) -> list[str]:
    """Whatever on this machine still carries the lab's name."""
    links = json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True, check=True).stdout)
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return [
        *(f"link {link['ifname']}" for link in links if link.get("ifalias") == plan.link_alias(name)),
        *(f"mount {line}" for line in mounts if f"/bpfleet-lab/{name}/" in line),
        *(f"cgroup {path}" for path in [cgroup(name)] if path.exists()),
        *(f"folder {path}" for path in [state.folder(name)] if path.exists()),
        *(f"process {pid}" for pid in processes_in(name)),
    ]


# --- reaching hosts -----------------------------------------------------------------------------------------------


def test_openssh_reaches_every_host_with_strict_key_checking(lab: Lab) -> None:
    for name in lab.hosts:
        done = ssh(lab, name, "hostname; id -un; command -v python3; python3 -c 'import sys; print(sys.executable)'")
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [name, "root", "/usr/bin/python3", "/usr/bin/python3"]
    assert "Accepted publickey for root" in lab.host("h1").run(["cat", "/var/log/sshd.log"]).stdout


def test_a_host_with_another_key_is_refused(lab: Lab, tmp_path: Path) -> None:
    one, two = lab.host("h1"), lab.host("h2")
    assert one.host_key != two.host_key
    wrong = tmp_path / "known_hosts"
    wrong.write_text(f"{one.address} {two.host_key}\n")
    done = ssh(lab, "h1", "true", options=("-o", f"UserKnownHostsFile={wrong}"))
    assert done.returncode == 255
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in done.stderr


def test_another_users_key_is_refused(lab: Lab, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    options = ("IdentitiesOnly=yes", "BatchMode=yes", f"UserKnownHostsFile={lab.known_hosts}")
    flags = [word for option in options for word in ("-o", option)]
    done = subprocess.run(
        ["ssh", "-F", "/dev/null", "-i", tmp_path / "key", *flags, f"root@{lab.host('h1').address}", "true"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 255
    assert "Permission denied" in done.stderr


def test_hosts_reach_each_other_and_the_world_over_both_families(lab: Lab) -> None:
    one, two = lab.host("h1"), lab.host("h2")
    for address in (two.address, two.address6, lab.world.address, lab.world.address6):
        one.run(["ping", "-c1", "-W2", address])
    device = json.loads(one.run(["ip", "-j", "link", "show", "eth0"]).stdout)[0]
    assert (device["mtu"], device["address"]) == (1500, one.mac)


def test_the_underlay_mtu_is_as_asked(make_lab: MakeLab) -> None:
    lab = make_lab(2, 0, mtu=1400)
    one, two = lab.host("h1"), lab.host("h2")
    full = ["ping", "-c1", "-W2", "-M", "do", "-s", str(1400 - 28), two.address]
    one.run(full)
    too_much = ["ping", "-c1", "-W2", "-M", "do", "-s", str(1401 - 28), two.address]
    assert "message too long" in one.run(too_much, check=False).stderr


def test_ansible_inventory_and_lab_json_describe_the_hosts(lab: Lab) -> None:
    inventory = yaml.safe_load(lab.inventory.read_text())["all"]
    assert inventory["vars"]["ansible_python_interpreter"] == "/usr/bin/python3"
    described = json.loads((lab.directory / "lab.json").read_text())
    assert described == lab.describe()
    assert list(described["hosts"]) == ["h1", "h2", "h3"]
    for name, host in described["hosts"].items():
        assert inventory["children"]["lab"]["hosts"][name]["ansible_host"] == host["address"]
        assert host["workloads"] == ["w1", "w2"]
        assert Path(host["ssh"]["private_key_file"]).stat().st_mode & 0o777 == 0o600
        assert f"{host['ssh']['host_key']}\n" in lab.known_hosts.read_text()


# --- hosts are separate -------------------------------------------------------------------------------------------


def test_files_are_private_to_a_host(lab: Lab, tmp_path: Path) -> None:
    one, two = lab.host("h1"), lab.host("h2")
    (tmp_path / "machines").write_text("of the machine")
    for path in ("/root/mine", "/etc/mine", "/var/lib/bpfleet/mine", "/run/mine", "/tmp/mine"):
        one.run(["sh", "-c", f"mkdir -p {Path(path).parent} && echo 1 > {path}"])
        assert not Path(path).exists()
        assert two.run(["test", "-e", path], check=False).returncode == 1
        one.run(["rm", path])
    assert one.run(["ls", "/tmp"]).stdout == ""
    assert one.run(["ls", "-A", "/root"]).stdout.split() == [".ssh"]


def test_namespaces_are_private_to_a_host(lab: Lab) -> None:
    seen = []
    for host in (lab.host("h1"), lab.host("h2")):
        links = host.run(["sh", "-c", "readlink /proc/self/ns/*"]).stdout.split()
        seen.append({link.split(":")[0]: link for link in links})
    mine = {link.split(":")[0]: link for link in _namespaces(Path("/proc/self"))}
    for kind in ("mnt", "uts", "ipc", "net", "pid", "cgroup"):
        assert len({seen[0][kind], seen[1][kind], mine[kind]}) == 3, kind
    assert lab.host("h1").run(["cat", "/proc/1/comm"]).stdout == "python3\n"


def test_bpffs_and_cgroup2_are_private_to_a_host(lab: Lab) -> None:
    one, two = lab.host("h1"), lab.host("h2")
    one.run(["mkdir", "/sys/fs/bpf/mine", "/sys/fs/cgroup/mine"])
    try:
        assert two.run(["test", "-e", "/sys/fs/bpf/mine"], check=False).returncode == 1
        assert not Path("/sys/fs/bpf/mine").exists()
        assert two.run(["test", "-e", "/sys/fs/cgroup/mine"], check=False).returncode == 1
        assert (one.cgroup / "mine").is_dir()
    finally:
        one.run(["rmdir", "/sys/fs/bpf/mine", "/sys/fs/cgroup/mine"])


def test_forwarding_is_off_and_can_be_set(lab: Lab) -> None:
    one, two = lab.host("h1"), lab.host("h2")
    for key in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
        path = f"/proc/sys/{key}"
        assert one.run(["cat", path]).stdout == "0\n"
        one.run(["sh", "-c", f"echo 1 > {path}"])
        assert one.run(["cat", path]).stdout == "1\n"
        assert two.run(["cat", path]).stdout == "0\n"
        one.run(["sh", "-c", f"echo 0 > {path}"])


# --- exec ---------------------------------------------------------------------------------------------------------


def test_commands_run_in_the_hosts_cgroup(lab: Lab) -> None:
    host = lab.host("h1")
    for workload in (None, "w1"):
        inside = host.run(["cat", "/proc/self/cgroup"], workload=workload).stdout.splitlines()
        assert "0::/" in inside
    server = host.popen(["sleep", "60"])
    try:
        assert eventually(lambda: server.pid in processes_in(lab.name))
        assert str(server.pid) in (host.cgroup / "cgroup.procs").read_text().split()
    finally:
        server.terminate()
        server.wait()


def test_ending_a_started_command_ends_it_on_the_host(lab: Lab) -> None:
    host = lab.host("h1")
    before = processes_in(lab.name)
    server = host.popen(["sleep", "61"], workload="w1")
    comm = ["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'sleep 6[1]'"]
    assert eventually(lambda: host.run(comm, check=False).stdout == "1\n")
    server.terminate()
    server.wait()
    assert eventually(lambda: not processes_in(lab.name).keys() - before.keys())


def test_a_workload_is_a_bare_network_namespace(lab: Lab) -> None:
    host = lab.host("h1")
    links = json.loads(host.run(["ip", "-j", "link"], workload="w1").stdout)
    assert [(link["ifname"], "UP" in link["flags"]) for link in links] == [("lo", True)]
    spaces = {host.run(["readlink", "/proc/self/ns/net"], workload=w).stdout for w in (None, "w1", "w2")}
    assert len(spaces) == 3
    listed = host.run(["ip", "netns", "list"]).stdout.split()
    assert sorted(listed) == ["w1", "w2"]
    with pytest.raises(InvalidInput, match="w1, w2"):
        host.run(["true"], workload="w3")


def test_exec_passes_streams_and_exit_code_through(lab: Lab) -> None:
    command = ["sh", "-c", 'cat; echo "$0 $#" >&2; exit 7', "zero", "--flag", "--", "-x"]
    done = bpfleet("lab", "exec", "h2", "--workload", "w2", "--name", lab.name, "--", *command, input="in\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, "in\n", "zero 3\n")
    assert bpfleet("lab", "exec", "h2", "--name", lab.name, "--", "no-such-command").returncode == 127


def test_exec_says_what_is_wrong_with_its_host(lab: Lab) -> None:
    done = bpfleet("lab", "exec", "h9", "--name", lab.name, "--", "true")
    assert done.returncode == 2
    assert "no host 'h9'" in done.stderr and "h1, h2, h3" in done.stderr
    done = bpfleet("lab", "exec", "h1", "--name", "never-made", "--", "true")
    assert done.returncode == 2
    assert "there is no lab 'never-made'" in done.stderr


# --- reboot -------------------------------------------------------------------------------------------------------


def test_a_reboot_keeps_the_disk_and_drops_the_rest(make_lab: MakeLab) -> None:
    lab = make_lab(2, 1)
    host = lab.host("h1")
    prepare = """
        echo kept > /root/kept; echo lost > /run/lost; mkdir /sys/fs/bpf/pins /sys/fs/cgroup/group
        ip link add mine type veth peer name yours; ip link set yours netns w1
        cp /proc/sys/kernel/random/boot_id /root/last_boot_id; sleep 600 </dev/null >/dev/null 2>&1 &
    """
    host.run(["sh", "-ec", prepare])
    key, before = host.host_key, processes_in(lab.name)
    assert lab.reboot("h1") is None
    assert host.run(["cat", "/root/kept"]).stdout == "kept\n"
    assert host.run(["test", "-e", "/run/lost"], check=False).returncode == 1
    assert host.run(["test", "-e", "/sys/fs/bpf/pins"], check=False).returncode == 1
    assert host.run(["test", "-e", "/sys/fs/cgroup/group"], check=False).returncode == 1
    assert "sleep" not in host.run(["ps", "-eo", "comm"]).stdout
    links = json.loads(host.run(["ip", "-j", "link"]).stdout)
    assert [link["ifname"] for link in links] == ["lo", "eth0"]
    assert [link["ifname"] for link in json.loads(host.run(["ip", "-j", "link"], workload="w1").stdout)] == ["lo"]
    assert host.run(["cmp", "/proc/sys/kernel/random/boot_id", "/root/last_boot_id"], check=False).returncode == 1
    assert ssh(lab, "h1", "true").returncode == 0 and host.host_key == key
    other = lab.host("h2").pid
    assert before[other] == processes_in(lab.name)[other]
    lab.host("h2").run(["ping", "-c1", "-W2", host.address])


def test_a_reboot_runs_the_boot_hook_and_reports_its_end(make_lab: MakeLab) -> None:
    lab = make_lab(1, 1)
    host = lab.host("h1")
    hook = "#!/bin/sh\nip netns list | sort > /run/booted\necho said\nexit $(cat /root/code)\n"
    host.run(["sh", "-ec", "mkdir -p /var/lib/bpfleet; cat > $0; chmod +x $0", "/var/lib/bpfleet/boot"], input=hook)
    host.run(["sh", "-c", "echo 0 > /root/code"])
    done = bpfleet("lab", "reboot", "h1", "--name", lab.name)
    assert (done.returncode, "boot hook done" in done.stderr) == (0, True)
    assert host.run(["cut", "-d ", "-f1", "/run/booted"]).stdout == "w1\n"
    host.run(["sh", "-c", "echo 3 > /root/code"])
    assert lab.reboot("h1") == 3
    assert host.run(["cat", "/var/log/boot.log"]).stdout == "said\nsaid\n"


def test_a_host_without_power_and_a_frozen_one(make_lab: MakeLab) -> None:
    lab = make_lab(2, 0)
    off, still = lab.host("h1"), lab.host("h2")
    lab.power_off("h1")
    assert not off.running
    with pytest.raises(HostFailed, match="lab reboot h1"):
        off.run(["true"])
    with pytest.raises(OSError):
        socket.create_connection((off.address, 22), timeout=1).close()
    with pytest.raises(HostFailed, match="not running: h1"):
        Lab.up(lab.name, 2, 0, directory=lab.directory.parent)
    still.freeze()
    with socket.create_connection((still.address, 22), timeout=5) as accepted:
        accepted.settimeout(0.3)
        with pytest.raises(TimeoutError):
            accepted.recv(1)
    still.thaw()
    lab.reboot("h1")
    assert ssh(lab, "h1", "true").returncode == 0 and ssh(lab, "h2", "true").returncode == 0


# --- up and down --------------------------------------------------------------------------------------------------


def test_two_labs_stand_side_by_side(lab: Lab, make_lab: MakeLab) -> None:
    other = make_lab(1, 1)
    assert other.plan.number != lab.plan.number
    one, two = lab.host("h1"), other.host("h1")
    assert one.address != two.address and one.workload_cidrs != two.workload_cidrs
    assert ssh(lab, "h1", "true").returncode == 0 and ssh(other, "h1", "true").returncode == 0
    assert two.run(["ping", "-c1", "-W1", one.address], check=False).returncode != 0
    other.down()
    assert ssh(lab, "h1", "true").returncode == 0


def test_up_again_changes_nothing_and_another_shape_is_a_conflict(lab: Lab) -> None:
    pids = {host.name: host.pid for host in lab.hosts.values()}
    lab.inventory.unlink()
    again = Lab.up(lab.name, 3, 2, directory=lab.directory.parent)
    assert not again.created and {host.name: host.pid for host in again.hosts.values()} == pids
    assert lab.inventory.exists()
    with pytest.raises(Conflict, match=f"lab down --name {lab.name}"):
        Lab.up(lab.name, 2, 2, directory=lab.directory.parent)
    with pytest.raises(Conflict, match="has its files in"):
        Lab.up(lab.name, 3, 2, directory=lab.directory / "elsewhere")
    assert {host.name: host.pid for host in lab.hosts.values()} == pids


def test_down_leaves_nothing(make_lab: MakeLab) -> None:
    lab = make_lab(2, 2)
    host = lab.host("h1")
    # What a host's users may leave about: daemons, deeper cgroups, pins, devices, mounts.
    daemon = """
        mkdir -p /sys/fs/cgroup/a/b; echo $$ > /sys/fs/cgroup/a/b/cgroup.procs
        setsid sleep 600 </dev/null >/dev/null 2>&1 &
    """
    host.run(["sh", "-ec", daemon])
    host.run(["sh", "-ec", "mkdir /sys/fs/bpf/x /mnt/m && mount -t tmpfs m /mnt/m && ip link add v type veth"])
    watcher = lab.world.popen(["sleep", "600"])
    assert eventually(lambda: watcher.pid in processes_in(lab.name))
    pids = processes_in(lab.name)
    spaces = namespaces_of(pids) | {f"net:[{lab.world.netns.stat().st_ino}]"}
    assert len(pids) >= 2 * 2 + 2
    assert len(spaces) >= 2 * 6 + 1
    assert traces(lab.name)
    (lab.scratch / "of the user").write_text("goes with the lab")
    lab.down()
    assert watcher.wait() == -signal.SIGKILL
    assert traces(lab.name) == []
    assert [pid for pid, start in pids.items() if machine.started(pid) == start] == []
    assert spaces & namespaces_in_use() == set()
    assert not lab.directory.exists()
    assert take_down(lab.name) is False
    assert not state.folder(lab.name).exists()


@pytest.mark.parametrize("moment", ["recorded", "switched", "linked", "starting", "running"])
def test_down_after_up_was_killed_leaves_nothing(moment: str, tmp_path: Path) -> None:
    name = f"killed-{os.getpid()}-{moment}"
    reached: dict[str, Callable[[], bool]] = {
        "recorded": (state.folder(name) / "state.json").exists,
        "switched": (state.folder(name) / "switch").exists,
        "linked": lambda: linked(name),
        "starting": (cgroup(name) / "h1").exists,
        "running": lambda: populated(cgroup(name) / "h3"),
    }
    up = subprocess.Popen(
        [*BPFLEET, "lab", "up", "--name", name, "--nodes", "3", "--directory", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert eventually(reached[moment])
        up.kill()
        assert up.wait() == -signal.SIGKILL
        done = bpfleet("lab", "down", "--name", name)
        assert (done.returncode, "is removed" in done.stderr) == (0, True), done.stderr
        assert traces(name) == []
        assert list(tmp_path.iterdir()) == []
    finally:
        up.kill()
        up.wait()
        take_down(name)


def test_up_after_up_was_killed_begins_anew(tmp_path: Path) -> None:
    name = f"again-{os.getpid()}"
    line = [*BPFLEET, "lab", "up", "--name", name, "--nodes", "1", "--directory", str(tmp_path)]
    up = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert eventually(lambda: (cgroup(name) / "h1").exists())
        up.kill()
        up.wait()
        done = subprocess.run([*line, "--json"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "an earlier lab up did not finish" in done.stderr
        assert json.loads(done.stdout)["hosts"]["h1"]["name"] == "h1"
        assert Lab.attach(name).host("h1").run(["hostname"]).stdout == "h1\n"
    finally:
        up.kill()
        up.wait()
        take_down(name)
    assert traces(name) == []


def test_an_interrupted_up_cleans_up_by_itself(tmp_path: Path) -> None:
    name = f"stopped-{os.getpid()}"
    up = subprocess.Popen(
        [*BPFLEET, "lab", "up", "--name", name, "--directory", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert eventually(lambda: (cgroup(name) / "h1").exists())
        up.terminate()
        assert up.wait(timeout=30) == 143
        assert traces(name) == []
    finally:
        up.kill()
        up.wait()
        take_down(name)


def test_down_finds_a_lab_whose_record_is_lost(make_lab: MakeLab) -> None:
    lab = make_lab(1, 1)
    (state.folder(lab.name) / "state.json").unlink()
    lab.down()
    assert traces(lab.name) == []


def test_a_guarded_lab_goes_when_its_process_is_killed(tmp_path: Path) -> None:
    name = f"guarded-{os.getpid()}"
    script = (
        "import pathlib, time; from bpfleet.lab import Lab; "
        f"Lab.up({name!r}, 1, 0, directory=pathlib.Path({str(tmp_path)!r}), guarded=True); "
        "print('up', flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None and owner.stdout.readline() == "up\n"
        assert traces(name)
        owner.kill()
        owner.wait()
        assert eventually(lambda: not traces(name))
    finally:
        owner.kill()
        owner.wait()
        if owner.stdout is not None:
            owner.stdout.close()
        take_down(name)


def test_a_host_that_cannot_start_is_named_and_nothing_stays(tmp_path: Path) -> None:
    name = f"broken-{os.getpid()}"
    with pytest.raises(HostFailed, match=r"node h1: did not start: .*no-such-folder") as caught:
        Lab.up(name, 1, 0, directory=tmp_path, share=["/no-such-folder"])
    assert caught.value.details["log"]
    assert traces(name) == []


def test_shared_folders_are_seen_and_read_only(make_lab: MakeLab, tmp_path: Path) -> None:
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "file").write_text("seen")
    host = make_lab(1, 0, share=[str(tmp_path / "shown")]).host("h1")
    assert host.run(["cat", f"{tmp_path}/shown/file"]).stdout == "seen"
    assert "Read-only" in host.run(["touch", f"{tmp_path}/shown/new"], check=False).stderr


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nodes", "0"], "field nodes: 0 hosts"),
        (["--workloads", "-1"], "field workloads"),
        (["--mtu", "1000"], "field mtu"),
        (["--name", "No/good"], "field name"),
    ],
)
def test_bad_input_is_refused_by_name(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = bpfleet("lab", "up", *arguments, cwd=tmp_path)
    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
    assert words in done.stderr


def test_missing_programs_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PATH", "/var/empty")
    with pytest.raises(HostUnfit) as caught:
        machine.check()
    assert "sshd" in caught.value.what and "openssh-server" in caught.value.remedy


def test_without_root_the_error_says_so() -> None:
    source = str(Path(__file__).parents[2])
    script = f"import sys; sys.path.insert(0, {source!r}); from bpfleet.cli.main import main; sys.exit(main())"
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = subprocess.run(
        [*nobody, "/usr/bin/python3", "-c", script, "lab", "up"],
        capture_output=True,
        text=True,
        cwd="/",
        timeout=30,
    )
    assert done.returncode == 1
    assert "a lab needs root" in done.stderr


def test_numbers_avoid_other_labs_and_the_machines_routes() -> None:
    assert plan.choose_number(set(), []) == 77
    assert plan.choose_number({77}, ["10.0.0.0/8", "192.168.78.128/25"]) == 79
    assert plan.choose_number(set(), ["fd00:bf:77::/64", "172.16.0.0/12"]) == 78
    with pytest.raises(InvalidInput, match="no private underlay range"):
        plan.choose_number(set(), ["192.168.0.0/16"])

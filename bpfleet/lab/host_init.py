"""Process 1 of a lab host. Runs under /usr/bin/python3 with nothing but the standard library.

Reads one JSON object on standard input (bpfleet/lab/hosts.py writes it), enters the host's cgroup and new
namespaces, sets the host up, starts sshd, and then reaps what dies, as any process 1 must. When sshd runs it
prints {"pid": N, "boot": ...} (the pid as the machine sees it; what came of the boot hook) and leaves standard
output. Anything that goes wrong before is a traceback on standard error and exit code 1; the namespaces and all
they hold go with it.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import signal
import socket
import stat
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any, Dict, List, Optional

# linux/sched.h
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x00020000, 0x02000000, 0x04000000
CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = 0x08000000, 0x20000000, 0x40000000
# sys/mount.h
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2

BOOT_HOOK = "/var/lib/bpfleet/boot"
BOOT_SECONDS = 120.0
MARKER = "etc/bpfleet-lab-host"  # on the host's disk once it is provisioned
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
DEVICES = {  # name -> major, minor (Documentation/admin-guide/devices.txt)
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
    "net/tun": (10, 200),
}

libc = ctypes.CDLL(None, use_errno=True)


def _call(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2); OSError with both paths if it fails."""
    ends = [os.fsencode(part) if part else None for part in (source, target, kind)]
    _call(libc.mount(*ends, ctypes.c_ulong(flags), options.encode() or None), f"mount {kind} {source} on {target}")


def main() -> int:
    config = json.load(sys.stdin)
    os.setsid()
    os.umask(0o022)
    Path(config["cgroup"], "cgroup.procs").write_text(str(os.getpid()))
    if config["lock"] is not None:
        os.close(config["lock"])  # from here on whoever takes the lab down finds us by our cgroup
    spaces = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
    _call(libc.unshare(spaces), "unshare")
    ready_read, ready_write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ready_read)
        return host(config, ready_write)
    os.close(ready_write)
    with os.fdopen(ready_read) as ready:
        report = ready.read()
    if not report:
        os.waitpid(child, 0)
        return 1
    print(json.dumps({"pid": child, **json.loads(report)}), flush=True)
    return 0


def host(config: Dict[str, Any], ready: int) -> int:
    """Life as process 1 of the host."""
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    for key, value in config["sysctls"].items():
        Path("/proc/sys", key).write_text(value)
    for command in config["network"]:
        run(command)
    first = make_disk(config)
    make_root(config)
    socket.sethostname(config["name"])
    if first:
        provision(config)
    for workload in config["workloads"]:
        run(["ip", "netns", "add", workload])
        run(["ip", "-n", workload, "link", "set", "lo", "up"])
    boot = run_boot_hook()
    # Exec'ed children must not inherit the mask that the loop below needs, hence posix_spawn's own.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    sshd = ["/usr/sbin/sshd", "-D", "-E", "/var/log/sshd.log"]
    os.posix_spawn(sshd[0], sshd, ENVIRONMENT, setsigmask=[], setsid=True)
    os.write(ready, json.dumps({"boot": boot}).encode())
    os.close(ready)
    while signal.sigwait({signal.SIGCHLD, signal.SIGTERM}) != signal.SIGTERM:
        reap()
    return 0  # the kernel ends every other process of the host with us


def reap() -> None:
    """Collect every child that has ended."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return


def run(command: List[str]) -> None:
    subprocess.run(command, check=True, env={**os.environ, **ENVIRONMENT})


def make_disk(config: Dict[str, Any]) -> bool:
    """The upper layer of the host's root file system; whether this is the host's first start."""
    disk = Path(config["disk"])
    if (disk / "upper" / MARKER).exists():
        return False
    (disk / "upper").mkdir(parents=True)
    (disk / "work").mkdir()
    (disk / "upper").chmod(0o755)
    for path, mode in config["private"].items():
        hide(disk / "upper", path, mode)
    return True


def hide(upper: Path, path: str, mode: int) -> None:
    """Make a folder of the upper layer opaque: nothing of the machine's folder shows through.

    Source: Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories".
    """
    here, there = upper, Path("/")
    for part in Path(path).parts[1:]:
        here, there = here / part, there / part
        if not here.exists():
            here.mkdir()
            if there.is_dir():  # the upper layer's folder decides over owner and mode of the merged one
                known = there.stat()
                os.chown(here, known.st_uid, known.st_gid)
                here.chmod(stat.S_IMODE(known.st_mode))
    here.chmod(mode)
    os.chown(here, 0, 0)
    os.setxattr(here, "trusted.overlay.opaque", b"y")


def make_root(config: Dict[str, Any]) -> None:
    """The host's file systems, and then nothing else of the machine's."""
    root, disk = config["root"], config["disk"]
    mount("", "/", flags=MS_REC | MS_PRIVATE)
    mount("bpfleet-lab", root, "overlay", options=f"lowerdir=/,upperdir={disk}/upper,workdir={disk}/work")
    for path in config["share"]:
        inside = root + path
        Path(inside).mkdir(parents=True, exist_ok=True)
        mount(path, inside, flags=MS_BIND | MS_REC)
        mount("", inside, flags=MS_BIND | MS_REMOUNT | MS_RDONLY)
    plain = MS_NOSUID | MS_NODEV | MS_NOEXEC
    mount("proc", f"{root}/proc", "proc", plain)
    mount("sysfs", f"{root}/sys", "sysfs", plain)
    mount("cgroup2", f"{root}/sys/fs/cgroup", "cgroup2", plain)
    mount("bpf", f"{root}/sys/fs/bpf", "bpf", plain, "mode=700")
    mount("tmpfs", f"{root}/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    make_devices(Path(root, "dev"))
    for folder, mode in (("lock", 0o1777), ("sshd", 0o755), ("user", 0o755)):
        Path(root, "run", folder).mkdir()
        Path(root, "run", folder).chmod(mode)
    # The kernel's boot id would be the machine's, the same before and after a reboot of the host.
    boot_id = Path(root, "run", "boot_id")
    boot_id.write_text(f"{uuid.uuid4()}\n")
    mount(str(boot_id), f"{root}/proc/sys/kernel/random/boot_id", flags=MS_BIND)
    os.chdir(root)
    run(["pivot_root", ".", "."])  # stacks the old root on the new one; pivot_root(2), "Notes"
    _call(libc.umount2(b".", MNT_DETACH), "umount of the machine's root")
    os.chdir("/")


def make_devices(dev: Path) -> None:
    mount("tmpfs", str(dev), "tmpfs", MS_NOSUID, "mode=755")
    for folder in ("net", "pts", "shm", "mqueue"):
        (dev / folder).mkdir()
    for name, (major, minor) in DEVICES.items():
        os.mknod(dev / name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
        (dev / name).chmod(0o666)
    mount("devpts", str(dev / "pts"), "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5")
    mount("tmpfs", str(dev / "shm"), "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    for name, target in (
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ):
        (dev / name).symlink_to(target)


def provision(config: Dict[str, Any]) -> None:
    """What an installer would leave on the host's disk. Runs once in its life, inside it."""
    for path in Path("/etc/ssh").glob("ssh_host_*"):
        path.unlink()  # the machine's own keys
    for path_name, (mode, text) in config["files"].items():
        path = Path(path_name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            path.unlink()  # such as /etc/resolv.conf, which may point into the machine's /run
        path.write_text(text)
        path.chmod(mode)
    Path("/root/.ssh").chmod(0o700)
    Path("/etc/machine-id").write_text(f"{secrets.token_hex(16)}\n")
    # sshd without PAM takes no one whose account is locked, not even by key.
    shadow = Path("/etc/shadow")
    lines = [line for line in shadow.read_text().splitlines() if not line.startswith("root:")]
    shadow.write_text("\n".join(["root:*:19000:0:99999:7:::", *lines]) + "\n")
    Path("/", MARKER).touch(mode=0o600)


def run_boot_hook() -> Optional[int]:
    """Run what the boot unit would run, if there is one; its exit code."""
    if not os.access(BOOT_HOOK, os.X_OK):
        return None
    with open("/var/log/boot.log", "ab") as log:  # noqa: PTH123
        try:
            return subprocess.run([BOOT_HOOK], stdout=log, stderr=log, env=ENVIRONMENT, timeout=BOOT_SECONDS).returncode
        except subprocess.TimeoutExpired:
            log.write(f"{BOOT_HOOK} was ended after {BOOT_SECONDS:.0f} s\n".encode())
            return 124


if __name__ == "__main__":
    sys.exit(main())

# The script that puts the agent on a host. It runs before anything else of bpfleet is there, given to `python3 -c`:
#
#     install ROOT DIGEST   unpack the zip archive on stdin to ROOT/agent/DIGEST, if its SHA-256 is DIGEST
#     remove ROOT           remove ROOT/agent and what else of ours is left in ROOT
#
# What the archive holds below host/ is put in its place as well: the script ROOT/boot, which restores at boot with the
# agent that was installed last (ROOT/agent/current), and where systemd is the init, the units that run it.
#
# It answers one JSON line on stdout (see bpfleet/agent/install.py). Its syntax is that of any Python from 2.7 on, so
# that an old one can say what is missing instead of failing with a SyntaxError; hence no annotations, no pathlib.
# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, check-untyped-defs=True
# ruff: noqa
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile

LEAST = (3, 9)
KEPT = 2
UNFIT = 92
UNFINISHED = "unfinished"  # in an agent's directory: it is unpacked, and not yet put in place; nobody starts it
STATE_ROOT = "/var/lib/bpfleet"  # units are for this root alone: there is one set of them on a host
SYSTEMD = "/run/systemd/system"  # there if systemd is the init: sd_booted(3)
UNITS = "/etc/systemd/system"
RULES = "/etc/udev/rules.d"


class Refused(Exception):
    pass


def error(code, what, remedy, path=None, details=None):
    where = {"file": path} if path else {}
    return {"code": code, "what": what, "where": where, "remedy": remedy, "details": details or {}}


def say(answer):
    sys.stdout.write(json.dumps(dict(answer, id=None), sort_keys=True) + "\n")
    sys.stdout.flush()


def too_old():
    if sys.version_info >= LEAST:
        return None
    have = "%d.%d.%d" % tuple(sys.version_info[:3])
    return error(
        "HostUnfit",
        "Python %s is too old: bpfleet's agent needs %d.%d or later" % ((have,) + LEAST),
        "Install a newer python3 on the host, first on the PATH of non-interactive sessions.",
        details={"python": have},
    )


def sync_tree(top):
    for directory, _, names in os.walk(top):
        for name in names + ["."]:
            handle = os.open(os.path.join(directory, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def make_room(agents, size):
    """Raise DiskFull before anything is written, if the unpacked archive cannot fit."""
    free = os.statvfs(agents)
    have = free.f_bavail * free.f_frsize
    if have < size:
        raise Refused(full(agents, size, have))


def full(path, need, have):
    return error(
        "DiskFull",
        "no space left for the agent: %d bytes needed, %d free" % (need, have),
        "Free space on the file system of %s; nothing was changed." % path,
        path,
        {"needed": need, "free": have},
    )


def install(root, digest):
    target = os.path.join(root, "agent", digest)
    data = sys.stdin.buffer.read()
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        what = "the artefact arrived damaged: its SHA-256 is %s, not %s (%d bytes)" % (found, digest, len(data))
        raise Refused(error("ProtocolFailed", what, "Try again.", target))
    if os.path.exists(os.path.join(target, "__main__.py")):
        finish(root, target)
        return {"digest": digest, "installed": False, "path": target}
    agents = os.path.dirname(target)
    os.makedirs(agents, 0o755, exist_ok=True)  # another installer may be at it too
    os.chmod(root, 0o700)
    archive = zipfile.ZipFile(io.BytesIO(data))
    unpacked = sum(entry.file_size for entry in archive.infolist())
    make_room(agents, 2 * unpacked + 4096 * len(archive.infolist()))  # the compiled files are about as large again
    staging = "%s.new.%d" % (target, os.getpid())
    try:
        archive.extractall(staging)
        compile_tree(staging)
        io.open(os.path.join(staging, UNFINISHED), "wb").close()
        sync_tree(staging)
        shutil.rmtree(target, True)  # there only if somebody damaged it: without its __main__.py
        try:
            os.rename(staging, target)
        except OSError as problem:
            # Another installer was first; what it put there has the same digest, hence the same content.
            if problem.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    finally:
        shutil.rmtree(staging, True)
    sync_directory(agents)
    finish(root, target)
    prune(agents, digest)
    return {"digest": digest, "installed": True, "path": target}


def finish(root, target):
    """Put it in place; only then it counts as installed, or whoever died in between would leave a host that restores
    nothing at boot."""
    put_in_place(root, target)
    unless_gone(os.unlink, os.path.join(target, UNFINISHED))


def unless_gone(work, path, *more):
    """What `work` says of a path, or None where another installer has taken it away or put it in its place meanwhile."""
    try:
        return work(path, *more)
    except OSError as problem:
        if problem.errno != errno.ENOENT:
            raise
    return None


def put_in_place(root, target):
    """Make this agent the one that restores, and have it run at boot."""
    link = os.path.join(root, "agent", "current")
    draft = "%s.new.%d" % (link, os.getpid())
    os.symlink(os.path.basename(target), draft)
    os.rename(draft, link)
    host = os.path.join(target, "host")
    if not os.path.isdir(host):
        return
    write_file(os.path.join(host, "boot"), os.path.join(root, "boot"), 0o755)
    if root != STATE_ROOT or not os.path.isdir(SYSTEMD):
        return
    units = [name for name in sorted(os.listdir(host)) if name.endswith((".service", ".path"))]
    for name in units:
        write_file(os.path.join(host, name), os.path.join(UNITS, name), 0o644)
    if os.path.isdir(RULES):
        for name in sorted(os.listdir(host)):
            if name.endswith(".rules"):
                write_file(os.path.join(host, name), os.path.join(RULES, name), 0o644)
        call("udevadm", "control", "--reload")
    wanted = [name for name in units if is_wanted(os.path.join(UNITS, name))]
    call("systemctl", "daemon-reload")
    call("systemctl", "--quiet", "enable", *wanted)
    call("systemctl", "--no-block", "start", *[name for name in wanted if name.endswith(".path")])


def write_file(source, target, mode):
    """Copy a small file, whole or not at all; one that is the same already is left alone."""
    with io.open(source, "rb") as file:
        data = file.read()
    if os.path.isfile(target):
        with io.open(target, "rb") as file:
            if file.read() == data:
                return
    draft = "%s.new.%d" % (target, os.getpid())
    with io.open(draft, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(draft, target)


def is_wanted(unit):
    with io.open(unit, encoding="utf-8") as file:
        return "[Install]" in file.read()


def call(*command):
    """Run a tool of the host; what it says on failure becomes the error."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = process.communicate()[0].decode("utf-8", "replace").strip()
    if process.returncode != 0:
        what = "%s failed: %s" % (" ".join(command), said or "status %d" % process.returncode)
        raise Refused(error("HostFailed", what, "Put right what it says, then try again."))


def take_out_of_place(root):
    """Remove what put_in_place made."""
    if root == STATE_ROOT and os.path.isdir(SYSTEMD):
        units = [name for name in sorted(os.listdir(UNITS)) if is_ours(name)]
        if units:
            call("systemctl", "--quiet", "disable", *units)
            call("systemctl", "stop", *[name for name in units if name.endswith(".path")])
            for name in units:
                os.unlink(os.path.join(UNITS, name))
            call("systemctl", "daemon-reload")
        rule = os.path.join(RULES, "90-bpfleet.rules")
        if os.path.exists(rule):
            os.unlink(rule)
            call("udevadm", "control", "--reload")
    boot = os.path.join(root, "boot")
    if os.path.exists(boot):
        os.unlink(boot)


def is_ours(name):
    return name.startswith("bpfleet-") and name.endswith((".service", ".path"))


def sync_directory(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def compile_tree(top):
    """Compile all modules, so that a start reads no source. Unchecked: the content never changes under a digest."""
    import compileall
    import py_compile

    compileall.compile_dir(top, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)


def prune(agents, digest):
    """Keep this agent, the one before it, which may just be starting, and those that run; and remove what dead
    installers left. Others may be at it too."""
    others = []
    for name in os.listdir(agents):
        path = os.path.join(agents, name)
        if name in ("current", digest):
            continue
        found = unless_gone(os.lstat, path)
        if not found:
            continue
        if ".new." not in name:
            others.append((found.st_mtime, path))
        elif time.time() - found.st_mtime > 3600:
            remove_path(path)
    for _, path in sorted(others)[: -(KEPT - 1)]:
        if unused(path):
            shutil.rmtree(path, True)


def remove_path(path):
    if os.path.islink(path):
        unless_gone(os.unlink, path)
    else:
        shutil.rmtree(path, True)


def unused(path):
    """Whether no agent or watchdog runs from this directory; each holds a lock on it (bpfleet/agent/main.py)."""
    handle = unless_gone(os.open, path, os.O_RDONLY)
    if handle is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (IOError, OSError):
        return False
    finally:
        os.close(handle)
    return True


def remove(root):
    """Remove the agents, and the state root if `wipe` left nothing but the log and the lock in it."""
    agents = os.path.join(root, "agent")
    there = os.path.isdir(agents)
    take_out_of_place(root)
    shutil.rmtree(agents, True)
    for name in os.listdir(root) if os.path.isdir(root) else ():
        if name in ("agent.log", "agent.log.1", "lock") or name.startswith("boot.new."):  # of a dead installer
            os.unlink(os.path.join(root, name))
    if os.path.isdir(root) and not os.listdir(root):
        os.rmdir(root)
    return {"removed": there}


def main(arguments):
    problem = too_old()
    if problem:
        say({"error": problem})
        return UNFIT
    root = arguments[1]
    try:
        say({"result": install(root, arguments[2]) if arguments[0] == "install" else remove(root)})
        return 0
    except Refused as refusal:
        say({"error": refusal.args[0]})
    except (OSError, zipfile.BadZipFile) as problem:
        path = getattr(problem, "filename", None) or root
        if getattr(problem, "errno", None) == errno.ENOSPC:
            say({"error": full(path, 0, 0)})
        else:
            remedy = "Log in as root, and make sure that the file system is writable."
            say({"error": error("HostFailed", "the agent cannot be put on the host: %s" % problem, remedy, path)})
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

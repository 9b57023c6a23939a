"""The artefact, and getting it onto a host with the very commands that a channel runs there."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import pytest

from bpfleet.agent import artefact, wire
from bpfleet.agent.install import digest_of, install_command, launch_command, remove_command
from bpfleet.errors import HostFailed
from tests.agent.pythons import INTERPRETERS, interpreter, old_pythons


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins for the objects: what is in them matters to no test here."""
    folder = tmp_path_factory.mktemp("objects")
    for name in artefact.OBJECT_NAMES:
        (folder / f"{name}.bpf.o").write_bytes(name.encode() * 100)
    return folder


@pytest.fixture(scope="module")
def made(objects: Path) -> artefact.Artefact:
    return artefact.build(objects)


class Host:
    """A directory as the state root, and one interpreter as the host's python3."""

    def __init__(self, folder: Path, python: Optional[str]) -> None:
        self.root = folder / "state"
        path = folder / "bin"
        path.mkdir()
        if python is not None:
            # A wrapper rather than a link: an interpreter finds its library from where it lies.
            wrapper = path / "python3"
            wrapper.write_text(f'#!/bin/sh\nexec {python} "$@"\n')
            wrapper.chmod(0o755)
        (path / "sh").symlink_to("/bin/sh")
        self._path = str(path)

    def run(self, command: str, data: bytes = b"") -> Tuple[int, Dict[str, Any]]:
        """Exit status and the last line of output, as a login shell without further PATH would run it."""
        done = subprocess.run(
            ["/bin/sh", "-c", command], input=data, stdout=subprocess.PIPE, env={"PATH": self._path}, check=False
        )
        lines = done.stdout.splitlines()
        return done.returncode, json.loads(lines[-1]) if lines else {}

    def install(self, made: artefact.Artefact, data: Optional[bytes] = None) -> Tuple[int, Dict[str, Any]]:
        return self.run(install_command(made.digest, root=str(self.root)), made.data if data is None else data)

    def hello(self, digest: str) -> Tuple[int, Dict[str, Any]]:
        return self.run(launch_command(digest, root=str(self.root), local=True), wire.request(1, "hello", {}))


def agents(host: Host) -> List[str]:
    """The agents that are installed, after making sure that the boot script has the one installed last."""
    names = sorted(path.name for path in (host.root / "agent").iterdir())
    names.remove("current")
    assert (host.root / "boot").stat().st_mode & 0o777 == 0o755
    return names


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path, sys.executable)


def test_equal_inputs_make_equal_bytes(objects: Path, made: artefact.Artefact, tmp_path: Path) -> None:
    later = tmp_path / "objects"
    later.mkdir()
    for path in sorted(objects.iterdir(), reverse=True):
        copy = later / path.name
        copy.write_bytes(path.read_bytes())
        copy.chmod(0o700)
        os.utime(copy, (1, 1))
    assert artefact.build(later) == made


def test_another_object_makes_another_digest(objects: Path, made: artefact.Artefact, tmp_path: Path) -> None:
    other = tmp_path / "objects"
    other.mkdir()
    for path in objects.iterdir():
        (other / path.name).write_bytes(path.read_bytes() + b".")
    assert artefact.build(other).digest != made.digest


def test_a_missing_object_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostFailed, match=r"from_endpoint\.bpf\.o is missing") as raised:
        artefact.build(tmp_path)
    assert "make objects" in raised.value.remedy


def test_it_holds_what_hosts_need_and_nothing_of_the_controller(made: artefact.Artefact) -> None:
    names = zipfile.ZipFile(io.BytesIO(made.data)).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"__main__.py", "bpfleet", "host", "objects"}
    packages = {name.split("/")[1] for name in names if name.startswith("bpfleet/")}
    assert packages == {"__init__.py", "errors.py", *artefact.HOST_PACKAGES}
    assert not [name for name in names if name.endswith((".pyc", ".so"))]


def test_real_objects_and_all_fit_into_two_megabytes() -> None:
    assert len(artefact.build().data) <= 2 * 1024 * 1024


@pytest.mark.parametrize("name", INTERPRETERS)
def test_installed_once_then_found(tmp_path: Path, made: artefact.Artefact, name: str) -> None:
    host = Host(tmp_path, interpreter(name))
    assert host.hello(made.digest)[0] == wire.EXIT_NOT_INSTALLED
    status, answer = host.install(made)
    assert (status, answer["result"]["installed"]) == (0, True), answer
    status, answer = host.install(made)
    assert (status, answer["result"]["installed"]) == (0, False), answer
    status, answer = host.hello(made.digest)
    assert status == 0
    assert answer["result"]["artefact"] == made.digest
    assert answer["result"]["generation"] == 0
    assert agents(host) == [made.digest]


@pytest.mark.parametrize("dies", ["os.symlink(", "write_file(os.path.join(host, "])
def test_an_installer_that_was_killed_before_boot_was_seen_to_does_it_again(
    host: Host, made: artefact.Artefact, dies: str
) -> None:
    """Unpacked alone it is not there: a node would be changed by it, and come back from a reboot with nothing."""
    command = install_command(made.digest, root=str(host.root))
    assert dies in command
    host.run(command.replace(dies, f"os.kill(os.getpid(), 9), {dies}"), made.data)
    assert (host.root / "agent" / made.digest / "__main__.py").exists() and not (host.root / "boot").exists()
    assert host.hello(made.digest)[0] == wire.EXIT_NOT_INSTALLED
    status, answer = host.install(made)
    assert (status, answer["result"]["installed"]) == (0, False), answer
    assert agents(host) == [made.digest]
    assert host.hello(made.digest)[0] == 0


def test_modules_are_compiled_for_the_host(host: Host, made: artefact.Artefact) -> None:
    host.install(made)
    installed = host.root / "agent" / made.digest
    assert list((installed / "bpfleet" / "agent" / "__pycache__").glob("wire.*.pyc"))


def test_hello_writes_nothing(host: Host, made: artefact.Artefact) -> None:
    host.install(made)
    before = sorted((path, path.stat().st_mtime_ns) for path in host.root.rglob("*"))
    host.hello(made.digest)
    assert sorted((path, path.stat().st_mtime_ns) for path in host.root.rglob("*")) == before


def test_hello_needs_no_ctypes(host: Host, made: artefact.Artefact) -> None:
    host.install(made)
    script = (
        f"import sys; sys.path.insert(0, {str(host.root / 'agent' / made.digest)!r}); sys.argv = ['x']\n"
        "import os; from pathlib import Path\n"
        "from bpfleet.agent.main import real_kernel; from bpfleet.agent.node import Agent\n"
        "from bpfleet.agent.serve import serve\n"
        f"root = Path({str(host.root)!r})\n"
        "serve(Agent(root, lambda: real_kernel(root), local=True), 0, os.dup(2))\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'ctypes', '_ctypes', 'logging'}))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", script],
        input=wire.request(1, "hello", {}),
        capture_output=True,
        check=True,
    )
    assert b'"result"' in done.stderr
    assert done.stdout == b"[]\n"


def test_damaged_bytes_are_refused(host: Host, made: artefact.Artefact) -> None:
    status, answer = host.install(made, made.data[:-1])
    assert status == 1
    assert answer["error"]["code"] == "ProtocolFailed"
    assert not list((host.root / "agent").glob("*")) if host.root.exists() else True


def test_the_one_before_is_kept_and_older_ones_go(host: Host, objects: Path, made: artefact.Artefact) -> None:
    folder = host.root / "agent"
    for age, name in enumerate(("old", "older", "oldest")):
        (folder / name).mkdir(parents=True)
        os.utime(folder / name, (1000 - age, 1000 - age))
    host.install(made)
    assert agents(host) == sorted([made.digest, "old"])


@pytest.mark.parametrize("command", ["serve", "watchdog"])
def test_one_that_runs_is_kept_until_it_ends(host: Host, made: artefact.Artefact, command: str) -> None:
    """`observe --follow` may stand for weeks, and imports some of its code only when it needs it."""
    host.install(made)
    folder = host.root / "agent"
    name = f"bpfleet-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as guarded:
        guarded.bind(f"\0{name}")
        guarded.listen()
        options = {"serve": [], "watchdog": ["--transaction", "1", "--socket", name]}[command]
        python = [sys.executable, "-I", "-S", "-B"]
        words = [*python, str(folder / made.digest), command, "--root", str(host.root), *options]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
            assert running.stdin is not None and running.stdout is not None
            if command == "serve":
                running.stdin.write(wire.request(1, "hello", {}))
                running.stdin.flush()
                assert b'"result"' in running.stdout.readline()
            else:
                accompanied, _ = guarded.accept()
            later = [artefact.Artefact(digest_of(made.data + more), made.data + more) for more in (b".", b"..")]
            for one in later:
                os.utime(folder / made.digest, (1, 1))
                host.install(one)
            kept = agents(host)
            running.stdin.close()
            if command == "watchdog":
                accompanied.close()
            running.kill()
        assert kept == sorted([made.digest, *(one.digest for one in later)])
        newest = artefact.Artefact(digest_of(made.data + b"..."), made.data + b"...")
        host.install(newest)
        assert agents(host) == sorted([later[-1].digest, newest.digest])


def test_many_installers_at_once_leave_one_whole_agent(host: Host, made: artefact.Artefact) -> None:
    command = install_command(made.digest, root=str(host.root))
    running = []
    for _ in range(3):
        process = subprocess.Popen(["sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        running.append(process)
    answers = [json.loads(process.communicate(made.data)[0]) for process in running]
    assert all("result" in answer for answer in answers), answers
    assert agents(host) == [made.digest]
    assert host.hello(made.digest)[0] == 0


def test_what_another_installer_takes_away_meanwhile_is_missed_by_nobody(host: Host, made: artefact.Artefact) -> None:
    """It puts its own draft in place, or removes an old agent, after both have listed what is there."""
    command = install_command(made.digest, root=str(host.root))
    with_gone = command.replace("os.listdir(agents)", 'os.listdir(agents) + [digest + ".new.1", "old"]')
    assert with_gone != command
    status, answer = host.run(with_gone, made.data)
    assert (status, answer["result"]["installed"]) == (0, True)
    assert agents(host) == [made.digest]


def test_an_old_python_is_refused_in_words(tmp_path: Path, made: artefact.Artefact) -> None:
    pythons = old_pythons()
    if not pythons:
        pytest.skip("no Python older than 3.9 on this machine to be refused")
    for number, python in enumerate(pythons):
        folder = tmp_path / str(number)
        folder.mkdir()
        host = Host(folder, python)
        status, answer = host.install(made)
        assert status == wire.EXIT_UNFIT, answer
        assert answer["error"]["code"] == "HostUnfit"
        assert "3.9 or later" in answer["error"]["what"]
        assert not host.root.exists()
        # The same where the agent is installed but the host's python3 became an old one.
        Host.install(Host(_made(folder / "new"), sys.executable), made)
        old = Host(_made(folder / "mixed"), python)
        old.root = folder / "new" / "state"
        status, answer = old.hello(made.digest)
        assert (status, answer["error"]["code"]) == (wire.EXIT_UNFIT, "HostUnfit")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_no_python_at_all_has_its_own_status(tmp_path: Path, made: artefact.Artefact) -> None:
    host = Host(tmp_path, None)
    assert host.install(made) == (wire.EXIT_NO_PYTHON, {})


@pytest.mark.root
def test_a_full_disk_is_named_before_anything_is_written(tmp_path: Path, made: artefact.Artefact) -> None:
    host = Host(tmp_path, sys.executable)
    host.root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(host.root)], check=True)
    try:
        status, answer = host.install(made)
        assert status == 1
        assert answer["error"]["code"] == "DiskFull"
        assert answer["error"]["details"]["needed"] > 1024 * 1024
        assert str(host.root) in answer["error"]["where"]["file"]
        assert not list((host.root / "agent").iterdir())
    finally:
        subprocess.run(["umount", str(host.root)], check=True)


def test_remove_leaves_nothing(host: Host, made: artefact.Artefact) -> None:
    host.install(made)
    (host.root / "agent.log").write_text("x")
    status, answer = host.run(remove_command(root=str(host.root)))
    assert (status, answer["result"]) == (0, {"removed": True})
    assert not host.root.exists()


def test_remove_takes_what_dead_installers_left(host: Host, made: artefact.Artefact) -> None:
    command = install_command(made.digest, root=str(host.root))
    host.run(command.replace("os.rename(draft, target)", "os.kill(os.getpid(), 9)"), made.data)
    assert list(host.root.glob("boot.new.*"))
    assert host.run(remove_command(root=str(host.root)))[0] == 0
    assert not host.root.exists()


def test_remove_keeps_documents(host: Host, made: artefact.Artefact) -> None:
    host.install(made)
    (host.root / "journal.json").write_text("{}")
    host.run(remove_command(root=str(host.root)))
    assert [path.name for path in host.root.iterdir()] == ["journal.json"]

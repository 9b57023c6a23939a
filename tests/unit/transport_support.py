"""What the transport's tests talk to: a real OpenSSH server on a loopback port, and a small agent of their own.

The small agent speaks the agent's protocol (bpfleet/agent/wire.py) and does what a request tells it to: die, fall
silent, answer at length, fail. It is delivered and launched the way the real one is, by the real bootstrap.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

from bpfleet.transport.artefact import Artefact, of_bytes
from bpfleet.transport.channel import Connection, Deadline
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.local import LocalConnector
from bpfleet.transport.target import Target

USER, _HOME = pwd.getpwuid(os.getuid()).pw_name, pwd.getpwuid(os.getuid()).pw_dir
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"  # the system's own python3, not a shim of whoever runs the tests
_SSHD = shutil.which("sshd", path="/usr/sbin:/usr/bin") or "sshd"

SMALL_AGENT = r"""
import json, os, signal, sys, time
root = sys.argv[sys.argv.index("--root") + 1]
state_file = os.path.join(root, "state.json")
staged = None

def load():
    try:
        with open(state_file) as handle:
            return json.load(handle)
    except FileNotFoundError:
        return {"generation": 0, "documents": {}, "pending": None, "fail": [], "writes": 0}

def save(state):
    with open(state_file + ".new", "w") as handle:
        json.dump(state, handle)
    os.replace(state_file + ".new", state_file)

def error(code, what, **details):
    return {"error": {"code": code, "what": what, "where": {}, "remedy": "", "details": details}}

def hello(state):
    pending = state["pending"] and {"transaction": state["pending"]["transaction"]}
    return {"protocol": 1, "pid": os.getpid(), "pending": pending, "generation": state["generation"],
            "documents_digest": "d%d" % state["generation"], "state_digest": "s%d" % state["generation"],
            "writes": state["writes"], "artefact": os.path.basename(os.path.dirname(os.path.abspath(__file__)))}

def wait_if_told(method):
    while "%s waits" % method in load()["fail"] and not os.path.exists(os.path.join(root, "go")):
        time.sleep(0.02)

def answer(method, params):
    global staged
    wait_if_told(method)
    state = load()
    if method in state["fail"]:
        state["fail"].remove(method)
        save(state)
        return error("HostFailed", method + " failed as told")
    if method + " die" in state["fail"]:
        state["fail"].remove(method + " die")
        save(state)
        os.kill(os.getpid(), signal.SIGKILL)
    if method == "hello":
        return {"result": hello(state)}
    if method == "state":
        return {"result": state}
    if method == "fail":
        state["fail"] += params["methods"]
        save(state)
        return {"result": None}
    if method == "long":
        return {"result": "x" * params["bytes"]}
    if method == "go":
        open(os.path.join(root, "go"), "w").close()
        return {"result": None}
    if method == "echo":
        return {"result": params}
    if method == "grumble":
        sys.stderr.write("y" * params["bytes"] + "\nthe last word\n")
        sys.stderr.flush()
        return {"result": "done"}
    if method == "silence":
        time.sleep(params["seconds"])
        return {"result": "late"}
    if method in ("die", "wipe"):
        state["wipes"] = state.get("wipes", 0) + 1
        save(state)
        if "seconds" in params:
            time.sleep(params["seconds"])
            return {"result": "late"}
        sys.stderr.write("about to die\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    if method == "exit":
        sys.exit(params["status"])
    if method == "garbage":
        os.write(1, b"welcome to this host\n")
        return {"result": None}
    if method == "stage":
        puts = {"%(kind)s/%(name)s" % item["document"]: item["document"]["spec"] for item in params["puts"]}
        bad = [key for key, spec in puts.items() if spec.get("bad")]
        if bad:
            refusal = error("NumberTaken", "taken")["error"]
            return {"result": {"refused": [{"document": key, "error": refusal} for key in bad]}}
        documents = dict(state["documents"], **puts)
        for key in params["deletes"]:
            documents.pop(key, None)
        common = {"warnings": [], "waiting": [], "documents_digest": "d", "state_digest": "s", "steps": {"step": 1}}
        if documents == state["documents"]:
            return {"result": dict(common, transaction=None, unchanged=True)}
        staged = {"transaction": os.urandom(4).hex(), "documents": documents, "base": state["generation"]}
        return {"result": dict(common, transaction=staged["transaction"], unchanged=False)}
    if method == "apply":
        if "apply slowly" in state["fail"]:
            time.sleep(2)
        if staged is None or staged["transaction"] != params["transaction"]:
            return error("TransactionFailed", "nothing staged", retry="stage")
        if staged["base"] != state["generation"]:
            return error("TransactionFailed", "somebody else was first", retry="stage")
        state["pending"] = dict(staged, connection=os.environ.get("SSH_CONNECTION"), pid=os.getpid())
        state["writes"] += 1
        save(state)
        return {"result": {"transaction": staged["transaction"], "generation": state["generation"] + 1, "writes": 1,
                           "state_digest": "s", "documents_digest": "d"}}
    if method == "confirm":
        pending = state["pending"]
        if not pending or pending["transaction"] != params["transaction"]:
            return error("TransactionFailed", "nothing to confirm")
        if os.environ.get("SSH_CONNECTION") == pending["connection"] and os.getpid() == pending["pid"]:
            return error("TransactionFailed", "not a new connection")
        state.update(pending=None, documents=pending["documents"], generation=state["generation"] + 1)
        save(state)
        if "confirm kills the one before" in state["fail"]:
            os.kill(pending["pid"], signal.SIGKILL)
        if "confirm then die" in state["fail"]:
            os.kill(os.getpid(), signal.SIGKILL)
        done = state["generation"]
        return {"result": {"generation": done, "documents_digest": "d%d" % done, "state_digest": "s%d" % done}}
    if method == "rollback":
        staged = None
        state["pending"] = None
        save(state)
        done = state["generation"]
        return {"result": {"rolled_back": params.get("transaction"), "generation": done, "documents_digest": ""}}
    return error("ProtocolFailed", "no method " + method)

heard = True
for line in sys.stdin:
    message = json.loads(line)
    number, method, params = message["id"], message["method"], message["params"]
    if not heard and method != "rollback":
        continue
    if method == "events":
        for count in range(params["count"]):
            print(json.dumps({"id": number, "event": {"count": count}}), flush=True)
        if params.get("then") == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if params.get("follow"):
            continue
        reply = {"result": {"events": params["count"], "lost": 0}}
    else:
        reply = answer(method, params)
    try:
        print(json.dumps(dict(reply, id=number)), flush=True)
    except BrokenPipeError:
        heard = False
"""


def small_agent(note: str = "") -> Artefact:
    """The small agent as an artefact; another `note`, another digest."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("__main__.py", SMALL_AGENT + f"\n# {note}\n")
    return of_bytes(data.getvalue())


def make_key(path: Path, kind: str = "ed25519", passphrase: str = "", *options: str) -> Path:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", path.name, "-f", str(path), *options], check=True
    )
    return path


def public_line(path: Path) -> str:
    """ "type base64" of the public half of a key."""
    return " ".join(Path(f"{path}.pub").read_text().split()[:2])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Sshd:
    """A running sshd with keys and configuration of its own; `target` reaches it, key in the resource."""

    folder: Path
    port: int
    process: Optional[subprocess.Popen[bytes]] = None
    options: str = ""
    first: str = ""
    host_keys: tuple[str, ...] = ("ed25519",)

    @property
    def host_key(self) -> Path:
        return self.folder / f"host_{self.host_keys[0]}"

    @property
    def user_key(self) -> Path:
        return self.folder / "user"

    def target(self, name: str = "h1", **changes: object) -> Target:
        target = Target(
            name=name,
            host="127.0.0.1",
            port=self.port,
            user=USER,
            private_key_file=str(self.user_key),
            host_key=public_line(self.host_key),
            known_hosts_file=None,
        )
        return replace(target, **changes)  # type: ignore[arg-type]

    def start(self) -> None:
        lines = [
            self.first,  # sshd takes the first value that it finds
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            *(f"HostKey {self.folder / f'host_{kind}'}" for kind in self.host_keys),
            f"AuthorizedKeysFile {self.folder / 'authorized_keys'}",
            "PermitRootLogin prohibit-password",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "UsePAM no",
            "StrictModes no",
            "PidFile none",
            self.options,
        ]
        config = self.folder / "sshd_config"
        config.write_text("\n".join(lines) + "\n")
        # /run of its own: sshd's privilege separation wants /run/sshd, and agents keep their state in /run/state.
        # An empty home: this machine's login scripts are none of the test's business.
        mounts = f"mount -t tmpfs tmpfs /run && mkdir -p /run/sshd && mount -t tmpfs tmpfs {_HOME}"
        inner = f"{mounts} && exec {_SSHD} -D -e -f {config}"
        # It dies with the tests, killed or not.
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--", "sh", "-c", inner]
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 20
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"sshd did not start: {(self.folder / 'log').read_text()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End the server and its connections: all are in its session, sshd's children in groups of their own."""
        if self.process is None:
            return
        for pid in [*self.connections(), self.process.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()
        self.process = None

    def connections(self) -> list[int]:
        """Process ids of sshd's children, one for each connection."""
        assert self.process is not None
        try:
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        except FileNotFoundError:
            return []  # the server itself is gone
        return [int(child) for child in children]


def make_sshd(folder: Path, *, options: str = "", first: str = "", host_keys: tuple[str, ...] = ("ed25519",)) -> Sshd:
    folder.mkdir(parents=True, exist_ok=True)
    for kind in host_keys:
        make_key(folder / f"host_{kind}", kind)
    make_key(folder / "user")
    shutil.copy(folder / "user.pub", folder / "authorized_keys")
    return Sshd(folder, free_port(), options=options, first=first, host_keys=host_keys)


class PerNode:
    """A local connector that gives each node a working directory of its own; the agents' root is relative to it."""

    local = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, target: Target, until: Deadline) -> Connection:
        home = self._folder / target.name
        home.mkdir(parents=True, exist_ok=True)
        return LocalConnector(prefix=["env", "-C", str(home)], environment={"PATH": _PATH})(target, until)

    def close(self) -> None:
        """Nothing is kept."""


class Hosts:
    """Hosts by name, over one kind of channel. Each fleet made here has agents with a state of their own."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self._folder = folder
        self._sshd: dict[str, Sshd] = {}
        self._serial = itertools.count(1)

    def target(self, name: str = "h1") -> Target:
        return self.sshd(name).target(name) if self.kind == "ssh" else Target(name, "localhost")

    def sshd(self, name: str = "h1") -> Sshd:
        if name not in self._sshd:
            server = make_sshd(self._folder / name)
            server.start()
            self._sshd[name] = server
        return self._sshd[name]

    def fleet(self, **options: Any) -> Fleet:
        number = next(self._serial)
        defaults: dict[str, Any] = {"artefact": small_agent(), "root": f"/run/state/{number}"}
        if self.kind == "local":
            defaults.update(connector=PerNode(self._folder), root=f"state/{number}")
        return Fleet(**{**defaults, **options})

    def stop(self) -> None:
        for server in self._sshd.values():
            server.stop()


@contextlib.contextmanager
def running(folder: Path, **options: object) -> Iterator[Sshd]:
    """A server of a test's own."""
    server = make_sshd(folder, **options)  # type: ignore[arg-type]
    server.start()
    try:
        yield server
    finally:
        server.stop()


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def set_after(first: threading.Event, then: threading.Event) -> None:
    """Set `then` once `first` is set; a test goes on meanwhile."""

    def work() -> None:
        if first.wait(60):
            then.set()

    threading.Thread(target=work, daemon=True).start()

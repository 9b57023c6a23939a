"""The agent's artefact: one zip archive with all that a host needs, named by the SHA-256 of its bytes.

    __main__.py      tells an old Python what is missing, else starts bpfleet.agent.main
    bpfleet/         what runs on hosts: errors, model, compile, loader, agent, observe
    objects/         *.bpf.o
    host/            what is put elsewhere on the host (boot script, units, udev rule), rendered from templates/host

Equal inputs make equal bytes: sorted names, fixed times and modes. `python3 -m bpfleet.agent.artefact` writes it to
build/agent.pyz and prints its path, size and digest.
"""

from __future__ import annotations

import io
import os
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, Tuple

import bpfleet
from bpfleet.agent import wire
from bpfleet.agent.install import digest_of
from bpfleet.errors import HostFailed
from bpfleet.loader.generated.layouts import PROGRAMS
from bpfleet.loader.rtnl import NAMESPACES
from bpfleet.model.state import DEVICE_PREFIX, TUNNEL_DEVICE

CHECKOUT = Path(bpfleet.__file__).parent.parent
OBJECTS = CHECKOUT / "build" / "bpf"
BUILT = CHECKOUT / "build" / "agent.pyz"
TEMPLATES = CHECKOUT / "templates" / "host"
OBJECT_NAMES = tuple(sorted(PROGRAMS))
HOST_PACKAGES = ("model", "compile", "loader", "agent", "observe")
CONTROLLER_ONLY = (
    "bpfleet/loader/fake.py",
    "bpfleet/agent/artefact.py",
    "bpfleet/agent/bootstrap.py",
    "bpfleet/agent/install.py",
)
MOST_BYTES = 2 * 1024 * 1024
"""Largest artefact that is built; a test and a bench watch it as well."""

_RENDERED = {
    "managed": "Put here by the installation of bpfleet's agent, which writes it anew each time.",
    "root": wire.STATE_ROOT,
    "changed": "/run/bpfleet-changed",
    "namespaces": str(NAMESPACES),
    "devices": [f"{DEVICE_PREFIX}*", TUNNEL_DEVICE],
}

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip archive can hold

_MAIN = """\
# Starts bpfleet's agent. The syntax is that of any Python, so that an old one can say what is missing.
import sys

if sys.version_info < (3, 9):
    import json

    have = "%d.%d.%d" % tuple(sys.version_info[:3])
    what = "Python %s is too old: bpfleet's agent needs 3.9 or later" % have
    remedy = "Install a newer python3 on the host, first on the PATH of non-interactive sessions."
    error = {"code": "HostUnfit", "what": what, "where": {}, "remedy": remedy, "details": {"python": have}}
    sys.stdout.write(json.dumps({"id": None, "error": error}) + "\\n")
    sys.exit(92)

from bpfleet.agent.main import main

sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Artefact:
    """The archive's bytes and their digest."""

    digest: str
    data: bytes


def build(objects: Path = OBJECTS) -> Artefact:
    """The artefact from this checkout's code and the objects in a directory.

    Raises HostFailed for missing objects and for more than MOST_BYTES.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in sorted(_entries(objects)):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o100644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data, compresslevel=9)
    data = buffer.getvalue()
    if len(data) > MOST_BYTES:
        raise HostFailed(
            f"the agent's artefact has {len(data)} bytes, more than {MOST_BYTES}",
            remedy="Leave out what hosts do not need (bpfleet.agent.artefact.py).",
        )
    return Artefact(digest_of(data), data)


def _entries(objects: Path) -> Iterator[Tuple[str, bytes]]:
    """Name and contents of every file."""
    yield "__main__.py", _MAIN.encode()
    package = CHECKOUT / "bpfleet"
    sources = [package / "__init__.py", package / "errors.py"]
    for name in HOST_PACKAGES:
        sources.extend((package / name).rglob("*.py"))
    for path in sources:
        name = path.relative_to(CHECKOUT).as_posix()
        if name not in CONTROLLER_ONLY:
            yield name, path.read_bytes()
    for name, text in host_files().items():
        yield f"host/{name}", text.encode()
    for name in OBJECT_NAMES:
        path = objects / f"{name}.bpf.o"
        if not path.is_file():
            raise HostFailed(f"{path} is missing", remedy="Build the objects first: make objects.", file=str(path))
        yield f"objects/{path.name}", path.read_bytes()


def host_files() -> Dict[str, str]:
    """What is put elsewhere on the host, by name (bootstrap.py knows where)."""
    import jinja2  # here, because only what makes an artefact needs it

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    names = sorted(path.name for path in TEMPLATES.glob("*.j2"))
    return {name[: -len(".j2")]: environment.get_template(name).render(_RENDERED) for name in names}


def main() -> int:
    """Write the artefact to build/agent.pyz and say so."""
    made = build()
    BUILT.parent.mkdir(parents=True, exist_ok=True)
    temporary = BUILT.with_suffix(f".{os.getpid()}")
    temporary.write_bytes(made.data)
    temporary.replace(BUILT)
    print(f"{BUILT.relative_to(CHECKOUT)}: {len(made.data)} bytes, digest {made.digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

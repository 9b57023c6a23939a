#!/usr/bin/env python3
"""Puts the Ansible collection together: its own files, the generated ones, and what it carries.

    plugins/plugin_utils/vendored/bpfleet/   the model and the agent's wire protocol, their imports made relative
    files/agent.pyz                          the agent
    roles/node/templates/                    what is rendered to hosts

Makes build/collections, a directory for ANSIBLE_COLLECTIONS_PATH; `--archive DIRECTORY` has ansible-galaxy build the
archive from it as well.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Dict, Iterator, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bpfleet.transport.artefact import current

CHECKOUT = Path(__file__).resolve().parents[1]
SOURCE = CHECKOUT / "ansible_collection"
TEMPLATES = CHECKOUT / "templates"
BUILT = CHECKOUT / "build" / "collections"
BELOW = Path("ansible_collections/bpfleet/fleet")
VENDORED = "plugins/plugin_utils/vendored"
_MODULES = ("__init__.py", "errors.py", "model", "agent/__init__.py", "agent/bootstrap.py", "agent/install.py")
_IMPORT = re.compile(r"^(\s*from )bpfleet\.?", re.MULTILINE)


def files() -> Dict[str, bytes]:
    """Every file of the collection by its path in it."""
    found = {path.relative_to(SOURCE).as_posix(): path.read_bytes() for path in _sources(SOURCE)}
    found.update({f"{VENDORED}/bpfleet/{name}": data for name, data in _vendored()})
    found[f"{VENDORED}/__init__.py"] = b""
    found[f"{VENDORED}/LICENSE"] = (CHECKOUT / "LICENSE").read_bytes()
    found["files/agent.pyz"] = current().data
    found.update({f"roles/node/templates/{path.name}": path.read_bytes() for path in sorted(TEMPLATES.glob("*.j2"))})
    return found


def _sources(top: Path) -> Iterator[Path]:
    for path in sorted(top.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
            yield path


def _vendored() -> Iterator[Tuple[str, bytes]]:
    package = CHECKOUT / "bpfleet"
    for name in (*_MODULES, "agent/wire.py"):
        for path in [package / name] if name.endswith(".py") else sorted((package / name).rglob("*.py")):
            inside = path.relative_to(package)
            # One dot is the file's own package.
            text = _IMPORT.sub(rf"\g<1>{'.' * len(inside.parts)}", path.read_text(encoding="utf-8"))
            yield inside.as_posix(), text.encode()


def assemble(directory: Path = BUILT) -> Path:
    """Bring `directory` up to date; the collection's own directory in it. Files that are right are left alone."""
    top = directory / BELOW
    wanted = files()
    for path in _sources(top) if top.is_dir() else ():
        if path.relative_to(top).as_posix() not in wanted:
            path.unlink()
    for name, data in wanted.items():
        path = top / name
        if not path.is_file() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return top


def archive(directory: Path, collections: Path = BUILT) -> Path:
    """Have ansible-galaxy build the collection's archive in `directory`; its path."""
    top = assemble(collections)
    for cache in top.rglob("__pycache__"):
        shutil.rmtree(cache)
    galaxy = Path(sys.executable).with_name("ansible-galaxy")
    command = [str(galaxy), "collection", "build", "--force", "--output-path", str(directory.resolve()), str(top)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (built,) = directory.glob("bpfleet-fleet-*.tar.gz")
    return built


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archive", type=Path, metavar="DIRECTORY", help="build the archive there as well")
    arguments = parser.parse_args()
    print(assemble())
    if arguments.archive:
        print(archive(arguments.archive))
    return 0


if __name__ == "__main__":
    sys.exit(main())

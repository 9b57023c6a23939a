"""How the agent gets onto a host and is started there: commands for a channel to run, and what they answer.

All commands need only `sh` and `python3` on the host and root, and pass through any login shell.

    launch_command(digest)     -> the agent serves on stdin/stdout; exit status EXIT_NOT_INSTALLED if it is not there,
                                  EXIT_NO_PYTHON without python3, EXIT_UNFIT if that is older than 3.9
    install_command(digest)    -> reads the artefact's bytes on stdin until the end of file, writes one line:
                                  {"id": null, "result": {"digest", "installed": bool, "path"}} or
                                  {"id": null, "error": ...}; exit status 0, 1, EXIT_NO_PYTHON or EXIT_UNFIT
    remove_command()           -> removes every installed agent and, if nothing else is left there, the state root
"""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path

from bpfleet.agent import bootstrap, wire

BOOTSTRAP = Path(__file__).with_name("bootstrap.py")
"""The script that `install_command` runs; its syntax is that of any Python 3, so that an old one can be told."""


def digest_of(artefact: bytes) -> str:
    """The content address of an artefact: hex SHA-256 of its bytes."""
    return hashlib.sha256(artefact).hexdigest()


def launch_command(digest: str, *, root: str = wire.STATE_ROOT, local: bool = False) -> str:
    """Shell command that starts the installed agent.

    local: the channel is a process of this machine rather than an SSH connection: a new process then counts as a new
    connection. -I and -S keep the host's own Python packages out, -B keeps reading from writing.
    """
    directory = f"{root}/agent/{digest}"
    options = " --local" if local else ""
    script = (
        f'd={shlex.quote(directory)}; [ -f "$d/__main__.py" ] && [ ! -e "$d/{bootstrap.UNFINISHED}" ] || '
        f"exit {wire.EXIT_NOT_INSTALLED}; {_PYTHON}"
        f' exec python3 -I -S -B "$d" serve --root {shlex.quote(root)}{options}'
    )
    return f"exec sh -c {shlex.quote(script)}"


def install_command(digest: str, *, root: str = wire.STATE_ROOT) -> str:
    """Shell command that unpacks the artefact given on stdin; see the module's head for its answer."""
    source = BOOTSTRAP.read_text(encoding="utf-8")
    script = f'{_PYTHON} exec python3 -I -S -c "$1" install "$2" "$3"'
    return f"exec sh -c {shlex.quote(script)} sh {shlex.quote(source)} {shlex.quote(root)} {shlex.quote(digest)}"


def remove_command(*, root: str = wire.STATE_ROOT) -> str:
    """Shell command that removes all installed agents (after `wipe`); answers like `install_command`."""
    source = BOOTSTRAP.read_text(encoding="utf-8")
    script = f'{_PYTHON} exec python3 -I -S -c "$1" remove "$2"'
    return f"exec sh -c {shlex.quote(script)} sh {shlex.quote(source)} {shlex.quote(root)}"


_PYTHON = f"command -v python3 >/dev/null 2>&1 || exit {wire.EXIT_NO_PYTHON};"

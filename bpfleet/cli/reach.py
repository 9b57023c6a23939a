"""How `status`, `observe` and `explain` know the nodes: a lab of this machine, or seeds that tell of the rest."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bpfleet.cli.asking import PROVISIONED, ask
from bpfleet.errors import BpfleetError, InvalidInput, Unreachable
from bpfleet.model.schema import CONTROL

if TYPE_CHECKING:
    from bpfleet.transport.fleet import Fleet
    from bpfleet.transport.target import Target

_HOST = re.compile(r"(?:(?P<user>[^@]+)@)?(?P<host>\[[^]]+\]|[^:@]+|[0-9A-Fa-f:]{3,})(?::(?P<port>\d+))?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say where the nodes are."""
    group = parser.add_argument_group("where the nodes are")
    group.add_argument(
        "--lab", nargs="?", const="default", metavar="NAME", help="the hosts of a lab on this machine (bpfleet lab up)"
    )
    group.add_argument(
        "--seed",
        action="append",
        default=[],
        metavar="[USER@]HOST[:PORT]",
        help="a member of the cluster, asked for the others; may be given several times. A user other than root uses "
        "sudo",
    )
    group.add_argument(
        "--jump", metavar="[USER@]HOST[:PORT]", help="the host from which nodes are dialled, if not from here"
    )
    group.add_argument("--identity-file", metavar="FILE", help="private key to log in with")
    group.add_argument("--known-hosts", metavar="FILE", help="known_hosts file to check host keys against")


def targets(options: argparse.Namespace, fleet: Fleet) -> dict[str, Target]:
    """The nodes by name. InvalidInput without lab or seed; Unreachable if no seed answers."""
    if options.lab is not None and options.seed:
        raise InvalidInput("--lab and --seed name different nodes", field="seed", remedy="Give one of them.")
    for name in ("jump", "identity-file", "known-hosts"):
        if getattr(options, name.replace("-", "_")) is not None and not options.seed:
            raise InvalidInput(
                f"--{name} is about seeds, and none is given", field=name, remedy=f"Give --seed, or leave --{name} out."
            )
    if options.lab is not None:
        return _of_lab(options.lab)
    if not options.seed:
        raise InvalidInput(
            "nothing says where the nodes are",
            remedy="Give --lab for the hosts of a lab, or --seed HOST for a member of a cluster.",
        )
    failures: list[BpfleetError] = []
    seeds = [_seed(text, options) for text in options.seed]
    for _, items in fleet.as_they_answer(seeds, lambda seed: _nodes_of(seed, fleet)):
        if not isinstance(items, BpfleetError):
            return {item["document"]["name"]: _member(item, options) for item in items}
        failures.append(items)
    if len(failures) == 1:
        raise failures[0]
    raise Unreachable(
        "no seed answered: " + "; ".join(str(failure) for failure in failures),
        remedy="Name a member that runs, and the key that it takes (--identity-file).",
    )


def _nodes_of(seed: Target, fleet: Fleet) -> list[Mapping[str, Any]]:
    """The nodes that a seed knows, as their documents."""
    items: list[Mapping[str, Any]] = ask(fleet, seed, "documents", {"kinds": ["node"]})["items"]
    if not items:
        raise InvalidInput("holds no cluster", node=seed.name, remedy=PROVISIONED)
    return items


def _of_lab(name: str) -> dict[str, Target]:
    from bpfleet.lab import state
    from bpfleet.transport.target import Target

    path = state.require(name).plan.directory / "lab.json"
    hosts = json.loads(path.read_text())["hosts"]
    return {host: Target.from_metadata(host, data["ssh"], data["address"]) for host, data in hosts.items()}


def _seed(text: str, options: argparse.Namespace) -> Target:
    from bpfleet.transport.target import ROOT, Target

    ssh = _given(options, _way("seed", text))
    return Target.from_metadata(text, {**ssh, "sudo": ssh.get("user", ROOT) != ROOT})


def _given(options: argparse.Namespace, ssh: Mapping[str, Any]) -> dict[str, Any]:
    """How a node is reached, where what was given on the command line counts more."""
    keys = {"private_key_file": options.identity_file, "known_hosts_file": options.known_hosts}
    given: dict[str, Any] = {name: value for name, value in keys.items() if value}
    if options.jump is not None:
        given["jump"] = {**_way("jump", options.jump), **given}
    return {**ssh, **given}


def _way(option: str, text: str) -> dict[str, Any]:
    """Host, and user and port where they are given, of [USER@]HOST[:PORT]."""
    match = _HOST.fullmatch(text)
    if match is None:
        raise InvalidInput(f"{text!r} is no host", field=option, remedy="Write it as root@192.0.2.1 or host:2222.")
    if match["port"] and not 1 <= int(match["port"]) <= 65535:
        raise InvalidInput(f"port {match['port']} is out of range", field=option, remedy="Use 1 to 65535.")
    found: dict[str, Any] = {"host": match["host"].strip("[]")}
    if match["user"]:
        found["user"] = match["user"]
    if match["port"]:
        found["port"] = int(match["port"])
    return found


def _member(item: Mapping[str, Any], options: argparse.Namespace) -> Target:
    """A member as its document's metadata says."""
    from bpfleet.transport.target import Target

    document = item["document"]
    ssh = _given(options, item.get("metadata", {}).get("ssh") or {})
    return Target.from_metadata(document["name"], ssh, document["spec"]["address"])


def table(header: list[str], rows: list[list[str]]) -> str:
    """Columns aligned to their widest cell; the last is as long as it is."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def colour(text: str, code: str) -> str:
    """`text` in a terminal colour (SGR code), if stdout is a terminal and NO_COLOR (no-color.org) is not set."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\033[{code}m{text}\033[0m"


def visible(value: Any) -> Any:
    """Plain data with each control character in its texts written out. No document may hold any, but older ones, and
    recordings, do: what they say must stay within its line and leave the terminal alone."""
    if isinstance(value, str):
        return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), value)
    if isinstance(value, Mapping):
        return {visible(key): visible(item) for key, item in value.items()}
    return [visible(item) for item in value] if isinstance(value, (list, tuple)) else value

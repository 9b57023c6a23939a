"""A reference judge: which flows between endpoints must pass, straight from the words of the policies.

Written apart from the compiler, by the definition alone: a policy selects identities by labels; a direction that a
selecting policy mentions is closed but for its allows; a matching deny beats every allow; both ends must agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from bpfleet.model.document import Document


class Verdict(NamedTuple):
    """Whether a flow passes; if not: which side's policies said no, those that deny by a rule, or else by default."""

    passes: bool
    direction: str = ""
    policies: tuple[str, ...] = ()
    by_rule: bool = False


PASSES = Verdict(True)


def judge(
    policies: Iterable[Document],
    source: Mapping[str, str] | str,
    destination: Mapping[str, str] | str,
    protocol: str,
    port: int,
) -> Verdict:
    """Judge a flow between two ends, each the labels of an endpoint, or an entity (which no policy selects)."""
    for direction, subject, peer in (("egress", source, destination), ("ingress", destination, source)):
        if isinstance(subject, str):
            continue
        verdict = _one_side(list(policies), direction, subject, peer, protocol, port)
        if not verdict.passes:
            return verdict
    return PASSES


def _one_side(
    policies: list[Document],
    direction: str,
    subject: Mapping[str, str],
    peer: Mapping[str, str] | str,
    protocol: str,
    port: int,
) -> Verdict:
    closing = [one for one in policies if direction in one.spec and _has(subject, one.spec["selector"])]
    if not closing:
        return PASSES
    matching = [
        (one.name, rule["action"])
        for one in closing
        for rule in one.spec[direction]
        if _is_peer(rule.get("peers"), peer) and _is_port(rule.get("ports"), protocol, port)
    ]
    denying = tuple(sorted({name for name, action in matching if action == "deny"}))
    if denying:
        return Verdict(False, direction, denying, True)
    if matching:
        return PASSES
    return Verdict(False, direction, tuple(sorted(one.name for one in closing)))


def _has(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in wanted.items())


def _is_peer(peers: list[dict[str, Any]] | None, end: Mapping[str, str] | str) -> bool:
    if peers is None:
        return True
    return any(_matches(peer, end) for peer in peers)


def _matches(peer: Mapping[str, Any], end: Mapping[str, str] | str) -> bool:
    if "labels" in peer:
        return not isinstance(end, str) and _has(end, peer["labels"])
    entity = peer["entity"]
    if entity == "cluster":
        return end != "world"
    return bool(entity == "all" or entity == end)


def _is_port(ports: list[dict[str, Any]] | None, protocol: str, port: int) -> bool:
    if ports is None:
        return True
    return any(
        (one["protocol"] == protocol or (one["protocol"] == "any" and ("port" not in one or not _is_icmp(protocol))))
        and one.get("port", port) == port
        for one in ports
    )


def _is_icmp(protocol: str) -> bool:
    return protocol.startswith("icmp")

"""Names for the numbers of the packet path: identities, rules, and who has an address. Pure."""

from __future__ import annotations

from typing import Any, Dict, Iterable, Mapping, Optional

from bpfleet.model.document import DocumentSet
from bpfleet.model.identity import HOST, REMOTE_NODE, RESERVED_NAMES, UNKNOWN, WAITING
from bpfleet.model.state import RuleName
from bpfleet.observe.past import (
    ADDRESS,
    IDENTITY,
    RULE,
    Past,
    Row,
    addresses_of,
    identities_of,
    row_of_rule,
    rule_of_row,
)


class Names:
    """What the documents and the compiler's table of rules say; `node` is whose point of view it is."""

    def __init__(
        self, documents: DocumentSet, rules: Mapping[int, RuleName], node: Optional[str], past: Optional[Past] = None
    ) -> None:
        self.node = node
        self.rules = rules
        self._past = Past() if past is None else past
        self._documents = documents
        self._identities: Dict[int, Row] = {number: {"identity_name": name} for number, name in RESERVED_NAMES.items()}
        self._identities.update(identities_of(documents))
        self._addresses = addresses_of(documents)

    def end(self, address: str, port: int, identity: int, time_ns: int) -> Dict[str, Any]:
        """One end of a flow at that time (wire.FlowEnd); port 0 is left out.

        Whose the address was says a name only where the identity that was seen agrees: between a change of documents
        and of the kernel, and of a forged packet, it does not.
        """
        end = {"address": address, **self.party(identity, port, time_ns)}
        for who in (self._past.at(ADDRESS, address, time_ns), self._addresses.get(address)):
            if who is not None and _agrees(who, identity):
                end.update((name, value) for name, value in who.items() if name != "identity")
                break
        return end

    def party(self, identity: int, port: int, time_ns: int) -> Dict[str, Any]:
        """One end of which only the identity is known, as the history does (wire.FlowEnd without address)."""
        end: Dict[str, Any] = {"identity": identity}
        if port:
            end["port"] = port
        said = self._past.at(IDENTITY, identity, time_ns) or self._identities.get(identity)
        end.update(said or self._past.last(IDENTITY, identity) or {"identity_name": str(identity)})
        if identity == HOST and self.node is not None:
            end["node"] = self.node
        return end

    def rule(self, rule_id: int, time_ns: int, older: Iterable[Mapping[int, RuleName]] = ()) -> Dict[str, Any]:
        """What rule_names says of a rule id at that time; "changed" if what is declared, or for whom, is another now.
        Of a rule that is gone, what it was last, or what `older` tables say, newest first."""
        if not rule_id:
            return {}
        now, then = self.rules.get(rule_id), self._past.at(RULE, rule_id, time_ns)
        if now is not None:
            if then is None or then == row_of_rule(self._documents, now):
                return rule_names(now)
            return {**rule_names(rule_of_row(then)), "changed": "yes"}
        then = then or self._past.last(RULE, rule_id)
        tables = (rules[rule_id] for rules in older if rule_id in rules)
        found = rule_of_row(then) if then is not None else next(tables, None)
        if found is not None:
            return {**rule_names(found), "gone": "yes"}
        return {"policy": "", "rule": f"rule {rule_id:#010x}, which no kept generation has", "gone": "yes"}


def _agrees(who: Row, identity: int) -> bool:
    """Whether the holder of an address may be who has the identity."""
    if identity in (UNKNOWN, WAITING):
        return True
    return who["identity"] == identity if "endpoint" in who else identity in (HOST, REMOTE_NODE)


def rule_names(rule: RuleName) -> Dict[str, Any]:
    """A rule in the words of wire.VerdictEvent: its policy, its place in it ("ingress[0]") or "default deny", and what
    the policy says of itself."""
    named: Dict[str, Any] = {"policy": rule.policy, "rule": rule.rule}
    if rule.description:
        named["description"] = rule.description
    if rule.labels:
        named["policy_labels"] = dict(rule.labels)
    return named


def short_end(end: Mapping[str, Any]) -> str:
    """One end in a few characters: "web-1:80", "10.0.0.7:443 (world)"; "?" for an address that could not be read."""
    name = end.get("endpoint")
    if not name and end.get("identity") in (HOST, REMOTE_NODE):
        name = end.get("node") and f"node {end['node']}"
    port = f":{end['port']}" if end.get("port") else ""
    if not name and "address" not in end:
        name = end.get("identity_name", "")
    if name:
        return f"{name}{port}"
    address = str(end.get("address") or "?")
    if port and ":" in address:
        address = f"[{address}]"
    who = end.get("identity_name", "")
    return f"{address}{port} ({who})" if who else f"{address}{port}"

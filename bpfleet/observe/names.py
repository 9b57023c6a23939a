"""Names for the numbers of the packet path: identities, rules, and who has an address. Pure."""

from __future__ import annotations

from typing import Any, Dict, Iterable, Mapping, Optional

from bpfleet.model.document import DocumentSet
from bpfleet.model.identity import HOST, REMOTE_NODE, RESERVED_NAMES
from bpfleet.model.state import RuleName


class Names:
    """What the documents and the compiler's table of rules say; `node` is whose point of view it is."""

    def __init__(self, documents: DocumentSet, rules: Mapping[int, RuleName], node: Optional[str]) -> None:
        self.node = node
        self.rules = rules
        self._identities: Dict[int, Dict[str, Any]] = {
            number: {"identity_name": name} for number, name in RESERVED_NAMES.items()
        }
        for name, document in documents.of_kind("identity").items():
            self._identities[document.spec["number"]] = {"identity_name": name, "labels": document.spec["labels"]}
        self._addresses: Dict[str, Dict[str, Any]] = {}
        for name, document in documents.of_kind("node").items():
            self._addresses[document.spec["address"]] = {"node": name}
        for name, document in documents.of_kind("endpoint").items():
            for address in document.spec["addresses"]:
                self._addresses[address] = {"endpoint": name, "node": document.spec["node"]}

    def end(self, address: str, port: int, identity: int) -> Dict[str, Any]:
        """One end of a flow (wire.FlowEnd); port 0 is left out."""
        end = {"address": address, **self.party(identity, port)}
        end.update(self._addresses.get(address, {}))
        return end

    def party(self, identity: int, port: int = 0) -> Dict[str, Any]:
        """One end of which only the identity is known, as the history does (wire.FlowEnd without address)."""
        end: Dict[str, Any] = {"identity": identity}
        if port:
            end["port"] = port
        end.update(self._identities.get(identity, {"identity_name": str(identity)}))
        if identity == HOST and self.node is not None:
            end["node"] = self.node
        return end

    def rule(self, rule_id: int, older: Iterable[Mapping[int, RuleName]] = ()) -> Dict[str, Any]:
        """What rule_names says of a rule id; of a rule that is gone, from `older` tables, newest first."""
        if not rule_id:
            return {}
        for number, rules in enumerate((self.rules, *older)):
            found = rules.get(rule_id)
            if found is not None:
                named = rule_names(found)
                return {**named, "gone": "yes"} if number else named
        return {"policy": "", "rule": f"rule {rule_id:#010x}, which no kept generation has", "gone": "yes"}


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
    """One end in a few characters: "web-1:80", "10.0.0.7:443 (world)"."""
    name = end.get("endpoint")
    if not name and end.get("identity") in (HOST, REMOTE_NODE):
        name = end.get("node") and f"node {end['node']}"
    port = f":{end['port']}" if end.get("port") else ""
    if not name and "address" not in end:
        name = end.get("identity_name", "")
    if name:
        return f"{name}{port}"
    address = str(end.get("address") or "::")
    if port and ":" in address:
        address = f"[{address}]"
    who = end.get("identity_name", "")
    return f"{address}{port} ({who})" if who else f"{address}{port}"

"""10,000 rules: packets that arrive through bpfleet's, through nftables' and through iptables', side by side.

One rule for each of 10,000 UDP ports, packets to ports drawn at random over all of them: as a bpfleet policy with a
rule for each, and, where the kernel forwards, as linear rules of nftables and iptables on the receiving host, and as
the best that nftables can do: a set, and a verdict map, of addresses and ports.

    python -m bench.policy_filters
"""

from __future__ import annotations

import statistics
from typing import Callable, Dict, List, Tuple

from bench import policy_beds
from bench.policy_beds import FIRST_PORT, RULES, Beds
from bench.report import Measurement, table

ROUNDS = 5
SECONDS = 1.5
"""Longer than the tick in which each flow's first packet goes the long way, so that those weigh as much as they do."""

Rules = Callable[[str], str]


def nftables(rules: str, sets: str = "") -> str:
    """A ruleset that forwards nothing else to the receiving workload."""
    chain = f"chain forward {{ type filter hook forward priority 0; policy drop; {rules}\n }}"
    return f"table ip bench {{ {sets}\n {chain}\n }}"


def linear(source: str) -> str:
    """A rule of nftables for each port."""
    lines = (f"ip saddr {source} udp dport {port} accept" for port in _ports())
    return nftables("\n".join(lines))


def one_set(source: str) -> str:
    """One rule with a set."""
    elements = ", ".join(f"{source} . {port}" for port in _ports())
    sets = f"set s {{ type ipv4_addr . inet_service; size {RULES}; elements = {{ {elements} }} }}"
    return nftables("meta l4proto udp ip saddr . udp dport @s accept", sets)


def verdict_map(source: str) -> str:
    """One rule with a verdict map."""
    elements = ", ".join(f"{source} . {port} : accept" for port in _ports())
    sets = f"map m {{ type ipv4_addr . inet_service : verdict; size {RULES}; elements = {{ {elements} }} }}"
    return nftables("meta l4proto udp ip saddr . udp dport vmap @m", sets)


def iptables(source: str) -> str:
    """A rule of iptables for each port."""
    lines = (f"-A FORWARD -s {source} -p udp --dport {port} -j ACCEPT" for port in _ports())
    return "*filter\n:FORWARD DROP\n" + "\n".join(lines) + "\nCOMMIT\n"


_NFT = ("nft -f -", "nft delete table ip bench")
_IPTABLES = ("iptables-legacy-restore", "iptables-legacy -P FORWARD ACCEPT; iptables-legacy -F FORWARD")
FILTERS: Dict[str, Tuple[Rules, Tuple[str, str]]] = {
    "nftables": (linear, _NFT),
    "iptables": (iptables, _IPTABLES),
    "nftables_sets": (one_set, _NFT),
    "nftables_map": (verdict_map, _NFT),
}
"""name -> its rules for a source, and the commands that take them in and away"""


def measure(beds: Beds) -> List[Measurement]:
    """policy_10k_*_over_ours: packets a second of CPU, of the other over ours, the median of rounds."""
    source = f"{policy_beds.host_cidr(beds.plain.client).partition('/')[0].rpartition('.')[0]}.10"
    found: Dict[str, List[float]] = {name: [] for name in ("ours", "bare", *FILTERS)}
    beds.ours.packets_a_second(SECONDS)  # from here on every connection is there
    for _ in range(ROUNDS):
        found["ours"].append(beds.ours.packets_a_second(SECONDS))
        found["bare"].append(beds.plain.packets_a_second(SECONDS))
        for name, (rules, (take, away)) in FILTERS.items():
            beds.plain.server.run(["sh", "-ec", take], input=rules(source))
            try:
                found[name].append(beds.plain.packets_a_second(SECONDS))
            finally:
                beds.plain.server.run(["sh", "-ec", away])
            if not found[name][-1]:
                raise RuntimeError(f"nothing passes the rules of {name}")
    ratio = {name: _ratio(found[name], found["ours"]) for name in found}
    median = {name: round(statistics.median(rates)) for name, rates in found.items()}
    best = max(("nftables_sets", "nftables_map"), key=lambda name: ratio[name])
    return [
        _measurement("nftables", ratio["nftables"], 0.2, median, "nftables"),
        _measurement("iptables", ratio["iptables"], 0.2, median, "iptables"),
        _measurement("nftables_sets", ratio[best], 1.05, median, "nftables_sets", "nftables_map"),
        _measurement("bare", ratio["bare"], None, median, "bare"),
    ]


def _measurement(name: str, ratio: float, goal: float | None, median: Dict[str, int], *sides: str) -> Measurement:
    return Measurement(
        f"policy_10k_{name}_over_ours",
        round(ratio, 3),
        "ratio",
        at_most=goal,
        sides={side: median[side] for side in (*sides, "ours")},
        note="UDP packets a second of one CPU, from the sending workload to the receiving one's device",
    )


def _ratio(one: List[float], other: List[float]) -> float:
    return statistics.median(a / b for a, b in zip(one, other))


def _ports() -> range:
    return range(FIRST_PORT, FIRST_PORT + RULES)


if __name__ == "__main__":
    with policy_beds.up() as up:
        print(table(measure(up)))

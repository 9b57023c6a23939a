"""What a policy verdict costs with 10 to 100,000 rules, one for each peer, peers drawn at random over all of them.

As bench/spine_verdicts.py, but the number of workloads and of connections grows with that of rules: what becomes slower
then is the memory behind the look-ups. Each population is timed with its memory as warm as its own packets leave it.
Beside it, in the same rounds: one bare look-up of the same connections, and 10 rules with as many workloads as 10,000
and 100,000 rules have (so that only rules grow; `addresses` then holds 100,000).

Established packets go by the copies of their connections (connection_copy.h), new connections by copies of judgements
(judgement_copy.h). What they cost without is measured beside, with room for hardly any copy: as the first packet of a
connection in each tick, and the first connection to a peer's port after each change.

    python -m bench.policy_verdicts
"""

from __future__ import annotations

import random
from typing import Dict, List, Tuple

from bench import timing
from bench.report import Measurement, table
from bench.spine_verdicts import CALLS, ROUNDS, WARM, drawn, establish, populate, variant
from tests.packet import frames, kernel

RULES = (10, 1_000, 10_000, 100_000)
FEW, MANY, MOST = RULES[0], RULES[2], RULES[3]
GOALS = {("established", MANY): 1.3, ("established", MOST): 3.0, ("new", MANY): 1.3, ("new", MOST): 4.0}

POPULATIONS: Dict[str, Tuple[int, int]] = {
    **{str(rules): (rules, rules) for rules in RULES},
    **{f"{FEW}_of_{workloads}": (FEW, workloads) for workloads in (MANY, MOST)},
}
"""name -> (rules, workloads)"""

WITHOUT_COPIES = (FEW, MANY, MOST)


def time_verdicts(kind: str) -> timing.Timed:
    """Each population; with "bare_" before its name a look-up of its connections; with "no_copies_" before a number of
    rules the same without copies. Needs root."""
    dice = random.Random(1)  # the same packets in every run
    flags = frames.ACK if kind == "established" else frames.SYN
    variants: Dict[str, timing.Variant] = {}
    loaded: List[kernel.Datapath | timing.Programs] = []
    try:
        for rules in WITHOUT_COPIES:
            datapath = populate(rules, rules, copy_sets=1)
            loaded.append(datapath)
            if kind == "established":
                establish(datapath, rules)
            packets = drawn(kind, rules, dice)
            variants[f"no_copies_{rules}"] = variant(datapath.programs["from_endpoint"], flags, packets)
        bare: Dict[str, timing.Variant] = {}
        for name, (rules, workloads) in POPULATIONS.items():
            datapath = populate(rules, workloads)
            loaded.append(datapath)
            packets = drawn(kind, workloads, dice)
            variants[name] = variant(datapath.programs["from_endpoint"], flags, packets)
            if kind == "established":
                establish(datapath, workloads)
                programs = timing.Programs(datapath)
                loaded.append(programs)
                bare[f"bare_{name}"] = variant(programs.descriptors["bench_lookup"], flags, packets)
        return timing.run({**variants, **bare}, ROUNDS[kind], CALLS, WARM[kind])
    finally:
        for one in loaded:
            one.close()


def measure() -> List[Measurement]:
    """policy_established_* and policy_new_*."""
    results: List[Measurement] = []
    bare: Dict[int, float] = {}
    for kind in ("established", "new"):
        timed = time_verdicts(kind)
        bare = bare or {rules: timed.ns[f"bare_{rules}"] for rules in RULES}
        note = f"net of {timed.empty_ns} ns for an empty program; as many workloads and connections as rules"
        for rules in RULES:
            sides = {"bare look-up": bare[rules]}
            if f"no_copies_{rules}" in timed.ns:
                sides["without copies"] = timed.ns[f"no_copies_{rules}"]
            results.append(Measurement(f"policy_{kind}_{rules}", timed.ns[str(rules)], "ns", sides=sides, note=note))
        for rules in (MANY, MOST):
            ratio = timed.over(str(rules), str(FEW))
            sides = {str(rules): timed.ns[str(rules)], str(FEW): timed.ns[str(FEW)]}
            sides["bare look-up grows by ns"] = round(bare[rules] - bare[FEW], 1)
            goal = GOALS[kind, rules]
            name = f"policy_{kind}_{rules // 1000}k_over_{FEW}"
            results.append(Measurement(name, ratio, "ratio", at_most=goal, sides=sides, note=note))
        for rules in (MANY, MOST):
            alone = f"{FEW}_of_{rules}"
            results.append(
                Measurement(
                    f"policy_{kind}_rules_alone_{rules // 1000}k_over_{FEW}",
                    timed.over(str(rules), alone),
                    "ratio",
                    sides={f"{rules} rules": timed.ns[str(rules)], f"{FEW} rules": timed.ns[alone]},
                    note=f"{rules} workloads and connections on both sides",
                )
            )
    return results


if __name__ == "__main__":
    print(table(measure()))

"""Which records of connections are live, as the programs reckon it (bpf/include/bpfleet/connection.h)."""

from __future__ import annotations

from typing import Mapping

from bpfleet.loader.generated.layouts import ENUMS

_TCP = 6
_STATE: Mapping[str, int] = ENUMS["connection_state"]
_TIME: Mapping[str, int] = ENUMS["connection_time"]


def is_live(protocol: int, state: int, idle_ticks: int) -> bool:
    """connection_is_live."""
    if protocol != _TCP:
        return idle_ticks <= _TIME["other_ticks"]
    ends = _STATE["end_initiator"] | _STATE["end_responder"]
    if state & _STATE["denied"]:
        return idle_ticks <= _TIME["tcp_ticks"]
    if state & ends == ends:
        return idle_ticks <= _TIME["closing_ticks"]
    return idle_ticks <= _TIME["tcp_ticks" if state & _STATE["replied"] else "other_ticks"]

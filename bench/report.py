"""Measurements as data, as a table, and as bench/results.json."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

RESULTS = Path(__file__).parent / "results.json"


@dataclass(frozen=True)
class Measurement:
    """One figure: value and unit; for a ratio both sides as measured in the same run; and what it must reach.

    at_most / at_least: the goal, if there is one. sides: name of a side -> its figure (same unit for all).
    """

    name: str
    value: float
    unit: str
    at_most: Optional[float] = None
    at_least: Optional[float] = None
    sides: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def reached(self) -> Optional[bool]:
        """Whether the goal is reached; None without a goal."""
        if self.at_most is None and self.at_least is None:
            return None
        return (self.at_most is None or self.value <= self.at_most) and (
            self.at_least is None or self.value >= self.at_least
        )

    def to_json(self) -> Dict[str, Any]:
        """Plain data, goals only where there are any."""
        data: Dict[str, Any] = {"value": self.value, "unit": self.unit}
        if self.sides:
            data["sides"] = dict(self.sides)
        if self.reached is not None:
            data["goal"] = {"at_most": self.at_most} if self.at_most is not None else {"at_least": self.at_least}
            data["reached"] = self.reached
        if self.note:
            data["note"] = self.note
        return data


def table(measurements: List[Measurement]) -> str:
    """The figures as aligned columns."""
    rows = [("name", "value", "unit", "goal", "", "sides")]
    for item in measurements:
        goal = f"<= {item.at_most:g}" if item.at_most is not None else ""
        goal = f">= {item.at_least:g}" if item.at_least is not None else goal
        mark = {True: "ok", False: "MISSED", None: ""}[item.reached]
        sides = ", ".join(f"{name} {_short(value)}" for name, value in item.sides.items())
        rows.append((item.name, _short(item.value), item.unit, goal, mark, sides))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[5]]).rstrip() for row in rows
    )


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write(measurements: List[Measurement]) -> None:
    """Add these figures to bench/results.json; figures of other groups stay."""
    known: Dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known.update({item.name: item.to_json() for item in measurements})
    RESULTS.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")

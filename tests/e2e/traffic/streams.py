"""Numbered packets between endpoints, and whether each arrived once."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tests.e2e.traffic.ground import Ground, eventually


class Streams:
    """Numbered packets under way, and the account of them."""

    def __init__(self, ground: Ground, routes: Sequence[tuple[str, str, str, int]], interval: float = 0.002) -> None:
        """Routes: source, destination, protocol, family. `interval`: seconds between two packets of one."""
        self.ground = ground
        self.routes = {
            f"{protocol}-{source}-{destination}-{family}-{random.randrange(1 << 30)}": (source, destination)
            for source, destination, protocol, family in routes
        }
        for (name, (source, destination)), (_, _, protocol, family) in zip(self.routes.items(), routes, strict=True):
            to = ground.address(destination, family)
            ground.at(source).do("number", stream=name, protocol=protocol, address=to, port=7001, interval=interval)
        for name in self.routes:
            assert eventually(lambda: self.heard(name)["count"], lambda count: count > 5) > 5  # noqa: B023

    def heard(self, name: str) -> dict[str, int]:
        answer: dict[str, int] = self.ground.at(self.routes[name][1]).do("numbers", stream=name)
        return answer

    def end(self) -> dict[str, dict[str, int]]:
        """Stop; of each stream what was sent, if that is not exactly what was heard: {} is what tests want."""
        wrong = {}
        for name, (source, _) in self.routes.items():
            sent = self.ground.at(source).do("enough", stream=name)
            assert sent > 50
            wanted = {"count": sent, "different": sent, "highest": sent - 1}
            heard = eventually(lambda: self.heard(name), lambda now: now["count"] >= sent)  # noqa: B023
            if heard != wanted:
                wrong[name] = {"sent": sent, **heard}
        return wrong

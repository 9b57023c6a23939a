"""What is on a host's cable."""

from __future__ import annotations

from collections.abc import Callable

from tests.e2e.traffic import packets
from tests.e2e.traffic.ground import PORT, Ground


def on_the_wire(ground: Ground, host: str, act: Callable[[], object], port: int = PORT) -> list[packets.Tunnelled]:
    """The tunnel packets at a host's cable while `act` runs. Asserts that no workload's packet travels bare."""
    world = ground.stations["world"]
    world.do("sniff", name="wire", device=host)
    act()
    frames = [bytes.fromhex(frame) for _, frame in world.do("sniffed", name="wire")]
    bare = [seen for seen in map(packets.read, frames) if seen is not None]
    ours = {address for workload in ground.workloads.values() for address in workload.addresses}
    assert [one for one in bare if {one.source, one.destination} & ours] == []
    return [one for one in (packets.read_tunnelled(frame, port) for frame in frames) if one is not None]

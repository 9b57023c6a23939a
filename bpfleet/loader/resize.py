"""Maps of another size under programs at work.

A map cannot be resized, and a program cannot be given another map. So a map is made anew with what the old one holds,
each program that uses it is loaded once more on the new one, and takes the place of the first at its hooks. Most maps
nobody but the agent writes, and it does not meanwhile: both say the same, and every packet is judged alike by whichever
program it comes to.

Programs record connections, and what one records at a hook, one at another must find. So there is a round more:
programs that write into both maps (connection.h) take the place of those on the old one; when no other is left, what
the old map holds is added to the new one; then come those on the new one alone. Other maps that programs fill keep
their size (capacity.KEPT).

The order: new maps, new programs, hooks of the first round, the maps' names, hooks, the programs' names. Whoever dies
before the first hook leaves names that end in _next, which a plan removes. After it, whoever reads finds programs at
hooks that are not the pinned ones, or pinned ones on other maps. Either is put right with the maps that have their
names then, all of them whole: until the names change the old ones have all there is, from then on the new ones have.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Callable, Dict, Mapping, Tuple

from bpfleet.loader import syscall
from bpfleet.loader.capacity import CONNECTIONS
from bpfleet.loader.links import Hook, Mechanism
from bpfleet.loader.maps import Maps, closing
from bpfleet.loader.objects import Objects
from bpfleet.loader.pins import Pins, open_pin, take_over, unpin
from bpfleet.loader.steps import ResizeMaps


class Resizing:
    """Makes maps anew. `wrote` is called once for each system call that changes something."""

    def __init__(self, pins: Pins, maps: Maps, objects: Objects, hooks: Mechanism, wrote: Callable[[], None]) -> None:
        self._pins = pins
        self._maps = maps
        self._objects = objects
        self._hooks = hooks
        self._wrote = wrote

    def do(self, step: ResizeMaps) -> None:
        """As steps.ResizeMaps. What fails before the first hook leaves nothing behind."""
        sizes = {name: size for name, size in step.sizes.items() if self._maps.size(name) not in (None, size)}
        if not sizes:
            return
        with ExitStack() as held:
            try:
                for name, size in sizes.items():
                    self._copy(name, size)
                at = self._hooks.read(step.hooks, str)
                both = self._load_again(sizes, at, held, True) if CONNECTIONS in sizes else {}
                again = self._load_again(sizes, at, held, False)
            except BaseException:
                for name in sizes:
                    if unpin(self._pins.next_map(name)):
                        self._wrote()
                raise
            if CONNECTIONS in sizes:
                self._replace(at, both)
                self._move_connections()
            for name in sizes:
                self._pins.next_map(name).replace(self._pins.map(name))
                self._wrote()
            self._replace(at, again)
            for program, fd in again.values():
                take_over(fd, self._pins.program(*program), self._pins.next_program(*program))
                self._wrote()

    def _replace(self, at: Mapping[Hook, str], by: Mapping[str, Tuple[Tuple[str, str], int]]) -> None:
        for (device, hook), number in sorted(at.items()):
            if number in by:
                self._hooks.attach(device, hook, by[number][1])

    def _move_connections(self) -> None:
        """Once every program writes into both maps."""
        self._maps.let_programs_end()
        fd = open_pin(self._pins.next_map(CONNECTIONS))
        if fd is not None:
            with closing(fd):
                self._maps.add_connections(fd)

    def _copy(self, name: str, size: int) -> None:
        make = self._maps.create_like if name == CONNECTIONS else self._maps.copy
        with closing(make(name, size)) as made:
            if unpin(self._pins.next_map(name)):
                self._wrote()
            syscall.pin(made, str(self._pins.next_map(name)))
            self._wrote()

    def _load_again(
        self, sizes: Mapping[str, int], at: Mapping[Hook, str], held: ExitStack, both: bool
    ) -> Dict[str, Tuple[Tuple[str, str], int]]:
        """Of each program at a hook that is pinned and uses one of the maps, by its id as text: its name, and a
        descriptor of the program that takes its place. `both`: it keeps connections in the old map and the new."""
        moved = {name: self._pins.next_map(name) for name in sizes if not both}
        if both:
            moved[f"{CONNECTIONS}_next"] = self._pins.next_map(CONNECTIONS)
        old = {self._maps.identifier(name) for name in ([CONNECTIONS] if both else sizes)}
        again: Dict[str, Tuple[Tuple[str, str], int]] = {}
        for program in self._pins.list_programs():
            fd = open_pin(self._pins.program(*program))
            if fd is None:
                continue
            with closing(fd):
                info = syscall.program_info(fd)
                if str(info.id) in at.values() and old.intersection(info.map_ids):
                    loaded = self._objects.load_again(program[0], fd, moved, {"connections_move": int(both)})
                    held.callback(os.close, loaded)
                    self._wrote()
                    again[str(info.id)] = program, loaded
        return again

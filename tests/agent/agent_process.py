"""An agent as a process of its own, over a kernel in memory that a file keeps from one process to the next.

    agent_process.py ROOT KERNEL [--kill PLACE:NUMBER] [--full NUMBER] [--ssh] [--events]
                     [--watchdog [--patience SECONDS] [--kill-watchdog PLACE:NUMBER]]
    agent_process.py ROOT KERNEL watchdog --transaction T --socket NAME [--detach] [--events]

--kill ends the process with SIGKILL at the NUMBERth (from 0) of the places in killed.py. --full: the disk is full from
the NUMBERth file written on. --ssh: look for an sshd among the ancestors, as an agent does that was not started
locally. --watchdog: a change is watched over by a process that runs the second form; without it the tests see what
becomes of a node whose watchdog died too. --events: as if there were events that name all that ever was, for whoever
knows where events are. Runs under Python 3.9 as well.
"""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bpfleet.agent import watchdog
from bpfleet.agent.guard import Guard
from bpfleet.agent.node import Agent
from bpfleet.agent.rulebook import Rulebook
from bpfleet.agent.serve import serve
from bpfleet.loader.fake import FakeKernel
from bpfleet.model.state import Facts, NodeState, Program
from tests.agent.killed import KilledFiles, happen_at, reached


class KeptKernel(FakeKernel):
    """A FakeKernel in a file: processes side by side see the same one, and it outlives them.

    What a process had loaded and not used is nobody's when it dies.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(namespaces=("w1", "w2", "w3"))
        self._path = path
        self._fetch()

    def _fetch(self) -> None:
        if self._path.exists():
            own = {"_path": self._path, "writes": self.writes, "_unused": self._unused}
            self.__dict__.update(pickle.loads(self._path.read_bytes()))
            self.__dict__.update(own)

    def keep(self) -> None:
        """Save all."""
        draft = self._path.with_suffix(f".{os.getpid()}")
        draft.write_bytes(pickle.dumps({**self.__dict__, "_unused": []}))
        draft.replace(self._path)

    def check_fitness(self) -> None:
        self._fetch()
        super().check_fitness()

    def facts(self, node: str) -> Facts:
        self._fetch()
        return super().facts(node)

    def read(self, want: NodeState) -> NodeState:
        self._fetch()
        return super().read(want)

    def prepare(self, programs: Mapping[str, Program]) -> None:
        self._fetch()
        super().prepare(programs)
        self.keep()

    def release(self) -> None:
        if self._unused:
            self._fetch()
            super().release()
            self.keep()

    def do(self, step: Any) -> None:
        reached("step")
        self._fetch()
        try:
            super().do(step)
        finally:
            self.keep()
        reached("done")


class DeadWatchdog:
    """A watchdog that dies as soon as the change begins."""

    def ready(self) -> None:
        pass

    def ask(self) -> bool:
        return True

    def close(self) -> None:
        pass


class EverythingNamed(Dict[Any, int]):
    """What a rulebook asks of the events that are kept (past.said_by), if they name all there is."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: Any) -> int:
        return 0


def with_events() -> Optional[str]:
    """Where events are: some place, if there are any."""
    if "--events" not in sys.argv:
        return None
    Rulebook._named = lambda self: EverythingNamed() if self._pins else {}  # type: ignore[method-assign]
    return "/sys/fs/bpf/of-no-one"


def option(name: str, default: str = "") -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def arm(transaction: str) -> Guard:
    if "--watchdog" not in sys.argv:
        return cast(Guard, DeadWatchdog())
    options = [item for name in ("--patience", "--kill-watchdog") if option(name) for item in (name, option(name))]
    options += ["--events"] if "--events" in sys.argv else []
    script = [sys.executable, "-S", str(Path(__file__).resolve()), sys.argv[1], sys.argv[2], "watchdog"]
    return Guard([*script, *options], transaction)


class KilledWatchdog(watchdog.Watchdog):
    """A watchdog that puts back with files that tell where they are."""

    def agent(self) -> Agent:
        made = super().agent()
        made.files = made.journal_file._files = KilledFiles(made.root)
        return made


def watch(root: Path, kernel: Path) -> int:
    if "--detach" in sys.argv:
        watchdog.detach()
    happen_at(option("--kill-watchdog"))
    patience = float(option("--patience", str(watchdog.PATIENCE_SECONDS)))
    watching = KilledWatchdog(root, option("--transaction"), lambda: KeptKernel(kernel), patience, with_events())
    return watching.run(option("--socket"))


def main() -> int:
    root, kernel = Path(sys.argv[1]), Path(sys.argv[2])
    if sys.argv[3:4] == ["watchdog"]:
        return watch(root, kernel)
    happen_at(option("--kill"))
    local = "--ssh" not in sys.argv
    agent = Agent(root, lambda: KeptKernel(kernel), local=local, pins=with_events(), arm=arm)
    files = KilledFiles(root)
    if "--full" in sys.argv:
        files.full = int(sys.argv[sys.argv.index("--full") + 1])
    agent.files = agent.journal_file._files = agent.store._files = files
    return serve(agent, 0, 1)


if __name__ == "__main__":
    sys.exit(main())

"""What the launcher beside this file runs: the plugin, with another connector in its Fleet and nothing else."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

from bpfleet.transport import fleet
from provider.server import main
from tests.e2e.meeting import Meeting, MeetingConnector

connector = MeetingConnector(Meeting(Path(os.environ["MEETING"])), os.environ["MEETING_WHO"])
fleet.Fleet = functools.partial(fleet.Fleet, connector=connector)  # type: ignore[misc, assignment]
sys.exit(main(sys.argv[1:]))

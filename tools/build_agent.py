"""Write the agent's artefact to build/agent.pyz (see bpfleet/agent/artefact.py)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bpfleet.agent.artefact import main

sys.exit(main())

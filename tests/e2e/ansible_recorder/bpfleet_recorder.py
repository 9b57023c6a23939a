"""An Ansible callback that writes every result as a line of JSON to the file named by BPFLEET_RECORD."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: bpfleet_recorder
type: aggregate
short_description: records results for tests
description: [Records results for tests.]
"""


class CallbackModule(CallbackBase):
    """One line a result: task, host, outcome, result."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "bpfleet_recorder"

    def _record(self, outcome: str, result: Any) -> None:
        line = {
            "task": result.task.get_name(),
            "action": result.task.action,
            "host": result.host.get_name(),
            "outcome": outcome,
            "result": result.result,
        }
        with Path(os.environ["BPFLEET_RECORD"]).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")

    def v2_runner_on_ok(self, result: Any) -> None:
        self._record("ok", result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._record("failed", result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._record("unreachable", result)

#!/usr/bin/env python3
"""Stands between Ansible and ssh: at one point of what a task says to a host it cuts the host off, or stops for good.

The folder in SSH_POINTS holds `plan.json`: {address: {"at": [method or "reset", when], "then": what}}. The methods are
those of bpfleet/agent/wire.py; stage and apply travel together. when:

    before    the request is not sent
    sent      it is sent, and the connection is gone before the answer
    answered  the answer was on its way (of the first request that was sent with it), and is lost

what:

    cut       that command and each one after it fails as when the host does not answer
    hold      nothing goes on
    wait      of "before": nothing goes on until there is a file `go`

A file of the address's name in `reached` says that the point is reached.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ["SSH_POINTS"])
UNREACHABLE = 255
SENT_SECONDS = 0.05
HELD_SECONDS = 300.0


def point_for(arguments: list[str]) -> tuple[str, Any] | None:
    plan = json.loads((FOLDER / "plan.json").read_text())
    return next(((address, plan[address]) for address in arguments if address in plan), None)


def methods_in(data: bytes) -> list[str]:
    found = []
    for line in data.splitlines():
        if line.startswith(b"{"):
            found.append(str(json.loads(line).get("method")))
    return found


def end(address: str, then: str) -> int:
    (FOLDER / "reached" / address).touch()
    if then == "hold":
        time.sleep(HELD_SECONDS)
    return UNREACHABLE


def close_shared(arguments: list[str]) -> None:
    """Whatever Ansible keeps open to the host ends with it."""
    options = [each for each in arguments[:-1] if each.startswith("ControlPath=")]
    for option in options[:1]:
        subprocess.run(["ssh", "-o", option, "-O", "exit", "x"], capture_output=True, check=False)


def main() -> int:
    arguments = sys.argv[1:]
    found = point_for(arguments)
    if found is None:
        os.execvp("ssh", ["ssh", *arguments])
    address, plan = found
    if (FOLDER / "reached" / address).exists():
        if plan["then"] == "wait":
            os.execvp("ssh", ["ssh", *arguments])
        return UNREACHABLE
    method, when = plan["at"]
    if "-O" in arguments:
        if method != "reset" or arguments[arguments.index("-O") + 1] != ("check" if when == "before" else "stop"):
            os.execvp("ssh", ["ssh", *arguments])
        if when == "answered":
            subprocess.run(["ssh", *arguments], capture_output=True, check=False)
        return end(address, plan["then"])
    data = b"" if "-tt" in arguments else sys.stdin.buffer.read()
    methods = methods_in(data)
    if plan["then"] == "wait" and method in methods:
        (FOLDER / "reached" / address).touch()
        end_at = time.monotonic() + HELD_SECONDS
        while not (FOLDER / "go").exists() and time.monotonic() < end_at:
            time.sleep(0.05)
    if method not in methods or plan["then"] == "wait":
        done = subprocess.run(["ssh", *arguments], input=data, check=False)
        return done.returncode
    if when == "before":
        close_shared(arguments)
        return end(address, plan["then"])
    process = subprocess.Popen(["ssh", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(data)
    process.stdin.close()
    if when == "sent":
        time.sleep(SENT_SECONDS)
    else:
        for _answer in methods[: methods.index(method) + 1]:
            process.stdout.readline()
    process.kill()
    process.wait()
    close_shared(arguments)
    return end(address, plan["then"])


if __name__ == "__main__":
    sys.exit(main())

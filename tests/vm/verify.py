"""Runs on a virtual machine: loads programs of the agent's artefact and says what the kernel's verifier said.

    python3 verify.py ARTEFACT < PROGRAMS      PROGRAMS: [[object, {constant: value}], ...] as JSON

Prints, as JSON, for each program in turn {"object", "error"} or {"object", "verified", "jited"}: `verified` counts the
instructions that the verifier went through. Nothing stays.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Dict

BPFFS = "/sys/fs/bpf"


def verify(directory: Path, name: str, constants: Dict[str, Any]) -> Dict[str, Any]:
    """Load one program by the loader's own code, look at it, let it go."""
    from bpfleet.errors import BpfleetError
    from bpfleet.loader.objects import Objects
    from bpfleet.loader.pins import Pins
    from bpfleet.model.state import Program

    pins = Pins(f"{BPFFS}/verify")
    pins.ensure()
    objects = Objects(directory / "objects", pins, directory)
    program = Program(name, constants)
    try:
        fd = objects.load(program)
        try:
            about = dict(line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines())
        finally:
            os.close(fd)
        return {"object": name, "verified": int(about["verified_insns"]), "jited": about["prog_jited"].strip() == "1"}
    except BpfleetError as error:
        return {"object": name, "error": error.to_wire()}
    finally:
        for pin in pins.maps.iterdir():
            pin.unlink()
        pins.remove_empty()


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        with zipfile.ZipFile(sys.argv[1]) as archive:
            archive.extractall(name, [entry for entry in archive.namelist() if entry.startswith("objects/")])
        print(json.dumps([verify(Path(name), *program) for program in json.load(sys.stdin)]))


if __name__ == "__main__":
    main()

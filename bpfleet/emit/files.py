"""Which generated file holds what; writing them, and finding those that are out of date."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List

from bpfleet.emit.ansible import ansible_files
from bpfleet.emit.json_schema import document_schema
from bpfleet.emit.pulumi import package_schema
from bpfleet.emit.reference import pages


def generated() -> Dict[str, str]:
    """Text of every generated file, by path below the repository's root."""
    files = {
        "provider/schema.json": _json(package_schema()),
        "docs/reference/document.schema.json": _json(document_schema()),
    }
    files.update({f"docs/reference/{name}": text for name, text in pages().items()})
    files.update(ansible_files())
    return files


def out_of_date(root: Path) -> List[str]:
    """Paths whose file is missing or differs from what the model generates."""
    found = []
    for path, text in generated().items():
        file = root / path
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            found.append(path)
    return found


def write(root: Path) -> List[str]:
    """Bring every generated file below `root` up to date; the paths that changed."""
    changed = out_of_date(root)
    files = generated()
    for path in changed:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(files[path], encoding="utf-8")
    return changed


def _json(value: Dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"

"""The collection's plugins as Python modules, put together as they are shipped."""

from __future__ import annotations

import importlib
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType

from tools.build_collection import assemble

_PACKAGE = "ansible_collections.bpfleet.fleet.plugins"


@cache
def _built() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="bpfleet-collection-")  # goes when the tests end
    assemble(Path(folder.name))
    sys.path.insert(0, folder.name)
    return folder


def module(name: str, below: str = "plugin_utils") -> ModuleType:
    """One of the collection's modules; "vendored.bpfleet.errors" is one of those it carries."""
    _built()
    return importlib.import_module(f"{_PACKAGE}.{below}.{name}")

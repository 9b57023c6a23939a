"""JSON as it is sent. Apart from documents, so that who only talks need not know them."""

from __future__ import annotations

import json
from typing import Any, Callable

compact_json: Callable[[Any], str] = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
"""In one line, fields in the order given. Made once: json.dumps makes an encoder for each value."""

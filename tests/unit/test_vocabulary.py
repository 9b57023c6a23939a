"""The compiler's numbers are those of the C headers. It may not import the loader's layouts, so a test compares."""

from __future__ import annotations

from pathlib import Path

from bpfleet.compile import compiler, policy
from bpfleet.loader.generated.layouts import ENUMS, MAPS
from bpfleet.model import identity, resources


def test_policy_entries() -> None:
    assert ENUMS["direction"] == policy.DIRECTION_NUMBERS
    assert ENUMS["policy_action"] == policy.ACTION_NUMBERS
    assert ENUMS["policy_peer"]["header"] == policy.HEADER_PEER
    assert policy.ANY in ENUMS["policy_peer"].values()


def test_shapes_of_keys() -> None:
    shapes = {"port": policy.WITH_PORT, "protocol": policy.WITH_PROTOCOL, "": policy.WITH_NEITHER}
    made = {}
    for suffix, shape in shapes.items():
        end = f"_{suffix}" if suffix else ""
        made[f"peer{end}"] = shape << policy.EXACT_PEER_SHIFT
        made[f"any{end}"] = shape << policy.ANY_PEER_SHIFT
    assert made == ENUMS["policy_class"]


def test_reserved_identities() -> None:
    names = {name.replace("-", "_"): number for number, name in identity.RESERVED_NAMES.items()}
    assert names == {name: number for name, number in ENUMS["identity"].items() if name != "lowest"}


def test_endpoint_flags() -> None:
    assert ENUMS["endpoint_flag"]["peer"] == compiler.PEER_DELIVERY


def test_tables_name_fields_that_exist() -> None:
    tables = {
        "endpoints": (compiler.ENDPOINTS_KEY, compiler.ENDPOINTS_VALUE),
        "node": (compiler.NODE_KEY, compiler.NODE_VALUE),
        "policy_entries": (policy.POLICY_KEY, policy.POLICY_VALUE),
    }
    for name, (key, value) in tables.items():
        layout = MAPS[name]
        assert set(key) == {field["name"] for field in layout["key"]["fields"]}
        assert set(value) == {field["name"] for field in layout["value"]["fields"]} - {"zero"}


def test_default_tunnel_port_is_the_headers() -> None:
    header = Path(__file__).resolve().parents[2] / "bpf/include/bpfleet/base.h"
    assert f"tunnel_port = {resources.DEFAULT_TUNNEL_PORT};" in header.read_text(encoding="utf-8")

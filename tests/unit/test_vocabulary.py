"""The compiler's numbers are those of the C headers. It may not import the loader's layouts, so a test compares."""

from __future__ import annotations

from pathlib import Path

from bpfleet.compile import compiler, entries, intervals, policy, prefixes, services
from bpfleet.loader.cgroup import ATTACH_TYPES
from bpfleet.loader.generated.layouts import ENUMS, MAPS, PROGRAMS
from bpfleet.model import identity, resources
from bpfleet.model.state import SOCKET_HOOKS


def test_policy_entries() -> None:
    assert ENUMS["direction"] == entries.DIRECTION_NUMBERS
    assert ENUMS["policy_action"] == entries.ACTION_NUMBERS
    assert ENUMS["policy_peer"]["header"] == entries.HEADER_PEER
    assert ENUMS["policy_peer"] == {
        "any_peer": policy.ANY,
        "first_class": prefixes.FIRST_CLASS,
        "header": entries.HEADER_PEER,
    }
    assert ENUMS["policy_header"] == {
        "default": entries.HEADER,
        "prefixes": entries.HEADER_PREFIXES,
        "ports": entries.HEADER_PORTS,
    }
    assert ENUMS["policy_part"] == {"range": entries.RANGE, "audit": entries.AUDIT}
    assert ENUMS["policy_flag"] == {
        "prefixes": entries.HAS_PREFIXES,
        "ports": entries.HAS_PORTS,
        "audit": entries.HAS_AUDIT,
    }


def test_shapes_of_keys() -> None:
    shapes = {
        "port": entries.WITH_PORT,
        "range": entries.WITH_RANGE,
        "protocol": entries.WITH_PROTOCOL,
        "": entries.WITH_NEITHER,
    }
    made = {}
    for suffix, shape in shapes.items():
        end = f"_{suffix}" if suffix else ""
        made[f"peer{end}"] = shape << entries.EXACT_PEER_SHIFT
        made[f"any{end}"] = shape << entries.ANY_PEER_SHIFT
    assert made == ENUMS["policy_shape"]


def test_reserved_identities() -> None:
    names = {name.replace("-", "_"): number for number, name in identity.RESERVED_NAMES.items()}
    assert names == {name: number for name, number in ENUMS["identity"].items() if name != "lowest"}


def test_endpoint_flags() -> None:
    assert ENUMS["endpoint_flag"]["peer"] == compiler.PEER_DELIVERY


def test_tables_name_fields_that_exist() -> None:
    tables = {
        "endpoints": (compiler.ENDPOINTS_KEY, compiler.ENDPOINTS_VALUE),
        "node": (compiler.NODE_KEY, compiler.NODE_VALUE),
        "policy_entries": (entries.POLICY_KEY, entries.POLICY_VALUE),
        "prefix_classes": (prefixes.PREFIX_KEY, prefixes.PREFIX_VALUE),
        "port_intervals": (intervals.PORT_SET_KEY, intervals.PORT_SET_VALUE),
        "services": (services.SERVICES_KEY, services.SERVICES_VALUE),
        "backend_entries": (services.BACKEND_KEY, services.BACKEND_VALUE),
    }
    for name, (key, value) in tables.items():
        layout = MAPS[name]
        assert set(key) == {field["name"] for field in layout["key"]["fields"]} - {"zero"}
        assert set(value) == {field["name"] for field in layout["value"]["fields"]} - {"zero"}


def test_socket_objects_are_there_for_every_hook_that_can_be_attached() -> None:
    assert set(ATTACH_TYPES) == set(SOCKET_HOOKS)
    sections = {name: next(iter(PROGRAMS[name].values())) for name in compiler.SOCKET_OBJECTS.values()}
    assert sections == {f"socket_{hook}": f"cgroup/{hook}" for hook in SOCKET_HOOKS}


def test_default_tunnel_port_is_the_headers() -> None:
    header = Path(__file__).resolve().parents[2] / "bpf/include/bpfleet/base.h"
    assert f"tunnel_port = {resources.DEFAULT_TUNNEL_PORT};" in header.read_text(encoding="utf-8")

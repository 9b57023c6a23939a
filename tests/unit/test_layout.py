"""Records to bytes and back, and the comparison of an object with the layouts."""

from __future__ import annotations

import copy
import ipaddress
from typing import Any, Callable, Dict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfleet.errors import HostFailed, InvalidInput
from bpfleet.loader import btf, layout
from bpfleet.loader.generated import layouts
from tools.build_objects import digest

addresses = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).filter(lambda one: one.ipv4_mapped is None and int(one)).map(str),
    st.just(""),
)
BY_KIND: Dict[str, Callable[[Dict[str, Any]], st.SearchStrategy[Any]]] = {
    "address": lambda field: addresses,
    "mac": lambda field: st.binary(min_size=6, max_size=6).map(lambda data: data.hex(":")),
    "bits": lambda field: st.integers(0, (1 << field["bit_size"]) - 1),
}


def values(field: Dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values of a field."""
    if "count" in field:
        size = field["size"] // field["count"]
        one = st.integers(0, (1 << 8 * size) - 1)
        return st.lists(one, min_size=field["count"], max_size=field["count"])
    if field["kind"] in BY_KIND:
        return BY_KIND[field["kind"]](field)
    return st.integers(0, (1 << 8 * field["size"]) - 1)


def records(name: str, part: str) -> st.SearchStrategy[Dict[str, Any]]:
    """Records of a map's key or value."""
    fields = layouts.MAPS[name][part]["fields"]
    return st.fixed_dictionaries({one["name"]: values(one) for one in fields if one["name"] != "zero"})


@pytest.mark.parametrize("part", ["key", "value"])
@pytest.mark.parametrize("name", layouts.MAPS)
def test_there_and_back(name: str, part: str) -> None:
    @given(records(name, part))
    def check(record: Dict[str, Any]) -> None:
        data = layout.encode(name, part, record)
        assert len(data) == layouts.MAPS[name][part]["size"]
        assert layout.decode(name, part, data) == record
        assert layout.encode_many(name, part, [record, record]) == data * 2
        assert layout.decode_many(name, part, data * 2) == [record, record]

    check()


def test_known_bytes() -> None:
    key = {
        "source": "10.0.0.1",
        "destination": "fd00::1",
        "source_port": 0x1234,
        "destination_port": 80,
        "protocol": 6,
        "direction": 1,
    }
    assert layout.encode("connections", "key", key).hex() == (
        "00000000000000000000ffff0a000001fd0000000000000000000000000000011234005006010000"
    )
    entry = {"rule_id": 0x01020304, "action": 1, "shapes": 2, "denies": 3, "flags": 4}
    assert layout.encode("policy_entries", "value", entry).hex() == "0403020101020304"
    endpoint = {
        "identity": 1,
        "workload_mac": "02:00:00:00:00:01",
        "device_mac": "02:00:00:00:00:02",
        "flags": 1,
    }
    assert layout.encode("endpoints", "value", endpoint).hex() == ("0100000002000000000102000000000201000000")


@pytest.mark.parametrize("text", ["10.0.0.1", "fd00::1", "2001:db8::ffff:1"])
def test_addresses_are_the_16_bytes_everybody_knows(text: str) -> None:
    address = ipaddress.ip_address(text)
    want = address.packed if address.version == 6 else ipaddress.ip_address(f"::ffff:{text}").packed
    assert layout.address_bytes(text) == want
    assert layout.address_text(want) == text


@pytest.mark.parametrize(
    ("name", "part", "record", "field"),
    [
        ("addresses", "key", {"address": "10.0.0"}, "addresses.key.address"),
        ("addresses", "key", {"address": 7}, "addresses.key.address"),
        ("addresses", "key", {"address": "10.0.0.1/32"}, "addresses.key.address"),
        ("addresses", "key", {}, "addresses.key.address"),
        ("addresses", "key", {"address": "::1", "colour": 1}, "addresses.key.colour"),
        ("endpoints", "key", {"ifindex": -1}, "endpoints.key.ifindex"),
        ("endpoints", "key", {"ifindex": 1 << 32}, "endpoints.key.ifindex"),
        ("endpoints", "key", {"ifindex": "1"}, "endpoints.key.ifindex"),
        ("node", "value", {"addresses_revision": 1}, "node.value.tunnel_ifindex"),
        ("nothing", "key", {}, "nothing"),
    ],
)
def test_what_does_not_fit_is_named(name: str, part: str, record: Dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        layout.encode(name, part, record)
    assert caught.value.field == field


def test_wrong_mac_and_bits_are_named() -> None:
    endpoint = {"identity": 1, "workload_mac": "02:00", "device_mac": "", "flags": 0}
    with pytest.raises(InvalidInput) as caught:
        layout.encode("endpoints", "value", endpoint)
    assert caught.value.field == "endpoints.value.workload_mac"
    record = layout.decode("connections", "value", bytes(40))
    with pytest.raises(InvalidInput) as caught:
        layout.encode("connections", "value", {**record, "peer": 1 << 24})
    assert caught.value.field == "connections.value.peer"


def test_too_few_bytes() -> None:
    with pytest.raises(InvalidInput):
        layout.decode("endpoints", "value", bytes(19))


def test_constants() -> None:
    described = layouts.CONSTANTS["from_endpoint"]
    size = max(one["offset"] + one["size"] for one in described.values()) + 4
    data = layout.encode_constants("from_endpoint", {"node_address": "192.0.2.1", "tunnel_port": 4789}, bytes(size))
    assert len(data) == size
    where = described["node_address"]["offset"]
    assert data[where : where + 16] == layout.address_bytes("192.0.2.1")
    where = described["tunnel_port"]["offset"]
    assert data[where : where + 2] == (4789).to_bytes(2, "little")
    with pytest.raises(InvalidInput):
        layout.encode_constants("from_endpoint", {"tunnel_prot": 1}, bytes(size))


def test_names_of_numbers() -> None:
    assert layout.name_of("reason", 16) == "denied_by_rule"
    assert layout.name_of("reason", 63) == "63"


def test_reasons_are_never_renumbered() -> None:
    """Stored output and other programs know these numbers: add, never change."""
    reasons = layouts.ENUMS["reason"]
    assert reasons == {
        "none": 0, "to_endpoint": 1, "to_tunnel": 2, "to_stack": 3, "neighbour": 4, "underlay": 5, "service": 6,
        "failsafe": 7, "audited": 10,
        "denied_by_rule": 16, "denied_by_default": 17, "truncated": 18, "malformed": 19, "extension_headers": 20,
        "unsupported": 21, "fragment": 22, "multicast": 23, "no_endpoint": 24, "waiting": 25, "spoofed_source": 26,
        "no_connection": 27, "connection_insert": 28, "hop_limit": 29, "own_tunnel": 30, "no_tunnel_device": 31,
        "tunnel_key": 32, "tunnel_reserved": 33, "tunnel_unknown_node": 34, "tunnel_forged_source": 35,
        "tunnel_forged_identity": 36, "unknown_destination": 37, "not_host_source": 38, "underlay_tunnel": 39,
        "underlay_workload": 40, "rewrite": 41, "service_no_backend": 42, "service_flow": 43, "blocked": 47,
        "tunnel_source_port": 48, "limit": 64,
    }  # fmt: skip
    assert layouts.MAPS["counters"]["max_entries"] == reasons["limit"]


def test_program_names_are_not_cut() -> None:
    for functions in layouts.PROGRAMS.values():
        for function in functions:
            assert function.startswith("bpfl_") and len(function) <= 15


HISTORY = {"flows", "flow_slots", "flow_counts", "flow_cursors", "connections", "connection_copies", "judgement_copies"}


@pytest.mark.parametrize(
    ("changed", "anew"),
    [
        ("node", {"node"}),
        # Else programs with one layout find inner maps of another below the name that both have.
        ("policy_entries", {"policy_entries", "policies", "policies_staged"}),
        ("prefix_classes", {"prefix_classes", "prefix_sets"}),
        # Else records name slots of another history, and slots that are new have counts of what was there before.
        ("flows", HISTORY),
        ("flow_cursors", HISTORY),
        # Else readers wait at numbers that were never written.
        ("events", {"events", "event_cursor"}),
    ],
)
def test_maps_that_say_nothing_without_each_other_are_made_anew_together(changed: str, anew: set[str]) -> None:
    maps = copy.deepcopy(layouts.MAPS)
    before = {name: digest(name, maps) for name in maps}
    assert before == {name: one["digest"] for name, one in layouts.MAPS.items()}
    maps[changed]["value"]["fields"].append({"name": "more", "offset": 0, "size": 4, "kind": "u32"})
    assert {name for name in maps if digest(name, maps) != before[name]} == anew


def _as_generated() -> Dict[str, Any]:
    maps = {name: {k: v for k, v in one.items() if k != "digest"} for name, one in layouts.MAPS.items()}
    return copy.deepcopy(
        {
            "maps": maps,
            "enums": layouts.ENUMS,
            "constants": layouts.CONSTANTS["from_endpoint"],
            "programs": layouts.PROGRAMS["from_endpoint"],
        }
    )


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda d: d["maps"]["endpoints"]["value"]["fields"][1].update(offset=8), "endpoints.value.workload_mac"),
        (lambda d: d["maps"]["endpoints"]["value"]["fields"].pop(), "endpoints.value.flags"),
        (lambda d: d["maps"]["endpoints"]["key"].update(size=8), "endpoints.key size"),
        (lambda d: d["maps"]["addresses"].update(flags=0), "addresses.flags"),
        (lambda d: d["maps"]["connections"].update(type="hash"), "connections.type"),
        (lambda d: d["maps"].update(extra=d["maps"]["node"]), "extra"),
        (lambda d: d["enums"]["reason"].update(waiting=99), "enum reason"),
        (lambda d: d["constants"].pop("tunnel_port"), "constants"),
        (lambda d: d["programs"].update(other="tc"), "programs"),
    ],
)
def test_check_names_what_differs(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Dict[str, Any]], Any], field: str
) -> None:
    described = _as_generated()
    monkeypatch.setattr(btf, "describe", lambda path: described)
    layout.check("build/bpf/from_endpoint.bpf.o")
    change(described)
    with pytest.raises(HostFailed) as caught:
        layout.check("build/bpf/from_endpoint.bpf.o")
    assert caught.value.field == field
    assert "Install the agent again" in caught.value.remedy

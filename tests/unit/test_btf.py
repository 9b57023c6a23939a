"""Reading objects: small ones compiled here, the project's own against the committed layouts, and broken files."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

import pytest

from bpfleet.errors import HostFailed
from bpfleet.loader import btf

ROOT = Path(__file__).resolve().parents[2]
CLANG = shutil.which("clang-19")

SOURCE = """
typedef unsigned char __u8; typedef unsigned short __u16; typedef unsigned int __u32;
typedef unsigned long long __u64; typedef short __s16; typedef __u16 __be16;
struct address { __u8 bytes[16]; };
struct mac { __u8 bytes[6]; };
enum colour { COLOUR_RED = 1, COLOUR_DARK_RED = 2, COLOUR_HUGE = 0xffffffff };
struct key { __u32 number; struct mac mac; __be16 port; };
struct value {
	union { struct { __u32 low; __u32 high; }; __u64 both; };
	struct address where;
	__s16 signed_one; __u8 gap; enum colour colour;
	__u32 small : 24, flag : 1;
	__u16 many[3];
};
struct inner_key { __u32 a; };
struct inner_value { __u64 b; };
struct inner { int (*type)[1]; int (*max_entries)[1]; int (*key_size)[4]; int (*value_size)[8]; };
struct { int (*type)[9]; int (*max_entries)[77]; int (*map_flags)[2]; struct key *key; struct value *value; }
	things __attribute__((section(".maps"), used));
struct { int (*type)[13]; int (*max_entries)[5]; __u32 *key; struct inner *values[]; }
	nested __attribute__((section(".maps"), used));
const volatile __u16 first = 7;
const volatile struct address second = {};
struct vocabulary { enum colour colour; struct inner_key inner_key; struct inner_value inner_value; };
const volatile struct vocabulary vocabulary = {};
__attribute__((section("tc"))) int program(void *context) { return first; }
__attribute__((noinline)) int helper(int x) { return x + first; }
"""


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Any]:
    """What is read from SOURCE."""
    if not CLANG:
        pytest.skip("clang-19 is not installed")
    folder = tmp_path_factory.mktemp("object")
    (folder / "x.c").write_text(SOURCE)
    command = [CLANG, "-O2", "-g", "-target", "bpf", "-Wno-visibility", "-c", "x.c", "-o", "x.o"]
    subprocess.run(command, cwd=folder, check=True)
    return btf.describe(folder / "x.o")


def test_fields_of_every_kind(described: Dict[str, Any]) -> None:
    rows = [
        (field["name"], field["offset"], field["size"], field["kind"])
        for part in ("key", "value")
        for field in described["maps"]["things"][part]["fields"]
    ]
    assert rows == [
        ("number", 0, 4, "u32"),
        ("mac", 4, 6, "mac"),
        ("port", 10, 2, "be16"),
        ("low", 0, 4, "u32"),
        ("high", 4, 4, "u32"),
        ("where", 8, 16, "address"),
        ("signed_one", 24, 2, "s16"),
        ("gap", 26, 1, "u8"),
        ("colour", 28, 4, "u32"),
        ("small", 32, 4, "bits"),
        ("flag", 32, 4, "bits"),
        ("many", 36, 6, "u16"),
    ]
    fields = {field["name"]: field for field in described["maps"]["things"]["value"]["fields"]}
    assert (fields["small"]["bit_offset"], fields["small"]["bit_size"]) == (0, 24)
    assert (fields["flag"]["bit_offset"], fields["flag"]["bit_size"]) == (24, 1)
    assert fields["many"]["count"] == 3


def test_map_definitions(described: Dict[str, Any]) -> None:
    maps = described["maps"]
    assert set(maps) == {"things", "nested", "inner"}
    definition = {name: maps["things"][name] for name in ("type", "max_entries", "flags")}
    assert definition == {"type": "lru_hash", "max_entries": 77, "flags": 2}
    assert (maps["nested"]["type"], maps["nested"]["inner"]) == ("hash_of_maps", "inner")
    assert maps["nested"]["key"]["fields"] == [{"name": "index", "offset": 0, "size": 4, "kind": "u32"}]
    assert [field["name"] for field in maps["inner"]["value"]["fields"]] == ["b"]


def test_enums_lose_what_they_share(described: Dict[str, Any]) -> None:
    assert described["enums"] == {"colour": {"red": 1, "dark_red": 2, "huge": 0xFFFFFFFF}}


def test_constants_and_programs(described: Dict[str, Any]) -> None:
    constants = described["constants"]
    assert {name: (one["size"], one["kind"]) for name, one in constants.items()} == {
        "first": (2, "u16"),
        "second": (16, "address"),
    }
    assert constants["first"]["offset"] != constants["second"]["offset"], "offsets are the symbols'"
    assert described["programs"] == {"program": "tc"}, "helpers are no programs"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "not a BPF object"),
        (b"\x7fELF", "not a BPF object"),
        (b"text" * 40, "not a BPF object"),
        (None, "cannot read"),
    ],
)
def test_broken_files(tmp_path: Path, content: Any, what: str) -> None:
    path = tmp_path / "from_endpoint.bpf.o"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(HostFailed) as caught:
        btf.describe(path)
    assert what in str(caught.value)
    assert caught.value.where["file"] == str(path)
    assert "make objects" in caught.value.remedy


def test_an_object_of_this_machine_is_refused() -> None:
    with pytest.raises(HostFailed):
        btf.describe(sys.executable)


@pytest.mark.skipif(not CLANG, reason="clang-19 is not installed")
def test_cut_short_anywhere(tmp_path: Path) -> None:
    """A half-copied object is an error of ours, never another."""
    (tmp_path / "x.c").write_text(SOURCE)
    command = [str(CLANG), "-O2", "-g", "-target", "bpf", "-Wno-visibility", "-c", "x.c", "-o", "x.o"]
    subprocess.run(command, cwd=tmp_path, check=True)
    whole = (tmp_path / "x.o").read_bytes()
    for size in range(0, len(whole) - 1, 97):
        (tmp_path / "half.o").write_bytes(whole[:size])
        with pytest.raises(HostFailed):
            btf.describe(tmp_path / "half.o")


@pytest.mark.skipif(not CLANG, reason="clang-19 is not installed")
def test_committed_layouts_are_those_of_the_headers(tmp_path: Path) -> None:
    """Compiles all objects anew; the same sources give the same bytes, also in another checkout.

    Otherwise two controllers with the same code would replace each other's agent for ever.
    """
    elsewhere = tmp_path / "another checkout"
    for part in ("bpf", "bpfleet", "tools"):
        shutil.copytree(ROOT / part, elsewhere / part, ignore=shutil.ignore_patterns("__pycache__"))
    for folder, checkout in (("one", ROOT), ("two", elsewhere)):
        command = [sys.executable, str(checkout / "tools/build_objects.py"), "--check", "--no-verify"]
        done = subprocess.run([*command, "--out", str(tmp_path / folder)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    objects = sorted((tmp_path / "one").glob("*.bpf.o"))
    assert {path.name for path in objects} == {path.stem + ".o" for path in (ROOT / "bpf").glob("*.bpf.c")}
    for path in objects:
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
        assert b".debug_info" not in path.read_bytes()

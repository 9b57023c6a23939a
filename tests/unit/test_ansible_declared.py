"""Documents as tasks and files declare them: what is wrong is said with file and line."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.unit.collection import module

declared = module("declared")

NODE = """\
kind: node
name: h1
spec:
  address: 192.0.2.1
  devices: [{name: eth0}]
  workload_cidrs: [10.0.1.0/24]
"""


def write(folder: Path, text: str, name: str = "documents.yml") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return path


def problems(*paths: Path, inline: Any = ()) -> list[str]:
    with pytest.raises(declared.Invalid) as caught:
        declared.declare(inline, paths)
    return [str(error) for error in caught.value.errors]


def test_one_document_many_and_lists_of_them(tmp_path: Path) -> None:
    two = "- {kind: identity, name: a, spec: {labels: {r: a}}}\n- {kind: identity, name: b, spec: {labels: {r: b}}}\n"
    write(tmp_path, NODE + "---\n" + two)
    (tmp_path / "more").mkdir()
    write(tmp_path / "more", '{"kind": "identity", "name": "c", "spec": {"labels": {}}}', "c.json")
    write(tmp_path, "not: a document", "notes.txt")
    write(tmp_path, "not: a document", ".hidden.yml")
    found = declared.declare([], [tmp_path])
    assert [one.key for one in found] == ["node/h1", "identity/a", "identity/b", "identity/c"]
    assert found[2].place == f"{tmp_path}/documents.yml:9"
    assert "number" not in found[1].spec


def test_json_may_write_a_character_in_two_escapes(tmp_path: Path) -> None:
    """As Python's json does; what only looks like it, behind a backslash, is text."""
    said = "\U0001f600 caf\u00e9 \\ud83d\\ude00 \U0010ffff/"
    group = {"kind": "cidr_group", "name": "g", "spec": {"description": said, "cidrs": []}}
    text = json.dumps(group)
    assert "\\ud83d\\ude00 caf" in text
    path = write(tmp_path, text.replace("/", "\\/"), "g.json")
    assert [one.spec["description"] for one in declared.declare([], [path])] == [said]
    path = write(tmp_path, text.replace("\\ude00 caf", " caf"), "g.json")
    assert ["has the control character" in one for one in problems(path)] == [True]


def test_json_may_be_indented_by_tabs(tmp_path: Path) -> None:
    path = write(tmp_path, '{\n\t"kind": "identity",\n\t"name": "c",\n\t"spec": {"labels": {}}\n}\n', "c.json")
    assert [one.key for one in declared.declare([], [path])] == ["identity/c"]


def test_what_is_merged_may_be_overridden_and_nothing_else_is_given_twice(tmp_path: Path) -> None:
    first = "- &a {kind: identity, name: a, spec: &s {labels: &l {r: a}}}\n"
    path = write(tmp_path, f"{first}- {{<<: *a, name: b, spec: {{labels: {{<<: *l, r: b}}}}}}\n")
    assert [(one.key, one.spec) for one in declared.declare([], [path])] == [
        ("identity/a", {"labels": {"r": "a"}}),
        ("identity/b", {"labels": {"r": "b"}}),
    ]
    path = write(tmp_path, f"{first}- {{<<: *a, name: b, name: c, spec: {{labels: {{r: b}}}}}}\n")
    assert ["name is given twice" in one for one in problems(path)] == [True]


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("address: 192.0.2.1", "adress: 192.0.2.1", 4, "unknown field adress. Did you mean address?"),
        ("address: 192.0.2.1", "address: [192.0.2.1]", 4, "must be an IPv4 or IPv6 address, not a list"),
        ("kind: node", "kind: nodes", 1, "'nodes' is not a kind of resource"),
        ("name: h1", "name: H1", 2, "'H1' is not allowed"),
        ("[{name: eth0}]", "[{name: eth0}, {name: eth1, mtu: 9000}]", 5, "unknown field mtu"),
        ("[10.0.1.0/24]", "\n    - 10.0.1.0/24\n    - 10.0.2.7/24", 8, "10.0.2.7/24 has host bits set"),
        ("name: h1", "name: h1\nowner: me", 3, "unknown field owner"),
        ("name: h1", "name: h1\nssh: {prot: 22}", 3, "unknown field prot"),
        ("name: h1", "name: h1\nssh: {port: many}", 3, "must be a whole number, not a string"),
        ("name: h1", "name: h1\nname: h2", 3, "name is given twice (first in line 2)"),
        ("spec:", "spec: [", 5, "is not YAML"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_line(tmp_path: Path, old: str, new: str, line: int, says: str) -> None:
    path = write(tmp_path, NODE.replace(old, new, 1))
    problem, *_ = problems(path)
    assert f"{path}:{line}" in problem
    assert says in problem


@pytest.mark.parametrize(
    ("ingress", "says"),
    [
        ("[" * 5000 + "]" * 5000, "documents.yml: is nested too deeply"),
        ("[" * 60 + "]" * 60, "documents.yml:1: is nested deeper"),
        ("&again [*again]", "documents.yml: is nested too deeply, or refers to itself"),
        (f"[{{ports: [{{port: 0x{'f' * 5000}}}]}}]", "number of more than 64 bits"),
        (f"[{{ports: [{{port: {'9' * 5000}}}]}}]", "documents.yml: cannot be read"),
    ],
    ids=[
        "lists without end",
        "lists too deep",
        "a list that holds itself",
        "a number that cannot be shown",
        "in digits",
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(tmp_path: Path, ingress: str, says: str) -> None:
    path = write(tmp_path, f"kind: policy\nname: p\nspec:\n  selector: {{}}\n  ingress: {ingress}\n")
    (problem,) = problems(path)
    assert says in problem


def test_what_cannot_be_read_in_a_task_is_said_with_its_place() -> None:
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    (problem,) = problems(inline=[{"kind": "policy", "name": "p", "spec": {"ingress": deep}}])
    assert "documents[0]: is nested deeper" in problem and "spec.ingress" in problem


def test_the_line_is_that_of_the_nested_field(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """\
        - kind: policy
          name: web
          spec:
            selector: {app.kubernetes.io/name: web}
            ingress:
              - peers: [{entity: world}]
                ports:
                  - {protocol: tcp, port: 80}
                  - protocol: tcp
                    port: eighty
              - action: maybe
        """,
    )
    first, second = problems(path)
    assert f"{path}:10" in first and "ingress[0].ports[1].port" in first
    assert f"{path}:11" in second and "Use allow or deny" in second


@pytest.mark.parametrize(
    ("written", "number"),
    [("010", 8), ("22:22", 1342), ("1_000", 1000), ("0b11", 3), ("0x_50", 80), ("1:20.0", 80.0), ("!!int '010'", 8)],
)
def test_a_number_that_yaml_reads_otherwise_than_people_is_refused(tmp_path: Path, written: str, number: float) -> None:
    rules = f"[{{}}, {{ports: [\n    {{protocol: tcp, port: {written}}}]}}]"
    path = write(tmp_path, f"kind: policy\nname: p\nspec:\n  selector: {{}}\n  ingress: {rules}\n")
    (problem,) = problems(path)
    text = written.removeprefix("!!int ").strip("'")
    assert f"{path}:6" in problem and "resource policy/p, field ingress[1].ports[0].port" in problem
    assert f"{text} is the number {number} in YAML" in problem


@pytest.mark.parametrize("written", ["8", "0x50", "80.0", "+8"])
def test_a_number_that_everybody_reads_alike_is_one(tmp_path: Path, written: str) -> None:
    rules = f"[{{ports: [{{port: {written}}}]}}]"
    (one,) = declared.declare(
        [], [write(tmp_path, f"{{kind: policy, name: p, spec: {{selector: {{a: '010'}}, ingress: {rules}}}}}")]
    )
    assert one.spec["ingress"][0]["ports"][0]["port"] in (8, 80)


@pytest.mark.parametrize(("written", "key"), [("on", True), ("010", 8), ("8", 8), ("1.10", 1.1), ("~", None)])
def test_a_key_that_yaml_does_not_read_as_text_is_refused(tmp_path: Path, written: str, key: Any) -> None:
    """It would be a label of another name."""
    for kind, spec in (("identity", "labels: {%s: x}"), ("policy", "ingress: [], selector: {a: b, %s: x}")):
        path = write(tmp_path, f"kind: {kind}\nname: a\nspec:\n  {{{spec % written}}}\n")
        (problem,) = problems(path)
        assert f"{path}:4" in problem and f".{key}" in problem and "must be a string, not" in problem
    (problem,) = problems(inline=[{"kind": "identity", "name": "a", "spec": {"labels": {key: "x"}}}])
    assert f"labels.{key}" in problem and "must be a string, not" in problem
    for above in ({key: 1, "kind": "identity", "name": "a", "spec": {"labels": {}}},
                  {"kind": "identity", "name": "a", "spec": {key: 1, "labels": {}}}):  # fmt: skip
        assert f"unknown field {key}" in "".join(problems(inline=[above]))


def test_labels_with_dots_have_their_own_line(tmp_path: Path) -> None:
    path = write(tmp_path, "kind: identity\nname: a\nspec:\n  labels:\n    a.b: x\n    a.b.c/d: bad value\n    z: y\n")
    (problem,) = problems(path)
    assert f"{path}:6" in problem


def test_everything_that_is_wrong_anywhere_comes_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, NODE.replace("address", "adress") + "---\n- 5\n")
    found = problems(path, tmp_path / "gone.yml", inline=[{"kind": "policy", "name": "p"}])
    assert len(found) == 5
    assert any("documents[0]" in text and "must be a mapping" in text for text in found)
    assert any("gone.yml" in text and "is not there" in text for text in found)
    assert any(f"{path}:8" in text and "a document must be a mapping" in text for text in found)


def test_two_declarations_of_one_document_are_refused_with_both_places(tmp_path: Path) -> None:
    first, second = write(tmp_path, NODE, "a.yml"), write(tmp_path, "\n" + NODE, "b.yml")
    (problem,) = problems(first, second)
    assert f"in {first}:1 and in {second}:2" in problem


def test_values_that_ansible_marks_become_plain() -> None:
    class Marked(str):
        pass

    class Number(int):
        pass

    spec = {Marked("labels"): {Marked("r"): Marked("web")}, "number": Number(65800)}
    (one,) = declared.declare([{"kind": Marked("identity"), "name": Marked("web"), "spec": spec}], [])
    assert type(one.spec["labels"]["r"]) is str and type(one.spec["number"]) is int
    assert one.spec["number"] == 65800


def test_a_nodes_ssh_stands_beside_its_content() -> None:
    data = {
        "kind": "node",
        "name": "h1",
        "ssh": {"port": 2222},
        "spec": {"address": "192.0.2.1", "devices": [{"name": "eth0"}], "workload_cidrs": ["10.0.1.0/24"]},
    }
    (one,) = declared.declare([data], [])
    assert one.metadata == {"ssh": {"port": 2222, "user": "root"}}
    assert set(one.item("ansible:shop")["document"]["spec"]) == {"address", "devices", "workload_cidrs"}

"""The document store: owners, numbers, and generations on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest

from bpfleet.agent.files import Files
from bpfleet.agent.journal import Head
from bpfleet.agent.store import EMPTY, GENERATIONS_KEPT, Contents, Store, change
from bpfleet.errors import BpfleetError, HostFailed
from bpfleet.model.document import Document
from tests import fleet


def item(document: Document, owner: str = "a", metadata: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
    return {"document": document.to_json(), "owner": owner, "metadata": metadata or {}}


def holding(*documents: Document, owner: str = "a") -> Contents:
    contents, refused = change(EMPTY, [item(document, owner) for document in documents], [], owner, replace_all=False)
    assert not refused
    return contents


def codes(refused: List[Any]) -> List[Any]:
    return [(refusal["document"], refusal["error"]["code"]) for refusal in refused]


WEB, API = fleet.identity("web"), fleet.identity("api")


def test_puts_and_deletes() -> None:
    contents, refused = change(holding(WEB, API), [item(fleet.node(1))], ["identity/api"], "a", replace_all=False)
    assert not refused
    assert sorted(contents.items) == ["identity/web", "node/h1"]
    assert contents.documents.digest == Contents(contents.items).documents.digest


def test_deleting_what_is_not_there_is_no_error() -> None:
    contents, refused = change(holding(WEB), [], ["identity/nobody"], "a", replace_all=False)
    assert (contents, refused) == (holding(WEB), [])


@pytest.mark.parametrize("put", [True, False])
def test_an_owner_touches_only_its_own(put: bool) -> None:
    base = holding(WEB, owner="pulumi:p/one")
    if put:
        contents, refused = change(base, [item(WEB, "ansible:two")], [], "ansible:two", replace_all=False)
    else:
        contents, refused = change(base, [], ["identity/web"], "ansible:two", replace_all=False)
    assert codes(refused) == [("identity/web", "NotOwner")]
    error = BpfleetError.from_wire(refused[0]["error"])
    assert error.details == {"owner": "pulumi:p/one", "asking": "ansible:two"}
    assert "pulumi:p/one" in error.remedy
    assert contents == base


def test_an_item_without_owner_is_the_callers() -> None:
    data = item(WEB)
    del data["owner"]
    contents, _ = change(EMPTY, [data], [], "me", replace_all=False)
    assert contents.items["identity/web"].owner == "me"


def test_a_taken_number_names_its_holder_and_refuses_the_newcomer() -> None:
    number = WEB.spec["number"]
    # The newcomer sorts before the holder by name, and is refused all the same.
    newcomer = fleet.identity("aaa", {"app": "aaa"}, number)
    contents, refused = change(holding(WEB), [item(newcomer)], [], "a", replace_all=False)
    assert codes(refused) == [("identity/aaa", "NumberTaken")]
    error = BpfleetError.from_wire(refused[0]["error"])
    assert error.details == {"number": number, "other": "identity/web", "labels": {"app": "web"}}
    assert error.field == "number"
    assert contents == holding(WEB)


def test_a_number_is_free_once_its_holder_goes_in_the_same_change() -> None:
    newcomer = fleet.identity("new", {"app": "new"}, WEB.spec["number"])
    contents, refused = change(holding(WEB), [item(newcomer)], ["identity/web"], "a", replace_all=False)
    assert not refused
    assert sorted(contents.items) == ["identity/new"]


def test_two_newcomers_with_one_number() -> None:
    one, two = fleet.identity("one", {"a": "1"}, 70000), fleet.identity("two", {"a": "2"}, 70000)
    contents, refused = change(EMPTY, [item(two), item(one)], [], "a", replace_all=False)
    assert codes(refused) == [("identity/two", "NumberTaken")]
    assert sorted(contents.items) == ["identity/one"]


def test_all_problems_of_all_documents_come_at_once() -> None:
    bad: Dict[str, Any] = {"kind": "policy", "name": "p", "spec": {"selectr": {}, "ingress": [{"action": "maybe"}]}}
    worse: Dict[str, Any] = {"kind": "thing", "name": "x", "spec": {}}
    puts = [{"document": bad, "owner": "a"}, {"document": worse, "owner": "a"}, {"owner": "a"}, item(WEB), item(WEB)]
    contents, refused = change(EMPTY, puts, [], "a", replace_all=False)
    fields = [refusal["error"]["where"].get("field") for refusal in refused]
    assert {"selectr", "selector", "ingress[0].action", "kind"} <= set(fields)
    assert ("identity/web", "InvalidInput") in codes(refused)  # put twice
    assert sorted(contents.items) == ["identity/web"]


def test_replacing_all_takes_the_seeds_store_whoever_owned_what() -> None:
    base = holding(WEB, API, owner="old")
    contents, refused = change(base, [item(WEB, "new", {"x": 1})], [], "new", replace_all=True)
    assert not refused
    assert list(contents.items) == ["identity/web"]
    assert contents.items["identity/web"].owner == "new"


def test_metadata_is_kept_and_outside_the_digest() -> None:
    plain, _ = change(EMPTY, [item(WEB)], [], "a", replace_all=False)
    reached, _ = change(EMPTY, [item(WEB, "a", {"ssh": {"host": "x"}})], [], "a", replace_all=False)
    assert plain.documents.digest == reached.documents.digest
    assert plain != reached


def stored(root: Path, generation: int, *documents: Document) -> Head:
    store, contents = Store(Files(root)), holding(*documents)
    head = Head(generation, f"t{generation}", "h1", None, contents.documents.digest)
    store.write(head, contents, contents.to_bytes(head))
    return head


def test_a_generation_comes_back_from_disk(tmp_path: Path) -> None:
    head = stored(tmp_path, 1, WEB, API)
    assert Store(Files(tmp_path)).load(head) == holding(WEB, API)
    assert Store(Files(tmp_path)).load(Head()) == EMPTY


def test_a_damaged_generation_is_refused(tmp_path: Path) -> None:
    head = stored(tmp_path, 1, WEB)
    path = Store(Files(tmp_path)).path(1)
    text = path.read_text()
    for damage in (text[:-5], text.replace('"web"', '"wob"'), "{}", "[]"):
        path.write_text(damage)
        with pytest.raises(HostFailed, match="is damaged"):
            Store(Files(tmp_path)).load(head)
    path.unlink()
    with pytest.raises(HostFailed, match="is damaged: it is gone"):
        Store(Files(tmp_path)).load(head)


def test_a_bounded_number_of_generations_is_kept(tmp_path: Path) -> None:
    for number in range(1, 10):
        stored(tmp_path, number, WEB)
    store = Store(Files(tmp_path))
    store.prune(8)
    names = sorted(int(path.stem) for path in (tmp_path / "generations").iterdir())
    assert names == list(range(9 - GENERATIONS_KEPT, 9))
    assert len(list(store.older(8))) == GENERATIONS_KEPT - 1

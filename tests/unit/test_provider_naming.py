"""Ids, ids to import, owners."""

from __future__ import annotations

from typing import Any

import pytest

from bpfleet.errors import InvalidInput
from provider.naming import Declarations, logical_name, owner_of, parse_id, type_token

URN = "urn:pulumi:dev::my-project::my:index:Group$bpfleet:index:Policy::open::web"


def test_urns() -> None:
    assert owner_of(URN) == "pulumi:my-project/dev"
    assert logical_name(URN) == "open::web"
    assert type_token(URN) == "bpfleet:index:Policy"


@pytest.mark.parametrize(
    ("kind", "text", "name", "cluster", "ssh"),
    [
        ("node", "h1", "h1", None, None),
        ("policy", "shop/open.web", "open.web", "shop", None),
        ("node", "h1@192.0.2.1", "h1", None, {"host": "192.0.2.1", "port": 22, "user": "root"}),
        ("cluster", "shop@[2001:db8::1]:2222", "shop", None, {"host": "2001:db8::1", "port": 2222, "user": "root"}),
        ("endpoint", "shop/web-1@h1.example?privateKeyFile=/k&user=me", "web-1", "shop",
         {"host": "h1.example", "port": 22, "user": "me", "private_key_file": "/k"}),
    ],
)  # fmt: skip
def test_ids(kind: str, text: str, name: str, cluster: Any, ssh: Any) -> None:
    found = parse_id(kind, text)
    assert (found.name, found.cluster, found.ssh) == (name, cluster, ssh)
    assert found.text == text.partition("@")[0]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("policy", "web"),
        ("node", "shop/h1"),
        ("node", ""),
        ("policy", "/web"),
        ("policy", "shop/"),
        ("node", "h1@"),
        ("node", "h1@host:port"),
        ("node", "h1@host:99999"),
        ("node", "h1@host?nonsense=1"),
        ("node", "h1@host?hostKey=x"),
    ],
)
def test_bad_ids_say_the_form(kind: str, text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_id(kind, text)
    assert caught.value.field == "id" and caught.value.remedy


def test_one_document_is_one_resource() -> None:
    declarations = Declarations()
    assert declarations.declare("policy", "shop", "web", "urn:a") is None
    assert declarations.declare("policy", "shop", "web", "urn:a") is None, "a replacement is checked twice"
    assert declarations.declare("policy", "other", "web", "urn:b") is None
    assert declarations.declare("policy", "shop", "web", "urn:b") == "urn:a"
    assert declarations.taken_over("policy", "shop", "web", "urn:old")
    assert not declarations.taken_over("policy", "shop", "web", "urn:a")
    assert not declarations.taken_over("policy", "shop", "gone", "urn:old")

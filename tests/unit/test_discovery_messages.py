"""What combiners and clients may say to the discovery, key by key."""

from __future__ import annotations

import json

import pytest
from discovery_mock.fields import BadRequest
from discovery_mock.helpers import Generation
from discovery_mock.messages import (
    ClientRequest,
    parse_add_client,
    parse_announce,
    parse_assign,
    parse_new_client,
    parse_query_name,
    parse_wants_checksum,
)
from discovery_mock.registry import Combiner

ANNOUNCE = {
    "combiner_id": "combiner",
    "address": "gateway",
    "fqdn": None,
    "port": 12080,
    "secure_grpc": False,
}


def test_an_announcement_of_06():
    found = parse_announce(json.dumps(ANNOUNCE).encode(), {})
    assert found == Combiner(name="combiner", address="gateway", port=12080, fqdn=None, secure=False)


@pytest.mark.parametrize(("given", "read"), [(True, True), ("True", True), ("False", False)])
def test_secure_may_be_a_boolean_or_its_text(given: object, read: bool):
    assert parse_announce(json.dumps({**ANNOUNCE, "secure_grpc": given}).encode(), {}).secure is read


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]", "fl.example.org", "gateway-0.gateway_svc"])
def test_addresses(address: str):
    assert parse_announce(json.dumps({**ANNOUNCE, "address": address}).encode(), {}).address == address


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"combiner_id": "a/b"}, "combiner_id"),
        ({"combiner_id": ""}, "combiner_id"),
        ({"combiner_id": "x" * 129}, "combiner_id"),
        ({"combiner_id": 5}, "combiner_id"),
        ({"combiner_id": "name\n"}, "combiner_id"),
        ({"address": "host name"}, "address"),
        ({"address": None}, "address"),
        ({"fqdn": "http://x"}, "fqdn"),
        ({"fqdn": 1}, "fqdn"),
        ({"port": "12080"}, "port"),
        ({"port": 0}, "port"),
        ({"port": 65536}, "port"),
        ({"port": True}, "port"),
        ({"port": 1e3}, "port"),
        ({"secure_grpc": "yes"}, "secure_grpc"),
        ({"secure_grpc": 1.5}, "secure_grpc"),
        ({"secure_grpc": None}, "secure_grpc"),
        ({"extra": 1}, "'extra' is not a known key"),
        ({"\ud800": 1}, "\\ud800"),
        ({"x" * 5_000: 1}, "is not a known key"),
    ],
)
def test_a_bad_announcement_names_the_key(changes: dict[str, object], named: str):
    with pytest.raises(BadRequest) as caught:
        parse_announce(json.dumps({**ANNOUNCE, **changes}).encode(), {})
    assert named in str(caught.value)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("key", list(ANNOUNCE))
def test_a_missing_key_is_named(key: str):
    with pytest.raises(BadRequest, match=f"^{key} is missing$"):
        parse_announce(json.dumps({k: v for k, v in ANNOUNCE.items() if k != key}).encode(), {})


def test_our_own_combiners_say_how_many_clients_they_have():
    headers = {"combiner-active-clients": "12", "combiner-max-clients": "10000", "host": "x"}
    found = parse_announce(json.dumps(ANNOUNCE).encode(), headers)
    assert (found.active_clients, found.max_clients) == (12, 10_000)
    for value in ("", "-1", "1.5", "x" * 1000, "9" * 10):
        with pytest.raises(BadRequest, match="the header combiner-active-clients cannot be"):
            parse_announce(json.dumps(ANNOUNCE).encode(), {"combiner-active-clients": value})


UNSURE, NEW = Generation.UNSURE, Generation.NEW


@pytest.mark.parametrize(
    ("body", "scheme", "client"),
    [
        ({"client_id": "c1", "preferred_combiner": False}, "Token", ClientRequest("c1", "c1", UNSURE)),
        ({"client_id": "c1", "preferred_combiner": None}, "", ClientRequest("c1", "c1", UNSURE)),
        ({"client_id": "c1"}, "Bearer", ClientRequest("c1", "c1", NEW)),
        ({"client_id": "c1"}, "bearer", ClientRequest("c1", "c1", NEW)),
        ({"client_id": "c1", "preferred_combiner": "a"}, "Token", ClientRequest("c1", "c1", UNSURE, "a")),
        ({"client_id": "0b-6f", "name": "c1"}, "Token", ClientRequest("c1", "0b-6f", NEW)),
        ({"client_id": "c1", "package": "local"}, "", ClientRequest("c1", "c1", NEW, None, "local")),
    ],
)
def test_clients_that_ask_alike(body: dict[str, object], scheme: str, client: ClientRequest):
    assert parse_add_client(json.dumps(body).encode(), f"{scheme} t0k") == client


def test_clients_that_have_ways_of_their_own():
    body = json.dumps({"name": "c1", "client_id": "0b-6f", "package": "remote"}).encode()
    assert parse_new_client(body) == ClientRequest("c1", "0b-6f", NEW, None, "remote")
    assert parse_assign({"name": "c1", "combiner": "a"}) == ClientRequest("c1", "c1", Generation.OLD, "a")
    assert parse_assign({"name": "c1", "combiner": ""}) == ClientRequest("c1", "c1", Generation.OLD)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"preferred_combiner": False}, "name is missing"),
        ({"client_id": ""}, "name is missing"),
        ({"client_id": "../x"}, "client_id"),
        ({"client_id": True}, "client_id"),
        ({"client_id": "c", "preferred_combiner": "a b"}, "preferred_combiner"),
        ({"client_id": "c", "preferred_combiner": ["a"]}, "preferred_combiner"),
        ({"client_id": "c", "preferred_combiner": True}, "preferred_combiner"),
        ({"client_id": "c", "name": "a.b"}, "name"),
        ({"client_id": "c", "package": "elsewhere"}, "package"),
        ({"client_id": "c", "package": ["local"]}, "package"),
        ({"client_id": "c", "token": "t"}, "'token' is not a known key"),
    ],
)
def test_a_bad_client_request_names_the_key(body: dict[str, object], named: str):
    text = json.dumps(body).encode()
    for parse in (parse_new_client, lambda body: parse_add_client(body, "")):
        with pytest.raises(BadRequest) as caught:
            parse(text)
        assert named in str(caught.value)


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ({}, "name is missing"),
        ({"name": "a b"}, "name cannot be"),
        ({"name": "c", "combiner": "/"}, "combiner cannot be"),
        ({"name": "c", "client_id": "c"}, "'client_id' is not a known key"),
    ],
)
def test_a_bad_query_names_the_key(query: dict[str, str], named: str):
    with pytest.raises(BadRequest, match=named):
        parse_assign(query)


def test_other_queries():
    assert parse_query_name({"name": "p.tgz"}) == "p.tgz"
    assert parse_query_name({}) is None
    assert [parse_wants_checksum({"checksum": text}) for text in ("true", "True", "false", "False")] == [
        True,
        True,
        False,
        False,
    ]
    with pytest.raises(BadRequest, match="checksum cannot be 'Maybe'"):
        parse_wants_checksum({"checksum": "maybe"})


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"text"', b"null", b"\xff\xfe", b"[" * 16_000, b'{"a":' * 3_000, b"9" * 10_000],
    ids=range(9),
)
def test_what_is_no_json_object_is_refused(body: bytes):
    for parse in (lambda body: parse_announce(body, {}), parse_new_client):
        with pytest.raises(BadRequest, match="the body is not"):
            parse(body)

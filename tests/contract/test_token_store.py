"""The port of tokens on a real Redis."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from fedcombiner.access.record import TokenRecord
from fedcombiner.access.redis_tokens import RedisTokens
from fedcombiner.access.roles import Role
from fedcombiner.access.store import TokenStore, TokensUnavailable
from tests.contract.state_kit import Server, running_server

_PREFIXES = itertools.count(1)
A = TokenRecord(id="a", role=Role.CLIENT, name="Alice's", clients=("c1", "c2"), created=1.5, expires=9.0)
B = TokenRecord(id="b", role=Role.OPERATOR, created=2.0)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture
def prefix() -> str:
    return f"t{next(_PREFIXES)}:"


@pytest.fixture
async def store(server: Server, prefix: str) -> AsyncIterator[TokenStore]:
    made = RedisTokens(server.url, prefix=prefix)
    yield made
    await made.aclose()


async def loaded(store: TokenStore) -> dict[str, TokenRecord]:
    snapshot = await store.load()
    assert snapshot is not None
    return dict(snapshot.tokens)


async def test_there_are_none_at_first(store: TokenStore) -> None:
    assert await loaded(store) == {}


async def test_records_come_back_as_they_were_put(store: TokenStore) -> None:
    await store.put("da", A)
    await store.put("db", B)
    assert await loaded(store) == {"da": A, "db": B}


async def test_a_token_is_revoked_on_a_full_redis(server: Server, store: TokenStore) -> None:
    await store.put("da", A)
    await store.put("dc", A)
    revoked = A.model_copy(update={"revoked": 3.0})
    with redis.Redis.from_url(server.url) as raw:
        raw.config_set("maxmemory", "1mb")
        try:
            await store.put("da", revoked, forget=["dc"])
        finally:
            raw.config_set("maxmemory", "0")
    assert await loaded(store) == {"da": revoked}


async def test_putting_again_replaces_and_may_be_repeated(store: TokenStore) -> None:
    revoked = A.model_copy(update={"revoked": 3.0})
    for record in (A, revoked, revoked):
        await store.put("da", record)
    assert await loaded(store) == {"da": revoked}


async def test_others_are_forgotten_in_the_same_step(store: TokenStore) -> None:
    await store.put("da", A)
    await store.put("db", B, forget=["da", "none"])
    assert await loaded(store) == {"db": B}


async def test_a_reader_is_told_only_of_what_changed(store: TokenStore) -> None:
    await store.put("da", A)
    first = await store.load()
    assert first is not None
    assert await store.load(first.version) is None
    await store.put("db", B)
    second = await store.load(first.version)
    assert second is not None
    assert second.version != first.version
    assert set(second.tokens) == {"da", "db"}


async def test_a_redis_that_lost_everything_has_no_tokens(
    store: TokenStore, server: Server, prefix: str
) -> None:
    await store.put("da", A)
    known = await store.load()
    assert known is not None
    with redis.Redis.from_url(server.url) as raw:
        raw.delete(f"{prefix}tokens", f"{prefix}tokens:version")
    emptied = await store.load(known.version)
    assert emptied is not None
    assert emptied.tokens == {}
    assert await store.load("") is not None


@pytest.mark.parametrize("text", ["", "{", '{"id": "x", "role": "emperor"}', "[]"])
async def test_a_record_of_another_version_is_no_token_and_harms_no_other(
    store: TokenStore, server: Server, prefix: str, text: str
) -> None:
    await store.put("da", A)
    with redis.Redis.from_url(server.url) as raw:
        raw.hset(f"{prefix}tokens", "dx", text)
    assert await loaded(store) == {"da": A}


async def test_a_redis_that_is_away_is_said_to_be() -> None:
    store = RedisTokens("unix:///nowhere/s")
    with pytest.raises(TokensUnavailable, match="Redis cannot be reached"):
        await store.load()
    with pytest.raises(TokensUnavailable, match="Redis cannot be reached"):
        await store.put("da", A)
    await store.aclose()

"""Fixtures of the contract suites."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest
import redis
from combiner.adapters.state import RedisState

from tests.contract.state_kit import Bench, Server


@pytest.fixture(scope="session")
def valkey() -> Iterator[Server]:
    server = Server()
    server.start()
    yield server
    server.close()


_PREFIXES = itertools.count(1)


@pytest.fixture
async def bench(valkey: Server) -> AsyncIterator[Bench]:
    with redis.Redis.from_url(valkey.url, decode_responses=True) as raw:
        made = Bench(valkey, f"t{next(_PREFIXES)}:", raw, [], itertools.count(1))
        yield made
        for state in made.opened:
            await state.aclose()


@pytest.fixture
def state(bench: Bench) -> RedisState:
    return bench.state()

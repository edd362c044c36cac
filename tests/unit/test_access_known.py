"""The copy of the tokens: how old it may get, and what counts while Redis is away."""

from __future__ import annotations

import asyncio
import time

import pytest

from fedcombiner.access.known import KnownTokens
from fedcombiner.access.record import TokenRecord
from fedcombiner.access.roles import Role
from fedcombiner.access.secret import digest
from fedcombiner.access.store import Snapshot, TokensUnavailable
from fedcombiner.servicekit.errors import Unavailable


class Reader:
    """Tokens that the test changes, and a Redis that it can take away."""

    def __init__(self) -> None:
        self.tokens: dict[str, TokenRecord] = {}
        self.version = 0
        self.away = False
        self.loads = 0

    def add(self, token: str) -> None:
        self.tokens[digest(token)] = TokenRecord(id=token, role=Role.CLIENT)
        self.version += 1

    async def load(self, known: str = "") -> Snapshot | None:
        self.loads += 1
        await asyncio.sleep(0)
        if self.away:
            raise TokensUnavailable("Redis fails: refused")
        return None if known == str(self.version) else Snapshot(str(self.version), dict(self.tokens))

    async def aclose(self) -> None: ...


class Bench:
    def __init__(self) -> None:
        self.reader = Reader()
        fixed = {digest("fixed"): TokenRecord(id="fixed", role=Role.OPERATOR)}
        self.known = KnownTokens(fixed, self.reader)

    async def id_of(self, token: str) -> str | None:
        record = await self.known.find(digest(token))
        return record and record.id


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr("fedcombiner.access.known.LOOK_AGAIN_S", 0.02)
    return Bench()


async def test_a_fixed_token_needs_no_redis(bench: Bench) -> None:
    bench.reader.away = True
    assert await bench.id_of("fixed") == "fixed"
    assert bench.reader.loads == 0


async def test_a_token_that_was_just_made_is_known_at_once(bench: Bench) -> None:
    bench.reader.add("a")
    assert await bench.id_of("a") == "a"
    bench.reader.add("b")
    assert await bench.id_of("b") == "b"


async def test_unknown_tokens_share_their_look_at_redis_however_many_come(bench: Bench) -> None:
    began = time.monotonic()
    for loads in (1, 2, 3):
        assert await asyncio.gather(*(bench.id_of(f"wrong-{i}") for i in range(100))) == [None] * 100
        assert bench.reader.loads == loads
    assert time.monotonic() - began >= 2 * 0.02


async def test_few_calls_wait_for_a_look_and_the_others_are_refused_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedcombiner.access.known.MAX_WAITING", 10)
    await bench.id_of("wrong")  # the next look is some time off
    waiting = [asyncio.create_task(bench.id_of(f"wrong-{i}")) for i in range(10)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="too many others"):
        await bench.id_of("one-more")
    assert await asyncio.gather(*waiting) == [None] * 10
    assert await bench.id_of("one-more") is None


async def test_the_last_copy_counts_while_redis_is_away(bench: Bench) -> None:
    bench.reader.add("a")
    await bench.known.refresh()
    bench.reader.away = True
    await bench.known.refresh()
    assert await bench.id_of("a") == "a"
    with pytest.raises(Unavailable, match="cannot be checked: Redis fails: refused; try again"):
        await bench.known.find(digest("made-meanwhile"))
    bench.reader.away = False
    assert await bench.id_of("made-meanwhile") is None


async def test_before_the_first_contact_nobody_is_called_unknown(bench: Bench) -> None:
    bench.reader.away = True
    with pytest.raises(Unavailable, match="Redis fails"):
        await bench.known.find(digest("a"))


async def test_a_redis_that_was_emptied_knows_nobody(bench: Bench) -> None:
    bench.reader.add("a")
    await bench.known.refresh()
    bench.reader.tokens.clear()
    bench.reader.version = 0
    await bench.known.refresh()
    assert await bench.id_of("a") is None


async def test_without_redis_only_fixed_tokens_count() -> None:
    known = KnownTokens({})
    assert await known.find(digest("a")) is None


async def test_it_is_renewed_in_the_background(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedcombiner.access.known.REFRESH_S", 0.001)
    looked = asyncio.Event()
    running = asyncio.create_task(bench.known.run(looked.set))
    try:
        bench.reader.add("a")
        async with asyncio.timeout(20):
            while bench.known.get(digest("a")) is None:
                looked.clear()
                await looked.wait()
    finally:
        running.cancel()
        await asyncio.wait([running])

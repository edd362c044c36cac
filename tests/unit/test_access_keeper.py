"""Making, listing and revoking tokens, by a hand-driven clock."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest

from fedcombiner.access.keeper import TokenKeeper
from fedcombiner.access.record import TokenRecord
from fedcombiner.access.roles import Role
from fedcombiner.access.secret import digest
from fedcombiner.access.store import Snapshot, TokensUnavailable
from fedcombiner.servicekit.errors import InvalidArgument, NotFound, ResourceExhausted, Unavailable


class Bench:
    """A store in memory, a keeper on it, and how often the process was told of a change."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.tokens: dict[str, TokenRecord] = {}
        self.told = 0
        self.away = False
        self.keeper = TokenKeeper(self, self._tell, clock=lambda: self.now)

    async def _tell(self) -> None:
        self.told += 1

    async def load(self, known: str = "") -> Snapshot | None:
        if self.away:
            raise TokensUnavailable("Redis fails: refused")
        return Snapshot("1", dict(self.tokens))

    async def put(self, digest: str, record: TokenRecord, *, forget: Collection[str] = ()) -> None:
        for key in forget:
            self.tokens.pop(key, None)
        self.tokens[digest] = record

    async def aclose(self) -> None: ...

    async def make(self, role: str = "client", **values: Any) -> TokenRecord:
        _, record = await self.keeper.create(role, **values)
        return record


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize("role", list(Role))
async def test_what_is_kept_is_the_hash_and_the_record(bench: Bench, role: Role) -> None:
    token, record = await bench.keeper.create(role.value, name="Alice's", lifetime=3600)
    assert bench.tokens == {digest(token): record}
    assert (record.role, record.name, record.created, record.expires) == (role, "Alice's", 1000, 4600)
    assert token not in record.model_dump_json()
    assert bench.told == 1


async def test_they_are_listed_oldest_first_with_their_state(bench: Bench) -> None:
    names = []
    for lifetime in (0, 60, 3600):
        names.append((await bench.make(lifetime=lifetime)).id)
        bench.now += 100
    listed = await bench.keeper.list()
    assert [record.id for record in listed] == names
    assert [bench.keeper.state(record) for record in listed] == ["good", "expired", "good"]
    assert bench.keeper.state(await bench.keeper.revoke(names[0])) == "revoked"


async def test_revoking_again_changes_nothing(bench: Bench) -> None:
    made = await bench.make()
    first = await bench.keeper.revoke(made.id)
    bench.now += 50
    assert await bench.keeper.revoke(made.id) == first
    assert first.revoked == 1000
    assert bench.told == 2


async def test_a_token_that_is_not_there_cannot_be_revoked(bench: Bench) -> None:
    with pytest.raises(NotFound, match="token_id: there is no token 'none'; `combiner token list`"):
        await bench.keeper.revoke("none")


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"role": ""}, "role"),
        ({"role": "Operator"}, "role"),
        ({"name": "x" * 65}, "name"),
        ({"name": "two\nlines"}, "name"),
        ({"role": "operator", "clients": ["c1"]}, "clients"),
        ({"clients": [""]}, "clients"),
        ({"clients": ["x" * 257]}, "clients"),
        ({"clients": ["\x1b[2J"]}, "clients"),
        ({"clients": ["c"] * 9}, "clients"),
        ({"lifetime": 59}, "lifetime_seconds"),
        ({"lifetime": 4_000_000_000}, "lifetime_seconds"),
    ],
)
async def test_what_cannot_be_is_named(bench: Bench, values: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field}: ") as caught:
        await bench.make(**values)
    assert len(caught.value.message) < 400
    assert not bench.tokens


async def test_when_it_is_full_dead_tokens_make_room_oldest_first(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedcombiner.access.keeper.MAX_TOKENS", 3)
    oldest = await bench.make()
    bench.now += 1
    dead = await bench.make(lifetime=60)
    bench.now += 1
    newest = await bench.make(lifetime=60)
    bench.now += 61
    made = await bench.make()
    assert {record.id for record in bench.tokens.values()} == {oldest.id, newest.id, made.id}
    assert dead not in bench.tokens.values()
    await bench.make()
    with pytest.raises(ResourceExhausted, match="there are 3 tokens; revoke some"):
        await bench.make()
    await bench.keeper.revoke(oldest.id)
    await bench.make()
    assert oldest not in bench.tokens.values()


async def test_a_store_that_is_away_is_said_to_be(bench: Bench) -> None:
    bench.away = True
    for call in (bench.make(), bench.keeper.list(), bench.keeper.revoke("x")):
        with pytest.raises(Unavailable, match="Redis fails: refused; try again"):
            await call

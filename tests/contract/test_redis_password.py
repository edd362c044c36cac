"""Passwords of Redis as people make them up, given apart from the URL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from combiner.adapters.state import RedisState
from combiner.settings import CombinerSettings
from redis.asyncio.connection import parse_url

from fedcombiner.access.policy import AccessSettings
from fedcombiner.access.redis_tokens import reader_of
from fedcombiner.servicekit.settings import InvalidSettings, with_password
from tests.contract.state_kit import Server, running_server

PASSWORD = "a@b:c/d%41#e?f g'\"$é"


@pytest.fixture
def guarded() -> Iterator[Server]:
    """A server that asks `default` and `tokens` for the password."""
    with running_server() as server:
        with redis.Redis.from_url(server.url) as client:
            client.acl_setuser(
                "tokens", enabled=True, passwords=[f"+{PASSWORD}"], keys=["*"], commands=["+@all"]
            )
            client.config_set("requirepass", PASSWORD)
        yield server


async def test_any_password_opens_state_and_tokens(guarded: Server) -> None:
    settings = CombinerSettings.checked(redis_url=guarded.url, redis_password=PASSWORD)
    state = RedisState(settings.redis_address)
    assert await state.jobs.unended() == []
    await state.aclose()
    url = guarded.url.replace("unix://", "unix://tokens@")
    tokens = reader_of(AccessSettings.checked(redis_url=url, redis_password=PASSWORD))
    assert tokens is not None
    assert await tokens.load() is not None
    await tokens.aclose()


@pytest.mark.parametrize(
    ("url", "user", "place"),
    [
        ("redis://redis:6379/0", "", {"host": "redis", "port": 6379, "db": 0}),
        ("rediss://reader@[2001:db8::1]:6380/7", "reader", {"host": "2001:db8::1", "port": 6380, "db": 7}),
        ("unix:///run/redis.sock?db=1", "", {"path": "/run/redis.sock", "db": 1}),
    ],
)
def test_the_password_leaves_the_rest_of_the_url_as_it_is(
    url: str, user: str, place: dict[str, object]
) -> None:
    found = parse_url(with_password(url, PASSWORD))
    assert found["password"] == PASSWORD
    assert found.get("username", "") == user
    assert {key: found[key] for key in place} == place


@pytest.mark.parametrize("said", ["p%40ss", "p@ss"])
def test_the_same_password_in_both_is_one(said: str) -> None:
    url = f"redis://:{said}@redis:6379/0"
    assert AccessSettings.checked(redis_url=url, redis_password="p@ss").redis_address == (
        "redis://:p%40ss@redis:6379/0"
    )


def test_two_passwords_are_refused_and_not_shown() -> None:
    with pytest.raises(InvalidSettings, match="another password than REDIS_PASSWORD") as caught:
        AccessSettings.checked(redis_url="redis://:one-secret@redis", redis_password="other-secret")
    assert "secret" not in str(caught.value)


def test_a_password_without_a_url_is_nothing() -> None:
    assert AccessSettings.checked(redis_password=PASSWORD).redis_address == ""

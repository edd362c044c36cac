"""What is wrong with Redis, in words that name what to mend."""

from __future__ import annotations

import pytest
from redis.exceptions import AuthenticationError, OutOfMemoryError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from fedcombiner.servicekit.redislink import described


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            AuthenticationError("invalid pair"),
            "Redis refuses the user and password in REDIS_URL (REDIS_PASSWORD): invalid pair",
        ),
        (RedisConnectionError("refused"), "Redis cannot be reached (REDIS_URL): refused"),
        (OutOfMemoryError("oom"), "Redis is full (maxmemory): oom"),
        (RedisError(), "Redis fails: RedisError"),
        (TimeoutError("Redis did not answer within 5 s"), "Redis did not answer within 5 s"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_it_names_what_to_mend(error: RedisError | TimeoutError, said: str) -> None:
    assert described(error) == said

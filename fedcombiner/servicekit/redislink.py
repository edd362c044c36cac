"""Talking to a Redis that may be away: how connections are made, how long is waited, what went wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

CONNECT_S: Final = 2.0
COMMAND_S: Final = 5.0
# Of all keys of a stack, unless it is told another.
DEFAULT_PREFIX: Final = "fc:"

_MEANING: Final[Mapping[type[RedisError], str]] = {
    OutOfMemoryError: "is full (maxmemory)",
    ReadOnlyError: "is a read-only replica",
    NoPermissionError: "lacks a permission for our user",
    BusyLoadingError: "is still loading its data",
    AuthenticationError: "refuses the user and password in REDIS_URL (REDIS_PASSWORD)",
    RedisConnectionError: "cannot be reached (REDIS_URL)",
    RedisTimeoutError: "cannot be reached (REDIS_URL)",
}


def connection_options() -> dict[str, Any]:
    """Of every connection. A command whose connection breaks is sent once more over a new one."""
    return {
        "protocol": 2,
        "decode_responses": True,
        "socket_connect_timeout": CONNECT_S,
        "socket_timeout": None,
        "retry": Retry(ConstantBackoff(0.02), 1, supported_errors=(RedisConnectionError,)),
    }


def described(error: RedisError | TimeoutError) -> str:
    """What is wrong with Redis, for a person."""
    if not isinstance(error, RedisError):
        return str(error)
    return f"Redis {_MEANING.get(type(error), 'fails')}: {str(error) or type(error).__name__}"


@asynccontextmanager
async def within(
    seconds: float, translate: Callable[[RedisError | TimeoutError], Exception]
) -> AsyncIterator[None]:
    """Errors of redis-py are translated, and so is no answer within `seconds`.

    redis-py's own `socket_timeout` is not used: below Python 3.12 it can swallow a cancellation (it waits
    with `asyncio.wait_for` while it sends).
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except RedisError as error:
        raise translate(error) from error
    except TimeoutError as error:
        raise translate(TimeoutError(f"Redis did not answer within {seconds:g} s")) from error

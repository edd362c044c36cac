"""The connection to Redis, and the scripts that run there.

A command whose connection breaks is sent once more over a new one. That is safe because every step may be
taken twice (see the scripts); what a repeated step cannot tell, `ports` says at its method.

    redis-py's errors   -> StateUnavailable
    FCLOST ...          -> LeaseLost          replies of our scripts
    FCENDED ...         -> Ended
    FCCONFLICT ...      -> Conflict
    FCFULL ...          -> QueueFull
    FCSCHEMA ...        -> SchemaTooNew
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from importlib.resources import files
from typing import Any

import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import BusyLoadingError, NoPermissionError, OutOfMemoryError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from combiner.adapters.limits import Limits
from combiner.ports import Conflict, Ended, LeaseLost, QueueFull, SchemaTooNew, StateUnavailable

CONNECT_S = 2.0
COMMAND_S = 5.0
CONNECTIONS = 32  # of one replica; who finds all of them busy waits for COMMAND_S, then gets StateUnavailable

_TYPED: Mapping[str, type[Exception]] = {
    "FCLOST": LeaseLost,
    "FCENDED": Ended,
    "FCCONFLICT": Conflict,
    "FCFULL": QueueFull,
    "FCSCHEMA": SchemaTooNew,
}
_MEANING: Mapping[type[RedisError], str] = {
    OutOfMemoryError: "is full (maxmemory)",
    ReadOnlyError: "is a read-only replica",
    NoPermissionError: "lacks a permission for our user",
    BusyLoadingError: "is still loading its data",
}


def _ours(error: RedisError) -> Exception:
    text = str(error)
    code, _, rest = text.partition(" ")
    if code in _TYPED:
        return _TYPED[code](rest)
    meaning = _MEANING.get(type(error), "fails")
    return StateUnavailable(f"Redis {meaning}: {text or type(error).__name__}")


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Errors of redis-py become ours, and so does no answer within `seconds`.

    redis-py's own `socket_timeout` is not used: below Python 3.12 it can swallow a cancellation (it waits
    with `asyncio.wait_for` while it sends).
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except RedisError as error:
        raise _ours(error) from error
    except TimeoutError as error:
        raise StateUnavailable(f"Redis did not answer within {seconds:g} s") from error


@cache
def _script_texts() -> Mapping[str, str]:
    """lua/<name>.lua by name, each behind all of lua/lib in the order of the names there.

    The first line of a script says whether it only reads. With such a line Redis refuses a script that writes
    before it begins (when it is full, for instance), not halfway.
    """
    lua = files("combiner.adapters") / "lua"
    library = sorted((lua / "lib").iterdir(), key=lambda part: part.name)
    prelude = "\n".join(part.read_text("utf-8") for part in library)
    texts: dict[str, str] = {}
    for part in lua.iterdir():
        if part.name.endswith(".lua"):
            body = part.read_text("utf-8")
            flags, body = body.split("\n", 1) if body.startswith("#!lua") else ("#!lua", body)
            texts[part.name.removesuffix(".lua")] = f"{flags}\n{prelude}\n{body}"
    return texts


class Connection:
    """Runs scripts and commands on one Redis. Connects when first used, and again whenever needed."""

    def __init__(self, url: str, prefix: str, limits: Limits) -> None:
        self.prefix = prefix
        self.limits = limits
        self._url = url
        self._limits_json = limits.to_json()
        self._pool = aioredis.BlockingConnectionPool.from_url(
            url, max_connections=CONNECTIONS, timeout=COMMAND_S, **self._options()
        )
        self._redis: Any = aioredis.Redis(connection_pool=self._pool)
        self._scripts = {name: self._redis.register_script(text) for name, text in _script_texts().items()}

    @staticmethod
    def _options() -> dict[str, Any]:
        return {
            "protocol": 2,
            "decode_responses": True,
            "socket_connect_timeout": CONNECT_S,
            "socket_timeout": None,
            "retry": Retry(ConstantBackoff(0.02), 1, supported_errors=(RedisConnectionError,)),
        }

    def key(self, name: str) -> str:
        return self.prefix + name

    async def run(self, name: str, **arguments: object) -> Any:
        """Run lua/<name>.lua, one atomic step. Lua's nil and false come back as None."""
        text = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
        async with within(COMMAND_S):
            return await self._scripts[name](keys=[self.prefix], args=[self._limits_json, text])

    async def command(self, *words: str | int) -> Any:
        async with within(COMMAND_S):
            return await self._redis.execute_command(*words)

    async def transaction(self, *commands: tuple[str | int, ...]) -> None:
        async with within(COMMAND_S), self._redis.pipeline(transaction=True) as pipe:
            for words in commands:
                pipe.execute_command(*words)
            await pipe.execute()

    def dedicated(self) -> Any:
        """A client with its own connection, for commands that block. The caller closes it."""
        pool = aioredis.ConnectionPool.from_url(self._url, max_connections=1, **self._options())
        return aioredis.Redis.from_pool(pool)

    async def aclose(self) -> None:
        await self._redis.aclose()
        await self._pool.disconnect()

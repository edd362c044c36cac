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

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any

import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

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
_REFUSALS: Mapping[str, str] = {
    "OOM": "Redis is full (maxmemory)",
    "READONLY": "Redis is a read-only replica",
    "NOAUTH": "Redis wants a password",
    "WRONGPASS": "Redis refuses the password",
    "NOPERM": "the Redis user may not do this",
    "MISCONF": "Redis cannot write to its disk",
    "LOADING": "Redis is still loading its data",
}


def _ours(error: RedisError) -> Exception:
    """redis-py cuts the code off some messages; there its class name says the same."""
    text = str(error)
    code, _, rest = text.partition(" ")
    if code in _TYPED:
        return _TYPED[code](rest)
    for word, meaning in _REFUSALS.items():
        if word == code or type(error).__name__.upper().startswith(word):
            return StateUnavailable(f"{meaning}: {text}")
    return StateUnavailable(text or type(error).__name__)


@contextmanager
def translated() -> Iterator[None]:
    """Errors of redis-py become ours."""
    try:
        yield
    except RedisError as error:
        raise _ours(error) from error


@cache
def _script_texts() -> Mapping[str, str]:
    """lua/<name>.lua by name, each behind all of lua/lib in the order of the names there."""
    lua = files("combiner.adapters") / "lua"
    library = sorted((lua / "lib").iterdir(), key=lambda part: part.name)
    prelude = "\n".join(part.read_text("utf-8") for part in library)
    scripts = [part for part in lua.iterdir() if part.name.endswith(".lua")]
    return {part.name.removesuffix(".lua"): f"{prelude}\n{part.read_text('utf-8')}" for part in scripts}


class Connection:
    """Runs scripts and commands on one Redis. Connects when first used, and again whenever needed."""

    def __init__(self, url: str, prefix: str, limits: Limits) -> None:
        self.prefix = prefix
        self.limits = limits
        self._url = url
        self._limits_json = limits.to_json()
        self._pool = aioredis.BlockingConnectionPool.from_url(
            url, max_connections=CONNECTIONS, timeout=COMMAND_S, **self._options(COMMAND_S)
        )
        self._redis: Any = aioredis.Redis(connection_pool=self._pool)
        self._scripts = {name: self._redis.register_script(text) for name, text in _script_texts().items()}

    @staticmethod
    def _options(timeout_s: float) -> dict[str, Any]:
        return {
            "protocol": 2,
            "decode_responses": True,
            "socket_connect_timeout": CONNECT_S,
            "socket_timeout": timeout_s,
            # not on a timeout: the caller has waited long enough
            "retry": Retry(ConstantBackoff(0.02), 1, supported_errors=(RedisConnectionError,)),
        }

    def key(self, name: str) -> str:
        return self.prefix + name

    async def run(self, name: str, **arguments: object) -> Any:
        """Run lua/<name>.lua, one atomic step. Lua's nil and false come back as None."""
        text = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
        with translated():
            return await self._scripts[name](keys=[self.prefix], args=[self._limits_json, text])

    async def command(self, *words: str | int) -> Any:
        with translated():
            return await self._redis.execute_command(*words)

    async def transaction(self, *commands: tuple[str | int, ...]) -> None:
        with translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                for words in commands:
                    pipe.execute_command(*words)
                await pipe.execute()

    def dedicated(self, block_s: float) -> Any:
        """A client with its own connection, for commands that block up to `block_s`. The caller closes it."""
        pool = aioredis.ConnectionPool.from_url(
            self._url, max_connections=1, **self._options(block_s + COMMAND_S)
        )
        return aioredis.Redis.from_pool(pool)

    async def aclose(self) -> None:
        await self._redis.aclose()
        await self._pool.disconnect()

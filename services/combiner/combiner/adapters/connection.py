"""The connection to Redis, and the scripts that run there.

A command whose connection breaks is sent once more over a new one. That is safe because every step may be
taken twice (see the scripts); what a repeated step cannot tell, `ports` says at its method.

    redis-py's errors   -> StateUnavailable
    FCLOST ...          -> LeaseLost          replies of our scripts
    FCENDED ...         -> Ended
    FCCONFLICT ...      -> Conflict
    FCFULL ...          -> QueueFull
    FCMEMORY ...        -> StateFull          also of Redis itself, at `maxmemory`
    FCSCHEMA ...        -> SchemaTooNew
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import cache
from importlib.resources import files
from typing import Any, Final

import redis.asyncio as aioredis
from redis.exceptions import OutOfMemoryError, RedisError

from combiner.adapters.limits import SCHEMA, Limits
from combiner.ports import Conflict, Ended, LeaseLost, QueueFull, SchemaTooNew, StateFull, StateUnavailable
from fedcombiner.servicekit import redislink
from fedcombiner.servicekit.redislink import COMMAND_S, connection_options, described
from fedcombiner.version import __version__

CONNECTIONS = 32  # of one replica; who finds all of them busy waits for COMMAND_S, then gets StateUnavailable

# Scripts whose effects must be on replicas before anybody is told of them, if REDIS_WAIT is set.
WAITED: Final = frozenset(
    {
        "job_submit",
        "job_open",
        "job_receive",
        "job_refuse",
        "job_answer",
        "job_ask_again",
        "job_decide",
        "job_close",
        "job_commit",
        "job_end",
        "job_cancel",
        "model_register",
        "session_start",
        "session_advance",
        "session_cancel",
    }
)
WAIT_MS: Final = 1000

_TYPED: Mapping[str, type[Exception]] = {
    "FCLOST": LeaseLost,
    "FCENDED": Ended,
    "FCCONFLICT": Conflict,
    "FCFULL": QueueFull,
}

_MAKE_ROOM = "remove models (combiner model prune), cancel what is queued, or raise maxmemory of Redis"


def _ours(error: RedisError | TimeoutError) -> Exception:
    text = str(error)
    code, _, rest = text.partition(" ")
    if code == "FCSCHEMA":
        return SchemaTooNew(
            f"Redis holds the state of a newer version (layout {rest}; {__version__} knows {SCHEMA}): "
            "run that version or a later one"
        )
    if code == "FCMEMORY":
        return StateFull(f"Redis uses {rest} MiB (maxmemory); the rest is kept for what runs; {_MAKE_ROOM}")
    if code in _TYPED:
        return _TYPED[code](rest)
    if isinstance(error, OutOfMemoryError):
        return StateFull(f"{described(error)}; {_MAKE_ROOM}")
    return StateUnavailable(described(error))


def within(seconds: float) -> AbstractAsyncContextManager[None]:
    """Errors of redis-py become ours, and so does no answer within `seconds`."""
    return redislink.within(seconds, _ours)


@cache
def _script_texts() -> Mapping[str, str]:
    """lua/<name>.lua by name, each behind all of lua/lib in the order of the names there.

    With such a first line Redis refuses a script that writes before it begins (on a read-only replica, for
    instance), not halfway. It also says whether the script only reads (`no-writes`), and whether it runs on a
    Redis that is full (`allow-oom`): everything does that frees memory, ends work, keeps a lease or a client
    alive, or brings a running round to its end; nothing that begins something new.
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

    def __init__(self, url: str, prefix: str, limits: Limits, wait: int = 0) -> None:
        self.prefix = prefix
        self.limits = limits
        self._url = url
        self._limits_json = limits.to_json()
        self._wait = wait
        self._redis = self._client(CONNECTIONS)
        # Steps that wait for replicas hold their connections: leases are renewed on the others.
        self._waiting: Any = self._client(CONNECTIONS) if wait else None
        self._scripts = {name: self._redis.register_script(text) for name, text in _script_texts().items()}

    def _client(self, connections: int) -> Any:
        pool = aioredis.BlockingConnectionPool.from_url(
            self._url, max_connections=connections, timeout=COMMAND_S, **connection_options()
        )
        return aioredis.Redis.from_pool(pool)

    def key(self, name: str) -> str:
        return self.prefix + name

    async def run(self, name: str, *, text: str = "", **arguments: object) -> Any:
        """Run lua/<name>.lua, one atomic step. Lua's nil and false come back as None.

        `text` may be large: the script has it as `TEXT`, not as JSON within JSON.
        """
        waits = self._waiting is not None and name in WAITED
        named = json.dumps({**arguments, "waits": waits}, ensure_ascii=False, separators=(",", ":"))
        args = [self._limits_json, named, text]
        async with within(COMMAND_S):
            if waits:
                return await self._run_and_wait(name, args)
            return await self._scripts[name](keys=[self.prefix], args=args)

    async def _run_and_wait(self, name: str, args: Sequence[str]) -> Any:
        """WAIT is about the writes of its own connection, so both go over one."""
        async with self._waiting.pipeline(transaction=False) as pipe:
            await self._scripts[name](keys=[self.prefix], args=args, client=pipe)
            pipe.execute_command("WAIT", self._wait, WAIT_MS)
            reply, replicas = await pipe.execute(raise_on_error=False)
        for answer in (reply, replicas):
            if isinstance(answer, Exception):
                raise answer
        if replicas < self._wait:
            raise StateUnavailable(
                f"{replicas} of {self._wait} replicas of Redis (REDIS_WAIT) confirmed within {WAIT_MS} ms"
            )
        return reply

    async def command(self, *words: str | int) -> Any:
        """For reading: what writes is a script, which looks at the schema before."""
        async with within(COMMAND_S):
            return await self._redis.execute_command(*words)

    def dedicated(self) -> Any:
        """A client with its own connection, for commands that block. The caller closes it."""
        pool = aioredis.ConnectionPool.from_url(self._url, max_connections=1, **connection_options())
        return aioredis.Redis.from_pool(pool)

    async def aclose(self) -> None:
        for client in filter(None, (self._redis, self._waiting)):
            await client.aclose()
            await client.connection_pool.disconnect()

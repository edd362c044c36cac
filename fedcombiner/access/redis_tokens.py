"""Tokens in Redis: one hash for all of them, and a version that changes whenever it does."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import Any, Final

import redis.asyncio as aioredis
import structlog
from pydantic import ValidationError
from redis.exceptions import RedisError

from fedcombiner.access.policy import AccessSettings
from fedcombiner.access.record import TokenRecord
from fedcombiner.access.store import Snapshot, TokensUnavailable
from fedcombiner.servicekit.redislink import COMMAND_S, DEFAULT_PREFIX, connection_options, described, within

log = structlog.get_logger(__name__)

CONNECTIONS: Final = 4  # who finds all of them busy waits for COMMAND_S, then gets TokensUnavailable

# Also on a Redis that is full: a token must be revocable then, too.
_PUT: Final = """#!lua flags=allow-oom
for i = 4, #ARGV do redis.call('HDEL', KEYS[1], ARGV[i]) end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('SET', KEYS[2], ARGV[3])
"""


def reader_of(settings: AccessSettings) -> RedisTokens | None:
    """The tokens at REDIS_URL; None if it is empty."""
    url = settings.redis_address
    return RedisTokens(url) if url else None


def _ours(error: RedisError | TimeoutError) -> TokensUnavailable:
    return TokensUnavailable(described(error))


class RedisTokens:
    """`store.TokenStore`. Nothing is contacted before the first call.

    Its user at Redis needs GET and HGETALL, and for `put` EVAL, HSET, HDEL and SET, on `<prefix>tokens` and
    `<prefix>tokens:version`.
    """

    def __init__(self, url: str, *, prefix: str = DEFAULT_PREFIX) -> None:
        self._tokens = f"{prefix}tokens"
        self._version = f"{prefix}tokens:version"
        pool = aioredis.BlockingConnectionPool.from_url(
            url, max_connections=CONNECTIONS, timeout=COMMAND_S, **connection_options()
        )
        self._redis: Any = aioredis.Redis.from_pool(pool)

    async def load(self, known: str = "") -> Snapshot | None:
        async with within(COMMAND_S, _ours):
            version = str(await self._redis.get(self._version) or "")
            # Not "" == "": a Redis that has lost everything has no tokens any more.
            if version and version == known:
                return None
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.get(self._version)
                pipe.hgetall(self._tokens)
                version, found = await pipe.execute()
        return Snapshot(version or "", dict(filter(None, map(_read, found.items()))))

    async def put(self, digest: str, record: TokenRecord, *, forget: Collection[str] = ()) -> None:
        arguments = (digest, record.model_dump_json(), str(uuid.uuid4()), *forget)
        async with within(COMMAND_S, _ours):
            await self._redis.eval(_PUT, 2, self._tokens, self._version, *arguments)

    async def aclose(self) -> None:
        await self._redis.aclose()


def _read(item: tuple[str, str]) -> tuple[str, TokenRecord] | None:
    """None for a record of another version of this program: such a token is not known."""
    digest, text = item
    try:
        return digest, TokenRecord.model_validate_json(text)
    except ValidationError as error:
        log.warning("token record not understood", digest=digest[:8], errors=error.error_count())
        return None

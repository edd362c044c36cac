"""What `Control.Configure` may change: one hash for all replicas."""

from __future__ import annotations

from collections.abc import Mapping

from combiner.adapters import codec
from combiner.adapters.connection import Connection


class RedisSettings:
    """`ports.Settings`. The names are checked by the caller, which bounds them."""

    def __init__(self, connection: Connection) -> None:
        self._run = connection.run

    async def get(self) -> Mapping[str, str]:
        return codec.pairs(await self._run("settings_get"))

    async def put(self, values: Mapping[str, str]) -> None:
        if values:
            await self._run("settings_put", values=dict(values))

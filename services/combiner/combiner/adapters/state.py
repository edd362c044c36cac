"""All of the shared state, over one Redis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from combiner.adapters.archive import RedisArchive
from combiner.adapters.connection import Connection
from combiner.adapters.durability import FSYNC
from combiner.adapters.history import RedisHistory
from combiner.adapters.journal import RedisJobs
from combiner.adapters.leases import RedisLeases
from combiner.adapters.limits import Limits
from combiner.adapters.log import BLOCK_S, RedisLog
from combiner.adapters.models import RedisModels
from combiner.adapters.reports import RedisReports
from combiner.adapters.roster import RedisRoster
from combiner.adapters.sessions import RedisSessions
from combiner.adapters.settings import RedisSettings
from combiner.adapters.tasks import LostReplies, RedisTasks
from combiner.adapters.upkeep import RedisUpkeep
from combiner.ports import (
    Archive,
    History,
    Jobs,
    Leases,
    Log,
    Models,
    Reports,
    Roster,
    Sessions,
    Settings,
    StateUnavailable,
    Tasks,
    Upkeep,
)
from fedcombiner.servicekit.redislink import DEFAULT_PREFIX


class RedisState:
    """`ports.Shared`. Nothing is contacted before the first call, so a Redis that starts later is no error.

    `url`: redis://, rediss:// or unix://. Redis 7 or Valkey 7.2, or newer; one primary, not a cluster.
    With `wait`, what clients are told was received, and what follows from it, is confirmed only when so many
    replicas of Redis have it, too; `StateUnavailable` if they do not within a second.
    `SchemaTooNew` is raised by any step if the keys at `prefix` were written by a newer version.
    """

    jobs: Jobs
    sessions: Sessions
    models: Models
    roster: Roster
    tasks: Tasks
    leases: Leases
    log: Log
    history: History
    reports: Reports
    settings: Settings
    upkeep: Upkeep
    archive: Archive

    def __init__(
        self,
        url: str,
        *,
        prefix: str = DEFAULT_PREFIX,
        limits: Limits | None = None,
        log_block_s: float = BLOCK_S,
        wait: int = 0,
    ) -> None:
        self._connection = Connection(url, prefix, limits or Limits(), wait)
        self._tells_settings = True
        lost = LostReplies()
        self.jobs = RedisJobs(self._connection)
        self.sessions = RedisSessions(self._connection)
        self.models = RedisModels(self._connection)
        self.roster = RedisRoster(self._connection, lost)
        self.tasks = RedisTasks(self._connection, lost)
        self.leases = RedisLeases(self._connection)
        self.log = RedisLog(self._connection, block_s=log_block_s)
        self.history = RedisHistory(self._connection, block_s=log_block_s)
        self.reports = RedisReports(self._connection)
        self.settings = RedisSettings(self._connection)
        self.upkeep = RedisUpkeep(self._connection)
        self.archive = RedisArchive(self._connection)

    async def info(self) -> Mapping[str, Any]:
        """What Redis says of itself: the fields of INFO, and `appendfsync` where we may ask for it."""
        fields: Mapping[str, Any] = await self._connection.command("INFO")
        return {**fields, **await self._fsync()}

    async def _fsync(self) -> Mapping[str, str]:
        """Services that rent out a Redis often refuse CONFIG: they are asked once."""
        if not self._tells_settings:
            return {}
        try:
            found: Mapping[str, str] = await self._connection.command("CONFIG GET", FSYNC)
        except StateUnavailable:
            self._tells_settings = False
            return {}
        return found

    async def aclose(self) -> None:
        """Close all connections. Followers of the log have theirs closed by whoever runs them."""
        await self._connection.aclose()

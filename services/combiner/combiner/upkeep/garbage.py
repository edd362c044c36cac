"""What nothing needs any more: objects that no record names, updates of ended jobs, expired records.

Each removal is safe at any moment, beside running rounds and beside another replica that does the same: what
makes an object garbage is looked at in the same atomic step that keeps it from becoming anything else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from combiner.domain.config import ConfigError, RoundConfig
from combiner.domain.retention import LEFTOVER_S, ORPHAN_S, why_upload_goes
from combiner.ports import Expired, JobBrief, Shared
from combiner.upkeep.removal import Kind, Removal
from fedcombiner.modelstorage.store import Kind as ObjectKind
from fedcombiner.modelstorage.store import ModelStore, ObjectInfo
from fedcombiner.wire.eras import BLOB_SUFFIX

_PAGE: Final = 64
_PURGED_AT_ONCE: Final = 20
_SHOWN: Final = 1000  # of each kind of expired record, in a dry run


def _utc() -> datetime:
    return datetime.now(UTC)


class Garbage:
    """`now` is the wall clock that the ages of objects are measured by."""

    def __init__(self, shared: Shared, store: ModelStore, now: Callable[[], datetime] = _utc) -> None:
        self._shared = shared
        self._store = store
        self._now = now

    async def collect(self, *, dry_run: bool) -> AsyncIterator[Removal]:
        """Remove what can go, telling each; with `dry_run` only tell.

        Raises StateUnavailable, or what `ModelStore` raises: what was told by then is done.
        """
        async for removal in self._objects("models", self._orphans, dry_run):
            yield removal
        # Leftovers of uploads are removed by the bucket's rules.
        async for leftover in self._store.sweep("models", timedelta(seconds=LEFTOVER_S), dry_run=dry_run):
            yield Removal(Kind.LEFTOVER, leftover.name, "its writer was killed", leftover.size)
        async for removal in self._objects("uploads", self._uploads, dry_run):
            yield removal
        async for removal in self._records(dry_run):
            yield removal

    async def _objects(
        self,
        kind: ObjectKind,
        garbage_of: Callable[[Sequence[ObjectInfo], bool], AsyncIterator[tuple[ObjectInfo, str]]],
        dry_run: bool,
    ) -> AsyncIterator[Removal]:
        async for page in self._pages(kind):
            async for info, why in garbage_of(page, dry_run):
                if not dry_run:
                    await self._store.delete(info.key)
                yield Removal(Kind.MODEL if kind == "models" else Kind.UPLOAD, info.key.id, why, info.size)

    async def _orphans(
        self, page: Sequence[ObjectInfo], dry_run: bool
    ) -> AsyncIterator[tuple[ObjectInfo, str]]:
        """Only of those that were made under this state: what is older may be a model of one that was lost,
        and nobody but a person can know. A blob can be made again, but stays while a job may be fetching it.
        """
        born = datetime.fromtimestamp(await self._shared.upkeep.born_ms() / 1000, UTC)
        old = {
            info.key.id: info
            for info in page
            if self._age(info) >= ORPHAN_S and (info.modified >= born or info.key.id.endswith(BLOB_SUFFIX))
        }
        models = self._shared.models
        if any(name.endswith(BLOB_SUFFIX) for name in old):
            used = {model_id + BLOB_SUFFIX for model_id in await models.in_use()}
            old = {name: info for name, info in old.items() if name not in used}
        if old:
            for model_id in await (models.unregistered(list(old)) if dry_run else models.condemn(list(old))):
                yield old[model_id], "no record names it"

    async def _uploads(
        self, page: Sequence[ObjectInfo], dry_run: bool
    ) -> AsyncIterator[tuple[ObjectInfo, str]]:
        owners = await self._shared.jobs.of_updates([info.key.id for info in page])
        for info in page:
            owner = owners.get(info.key.id)
            state = owner.state if owner else None
            why = why_upload_goes(self._age(info), state, keep_updates=owner is not None and _keeps(owner))
            if why:
                yield info, why

    async def _records(self, dry_run: bool) -> AsyncIterator[Removal]:
        upkeep = self._shared.upkeep
        if dry_run:
            for removal in _removals(await upkeep.expired(_SHOWN)):
                yield removal
            return
        while expired := await upkeep.purge(_PURGED_AT_ONCE):
            for removal in _removals(expired):
                yield removal

    async def _pages(self, kind: ObjectKind) -> AsyncIterator[Sequence[ObjectInfo]]:
        page: list[ObjectInfo] = []
        async for info in self._store.list(kind):
            page.append(info)
            if len(page) == _PAGE:
                yield page
                page = []
        if page:
            yield page

    def _age(self, info: ObjectInfo) -> float:
        return (self._now() - info.modified).total_seconds()


def _keeps(job: JobBrief) -> bool:
    """Whether somebody wants to look at the updates of this job afterwards."""
    try:
        return not RoundConfig.parse(job.config).delete_models_storage
    except ConfigError:
        return False


def _removals(expired: Expired) -> Iterator[Removal]:
    why = "retention no longer keeps it"
    yield from (Removal(Kind.JOB, job_id, why) for job_id in expired.jobs)
    yield from (Removal(Kind.SESSION, session_id, why) for session_id in expired.sessions)
    yield from (Removal(Kind.CLIENT, name, "not heard of for too long") for name in expired.clients)

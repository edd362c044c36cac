"""combiner.v1.Upkeep: how the stack is, and what can go."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import islice
from typing import Final

from combiner.domain.retention import Keep, UnknownMetric
from combiner.ports import Shared, StateUnavailable, View
from combiner.servicers import convert
from combiner.servicers.common import Context, redis_away
from combiner.upkeep.backup import Backups
from combiner.upkeep.garbage import Garbage
from combiner.upkeep.pruning import Pruning
from combiner.upkeep.removal import Removal
from fedcombiner.modelstorage.store import parse_id
from fedcombiner.servicekit.errors import InvalidArgument, NotFound
from fedcombiner.servicekit.health import Health
from fedcombiner.version import __version__
from fedcombiner.wire.pb.combiner.v1 import upkeep_pb2 as pb

REDIS: Final = "redis"  # the name of the back end
_REPLICA: Final = "replica:"
_MISSING_SHOWN: Final = 100
_SHOWN: Final = 20  # of what runs or is queued; the others are counted


class UpkeepServicer:
    def __init__(
        self,
        name: str,
        replica: str,
        shared: Shared,
        health: Health,
        garbage: Garbage,
        pruning: Pruning,
        backups: Backups,
    ) -> None:
        self._name = name
        self._replica = replica
        self._shared = shared
        self._health = health
        self._garbage = garbage
        self._pruning = pruning
        self._backups = backups

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StackStatus:
        status = pb.StackStatus(
            name=self._name,
            version=__version__,
            replica=self._replica,
            readiness=self._health.readiness.state,
        )
        try:
            await self._ask_redis(status)
        except StateUnavailable as error:
            self._health.backends.register(REDIS).mark_down(error)
            status.now = 0
        status.backends.extend(self._backends())
        return status

    def _backends(self) -> list[pb.BackendState]:
        return [
            pb.BackendState(
                name=name, up=bool(known["up"]), error="" if known["up"] else str(known["last_error"] or "")
            )
            for name, known in self._health.backends.snapshot().items()
        ]

    async def _ask_redis(self, status: pb.StackStatus) -> None:
        shared = self._shared
        status.now = convert.seconds(await shared.log.now_ms())
        status.replicas.extend(
            sorted(
                view.work.removeprefix(_REPLICA)
                for view in await shared.leases.views()
                if view.work.startswith(_REPLICA) and view.owner
            )
        )
        trainers, validators = (
            await shared.roster.active(View.TRAINING),
            await shared.roster.active(View.VALIDATION),
        )
        status.trainers, status.validators = len(trainers), len(validators)
        status.clients = len({*trainers, *validators})
        newest = await shared.models.newest()
        if newest is not None:
            status.newest_model.CopyFrom(convert.model(newest))
        await self._running_sessions(status)
        await self._running_jobs(status)

    async def _running_sessions(self, status: pb.StackStatus) -> None:
        ids = await self._shared.sessions.unended()
        found = [await self._shared.sessions.get(session_id) for session_id in islice(ids, _SHOWN)]
        running = [session for session in found if session and session.started_ms and not session.state.ended]
        status.running_sessions.extend(convert.session_in_brief(session) for session in running)
        status.queued_sessions = len(ids) - len(running)

    async def _running_jobs(self, status: pb.StackStatus) -> None:
        ids = await self._shared.jobs.unended()
        found = [await self._shared.jobs.get(job_id) for job_id in islice(ids, _SHOWN)]
        running = [job for job in found if job and job.started_ms and not job.state.ended]
        status.running_jobs.extend(convert.job_in_brief(job) for job in running)
        status.queued_jobs = len(ids) - len(running)

    async def Collect(self, request: pb.CollectRequest, context: Context) -> AsyncIterator[pb.Removal]:
        try:
            async for removal in self._garbage.collect(dry_run=request.dry_run):
                yield _message(removal)
        except StateUnavailable as error:
            raise redis_away(error) from error

    async def Prune(self, request: pb.PruneRequest, context: Context) -> AsyncIterator[pb.Removal]:
        if request.keep < 1:
            raise InvalidArgument("keep", request.keep, "1 or more: a session keeps its newest model")
        only = {parse_id(model_id, "only") for model_id in request.only}
        keep = Keep(request.keep, request.keep_best, request.lowest_is_best)
        try:
            if request.session_id:
                await self._check_session(request.session_id)
            async for removal in self._pruning.prune(
                keep, session_id=request.session_id, only=only, dry_run=request.dry_run
            ):
                yield _message(removal)
        except UnknownMetric as error:
            allowed = "a metric that a model has: " + (", ".join(error.known) or "none has any")
            raise InvalidArgument("keep_best", error.metric, allowed) from error
        except StateUnavailable as error:
            raise redis_away(error) from error

    async def Backup(self, request: pb.BackupRequest, context: Context) -> AsyncIterator[pb.BackupData]:
        try:
            async for portion in self._backups.make():
                yield pb.BackupData(data=portion)
        except StateUnavailable as error:
            raise redis_away(error) from error

    async def Restore(
        self, request_iterator: AsyncIterator[pb.RestoreRequest], context: Context
    ) -> pb.RestoreReply:
        first = await anext(request_iterator, pb.RestoreRequest())

        async def data() -> AsyncIterator[bytes]:
            yield first.data
            async for request in request_iterator:
                yield request.data

        try:
            restored = await self._backups.restore(data(), replace=first.replace)
        except StateUnavailable as error:
            raise redis_away(error) from error
        return pb.RestoreReply(
            restored=restored.restored,
            known=restored.known,
            missing_models=restored.missing_models[:_MISSING_SHOWN],
            missing=len(restored.missing_models),
        )

    async def _check_session(self, session_id: str) -> None:
        """By its models: they may outlive it, and FEDn's controller has sessions of its own."""
        async for _ in self._shared.models.list(session_id=session_id, limit=1):
            return
        raise NotFound(f"session_id: there is no model of a session {session_id[:128]!r}")


def _message(removal: Removal) -> pb.Removal:
    return pb.Removal(
        kind=removal.kind, id=removal.id, why=removal.why, size=removal.size, session_id=removal.session_id
    )

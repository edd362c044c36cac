"""combiner.v1: jobs, sessions, models and clients for operators and data scientists."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from itertools import zip_longest

import structlog

from combiner.catalog import Catalog
from combiner.domain.config import ConfigError
from combiner.domain.metrics import mean_metrics
from combiner.domain.session import SessionConfig
from combiner.domain.types import Job, Presence, Session, State
from combiner.ports import QueueFull, Shared, StateUnavailable
from combiner.rounds.feed import RESYNC, Feed
from combiner.servicers import convert
from combiner.servicers.common import Context, model_removed, redis_away
from combiner.servicers.control import config_error
from fedcombiner.modelstorage.store import parse_id
from fedcombiner.servicekit.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb

log = structlog.get_logger()

LIST_LIMIT = 1000
PAGE = 200  # clients
NOTE_MAX = 200
ANSWERS_IN_MESSAGE = 8 << 20  # characters
CANCELLED_BY_HAND = "cancelled by the operator"


class JobsServicer:
    def __init__(self, shared: Shared, feed: Feed) -> None:
        self._shared = shared
        self._feed = feed

    async def _job(self, job_id: str) -> Job:
        try:
            job = await self._shared.jobs.get(job_id) if job_id else None
        except StateUnavailable as error:
            raise redis_away(error) from error
        if job is None:
            raise NotFound(f"job_id: there is no job {job_id[:128]!r}")
        return job

    async def Get(self, request: pb.JobRequest, context: Context) -> pb.Job:
        """Also what clients told while they worked on it."""
        message = await self._whole(await self._job(request.job_id))
        try:
            [told] = await self._shared.reports.of_jobs([request.job_id])
        except StateUnavailable as error:
            raise redis_away(error) from error
        message.reports.extend(convert.report(client, reported) for client, reported in told.items())
        return message

    async def List(self, request: pb.ListJobsRequest, context: Context) -> AsyncIterator[pb.Job]:
        try:
            async for job in self._shared.jobs.list(
                session_id=request.session_id, limit=request.limit or LIST_LIMIT
            ):
                yield await self._whole(job)
        except StateUnavailable as error:
            raise redis_away(error) from error

    async def Watch(self, request: pb.JobRequest, context: Context) -> AsyncGenerator[pb.JobEvent, None]:
        """A snapshot, each change after it, and a snapshot at the end."""
        with self._feed.subscribe(f"job:{request.job_id}") as events:
            job = await self._job(request.job_id)
            yield convert.job_snapshot(job, await self._whole(job))
            version = job.version
            while not job.state.ended:
                event = await events.get()
                if event.what != RESYNC:
                    if event.version <= version:
                        continue
                    version = event.version
                    if not State(event.state or State.RUNNING).ended:
                        yield convert.job_event(event)
                        continue
                job = await self._job(request.job_id)
                version = job.version
                yield convert.job_snapshot(job, await self._whole(job))

    async def Cancel(self, request: pb.JobRequest, context: Context) -> pb.Job:
        job = await self._job(request.job_id)
        try:
            cancelled = await self._shared.jobs.cancel(job.job_id, CANCELLED_BY_HAND)
        except StateUnavailable as error:
            raise redis_away(error) from error
        return await self._whole(cancelled or job)

    async def Answers(self, request: pb.AnswersRequest, context: Context) -> AsyncIterator[pb.Answer]:
        """Each answer to a validation or inference, by the client's name."""
        job = await self._job(request.job_id)
        async for answer in self._answers(job, request.after):
            yield answer

    async def _whole(self, job: Job) -> pb.Job:
        """With its answers, or as many of them as a message should carry."""
        message, room = convert.job(job), ANSWERS_IN_MESSAGE
        async for answer in self._answers(job):
            room -= len(answer.data)
            if room < 0:
                message.more_answers = True
                break
            message.answers.append(answer)
        return message

    async def _answers(self, job: Job, after: str = "") -> AsyncIterator[pb.Answer]:
        try:
            for clients in job.answer_pages():
                if clients[-1] <= after:
                    continue
                answers = await self._shared.jobs.answers(job.job_id, clients)
                for client, data in answers.items():
                    if client > after:
                        yield pb.Answer(client=client, data=data)
        except StateUnavailable as error:
            raise redis_away(error) from error


class SessionsServicer:
    def __init__(self, shared: Shared, feed: Feed, catalog: Catalog) -> None:
        self._shared = shared
        self._feed = feed
        self._catalog = catalog

    async def _session(self, session_id: str) -> Session:
        try:
            session = await self._shared.sessions.get(session_id) if session_id else None
        except StateUnavailable as error:
            raise redis_away(error) from error
        if session is None:
            raise NotFound(f"session_id: there is no session {session_id[:128]!r}")
        return session

    async def Start(self, request: pb.StartSessionRequest, context: Context) -> pb.Session:
        """Queue a session. A config that cannot run is refused here, naming the key."""
        session_id = parse_id(request.session_id or str(uuid.uuid4()), "session_id")
        try:
            known = await self._shared.sessions.get(session_id)
            if known is not None:
                return await self._whole(_same(known, request))
            config = SessionConfig.parse(request.config)
            model_id = request.model_id or await self._newest_model()
            await self._catalog.adopt(model_id)
            await self._catalog.check_room(model_id)
            session = Session(
                session_id=session_id,
                state=State.QUEUED,
                reason="",
                seed_model_id=model_id,
                model_id=model_id,
                config={**request.config, "rounds": str(config.rounds)},
            )
            started = await self._shared.sessions.start(session)
            if await self._shared.models.get(model_id) is None:
                await self._shared.sessions.cancel(session_id, "its model was removed")
                raise model_removed(model_id)
        except ConfigError as error:
            raise config_error(error) from error
        except QueueFull as error:
            raise ResourceExhausted(str(error)) from error
        except StateUnavailable as error:
            raise redis_away(error) from error
        log.info("session queued", session_id=session_id, model_id=model_id, rounds=config.rounds)
        return await self._whole(_same(started, request))

    async def _whole(self, session: Session, first_result: int = 0) -> pb.Session:
        """With the results of all its rounds, or those from number `first_result` on."""
        message = convert.session(session)
        recent = message.results[:]
        del message.results[:]
        message.first_result = first_result
        try:
            async for page in self._shared.sessions.earlier(session, first_result):
                message.results.extend(map(convert.round_result, page))
        except StateUnavailable as error:
            raise redis_away(error) from error
        message.results.extend(recent)
        return message

    async def _newest_model(self) -> str:
        model = await self._shared.models.newest()
        if model is None:
            raise NotFound("model_id: there is no model yet; put one with `combiner model put FILE`")
        return model.model_id

    async def Get(self, request: pb.SessionRequest, context: Context) -> pb.Session:
        """Also what clients told by themselves in each round."""
        message = await self._whole(await self._session(request.session_id))
        try:
            for result in message.results:
                jobs = [job_id for job_id in (result.job_id, result.validation_job_id) if job_id]
                told = [r for of_job in await self._shared.reports.of_jobs(jobs) for r in of_job.values()]
                result.reported.update(mean_metrics(reported.metrics for reported in told))
                result.telemetry.update(mean_metrics(reported.telemetry for reported in told))
        except StateUnavailable as error:
            raise redis_away(error) from error
        return message

    async def List(self, request: pb.ListSessionsRequest, context: Context) -> AsyncIterator[pb.Session]:
        try:
            async for session in self._shared.sessions.list(limit=request.limit or LIST_LIMIT):
                yield await self._whole(session)
        except StateUnavailable as error:
            raise redis_away(error) from error

    async def Watch(self, request: pb.SessionRequest, context: Context) -> AsyncIterator[pb.SessionEvent]:
        """The session whenever it changes, and every change of its jobs in between, until it has ended."""
        with self._feed.subscribe(f"session:{request.session_id}") as events:
            session = await self._session(request.session_id)
            yield _session_event("snapshot", await self._whole(session))
            while not session.state.ended:
                event = await events.get()
                if event.what not in ("session", RESYNC):
                    yield pb.SessionEvent(
                        session_id=session.session_id, what="job", job=convert.job_event(event)
                    )
                    continue
                newer = await self._session(request.session_id)
                if newer.version != session.version:
                    told = session.earlier if request.changes_only else 0
                    session = newer
                    whole = session.state.ended or event.what == RESYNC
                    yield _session_event(
                        "snapshot" if whole else event.what, await self._whole(session, told)
                    )

    async def Cancel(self, request: pb.SessionRequest, context: Context) -> pb.Session:
        session = await self._session(request.session_id)
        try:
            ended = await self._shared.sessions.cancel(session.session_id, CANCELLED_BY_HAND)
        except StateUnavailable as error:
            raise redis_away(error) from error
        return await self._whole(ended or session)


def _same(known: Session, request: pb.StartSessionRequest) -> Session:
    """Starting again is fine (a lost reply, a retry) as long as it asks for the same."""
    same_model = request.model_id in ("", known.seed_model_id)
    if not same_model or any(known.config.get(key) != value for key, value in request.config.items()):
        raise FailedPrecondition(
            f"session_id: {known.session_id} exists with another model or config; choose another session_id"
        )
    return known


def _session_event(what: str, session: pb.Session) -> pb.SessionEvent:
    return pb.SessionEvent(session_id=session.session_id, what=what, session=session)


class ModelsServicer:
    def __init__(self, shared: Shared, catalog: Catalog) -> None:
        self._shared = shared
        self._catalog = catalog

    async def Put(self, request: pb.PutModelRequest, context: Context) -> pb.Model:
        if len(request.name) > NOTE_MAX or not request.name.isprintable():
            raise InvalidArgument("name", request.name, f"up to {NOTE_MAX} printable characters")
        try:
            return convert.model(await self._catalog.adopt(request.model_id, name=request.name))
        except StateUnavailable as error:
            raise redis_away(error) from error

    async def Get(self, request: pb.ModelRequest, context: Context) -> pb.Model:
        try:
            model = await (
                self._shared.models.get(request.model_id)
                if request.model_id
                else self._shared.models.newest()
            )
        except StateUnavailable as error:
            raise redis_away(error) from error
        if model is None:
            raise NotFound(f"model_id: there is no model {request.model_id[:128]!r}")
        return convert.model(model)

    async def List(self, request: pb.ListModelsRequest, context: Context) -> AsyncIterator[pb.Model]:
        try:
            async for model in self._shared.models.list(
                session_id=request.session_id, limit=request.limit or LIST_LIMIT
            ):
                yield convert.model(model)
        except StateUnavailable as error:
            raise redis_away(error) from error


class ClientsServicer:
    def __init__(self, shared: Shared, client_window_ms: int) -> None:
        self._shared = shared
        self._window_ms = client_window_ms

    async def List(self, request: pb.ListClientsRequest, context: Context) -> AsyncIterator[pb.Client]:
        try:
            async for page in self._pages(request):
                told = (
                    await self._shared.reports.of_clients([presence.client for presence in page])
                    if request.details
                    else []
                )
                for presence, reported in zip_longest(page, told):
                    message = convert.client(presence, self._window_ms)
                    if reported is not None:
                        message.report.CopyFrom(convert.report(presence.client, reported))
                    yield message
        except StateUnavailable as error:
            raise redis_away(error) from error

    async def _pages(self, request: pb.ListClientsRequest) -> AsyncIterator[list[Presence]]:
        if request.clients:
            found = await self._shared.roster.presence(request.clients)
            yield [presence for presence in found if presence.seen_ms_ago >= 0]
            return
        page: list[Presence] = []
        async for presence in self._shared.roster.list(all=request.all):
            page.append(presence)
            if len(page) == PAGE:
                yield page
                page = []
        yield page

"""Running one session under its lease: submit the next job, wait for its end, decide, again.

What comes next is decided by `domain.session` alone; each decision is recorded together with the job it
submits, in one step, so a session goes on after any crash without doing anything twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import structlog

from combiner.domain.config import ConfigError
from combiner.domain.session import NO_METRICS, SessionConfig, next_step
from combiner.domain.types import Job, Kind, Session, State
from combiner.ports import Conflict, Ended, Event, Lease, LeaseLost, Shared, StateUnavailable
from combiner.rounds.answers import figures_of
from combiner.rounds.feed import RESYNC, Feed, Subscription
from combiner.rounds.waiting import steady

log = structlog.get_logger()


class SessionRunner:
    def __init__(self, shared: Shared, feed: Feed) -> None:
        self._shared = shared
        self._feed = feed

    async def __call__(self, lease: Lease) -> None:
        """Run the session to its end. Raises LeaseLost or Ended when it is no longer ours."""
        with self._feed.subscribe(f"session:{lease.id}") as events:
            try:
                await self._steps(lease, events)
            except (LeaseLost, Ended, StateUnavailable, asyncio.CancelledError):
                raise
            except ConfigError as error:
                await self._fail(lease, f"config: {error}")
            except Exception:
                # Whatever is wrong with our code, the one who waits for the session is told.
                log.exception("session failed unexpectedly")
                await self._fail(lease, "internal error; the combiner's log says more")

    async def _steps(self, lease: Lease, events: Subscription) -> None:
        while (session := await self._get(lease.id)) is not None:
            if session.state.ended:
                return
            job_id = session.current_job_id
            job = await steady(partial(self._shared.jobs.get, job_id)) if job_id else None
            if job_id and job is None:
                await self._fail(lease, f"the job {job_id} is no longer in Redis")
                return
            if job is not None and not job.state.ended:
                await self._job_ends(job_id, events)
                continue
            metrics = await self._metrics(job) if job else NO_METRICS
            step = next_step(session, SessionConfig.parse(session.config), job, metrics)
            try:
                await steady(partial(self._shared.sessions.advance, lease, step.session, step.job, job))
            except Conflict:
                continue
            log.info(
                "session", state=step.session.state, round=step.session.round, reason=step.session.reason
            )

    async def _get(self, session_id: str) -> Session | None:
        return await steady(lambda: self._shared.sessions.get(session_id))

    async def _metrics(self, job: Job) -> Mapping[str, float]:
        """The means of a validation; one that was cancelled has answers, but nobody has read them."""
        if job.kind is not Kind.VALIDATION:
            return NO_METRICS
        if job.metrics is not None:
            return job.metrics
        figures = await figures_of(self._shared.jobs, job)
        return await asyncio.to_thread(figures.means)

    async def _job_ends(self, job_id: str, events: Subscription) -> None:
        while not _tells_of_the_end(await events.get(), job_id):
            pass

    async def _fail(self, lease: Lease, reason: str) -> None:
        session = await self._get(lease.id)
        if session is not None and not session.state.ended:
            failed = replace(session, state=State.FAILED, reason=reason)
            await steady(lambda: self._shared.sessions.advance(lease, failed, None))


def _tells_of_the_end(event: Event, job_id: str) -> bool:
    """Or of anything else after which the session should be looked at again."""
    if event.what in (RESYNC, "session"):
        return True
    return event.job_id == job_id and bool(event.state) and State(event.state).ended

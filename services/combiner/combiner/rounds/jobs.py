"""Running one job under its lease, from the first look to its one end.

training:     wait for clients -> ask -> collect and fold -> close -> write the aggregate -> commit
validation,
inference:    wait for clients -> ask -> collect answers -> close -> end

Each arrow is one atomic step in the journal, so any replica can begin here with a job in any state
(docs/life-of-a-round.md).
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from combiner.domain.config import ConfigError, RoundConfig
from combiner.domain.leases import OutageGuard
from combiner.domain.round import Failed, RoundPolicy, Succeeded, too_few_clients
from combiner.domain.selection import choose, rng_for
from combiner.domain.types import (
    ClientRecord,
    ClientState,
    Job,
    Kind,
    Model,
    Outcome,
    Phase,
    Reason,
    State,
)
from combiner.ports import Ask, Conflict, Ended, Event, Lease, LeaseLost, Shared, StateUnavailable, View
from combiner.rounds.answers import figures_of
from combiner.rounds.blobs import Blobs
from combiner.rounds.clock import SharedClock
from combiner.rounds.collecting import LOOK_S, Collector
from combiner.rounds.feed import CLIENTS, RESYNC, Feed, Subscription
from combiner.rounds.folding import FoldBroken, Folder
from combiner.rounds.meter import Meter
from combiner.rounds.takingpart import Capabilities, Work, split
from combiner.rounds.trouble import Trouble
from combiner.rounds.waiting import TaskSet, see_through, steady, woken
from combiner.rounds.workshop import STORE_BACKOFF, STORE_PATIENCE_S, RoundFailed, Workshop
from combiner.specs import Specs
from fedcombiner.modelstorage.store import STORE_AWAY, ModelStore, ObjectDamaged, ObjectKey

log = structlog.get_logger()

COMMIT_PATIENCE_S = 5.0
MAX_DEATHS = 5
"""How many owners of a job may die in a row, without progress in between; the next owner fails the job."""


class CommitRefused(RoundFailed):
    """The aggregate is not that of the journal as it is now, or its id is being removed."""


@dataclass(frozen=True)
class Tools:
    """What every job needs."""

    shared: Shared
    store: ModelStore
    specs: Specs
    feed: Feed
    clock: SharedClock
    workshop: Workshop
    guard: OutageGuard
    trouble: Trouble
    meter: Meter
    capabilities: Capabilities
    # Only house-keeping removes objects: a failover of Redis may take back a step that clients know of.
    keep_objects: bool = False


class JobRunner:
    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    async def __call__(self, lease: Lease) -> None:
        """Run the job to its end. Raises LeaseLost or Ended when it is no longer ours to end."""
        shared = self._tools.shared
        with self._tools.feed.subscribe(f"job:{lease.id}") as events:
            job = await steady(lambda: shared.jobs.get(lease.id))
            if job is None or job.state.ended:
                return
            bind = {"round_id": job.round_id, "session_id": job.session_id}
            with structlog.contextvars.bound_contextvars(**bind):
                await self._to_an_end(lease, job, events)

    async def _to_an_end(self, lease: Lease, job: Job, events: Subscription) -> None:
        try:
            if job.owners_died > MAX_DEATHS:
                raise RoundFailed(_why_given_up(job))
            await self._tools.clock.sync()
            await self._run(lease, job, events)
        except RoundFailed as error:
            await self._fail(lease, job, str(error))
        except ConfigError as error:
            await self._fail(lease, job, f"config: {error}")
        except (LeaseLost, Ended, StateUnavailable, asyncio.CancelledError):
            raise
        except Exception:
            # Whatever is wrong with our code, the one who waits for the job is told.
            log.exception("job failed unexpectedly")
            await self._fail(lease, job, "internal error; the combiner's log says more")

    async def _run(self, lease: Lease, job: Job, events: Subscription) -> None:
        """All of the job; anew from the journal whenever the scratch disk broke the fold or the journal is
        not as we knew it (Redis failed over to a replica that lagged), and once if it refused the aggregate.
        """
        config = RoundConfig.parse(job.config)
        delays, give_up_at = STORE_BACKOFF.delays(), time.monotonic() + STORE_PATIENCE_S
        refused = False
        while True:
            try:
                await JobRun(self._tools, lease, config, events).run(job)
                return
            except CommitRefused as error:
                if refused:
                    raise
                refused = True
                log.warning("folding anew", reason=str(error))
            except (FoldBroken, Conflict) as error:
                if time.monotonic() > give_up_at:
                    raise
                log.warning("folding anew", reason=str(error))
            await asyncio.sleep(next(delays))
            found = await steady(lambda: self._tools.shared.jobs.get(lease.id))
            if found is None or found.state.ended:
                raise Ended(lease.work)
            job = found

    async def _fail(self, lease: Lease, job: Job, reason: str) -> None:
        log.warning("job failed", reason=reason)
        await steady(lambda: self._tools.shared.jobs.end(lease, State.FAILED, reason))
        self._tools.meter.job_ended(job.kind, State.FAILED)


class JobRun:
    """One attempt at one job, by one replica."""

    def __init__(self, tools: Tools, lease: Lease, config: RoundConfig, events: Subscription) -> None:
        self._tools = tools
        self._shared = tools.shared
        self._lease = lease
        self._config = config
        self._events = events

    async def run(self, job: Job) -> None:
        if job.kind is Kind.TRAINING:
            await self._train(job)
        else:
            await self._question(job)

    async def _train(self, job: Job) -> None:
        folder = await Folder.open(
            self._lease,
            self._shared.jobs,
            self._tools.store,
            self._tools.workshop,
            parent=ObjectKey("models", job.parent_model_id),
            specs=self._tools.specs,
            aggregator=self._config.aggregator,
            meter=self._tools.meter,
        )
        try:
            job = await self._ask(job, View.TRAINING, Work(job.kind, job.parent_model_id, folder.parent))
            job = await self._collect(job, folder)
            await self._aggregate(job, folder)
        finally:
            folder.close()

    async def _question(self, job: Job) -> None:
        """Validation and inference: clients answer with JSON, there is no model to make."""
        job = await self._ask(job, View.VALIDATION, Work(job.kind, job.parent_model_id))
        collector = self._collector(job, None)
        async with TaskSet(lambda: None) as nothing:
            why = await collector.until_closed(nothing)
        job = await steady(lambda: self._shared.jobs.close(self._lease, why, collector.version))
        verdict = self._verdict(job)
        state, reason = (
            (State.FAILED, verdict.reason) if isinstance(verdict, Failed) else (State.SUCCEEDED, "")
        )
        validated = job.kind is Kind.VALIDATION
        figures = await figures_of(self._shared.jobs, job) if validated else None
        await steady(
            lambda: self._shared.jobs.end(
                self._lease,
                state,
                reason,
                figures=figures,
                timings=self._timings(job),
            )
        )
        self._tools.meter.job_ended(job.kind, state)
        log.info("job ended", kind=job.kind, state=state, reason=reason, answers=len(job.answered))

    async def _ask(self, job: Job, view: View, work: Work) -> Job:
        """Wait for enough clients, choose, ask. A job that was opened before is only read again."""
        if job.deadline_ms:
            return job
        active, left_out = await self._enough_clients(job, view, work)
        chosen: Sequence[str] = choose(active, self._config, rng_for(self._config, random.Random()))
        if work.spec is not None:
            chosen, without = await self._blobs().provide(chosen, work)
            left_out = [*left_out, *without]
        asks = [Ask(client=name, task_id=str(uuid.uuid4())) for name in chosen]
        timeout_ms = round(self._config.round_timeout * 1000)
        task_data = self._config.task_data(job.job_id)
        opened = await steady(
            lambda: self._shared.jobs.open(
                self._lease, asks, timeout_ms, task_data, format=work.format, left_out=left_out
            )
        )
        log.info("clients asked", asked=len(opened.clients), active=len(active), left_out=len(left_out))
        return opened

    async def _enough_clients(
        self, job: Job, view: View, work: Work
    ) -> tuple[Sequence[str], Sequence[Outcome]]:
        """The active clients that can take part, as soon as there are `clients_required` of them; and the
        active ones that cannot.

        RoundFailed after `wait_for_clients` seconds, but not before clients that an outage or a restart of
        ours cut off have had a whole window to come back. `open` and every end of the job take its wish for
        clients back: another owner may share it by then.
        """
        deadline = job.started_ms / 1000 + self._config.wait_for_clients
        wished = False
        with self._tools.feed.subscribe(CLIENTS, limit=1, wake=self._events.wake):
            while True:
                self._events.wake.clear()
                await self._raise_if_ended()
                active, left_out = await steady(lambda: self._able(view, work))
                now = self._tools.clock.now()
                if len(active) >= self._config.clients_required:
                    return active, left_out
                if now >= deadline and self._tools.guard.settled:
                    reason = too_few_clients(len(active), self._config).reason
                    raise RoundFailed(f"{reason}{_beside(left_out)}")
                if wished:
                    await woken(self._events.wake, (deadline - now) if now < deadline else LOOK_S)
                else:
                    wished = True
                    await steady(lambda: self._shared.roster.want_clients(self._lease.id, True))
                    log.info("waiting for clients", active=len(active))
                    # and look again: one may have come between the look and the wish

    async def _able(self, view: View, work: Work) -> tuple[Sequence[str], Sequence[Outcome]]:
        active = await self._shared.roster.active(view)
        return await split(active, work, self._tools.capabilities, self._shared.roster)

    async def _raise_if_ended(self) -> None:
        for event in self._events.drain():
            if _tells_of_an_end(event):
                job = await steady(lambda: self._shared.jobs.get(self._lease.id))
                if job is None or job.state.ended:
                    raise Ended(self._lease.id)

    def _blobs(self) -> Blobs:
        tools = self._tools
        return Blobs(tools.store, tools.workshop, self._shared.roster, tools.capabilities)

    def _collector(self, job: Job, start: Callable[[ClientRecord], None] | None) -> Collector:
        tools = self._tools
        return Collector(
            job,
            self._config,
            self._shared,
            tools.clock,
            tools.guard,
            tools.trouble,
            self._lease,
            self._events,
            start,
        )

    async def _collect(self, job: Job, folder: Folder) -> Job:
        """Until the job is closed and every update received before is judged.

        RoundFailed if too few are good.
        """
        async with TaskSet(self._events.wake.set) as judging:

            def start(record: ClientRecord) -> None:
                judging.spawn(folder.judge(record), name=f"judge {record.client}")

            collector = self._collector(job, start)
            collector.begin()
            why = await collector.until_closed(judging)
            job = await steady(lambda: self._shared.jobs.close(self._lease, why, collector.version))
            log.info("round closed", why=why)
            for record in job.of_state(ClientState.RECEIVED):
                collector.judge(record)
            await judging.join()
        judged = await steady(lambda: self._shared.jobs.get(self._lease.id))
        if judged is None:
            raise Ended(self._lease.id)
        verdict = self._verdict(judged)
        if isinstance(verdict, Failed):
            raise RoundFailed(verdict.reason)
        return judged

    def _verdict(self, job: Job) -> Succeeded | Failed:
        """Of a closed job whose updates are all judged: by the journal, which may know more than its events
        have told us yet.
        """
        return RoundPolicy.resume(job, self._config, self._tools.clock.now()).verdict()

    async def _aggregate(self, job: Job, folder: Folder) -> None:
        accepted = job.of_state(ClientState.ACCEPTED)
        if folder.updates != len(accepted):
            raise RuntimeError(f"{folder.updates} updates were folded, {len(accepted)} are accepted")
        await folder.settle(accepted)
        model_id = str(uuid.uuid4())
        key = ObjectKey("models", model_id)
        info = await folder.write(key)
        model = Model(
            model_id=model_id,
            parent_model_id=job.parent_model_id,
            session_id=job.session_id,
            round_id=job.round_id,
            job_id=job.job_id,
            size=info.size,
            sha256=info.sha256,
            updates=folder.updates,
            num_examples=folder.num_examples,
        )
        timings = {**self._timings(job), **folder.seconds}
        # Cut off here, nobody would know whether the object is a model or to be removed.
        await see_through(self._commit(model, key, timings), COMMIT_PATIENCE_S)
        self._tools.meter.job_ended(job.kind, State.SUCCEEDED)
        log.info("aggregate committed", model_id=model_id, updates=folder.updates, size=info.size)
        if self._config.delete_models_storage:
            await self._remove([ObjectKey("uploads", r.update_id) for r in job.clients.values() if _owns(r)])

    async def _commit(self, model: Model, key: ObjectKey, timings: Mapping[str, float]) -> None:
        try:
            await steady(lambda: self._shared.jobs.commit(self._lease, model, timings))
        except (LeaseLost, Ended):
            await self._remove([key])
            raise
        except Conflict as error:
            await self._remove([key])
            raise CommitRefused(f"the journal refused the aggregate {key.id}: {error}") from error

    async def _remove(self, keys: Sequence[ObjectKey]) -> None:
        """Best effort: what stays because the store is away is removed by the retention rule of uploads."""
        for key in [] if self._tools.keep_objects else keys:
            try:
                await self._tools.store.delete(key)
            except (*STORE_AWAY, ObjectDamaged) as error:
                log.warning("could not delete", object=str(key), error=str(error))
                return

    def _timings(self, job: Job) -> Mapping[str, float]:
        return {"collecting": round(self._tools.clock.now() - job.started_ms / 1000, 6)}


def _why_given_up(job: Job) -> str:
    doing = {Phase.WAITING: "waiting for clients", Phase.COLLECTING: "collecting answers"}
    what = doing.get(Phase(job.phase), "making the aggregate") if job.phase else "working on it"
    return (
        f"its owner died {job.owners_died} times in a row while {what}; the logs of the combiners, or of the "
        "kernel if memory ran out, say why"
    )


def _owns(record: ClientRecord) -> bool:
    """Whether the object that the client named is its own: that of a duplicate is another client's."""
    is_duplicate = record.state is ClientState.REJECTED and record.reason == Reason.DUPLICATE
    return bool(record.update_id) and not is_duplicate


def _beside(left_out: Sequence[Outcome]) -> str:
    """Of those who would be there but cannot take part."""
    if not left_out:
        return ""
    return f"; {len(left_out)} more cannot take part, such as {left_out[0].client}: {left_out[0].detail}"


def _tells_of_an_end(event: Event) -> bool:
    """Or of anything that may hide one."""
    return event.what == RESYNC or State(event.state or State.RUNNING).ended

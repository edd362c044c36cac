"""Waiting for the answers of the asked clients: drives the pure round policy with what really happens."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import structlog

from combiner.domain.config import RoundConfig
from combiner.domain.leases import OutageGuard
from combiner.domain.round import Close, RoundPolicy, Wait, Why
from combiner.domain.types import ClientRecord, ClientState, Job, Presence, Reason
from combiner.ports import Ended, Event, Lease, Shared, StateUnavailable
from combiner.rounds.clock import SharedClock
from combiner.rounds.feed import RESYNC, Subscription
from combiner.rounds.trouble import Trouble
from combiner.rounds.waiting import TaskSet, steady, woken

log = structlog.get_logger()

# How often a round with open tasks looks whether its clients are still there.
LOOK_S = 1.0


class Collector:
    """Collects one job's answers until its policy says that the job is to be closed.

    `start_judging(record)` is called once for each received update; what it starts accepts or rejects the
    update in the journal, whose events tell the policy. Validation jobs have none: their answers are
    accepted as they are recorded. Clients are there while they were heard of within the guard's window.
    """

    def __init__(
        self,
        job: Job,
        config: RoundConfig,
        shared: Shared,
        clock: SharedClock,
        guard: OutageGuard,
        trouble: Trouble,
        lease: Lease,
        events: Subscription,
        start_judging: Callable[[ClientRecord], None] | None,
    ) -> None:
        self._job = job
        self._config = config
        self._shared = shared
        self._clock = clock
        self._events = events
        self._start_judging = start_judging
        self._policy = RoundPolicy.resume(job, config, clock.now())
        self._judging: set[str] = set()
        self._guard = guard
        self._trouble = trouble
        self._lease = lease
        self._clock_steps = clock.steps
        self.version = job.version  # of the job, as far as it is known
        self._has_looked = False  # for trouble, since the events at hand were read

    def begin(self) -> None:
        """Judge what is there already.

        After a crash that includes what was accepted before: it has to be folded again.
        """
        for record in self._job.of_state(ClientState.RECEIVED, ClientState.ACCEPTED):
            self.judge(record)

    async def until_closed(self, judging: TaskSet) -> Why:
        """Why the job is to be closed. Raises what a judge raised."""
        next_look = self._clock.now()
        for record in self._job.of_state(ClientState.FAILED):
            if record.reason == Reason.CLIENT_FAILED:
                await self._ask_again(record.client)
        while True:
            self._events.wake.clear()
            judging.check()
            await self._apply_events()
            if self._clock_steps != self._clock.steps:
                # The policy compares times of before with those of after: they say nothing of the clients.
                self._clock_steps = self._clock.steps
                next_look = self._clock.now()
                await self._read_again()
            decision = self._policy.decide(now := self._clock.now())
            if isinstance(decision, Close):
                return decision.why
            if now >= next_look:
                next_look = now + LOOK_S
                await self._look_after_clients()
            else:
                await woken(self._events.wake, self._until(decision, now, next_look) - now)

    @staticmethod
    def _until(decision: Wait, now: float, next_look: float) -> float:
        """A time that has passed already is that of a lost client, who is found at the next look."""
        passed = decision.until is None or decision.until <= now
        return next_look if passed else min(decision.until or next_look, next_look)

    async def _apply_events(self) -> None:
        self._has_looked = False
        for event in list(self._events.drain()):
            if event.what == RESYNC:
                await self._read_again()
            elif event.version > self._job.version:
                self.version = event.version
                await self._apply(event)

    async def _apply(self, event: Event) -> None:
        """One change of the journal since we read the job."""
        match event.what:
            case "received":
                self._policy.received(event.client)
                if event.record is not None:
                    self.judge(event.record)
            case "accepted":
                self._policy.accepted(event.client, event.at_ms / 1000)
            case "rejected":
                self._policy.rejected(event.client)
            case "failed":
                if event.reason != Reason.CLIENT_FAILED or not await self._ask_again(event.client):
                    self._policy.failed(event.client)
            case "asked_again":
                self._policy.asked_again(event.client)
            case "cancelled" | "ended" | "committed":
                await self._read_again()

    async def _ask_again(self, client: str) -> bool:
        """Whether the client, which said that it failed, has a new task: it is not to blame if our side was
        broken since the round was opened.
        """
        opened_at = self._job.deadline_ms / 1000 - self._config.round_timeout

        def blameless() -> bool:
            return self._clock.now() - self._trouble.seconds_ago >= opened_at

        if not blameless() and not self._has_looked:
            # The cause may not have been seen yet. Look only now, and once for all clients that have failed:
            # looking at a back end that hangs takes long.
            await self._trouble.look()
            self._has_looked = True
        if not blameless():
            return False
        task_id = str(uuid.uuid4())
        again = await steady(lambda: self._shared.jobs.ask_again(self._lease, client, task_id))
        if again:
            log.warning("client is asked again: it failed while our side was broken", client=client)
            self._policy.asked_again(client)
        return again

    def judge(self, record: ClientRecord) -> None:
        """Start judging an update, unless that was done before."""
        if self._start_judging is None or record.client in self._judging:
            return
        if record.state not in (ClientState.RECEIVED, ClientState.ACCEPTED):
            return
        self._judging.add(record.client)
        self._start_judging(record)

    async def _read(self) -> Job:
        job = await steady(lambda: self._shared.jobs.get(self._job.job_id))
        if job is None:
            # Redis was lost, or somebody deleted the job: nothing to go on with, and nothing to guess.
            raise Ended(self._lease.work)
        return job

    async def _read_again(self) -> None:
        self._job = await self._read()
        self.version = self._job.version
        self._policy = RoundPolicy.resume(self._job, self._config, self._clock.now())
        for record in self._job.of_state(ClientState.RECEIVED):
            self.judge(record)

    async def _look_after_clients(self) -> None:
        """Fail clients that stayed away longer than the grace; an outage of ours is never taken for
        theirs.
        """
        waiting = self._policy.waiting_for()
        try:
            presence = await self._shared.roster.presence(waiting) if waiting else []
        except StateUnavailable:
            return
        if not self._guard.settled:
            return
        now = self._clock.now()
        for client in presence:
            self._note(client, now)
        for name in self._policy.lost(now):
            log.info("client is lost", client=name)
            await self._fail_lost(name)

    def _note(self, presence: Presence, now: float) -> None:
        heard = 0 <= presence.seen_ms_ago / 1000 < self._guard.window
        # FEDn's second generation trains inside the loop of its stream: it comes back when it has answered.
        there = heard and (presence.streams > 0 or presence.cut)
        if there:
            self._policy.back(presence.client)
        else:
            self._policy.away(presence.client, now)

    async def _fail_lost(self, client: str) -> None:
        await steady(
            lambda: self._shared.jobs.fail_client(
                client=client,
                task_id="",  # whichever it has: it may have been asked again since the job was read
                job_id=self._job.job_id,
                reason=Reason.CLIENT_LOST,
                detail=f"no stream or no heartbeat for {self._config.client_grace:g} s",
            )
        )

"""Takes work off the queues, runs each job and session under its lease, and takes over what other replicas
left behind.

Two loops and one task for each piece of work:
- the claim loop sleeps until the log says that something was queued, ended or released;
- the renew loop, every `RENEW_S`, renews all leases in one step and watches those of the others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

import structlog

from combiner.domain.leases import LeaseWatch, OutageGuard
from combiner.ports import Ended, Event, Lease, LeaseLost, LeaseView, Shared, StateUnavailable
from combiner.rounds.feed import Feed
from fedcombiner.servicekit.backoff import Backoff, retry

RENEW_S = 2.0
# A look that took longer than this says nothing about others: Redis or this process was held up.
HEALTHY_LOOK_S = 1.0
REPLICA = "replica"

log = structlog.get_logger()

Run = Callable[[Lease], Awaitable[None]]

# Words of the log after which there may be something to claim.
WAKING = frozenset({"queued", "ended", "committed", "cancelled", "released", "session", "resync"})


class Worker:
    """`run` maps the kind of work (`job`, `session`) to what does it."""

    def __init__(
        self,
        replica: str,
        shared: Shared,
        feed: Feed,
        run: Mapping[str, Run],
        guard: OutageGuard,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._replica = replica
        self._shared = shared
        self._run = run
        self._guard = guard
        self._monotonic = monotonic
        self._watch = LeaseWatch()
        self._held: dict[str, tuple[Lease, asyncio.Task[None]]] = {}
        self._wake = asyncio.Event()
        self._draining = False
        feed.listen(self._on_event)

    @property
    def works(self) -> int:
        """How many jobs and sessions this replica works on."""
        return len(self._held)

    async def run(self) -> None:
        """Until cancelled. Cancelling stops the work but leaves the leases: `drain` gives them back."""
        self._wake.set()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._renew_loop(), name="renew leases")
                group.create_task(self._claim_loop(group), name="claim work")
        finally:
            for _, task in self._held.values():
                task.cancel()

    async def drain(self) -> None:
        """Take no more work, stop what is under way, and give its leases back for another replica to go
        on at once.
        """
        self._draining = True
        held = list(self._held.values())
        for _, task in held:
            task.cancel()
        await asyncio.gather(*(task for _, task in held), return_exceptions=True)
        replica = [
            Lease(view.work, view.token)
            for view in await self._views()
            if view.work == f"{REPLICA}:{self._replica}"
        ]
        for lease in [lease for lease, _ in held] + replica:
            try:
                await self._shared.leases.release(lease)
            except (LeaseLost, Ended):
                continue

    async def _views(self) -> list[LeaseView]:
        return (await self._shared.leases.renew(self._replica, []))[1]

    def _on_event(self, event: Event) -> None:
        if event.what in WAKING:
            self._wake.set()

    async def _claim_loop(self, group: asyncio.TaskGroup) -> None:
        delays = Backoff(initial=0.05, maximum=2.0).delays()
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._claim_all()
            except StateUnavailable:
                self._wake.set()
                await asyncio.sleep(next(delays))
                continue
            delays = Backoff(initial=0.05, maximum=2.0).delays()

    async def _claim_all(self) -> None:
        for claim in (self._shared.sessions.claim, self._shared.jobs.claim):
            while not self._draining and (lease := await claim(self._replica)):
                self._begin(lease)

    def _begin(self, lease: Lease) -> None:
        if self._draining or lease.work in self._held:
            return
        kind, _, work_id = lease.work.partition(":")
        task = asyncio.create_task(self._work_on(kind, lease), name=lease.work)
        self._held[lease.work] = (lease, task)
        log.debug("work begins", kind=kind, id=work_id)

    async def _work_on(self, kind: str, lease: Lease) -> None:
        """Run one piece of work until it ended or is no longer ours; an outage of Redis only interrupts
        it.
        """
        key = f"{kind}_id"
        with structlog.contextvars.bound_contextvars(**{key: lease.id}):
            try:
                await retry(lambda: self._run[kind](lease), on=StateUnavailable, timeout=None)
            except LeaseLost:
                log.warning("another replica went on with this work", kind=kind)
            except Ended:
                log.info("work ended from outside", kind=kind)
            finally:
                held = self._held.get(lease.work)
                if held is not None and held[0] is lease:
                    del self._held[lease.work]
        self._wake.set()

    async def _renew_loop(self) -> None:
        while True:
            started = self._monotonic()
            try:
                await self._renew()
            except StateUnavailable:
                self._look([], healthy=False)
            await asyncio.sleep(max(0.0, RENEW_S - (self._monotonic() - started)))

    async def _renew(self) -> None:
        before = self._monotonic()
        lost, views = await self._shared.leases.renew(
            self._replica, [lease for lease, _ in self._held.values()]
        )
        after = self._monotonic()
        for lease in lost:
            self._drop(lease)
        for view in self._look(views, healthy=after - before < HEALTHY_LOOK_S):
            await self._inherit(view)
        for view in views:
            # Ours by the book, but the reply that said so never came.
            if (
                view.owner == self._replica
                and view.work not in self._held
                and not view.work.startswith(REPLICA)
            ):
                await self._inherit(view)

    def _look(self, views: list[LeaseView], *, healthy: bool) -> list[LeaseView]:
        """Note a look at all leases; returns those that have lapsed."""
        now = self._monotonic()
        self._guard.observe(now, healthy)
        return self._watch.observe(now, views, healthy=healthy)

    def _drop(self, lease: Lease) -> None:
        held = self._held.pop(lease.work, None)
        if held is not None:
            held[1].cancel()

    async def _inherit(self, view: LeaseView) -> None:
        if view.owner == self._replica and view.work.startswith(REPLICA):
            return
        if self._draining or view.work in self._held:
            return
        kind, _, work_id = view.work.partition(":")
        if kind == REPLICA:
            log.warning("a replica is gone", replica=work_id)
            await self._shared.roster.forget_replica(work_id)
            return
        lease = await self._shared.leases.take_over(view, self._replica)
        if lease is not None:
            log.warning("going on with work of another replica", kind=kind, id=work_id, owner=view.owner)
            self._begin(lease)

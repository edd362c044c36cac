"""Takes work off the queues, runs each job and session under its lease, and takes over what other replicas
left behind.

Two loops and one task for each piece of work:
- the claim loop sleeps until the log says that something was queued or ended;
- the renew loop, eight times in a lease window, whenever something was released and in the moment in which a
  silent lease lapses, renews all leases in one step, watches those of the others and looks at Redis's clock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

import structlog

from combiner.domain.leases import LEASE_WINDOW, LeaseWatch, OutageGuard
from combiner.ports import Ended, Event, Lease, LeaseLost, LeaseView, SchemaTooNew, Shared, StateUnavailable
from combiner.rounds.clock import SharedClock
from combiner.rounds.feed import RESYNC, Feed
from combiner.rounds.trouble import Trouble
from combiner.rounds.waiting import woken
from fedcombiner.servicekit.backoff import Backoff, retry
from fedcombiner.servicekit.errors import StartupError

REPLICA = "replica"

log = structlog.get_logger()

Run = Callable[[Lease], Awaitable[None]]

# Words of the log after which there may be something to claim, or to take over.
CLAIMABLE = frozenset({"queued", "ended", "committed", "cancelled", "session", RESYNC})
RELEASED = "released"


class Worker:
    """`run` maps the kind of work (`job`, `session`) to what does it. `lease_window` is in seconds."""

    def __init__(
        self,
        replica: str,
        shared: Shared,
        feed: Feed,
        run: Mapping[str, Run],
        guard: OutageGuard,
        trouble: Trouble,
        clock: SharedClock,
        *,
        lease_window: float = LEASE_WINDOW,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._replica = replica
        self._shared = shared
        self._run = run
        self._guard = guard
        self._trouble = trouble
        self._clock = clock
        self._renew_every = lease_window / 8
        # A look that took longer says nothing about others: Redis or this process was held up. Two that took
        # just as long, the holder's and ours, with the pauses between, are still less than a window.
        self._healthy_look = lease_window / 3
        self._monotonic = monotonic
        self._watch = LeaseWatch(lease_window)
        self._held: dict[str, tuple[Lease, asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # of what is held, and of what was and is still ending
        self._claimable = asyncio.Event()
        self._released = asyncio.Event()
        self._draining = False
        self._gone = False
        feed.listen(self._on_event)

    @property
    def works(self) -> int:
        """How many jobs and sessions this replica works on."""
        return len(self._held)

    async def run(self) -> None:
        """Until cancelled. Cancelling stops the work but leaves the leases: `drain` gives them back.

        StartupError: the state is a newer version's; another process may know it.
        """
        self._claimable.set()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._renew_loop(), name="renew leases")
                group.create_task(self._claim_loop(), name="claim work")
        except BaseExceptionGroup as group_of_one:
            # Not `except*`: what that raises is in a group of its own in early releases of Python 3.11.
            newer = group_of_one.subgroup(SchemaTooNew)
            if newer is None:
                raise
            raise StartupError(str(newer.exceptions[0])) from None
        finally:
            await self._stop_work()

    async def drain(self) -> None:
        """Take no more work, stop what is under way, and give its leases back for another replica to go
        on at once.
        """
        self._draining = True
        await self._stop_work()
        self._gone = True
        _, views = await self._shared.leases.renew(self._replica, [])
        ours = [Lease(view.work, view.token) for view in views if view.owner == self._replica]
        # The replica itself last: who sees it gone forgets its streams.
        for lease in sorted(ours, key=lambda lease: lease.work.startswith(REPLICA)):
            await self._release(lease)

    async def _stop_work(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _release(self, lease: Lease) -> None:
        try:
            await self._shared.leases.release(lease)
        except (LeaseLost, Ended):
            log.debug("nothing to release", work=lease.work)

    def _on_event(self, event: Event) -> None:
        if event.what in CLAIMABLE:
            self._claimable.set()
        elif event.what == RELEASED:
            self._released.set()

    # --- new work

    async def _claim_loop(self) -> None:
        delays = Backoff(initial=0.05, maximum=2.0).delays()
        while True:
            await self._claimable.wait()
            self._claimable.clear()
            try:
                await self._claim_all()
            except StateUnavailable:
                self._claimable.set()
                await asyncio.sleep(next(delays))
                continue
            delays = Backoff(initial=0.05, maximum=2.0).delays()

    async def _claim_all(self) -> None:
        for claim in (self._shared.sessions.claim, self._shared.jobs.claim):
            while not self._draining and (lease := await claim(self._replica)):
                await self._begin(lease)

    async def _begin(self, lease: Lease) -> None:
        if self._draining:
            await self._release(lease)
            return
        held = self._held.get(lease.work)
        if held is not None:
            if held[0].token >= lease.token:
                return
            held[1].cancel()
        kind, _, work_id = lease.work.partition(":")
        ending = {task for task in self._tasks if task.get_name() == lease.work}
        task = asyncio.create_task(self._work_on(kind, lease, ending), name=lease.work)
        self._held[lease.work] = (lease, task)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        log.debug("work begins", kind=kind, id=work_id)

    async def _work_on(self, kind: str, lease: Lease, ending: set[asyncio.Task[None]]) -> None:
        """Run one piece of work until it ended or is no longer ours; an outage of Redis only interrupts
        it.

        Not before the runs in `ending` are over, which were cancelled: a fold under way still holds the
        memory of its sums.
        """
        with structlog.contextvars.bound_contextvars(**{f"{kind}_id": lease.id}):
            try:
                if ending:
                    await asyncio.wait(ending)
                await retry(lambda: self._run[kind](lease), on=StateUnavailable, timeout=None)
            except LeaseLost:
                log.warning("another replica went on with this work", kind=kind)
            except Ended:
                log.info("work ended from outside", kind=kind)
            except Exception:
                # The lease stays ours by the book, so the next look begins the work anew.
                log.exception("work failed unexpectedly", kind=kind)
            finally:
                held = self._held.get(lease.work)
                if held is not None and held[0] is lease:
                    del self._held[lease.work]
        self._claimable.set()

    # --- leases

    async def _renew_loop(self) -> None:
        while not self._gone:
            self._released.clear()
            started = self._monotonic()
            try:
                await self._renew()
            except SchemaTooNew:
                raise
            except StateUnavailable:
                self._look([], healthy=False)
            now = self._monotonic()
            await woken(self._released, self._watch.pause(now, self._renew_every - (now - started)))

    async def _renew(self) -> None:
        before = self._monotonic()
        lost, views = await self._shared.leases.renew(
            self._replica, [lease for lease, _ in self._held.values()]
        )
        after = self._monotonic()
        for lease in lost:
            self._drop(lease)
        healthy = after - before < self._healthy_look
        lapsed = self._look(views, healthy=healthy)
        # And what is ours by the book, while the reply that said so never came.
        for view in [*lapsed, *(view for view in views if view.owner == self._replica)]:
            await self._inherit(view)
        if healthy:
            await self._clock.sync()

    def _look(self, views: list[LeaseView], *, healthy: bool) -> list[LeaseView]:
        """Note a look at all leases; returns those that have lapsed."""
        now = self._monotonic()
        if not healthy:
            self._trouble.note()
        self._guard.observe(now, healthy)
        return self._watch.observe(now, views, healthy=healthy)

    def _drop(self, lease: Lease) -> None:
        held = self._held.get(lease.work)
        if held is not None and held[0] is lease:
            del self._held[lease.work]
            held[1].cancel()

    async def _inherit(self, view: LeaseView) -> None:
        kind, _, work_id = view.work.partition(":")
        if self._draining or view.work in self._held or (kind, work_id) == (REPLICA, self._replica):
            return
        if kind == REPLICA:
            log.warning("a replica is gone", replica=work_id)
            self._trouble.note()
            await self._shared.roster.forget_replica(work_id)
            return
        lease = await self._shared.leases.take_over(view, self._replica)
        if lease is not None:
            log.warning("going on with work of another replica", kind=kind, id=work_id, owner=view.owner)
            await self._begin(lease)

"""Claiming, renewing, losing, taking over and giving back work, with a clock that the test turns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from combiner.domain.leases import OutageGuard
from combiner.ports import Ended, Event, Lease, LeaseLost, LeaseView, SchemaTooNew, StateUnavailable
from combiner.rounds.clock import SharedClock
from combiner.rounds.feed import Feed
from combiner.rounds.trouble import Trouble
from combiner.rounds.worker import Worker

from fedcombiner.servicekit.errors import StartupError
from tests.clock import Clock

DEADLINE = 20.0
WINDOW = 6.0
ME = "me"


class Book:
    """Leases as Redis keeps them, with queues of work; all ports at once."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.jobs = self.sessions = self.leases = self.roster = self
        self.queue: list[str] = []
        self.views: dict[str, LeaseView] = {}
        self.token = 0
        self.away = False
        self.too_new = False
        self.look_s = 0.0
        self.released: list[str] = []
        self.forgotten: list[str] = []
        self.renewals = 0
        self.clock_ahead_s = 0.0
        self.log = self
        self.claiming: asyncio.Event | None = None
        self.changed = asyncio.Event()

    def _changed(self) -> None:
        self.changed.set()
        if self.away:
            raise StateUnavailable("away")

    def give(self, work: str, owner: str) -> Lease:
        self.token += 1
        self.views[work] = LeaseView(work, owner, self.token, 0)
        return Lease(work, self.token)

    def beat(self, work: str) -> None:
        view = self.views[work]
        self.views[work] = LeaseView(work, view.owner, view.token, view.beat + 1)

    async def claim(self, replica: str) -> Lease | None:
        self._changed()
        if not self.queue:
            return None
        lease = self.give(self.queue.pop(0), replica)
        if self.claiming is not None:
            await self.claiming.wait()
        return lease

    async def renew(self, replica: str, leases: Sequence[Lease]) -> tuple[list[Lease], list[LeaseView]]:
        self._changed()
        if self.too_new:
            raise SchemaTooNew("state of a newer version")
        self.clock.now += self.look_s
        await asyncio.sleep(0)
        self.renewals += 1
        if f"replica:{replica}" not in self.views:
            self.give(f"replica:{replica}", replica)
        lost = [lease for lease in leases if not self._is_valid(lease, replica)]
        for lease in leases:
            if lease not in lost:
                self.beat(lease.work)
        self.beat(f"replica:{replica}")
        return lost, list(self.views.values())

    def _is_valid(self, lease: Lease, replica: str) -> bool:
        view = self.views.get(lease.work)
        return view is not None and (view.owner, view.token) == (replica, lease.token)

    async def now_ms(self) -> int:
        return round((self.clock.now + self.clock_ahead_s) * 1000)

    async def take_over(self, seen: LeaseView, replica: str) -> Lease | None:
        self._changed()
        return self.give(seen.work, replica) if self.views.get(seen.work) == seen else None

    async def release(self, lease: Lease) -> None:
        self._changed()
        if not self._is_valid(lease, ME):
            raise LeaseLost(lease.work)
        self.released.append(lease.work)
        self.views[lease.work] = LeaseView(lease.work, "", lease.token, 99)

    async def forget_replica(self, replica: str) -> None:
        self._changed()
        self.forgotten.append(replica)
        self.views.pop(f"replica:{replica}", None)


class Bench:
    """A worker at its book. Each look at the leases is brought about by the test."""

    def __init__(self) -> None:
        self.clock = Clock(1000.0)
        self.book = Book(self.clock)
        self.guard = OutageGuard(10.0)
        self.running: dict[str, list[Lease]] = {"job": [], "session": []}
        self.ending: dict[str, BaseException | None] = {}
        self.may_end = asyncio.Event()
        self.cancelled: list[str] = []
        self.thread_ends = asyncio.Event()  # of a cancelled run, which waits for it
        self.thread_ends.set()
        ports: Any = self.book
        self.feed = Feed(ports)
        self.shared_clock = SharedClock(ports, self.clock)
        self.worker = Worker(
            ME,
            ports,
            self.feed,
            {"job": self._run, "session": self._run},
            self.guard,
            Trouble(self.clock),
            self.shared_clock,
            lease_window=WINDOW,
            monotonic=self.clock,
        )

    async def _run(self, lease: Lease) -> None:
        kind = lease.work.partition(":")[0]
        self.running[kind].append(lease)
        self.book.changed.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled.append(lease.work)
            self.book.changed.set()
            await self.thread_ends.wait()
            raise
        if error := self.ending.pop(lease.work, None):
            raise error
        self.book.views.pop(lease.work, None)

    def say(self, what: str) -> None:
        self.feed.dispatch(Event(seq="0-0", what=what))

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        async def hold() -> None:
            while not condition():
                await asyncio.sleep(0.001)

        try:
            await asyncio.wait_for(hold(), DEADLINE)
        except TimeoutError:
            raise AssertionError(f"waited {DEADLINE:g} s for {what}") from None

    async def look(self, after: float = WINDOW / 3) -> None:
        """Let some time pass, and the worker look at the leases."""
        before = self.book.renewals
        self.clock.now += after
        self.say("released")
        await self.until(lambda: self.book.renewals > before, "a look")
        for _ in range(5):
            await asyncio.sleep(0)

    def held(self, kind: str = "job") -> list[int]:
        return [lease.token for lease in self.running[kind]]


@asynccontextmanager
async def working() -> AsyncIterator[Bench]:
    bench = Bench()
    task = asyncio.create_task(bench.worker.run())
    await bench.until(lambda: bench.book.renewals >= 1, "the first look")
    yield bench
    task.cancel()
    await asyncio.wait([task])
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith(("job:", "session:"))]


async def test_queued_work_is_claimed_when_the_log_says_so() -> None:
    async with working() as bench:
        bench.book.queue = ["session:s1", "job:j1"]
        bench.say("queued")
        await bench.until(lambda: bench.worker.works == 2, "both")
        assert len(bench.running["job"]) == len(bench.running["session"]) == 1


async def test_work_that_ends_makes_room_for_the_next() -> None:
    async with working() as bench:
        bench.book.queue = ["job:j1"]
        bench.say("queued")
        await bench.until(lambda: bench.worker.works == 1, "the job")
        bench.may_end.set()
        await bench.until(lambda: bench.worker.works == 0, "its end")


async def test_a_lost_lease_stops_the_work() -> None:
    async with working() as bench:
        bench.book.queue = ["job:j1"]
        bench.say("queued")
        await bench.until(lambda: bench.worker.works == 1, "the job")
        bench.book.give("job:j1", "other")
        await bench.look()
        await bench.until(lambda: bench.cancelled == ["job:j1"], "the stop")
        assert bench.worker.works == 0


async def test_a_silent_owner_is_replaced_after_a_whole_window_of_healthy_looks() -> None:
    async with working() as bench:
        bench.book.give("job:j1", "other")
        for _ in range(4):
            await bench.look(1.9)
            assert bench.worker.works == 0
        await bench.look(1.9)
        await bench.until(lambda: bench.worker.works == 1, "the take-over")
        assert bench.book.views["job:j1"].owner == ME


async def test_an_owner_that_beats_keeps_its_work() -> None:
    async with working() as bench:
        bench.book.give("job:j1", "other")
        for _ in range(8):
            bench.book.beat("job:j1")
            await bench.look()
        assert bench.worker.works == 0


async def test_an_outage_is_nobodys_death() -> None:
    async with working() as bench:
        bench.book.give("job:j1", "other")
        for _ in range(3):
            await bench.look(1.9)
        bench.book.away = True
        bench.book.changed.clear()
        bench.clock.now += 60
        bench.say("released")
        await asyncio.wait_for(bench.book.changed.wait(), DEADLINE)
        bench.book.away = False
        for _ in range(3):
            await bench.look(1.9)
            assert bench.worker.works == 0
        await bench.look(1.9)
        await bench.look(1.9)
        await bench.until(lambda: bench.worker.works == 1, "the take-over")


async def test_looks_that_took_a_while_still_find_a_silent_owner() -> None:
    """As on a machine that is busy."""
    async with working() as bench:
        bench.book.give("job:j1", "other")
        bench.book.look_s = WINDOW / 3.1
        bench.say("released")
        await bench.until(lambda: bench.worker.works == 1, "the take-over")


async def test_looks_that_took_too_long_blame_nobody() -> None:
    async with working() as bench:
        bench.book.give("job:j1", "other")
        bench.book.look_s = WINDOW / 2.9
        bench.say("released")
        await bench.until(lambda: bench.book.renewals > 20, "many looks")
        assert bench.worker.works == 0


async def test_each_healthy_look_follows_the_clock_of_redis() -> None:
    async with working() as bench:
        bench.book.clock_ahead_s = 3600.0
        await bench.look()
        await bench.until(lambda: bench.shared_clock.steps == 1, "the step")
        assert bench.shared_clock.now() == pytest.approx(bench.clock.now + 3600.0)


async def test_state_of_a_newer_version_ends_the_worker_and_says_why() -> None:
    bench = Bench()
    bench.book.queue = ["job:j1"]
    bench.book.too_new = True
    with pytest.raises(StartupError, match="state of a newer version"):
        await bench.worker.run()


async def test_work_given_back_is_taken_at_once() -> None:
    async with working() as bench:
        lease = bench.book.give("job:j1", "other")
        bench.book.views["job:j1"] = LeaseView("job:j1", "", lease.token, 1)
        await bench.look(0.0)
        await bench.until(lambda: bench.worker.works == 1, "the take-over")


async def test_a_dead_replica_is_forgotten() -> None:
    async with working() as bench:
        bench.book.give("replica:other", "other")
        for _ in range(5):
            await bench.look(1.9)
        await bench.until(lambda: bench.book.forgotten == ["other"], "its end")


async def test_work_that_is_ours_by_the_book_alone_is_begun() -> None:
    """A claim or take-over whose reply was lost."""
    async with working() as bench:
        bench.book.give("job:j1", ME)
        await bench.look()
        await bench.until(lambda: bench.worker.works == 1, "the work")


async def test_a_newer_token_replaces_the_older_one() -> None:
    """The reply to a claim came while its work was taken over as lost."""
    async with working() as bench:
        bench.book.queue = ["job:j1"]
        bench.book.claiming = asyncio.Event()
        bench.say("queued")
        await bench.until(lambda: "job:j1" in bench.book.views, "the claim")
        await bench.look()
        await bench.until(lambda: bench.worker.works == 1, "the take-over")
        bench.book.claiming.set()
        await bench.look()
        newest = bench.book.views["job:j1"].token
        assert bench.held()[-1] == newest
        assert bench.worker.works == 1
        await bench.look()
        assert bench.held()[-1] == newest


async def test_work_taken_over_from_oneself_waits_for_the_run_before() -> None:
    """A fold in a thread cannot be cancelled; beside it the next one would double the memory."""
    async with working() as bench:
        bench.book.queue = ["job:j1"]
        bench.say("queued")
        await bench.until(lambda: len(bench.running["job"]) == 1, "the job")
        bench.thread_ends.clear()
        bench.book.give("job:j1", "other")
        await bench.look()
        await bench.until(lambda: bench.cancelled == ["job:j1"], "the stop")
        bench.book.give("job:j1", ME)
        await bench.look()
        await bench.until(lambda: bench.worker.works == 1, "the take-over")
        await bench.look()
        assert len(bench.running["job"]) == 1
        bench.thread_ends.set()
        await bench.until(lambda: len(bench.running["job"]) == 2, "the second run")


async def test_work_that_fails_unexpectedly_is_begun_anew() -> None:
    async with working() as bench:
        bench.ending["job:j1"] = RuntimeError("a bug")
        bench.book.queue = ["job:j1"]
        bench.say("queued")
        await bench.until(lambda: bench.worker.works == 1, "the job")
        bench.may_end.set()
        await bench.until(lambda: bench.worker.works == 0, "its failure")
        await bench.look()
        await bench.until(lambda: len(bench.running["job"]) == 2, "the second try")
        await bench.until(lambda: bench.worker.works == 0, "its end")


async def test_work_that_ended_elsewhere_is_let_go() -> None:
    async with working() as bench:
        for number, error in enumerate((LeaseLost("x"), Ended("x"))):
            bench.ending[f"job:{number}"] = error
            bench.book.queue = [f"job:{number}"]
            bench.may_end.clear()
            bench.say("queued")
            await bench.until(lambda: bench.worker.works == 1, "the job")
            bench.may_end.set()
            await bench.until(lambda: bench.worker.works == 0, "its end")
            bench.book.views.pop(f"job:{number}")


async def test_an_outage_interrupts_work_and_does_not_end_it() -> None:
    async with working() as bench:
        bench.ending["job:j1"] = StateUnavailable("away")
        bench.may_end.set()
        bench.book.queue = ["job:j1"]
        bench.say("queued")
        await bench.until(lambda: len(bench.running["job"]) == 2, "the second try")
        assert len({lease.token for lease in bench.running["job"]}) == 1


async def test_draining_gives_everything_back_the_replica_last() -> None:
    async with working() as bench:
        bench.book.queue = ["session:s1", "job:j1"]
        bench.say("queued")
        await bench.until(lambda: bench.worker.works == 2, "both")
        await bench.worker.drain()
        assert sorted(bench.cancelled) == ["job:j1", "session:s1"]
        assert sorted(bench.book.released[:-1]) == ["job:j1", "session:s1"]
        assert bench.book.released[-1] == f"replica:{ME}"
        bench.book.queue = ["job:j2"]
        bench.say("queued")
        await asyncio.sleep(0)
        assert bench.worker.works == 0


async def test_a_claim_under_way_is_given_back_too() -> None:
    """Its reply comes when the leases were given back already."""
    async with working() as bench:
        bench.book.queue = ["job:j1"]
        bench.book.claiming = asyncio.Event()
        bench.say("queued")
        await bench.until(lambda: "job:j1" in bench.book.views, "the claim")
        views = bench.book.views
        lease, bench.book.views = views.pop("job:j1"), views
        await bench.worker.drain()
        bench.book.views["job:j1"] = lease
        bench.book.claiming.set()
        await bench.until(lambda: "job:j1" in bench.book.released, "the release")
        assert bench.worker.works == 0

"""The journal of one job against a small model of it, by random steps from random clients."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable
from typing import TypeVar

import redis
from combiner.adapters.limits import Limits
from combiner.adapters.state import RedisState
from combiner.domain.types import State
from combiner.ports import Ask, Conflict, Ended, Lease, Stream, Verdict, View
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from tests.contract.state_kit import TASK_DATA, Server, a_model, new_job

T = TypeVar("T")
ASKED = ("c1", "c2")
OPEN_STEPS = 10  # the end comes after that many
CLIENTS = st.sampled_from([*ASKED, "stranger"])
UPDATES = st.sampled_from(["u1", "u2", "u3", "u4"])
WAYS = st.sampled_from(["task", "job", "both"])
MAX_DELIVERIES = 2


class OneJob(RuleBasedStateMachine):
    """`records` is what the journal has to say: client -> (state, update, reason)."""

    server: Server
    numbers = itertools.count(1)
    open_streams = Bundle("open_streams")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.prefix = f"h{next(self.numbers)}:"
        limits = Limits(max_deliveries=MAX_DELIVERIES)
        self.state = RedisState(self.server.url, prefix=self.prefix, limits=limits)
        self.records = dict.fromkeys(ASKED, ("asked", "", ""))
        self.others: set[tuple[str, str, str]] = set()
        self.objects: dict[str, str] = {}
        self.deliveries = dict.fromkeys(ASKED, 0)
        self.on_stream: dict[str, str] = {}
        self.streams: set[Stream] = set()
        self.closed = False
        self.ended = ""
        self.steps = 0
        self.lease: Lease = self.run(self._open())

    def run(self, step: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await step

        return self.runner.run(awaited())

    async def _open(self) -> Lease:
        await self.state.jobs.submit(new_job("j1"))
        lease = await self.state.jobs.claim("r1")
        assert lease is not None
        await self.state.jobs.open(lease, [Ask(c, f"t-{c}") for c in ASKED], 60_000, TASK_DATA)
        return lease

    def teardown(self) -> None:
        self.run(self.state.aclose())
        self.runner.close()
        with redis.Redis.from_url(self.server.url) as raw:
            raw.delete(*raw.keys(f"{self.prefix}*"))

    # --- answers

    def _ids(self, client: str, way: str) -> dict[str, str]:
        return {
            "client": client,
            "task_id": f"t-{client}" if way != "job" else "",
            "job_id": "j1" if way != "task" else "",
        }

    def _judged(self, client: str, way: str, mark: str) -> tuple[Verdict, str] | None:
        """What becomes of an answer that was not asked for, is late, or a second one; None if it counts."""
        if client not in self.records:
            if way != "task":
                self.others.add((client, "not_asked", mark))
            return Verdict.REJECTED, "not_asked"
        state, _, reason = self.records[client]
        bad = ""
        if self.closed:
            bad = "late"
        elif state != "asked" and (state, reason) != ("failed", "client_lost"):
            bad = "duplicate"
        if bad:
            self.others.add((client, bad, mark))
            return Verdict.REJECTED, bad
        self.on_stream.pop(client, None)
        return None

    @rule(client=CLIENTS, update=UPDATES, way=WAYS, empty=st.booleans())
    def receive(self, client: str, update: str, way: str, empty: bool) -> None:
        got = self.run(
            self.state.jobs.receive(**self._ids(client, way), update_id=update, num_examples=1, empty=empty)
        )
        assert (got.verdict, got.reason) == self._expected_of_update(client, update, way, empty)

    def _expected_of_update(self, client: str, update: str, way: str, empty: bool) -> tuple[Verdict, str]:
        if client in self.records and self.records[client][1] == update:
            return Verdict.REPEATED, self.records[client][2]
        judged = self._judged(client, way, update)
        if judged:
            return judged
        if empty:
            self.records[client] = ("failed", update, "empty_upload")
            return Verdict.RECEIVED, ""
        if self.objects.setdefault(update, client) != client:
            self.records[client] = ("rejected", update, "duplicate")
            return Verdict.REJECTED, "duplicate"
        self.records[client] = ("received", update, "")
        return Verdict.RECEIVED, ""

    @rule(client=CLIENTS, way=WAYS, reason=st.sampled_from(["not_uploaded", "num_examples"]))
    def refuse(self, client: str, way: str, reason: str) -> None:
        got = self.run(self.state.jobs.refuse(**self._ids(client, way), reason=reason, detail=""))
        if client in self.records and self.records[client][::2] == ("rejected", reason):
            expected = (Verdict.REPEATED, reason)
        else:
            judged = self._judged(client, way, reason)
            if judged is None:
                self.records[client] = ("rejected", "", reason)
            expected = judged or (Verdict.REJECTED, reason)
        assert (got.verdict, got.reason) == expected

    @rule(client=CLIENTS, way=WAYS, reason=st.sampled_from(["client_lost", "client_failed"]))
    def fail(self, client: str, way: str, reason: str) -> None:
        changed = self.run(self.state.jobs.fail_client(**self._ids(client, way), reason=reason, detail=""))
        expected = not self.closed and client in self.records and self.records[client][0] == "asked"
        if expected:
            self.records[client] = ("failed", "", reason)
            self.on_stream.pop(client, None)
        assert changed is expected

    # --- the owner of the job

    @rule(client=CLIENTS, good=st.booleans())
    def decide(self, client: str, good: bool) -> None:
        state = self.records.get(client, ("",))[0]
        target = "accepted" if good else "rejected"
        allowed = state in {"received", target} or (not good and state == "accepted")
        try:
            if good:
                self.run(self.state.jobs.accept(self.lease, client))
            else:
                self.run(self.state.jobs.reject(self.lease, client, "shape", ""))
        except Conflict:
            assert not allowed
            assert not self.ended
        except Ended:
            assert self.ended
        else:
            assert allowed
            if state != target:
                self.records[client] = (target, self.records[client][1], "" if good else "shape")

    @precondition(lambda self: not self.ended and self.steps > OPEN_STEPS)
    @rule()
    def close(self) -> None:
        self.run(self.state.jobs.close(self.lease, "why"))
        self.closed = True
        self.on_stream.clear()

    @precondition(lambda self: not self.ended)
    @rule()
    def commit(self) -> None:
        complete = self.closed and all(state != "received" for state, _, _ in self.records.values())
        try:
            self.run(self.state.jobs.commit(self.lease, a_model("m1"), {}))
        except Conflict:
            assert not complete
        else:
            assert complete
            self.ended = State.SUCCEEDED

    @precondition(lambda self: self.steps > OPEN_STEPS)
    @rule()
    def cancel(self) -> None:
        self.run(self.state.jobs.cancel("j1", "by hand"))
        self.ended = self.ended or State.CANCELLED
        self.closed = True
        self.on_stream.clear()

    # --- deliveries

    @rule(target=open_streams, client=st.sampled_from(ASKED))
    def open_stream(self, client: str) -> Stream:
        stream = Stream(f"r1:{next(self.numbers)}", client, View.ALL, "")
        self.run(self.state.roster.opened(stream))
        self.streams.add(stream)
        return stream

    @rule(stream=open_streams)
    def claim(self, stream: Stream) -> None:
        tasks = self.run(self.state.tasks.claim([stream]))
        client = stream.client
        free = not self.closed and self.records[client][0] == "asked" and client not in self.on_stream
        if free and stream in self.streams:
            assert [task.task_id for _, task in tasks] == [f"t-{client}"]
            self.on_stream[client] = stream.stream_id
            self.deliveries[client] += 1
        else:
            assert tasks == []

    @rule(stream=open_streams, by_us=st.booleans())
    def close_stream(self, stream: Stream, by_us: bool) -> None:
        self.run(self.state.roster.closed(stream, by_us=by_us))
        self.streams.discard(stream)
        client = stream.client
        if self.on_stream.get(client) != stream.stream_id:
            return
        del self.on_stream[client]
        if by_us:
            self.deliveries[client] -= 1
        elif self.deliveries[client] >= MAX_DELIVERIES:
            self.records[client] = ("failed", "", "client_lost")

    @rule(client=st.sampled_from(ASKED), by_us=st.booleans())
    def lose_a_client_in_training(self, client: str, by_us: bool) -> None:
        stream = self.open_stream(client)
        self.claim(stream)
        self.close_stream(stream, by_us)

    # --- what must always hold

    @invariant()
    def the_journal_is_as_the_model(self) -> None:
        self.steps += 1
        job = self.run(self.state.jobs.get("j1"))
        assert job is not None
        records = {name: (r.state.value, r.update_id, r.reason) for name, r in job.clients.items()}
        assert records == self.records
        assert sorted((o.client, o.reason) for o in job.others) == sorted(o[:2] for o in self.others)
        assert job.closed is self.closed
        assert job.state == (self.ended or State.RUNNING)

    @invariant()
    def the_counters_are_right(self) -> None:
        with redis.Redis.from_url(self.server.url, decode_responses=True) as raw:
            names = ("undecided", "accepted", "rejected", "failed", "asked")
            found = [int(value) for value in raw.hmget(f"{self.prefix}job:j1", names)]
        states = [state for state, _, _ in self.records.values()]
        count = [states.count(name) for name in ("received", "accepted", "rejected", "failed")]
        count[2] += len(self.others)
        assert found == [*count, len(ASKED)]

    @invariant()
    def only_open_tasks_are_queued(self) -> None:
        open_tasks = {c for c in ASKED if not self.closed and self.records[c][0] == "asked"}
        with redis.Redis.from_url(self.server.url, decode_responses=True) as raw:
            assert {c for c in ASKED if raw.exists(f"{self.prefix}tasks:{c}")} == open_tasks


def test_one_job_is_as_its_model(valkey: Server) -> None:
    machine = type("OneJobHere", (OneJob,), {"server": valkey})
    machine.TestCase.settings = settings(
        max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
    )
    machine.TestCase("runTest").debug()

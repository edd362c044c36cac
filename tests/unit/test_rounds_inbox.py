"""What holds answers while a back end is away: who waits how long, and what goes when it is full."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Container
from datetime import UTC, datetime
from typing import Any

import pytest
from combiner.clients.asked import AskedClients
from combiner.clients.inbox import ANSWER_CHARS, AnswerMessage, Inbox, UpdateMessage
from combiner.clients.replay import CONCURRENCY, OVERHEAD, Bounds
from combiner.domain.types import Reason
from combiner.domain.updates import TaskRef, UpdateMeta
from combiner.ports import Event, Received, StateUnavailable, Verdict
from combiner.rounds.feed import Feed

from fedcombiner.modelstorage.store import ObjectInfo, ObjectKey, StoreUnavailable

DEADLINE = 20.0
HOLD = 0.02


class Back:
    """Journal, store and meter at once. `away` keeps every step waiting until it is back."""

    def __init__(self) -> None:
        self.jobs = self
        self.away = False
        self.store_away = False
        self.sizes: dict[str, int] = {}
        self.verdict = Received(Verdict.RECEIVED, "j1")
        self.bug: Exception | None = None
        self.attempts = 0
        self.steps: list[tuple[str, dict[str, Any]]] = []
        self.counted: list[tuple[str, str]] = []
        self._changed = asyncio.Event()

    async def _step(self, name: str, fields: dict[str, Any]) -> Received:
        if self.bug is not None:
            raise self.bug
        self.attempts += 1
        if self.away:
            raise StateUnavailable("away")
        self.steps.append((name, fields))
        self._changed.set()
        return self.verdict

    async def receive(self, **fields: Any) -> Received:
        return await self._step("receive", fields)

    async def refuse(self, **fields: Any) -> Received:
        return await self._step("refuse", fields)

    async def answer(self, **fields: Any) -> Received:
        return await self._step("answer", fields)

    async def fail_client(self, **fields: Any) -> bool:
        return bool(await self._step("fail", fields))

    async def add_unrecorded(self, **fields: Any) -> None:
        await self._step("unrecorded", fields)

    async def head(self, key: ObjectKey) -> ObjectInfo | None:
        if self.store_away:
            raise StoreUnavailable("away")
        size = self.sizes.get(key.id)
        return None if size is None else ObjectInfo(key, size, "", datetime.now(UTC))

    def update(self, verdict: str, reason: str) -> None:
        self.counted.append((verdict, reason))

    async def until_steps(self, number: int) -> None:
        async with asyncio.timeout(DEADLINE):
            while len(self.steps) < number:
                self._changed.clear()
                await self._changed.wait()

    def clients(self) -> list[str]:
        return [fields["client"] for _, fields in self.steps]


@pytest.fixture
def back() -> Back:
    return Back()


@pytest.fixture
async def inbox(back: Back) -> AsyncIterator[Inbox]:
    made = an_inbox(back)
    yield made
    await made.close()


class Everybody(Container[str]):
    def __contains__(self, name: object) -> bool:
        return True


def an_inbox(
    back: Back, hold: float = HOLD, *, asked: Container[str] = Everybody(), **bounds: Bounds
) -> Inbox:
    shared: Any = back
    return Inbox(shared, shared, shared, asked, update_hold_s=hold, answer_hold_s=hold, **bounds)


def few(entries: int, *, size: int = 1 << 30, of_client: int = 8) -> Bounds:
    return Bounds(entries, size, of_client)


def update(client: str = "c1", update_id: str = "u1", problem: str = "") -> UpdateMessage:
    return UpdateMessage(client, update_id, "t1", UpdateMeta(0 if problem else 7, problem, "t1", "j1", "1"))


def answer(client: str, data: str = "{}") -> AnswerMessage:
    return AnswerMessage(client, "t1", "j1", "m1", data)


async def test_an_uploaded_update_is_received(back: Back, inbox: Inbox) -> None:
    back.sizes["u1"] = 5
    await inbox.update(update())
    [(name, fields)] = back.steps
    assert (name, fields["num_examples"], fields["empty"]) == ("receive", 7, False)
    assert (fields["client"], fields["task_id"], fields["job_id"], fields["update_id"]) == (
        "c1",
        "t1",
        "j1",
        "u1",
    )
    assert back.counted == [("received", "")]
    assert len(inbox) == 0


async def test_an_upload_of_nothing_is_empty(back: Back, inbox: Inbox) -> None:
    back.sizes["u1"] = 0
    await inbox.update(update())
    assert back.steps[0][1]["empty"] is True


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (update(), Reason.NOT_UPLOADED),
        (update(update_id="../etc"), Reason.NOT_UPLOADED),
        (update(problem="none"), Reason.NUM_EXAMPLES),
    ],
)
async def test_what_is_known_to_be_no_good_is_refused(
    back: Back, inbox: Inbox, message: UpdateMessage, reason: Reason
) -> None:
    await inbox.update(message)
    [(name, fields)] = back.steps
    assert (name, fields["reason"]) == ("refuse", reason)


@pytest.mark.parametrize("what", ["away", "store_away"])
async def test_an_update_is_confirmed_after_the_hold_and_recorded_when_the_back_end_is_back(
    back: Back, inbox: Inbox, what: str
) -> None:
    back.sizes["u1"] = 5
    setattr(back, what, True)
    await asyncio.wait_for(inbox.update(update()), DEADLINE)
    assert (len(inbox), back.steps) == (1, [])
    setattr(back, what, False)
    await back.until_steps(1)
    assert back.clients() == ["c1"]


async def test_a_confirmed_update_that_comes_too_late_is_unrecorded(back: Back, inbox: Inbox) -> None:
    back.sizes["u1"] = 5
    back.away = True
    await inbox.update(update())
    back.verdict = Received(Verdict.REJECTED, "j1", Reason.LATE)
    back.away = False
    await back.until_steps(2)
    assert [name for name, _ in back.steps] == ["receive", "unrecorded"]


async def test_a_late_update_whose_client_waited_is_not_unrecorded(back: Back, inbox: Inbox) -> None:
    back.sizes["u1"] = 5
    back.verdict = Received(Verdict.REJECTED, "j1", Reason.LATE)
    await inbox.update(update())
    assert [name for name, _ in back.steps] == ["receive"]
    assert back.counted == [("rejected", "late")]


async def test_a_caller_who_goes_away_does_not_take_its_update_along(back: Back, inbox: Inbox) -> None:
    back.sizes["u1"] = 5
    back.away = True
    calling = asyncio.create_task(inbox.update(update()))
    await asyncio.sleep(0)
    calling.cancel()
    await asyncio.wait([calling])
    back.away = False
    await back.until_steps(1)


async def test_failures_are_recorded_with_what_the_client_said(back: Back, inbox: Inbox) -> None:
    await inbox.failure("c1", TaskRef("t1", "j1"), "out of memory")
    [(name, fields)] = back.steps
    assert (name, fields["reason"], fields["detail"]) == ("fail", "client_failed", "out of memory")


async def test_a_bug_of_ours_is_no_error_to_the_client(back: Back, inbox: Inbox) -> None:
    back.bug = RuntimeError("a bug")
    await inbox.answer(answer("c1"))
    assert len(inbox) == 0


async def test_when_it_is_full_the_newest_of_the_client_with_the_most_goes(back: Back) -> None:
    inbox = an_inbox(back, answers=few(4))
    back.away = True
    await inbox.answer(answer("first"))
    for number in range(6):
        await inbox.answer(answer("flood", f"{number}"))
    await inbox.answer(answer("second"))
    assert (len(inbox), inbox.given_up) == (4, 4)
    back.away = False
    await inbox.settle(DEADLINE)
    kept = [(fields["client"], fields["data"]) for name, fields in back.steps if name == "answer"]
    assert sorted(kept) == [("first", "{}"), ("flood", "0"), ("flood", "1"), ("second", "{}")]
    await inbox.close()


async def test_who_came_first_is_not_pushed_out_by_many_new_names(back: Back) -> None:
    inbox = an_inbox(back, updates=few(5))
    back.away = True
    for name in [f"honest{n}" for n in range(5)] + [f"made-up{n}" for n in range(100)]:
        await inbox.update(update(name, name))
    back.away = False
    await inbox.settle(DEADLINE)
    assert sorted(fields["client"] for name, fields in back.steps if name == "refuse") == [
        f"honest{n}" for n in range(5)
    ]
    await inbox.close()


async def test_strangers_take_no_room_of_clients_that_were_asked(back: Back) -> None:
    inbox = an_inbox(back, asked={"late"}, updates=few(10), answers=few(10))
    back.away = True
    for number in range(100):
        await inbox.update(update(f"made-up{number}"))
        await inbox.answer(answer(f"made-up{number}"))
    dropped = inbox.given_up
    await inbox.update(update("late"))
    await inbox.answer(answer("late"))
    assert (len(inbox), inbox.given_up) == (12, dropped)
    back.away = False
    await inbox.settle(DEADLINE)
    assert {name for name, fields in back.steps if fields["client"] == "late"} == {"refuse", "answer"}
    await inbox.close()


def test_who_was_asked_is_what_the_log_said_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("combiner.clients.asked.LIMIT", 3)
    log: Any = None
    feed = Feed(log)
    asked = AskedClients(feed)
    feed.dispatch(Event(seq="1-1", what="tasks", clients=("a", "b", "c")))
    feed.dispatch(Event(seq="1-2", what="client", clients=("e",)))
    feed.dispatch(Event(seq="1-3", what="tasks", clients=("a", "d")))
    assert [name for name in "abcde" if name in asked] == ["a", "c", "d"]


async def test_answers_do_not_push_out_updates(back: Back) -> None:
    inbox = an_inbox(back, answers=few(2))
    back.away = True
    await inbox.update(update())
    for number in range(10):
        await inbox.answer(answer(f"c{number}"))
    assert (len(inbox), inbox.given_up) == (3, 8)
    await inbox.close()


async def test_a_client_has_a_bound_of_its_own(back: Back) -> None:
    inbox = an_inbox(back, answers=few(100, of_client=2))
    back.away = True
    for _ in range(10):
        await inbox.answer(answer("flood"))
    assert (len(inbox), inbox.given_up) == (2, 8)
    await inbox.close()


async def test_a_dropped_answer_is_listed_as_unrecorded_and_its_caller_told_at_once(back: Back) -> None:
    inbox = an_inbox(back, hold=60, updates=few(1))
    back.away = True
    first = asyncio.create_task(inbox.update(update("first")))
    await asyncio.sleep(0)
    await asyncio.wait_for(inbox.update(update("second")), DEADLINE)
    assert not first.done()
    back.away = False
    await asyncio.wait_for(first, DEADLINE)
    await inbox.settle(DEADLINE)
    assert {(name, fields["client"], fields["job_id"]) for name, fields in back.steps} == {
        ("refuse", "first", "j1"),
        ("unrecorded", "second", "j1"),
    }
    await inbox.close()


async def test_what_is_to_be_listed_is_bounded_too(back: Back) -> None:
    inbox = an_inbox(back, answers=few(1), unrecorded=few(3))
    back.away = True
    for number in range(10):
        await inbox.answer(answer(f"c{number}"))
    back.away = False
    await inbox.settle(DEADLINE)
    assert sorted(name for name, _ in back.steps) == ["answer", *["unrecorded"] * 3]
    await inbox.close()


async def test_their_text_is_bounded_too(back: Back) -> None:
    inbox = an_inbox(back, answers=few(100, size=2 * (ANSWER_CHARS + 2 * OVERHEAD)))
    back.away = True
    for client in ("first", "second", "third"):
        await inbox.answer(answer(client, "x" * (4 << 20)))
    assert (len(inbox), inbox.given_up) == (2, 1)
    back.away = False
    await inbox.settle(DEADLINE)
    assert {len(fields["data"]) for name, fields in back.steps if name == "answer"} == {ANSWER_CHARS}
    await inbox.answer(answer("last", "x" * ANSWER_CHARS))
    assert inbox.given_up == 1
    await inbox.close()


async def test_however_many_wait_one_at_a_time_asks_a_back_end_that_is_away(back: Back) -> None:
    inbox = an_inbox(back, hold=60)
    back.away = True
    waiting = [asyncio.create_task(inbox.update(update(f"c{n:04}"))) for n in range(5000)]
    async with asyncio.timeout(DEADLINE):
        while len(inbox) < 5000 or back.attempts < CONCURRENCY + 5:
            await asyncio.sleep(HOLD)
    before = back.attempts
    assert before < 5 * CONCURRENCY
    back.away = False
    await asyncio.wait_for(asyncio.gather(*waiting), DEADLINE)
    assert back.clients() == [f"c{n:04}" for n in range(5000)], "in the order in which they came"
    assert back.attempts - before <= 5001
    await inbox.close()


async def test_closing_gives_up_what_is_left(back: Back) -> None:
    inbox = an_inbox(back)
    back.away = True
    await inbox.answer(answer("c1"))
    await inbox.settle(0.001)
    assert len(inbox) == 1
    await inbox.close()
    assert len(inbox) == 0
    assert not [task for task in asyncio.all_tasks() if "record answer" in task.get_name()]

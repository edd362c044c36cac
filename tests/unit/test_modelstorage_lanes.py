"""Places go round fairly, slow transfers give theirs up, and each comes back however its transfer ends."""

import asyncio
from collections.abc import Iterable

import pytest

from fedcombiner.modelstorage.lanes import Lane, SlowLane
from fedcombiner.modelstorage.pace import Pace
from fedcombiner.modelstorage.transfer import Transfer
from fedcombiner.servicekit.errors import Unavailable


class Told(Transfer):
    """A transfer that is as fast as it is told."""

    is_slow = False  # type: ignore[assignment]
    can_be_cut = True  # type: ignore[assignment]
    rate = 0.0  # type: ignore[assignment]
    waited = 100.0  # type: ignore[assignment]

    def __init__(self, client: str, rate: float = 0.0, *, slow: bool = False) -> None:
        super().__init__(client, Pace(1, 1), 1)
        self.rate = rate
        self.is_slow = slow
        self.verdict = ""

    def cut(self, verdict: str) -> None:
        self.verdict = verdict


class Lanes:
    def __init__(self, slots: int, slow_slots: int = 2, max_waiting: int | None = None) -> None:
        self.events: list[str] = []
        self.slow = SlowLane(slow_slots, self.events.append)
        self.lane = Lane(slots, self.slow, self.events.append, max_waiting)
        self.entered: list[Told] = []
        self.tasks: dict[Told, asyncio.Task[None]] = {}

    async def bring(self, transfers: Iterable[Told]) -> None:
        for transfer in transfers:
            self.tasks[transfer] = asyncio.create_task(self._enter(transfer))
            await settle()

    async def _enter(self, transfer: Told) -> None:
        await self.lane.enter(transfer)
        self.entered.append(transfer)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def of(client: str, number: int, **told: bool) -> list[Told]:
    return [Told(client, **told) for _ in range(number)]


async def test_first_come_first_served_within_a_client() -> None:
    lanes = Lanes(1)
    transfers = of("a", 4)
    await lanes.bring(transfers)
    assert (lanes.entered, lanes.lane.running, lanes.lane.waiting) == (transfers[:1], 1, 3)
    for transfer in transfers:
        lanes.lane.leave(transfer)
        await settle()
    assert (lanes.entered, lanes.lane.running, lanes.lane.waiting) == (transfers, 0, 0)


async def test_the_next_place_goes_to_the_client_with_the_fewest() -> None:
    lanes = Lanes(2)
    greedy, modest = of("greedy", 5), of("modest", 2)
    await lanes.bring([*greedy, *modest])
    lanes.lane.leave(greedy[0])
    lanes.lane.leave(greedy[1])
    await settle()
    assert {one.client for one in lanes.entered[2:]} == {"greedy", "modest"}


async def test_one_that_gives_up_waiting_takes_no_place() -> None:
    lanes = Lanes(1)
    first, second, third = of("a", 3)
    await lanes.bring([first, second, third])
    lanes.tasks[second].cancel()
    await settle()
    assert lanes.lane.waiting == 1
    lanes.lane.leave(first)
    await settle()
    assert lanes.entered == [first, third]


async def test_a_place_that_was_given_to_one_that_is_cancelled_goes_on() -> None:
    lanes = Lanes(1)
    first, second, third = of("a", 3)
    await lanes.bring([first, second, third])
    lanes.lane.leave(first)
    lanes.tasks[second].cancel()
    await settle()
    assert lanes.entered == [first, third]


async def test_a_full_line_refuses_the_newest_of_the_client_with_the_most() -> None:
    lanes = Lanes(1, max_waiting=4)
    greedy, modest = of("greedy", 5), of("modest", 1)
    await lanes.bring([*greedy, *modest])
    with pytest.raises(Unavailable, match="too many transfers are waiting"):
        await lanes.tasks[greedy[-1]]
    assert (lanes.lane.waiting, lanes.events) == (4, ["refused"])
    lanes.lane.leave(greedy[0])
    await settle()
    assert lanes.entered == [greedy[0], modest[0]]


async def test_a_slow_transfer_moves_when_somebody_waits_and_not_before() -> None:
    lanes = Lanes(1)
    slow, other = Told("a", slow=True), Told("a")
    await lanes.bring([slow])
    assert lanes.events == []
    await lanes.bring([other])
    assert (lanes.entered, lanes.slow.holders, lanes.events) == ([slow, other], {slow}, ["slowed"])


async def test_a_full_slow_lane_ends_the_slowest_of_the_client_with_the_most() -> None:
    lanes = Lanes(1, slow_slots=3)
    crowd = [Told("crowd", rate=9, slow=True), Told("crowd", rate=5, slow=True)]
    slowest = Told("other", rate=1, slow=True)
    await lanes.bring([*crowd, slowest, Told("crowd", rate=7, slow=True), Told("new")])
    assert [one.verdict != "" for one in (*crowd, slowest)] == [False, True, False]
    assert lanes.events.count("cut") == 1


async def test_a_full_slow_lane_from_which_nobody_may_be_ended_keeps_the_places() -> None:
    lanes = Lanes(1, slow_slots=1)
    transfers = of("a", 3, slow=True)
    for transfer in transfers:
        transfer.can_be_cut = False  # type: ignore[misc]
    await lanes.bring(transfers)
    assert (lanes.entered, lanes.events) == (transfers[:2], ["slowed"])


async def test_a_client_with_more_lets_one_with_fewer_go_first_and_then_goes_on() -> None:
    lanes = Lanes(2)
    greedy, modest = of("greedy", 2), of("modest", 1)
    await lanes.bring([*greedy, *modest])
    pausing = asyncio.create_task(lanes.lane.share(greedy[0]))
    await settle()
    assert (lanes.entered[-1], lanes.lane.paused, pausing.done()) == (modest[0], 1, False)
    await lanes.lane.share(greedy[1])
    lanes.lane.leave(modest[0])
    await asyncio.wait_for(pausing, 20)
    assert (lanes.lane.running, lanes.lane.paused, lanes.events) == (2, 0, ["yielded"])


async def test_no_more_transfers_pause_than_there_are_places() -> None:
    lanes = Lanes(2)
    greedy = of("greedy", 2)
    await lanes.bring([*greedy, *of("modest", 3)])
    lanes.lane.paused = 2
    await asyncio.wait_for(lanes.lane.share(greedy[0]), 20)
    assert lanes.events == []

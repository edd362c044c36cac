"""The roster: who is there."""

from __future__ import annotations

from functools import partial

import pytest
from combiner.adapters.state import RedisState
from combiner.domain.types import ClientState, Presence
from combiner.ports import Stream, StreamChange, View

from tests.contract.state_kit import Bench, claimed, following, job_of, listed, new_job, opened, twice


def unseen(bench: Bench, client: str, seconds: float) -> None:
    """As if the client was last heard of that long ago."""
    at = bench.raw.zscore(bench.key("seen"), client)
    assert at is not None
    bench.raw.zadd(bench.key("seen"), {client: at - seconds * 1000})


async def names(state: RedisState) -> list[str]:
    return [presence.client for presence in await listed(state.roster.list(all=True))]


async def test_nobody_is_there_at_first(state: RedisState) -> None:
    assert await state.roster.active(View.ALL) == []
    assert await state.roster.presence(["c1"]) == [Presence("c1", -1)]
    assert await listed(state.roster.list(all=True)) == []
    await state.roster.beat({})
    await state.roster.change([])


@pytest.mark.parametrize(
    ("view", "active_in", "trainer", "validator"),
    [
        (View.TRAINING, {View.TRAINING, View.ALL}, 1, 0),
        (View.VALIDATION, {View.VALIDATION, View.ALL}, 0, 1),
        (View.ALL, {View.TRAINING, View.VALIDATION, View.ALL}, 1, 1),
    ],
)
async def test_a_stream_makes_a_client_active_in_its_views(
    bench: Bench, state: RedisState, view: View, active_in: set[View], trainer: int, validator: int
) -> None:
    stream = bench.stream("c1", view)
    await twice(lambda: state.roster.opened(stream))
    assert {v for v in View if await state.roster.active(v) == ["c1"]} == active_in
    [presence] = await state.roster.presence(["c1"])
    assert (presence.trainer_streams, presence.validator_streams, presence.era) == (trainer, validator, "0.6")
    assert 0 <= presence.seen_ms_ago < 10_000
    await twice(lambda: state.roster.closed(stream, by_us=False))
    assert await state.roster.active(view) == []
    assert (await state.roster.presence(["c1"]))[0].streams == 0


async def test_heartbeats_alone_do_not_make_a_client_active(state: RedisState) -> None:
    await state.roster.beat({"c1": "0.6", "c2": ""})
    assert await state.roster.active(View.ALL) == []
    assert [(p.client, p.era) for p in await listed(state.roster.list())] == [("c1", "0.6"), ("c2", "")]


async def test_an_empty_era_keeps_the_known_one(bench: Bench, state: RedisState) -> None:
    await state.roster.beat({"c1": "0.6"})
    await state.roster.beat({"c1": ""})
    await state.roster.opened(Stream("r1:1", "c1", View.ALL, ""))
    assert (await state.roster.presence(["c1"]))[0].era == "0.6"


async def test_a_silent_client_is_not_active(bench: Bench, state: RedisState) -> None:
    for client in ("c2", "c1"):
        await state.roster.opened(bench.stream(client))
    unseen(bench, "c1", 11)
    assert await state.roster.active(View.ALL) == ["c2"]
    assert [p.client for p in await listed(state.roster.list())] == ["c2"]
    assert [p.client for p in await listed(state.roster.list(all=True))] == ["c1", "c2"]
    [presence] = await state.roster.presence(["c1"])
    assert 11_000 <= presence.seen_ms_ago < 60_000
    await state.roster.beat({"c1": ""})
    assert await state.roster.active(View.ALL) == ["c1", "c2"]


async def test_a_clock_that_was_set_back_leaves_nobody_active_who_is_not(
    bench: Bench, state: RedisState
) -> None:
    for client in ("c1", "c2"):
        await state.roster.opened(bench.stream(client))
    unseen(bench, "c1", -3_600)
    unseen(bench, "c2", -3_600)
    await state.roster.beat({"c2": ""})
    assert await state.roster.active(View.ALL) == ["c2"]


async def test_thousands_beat_and_are_found(state: RedisState, bench: Bench) -> None:
    names = [f"c{number:04}" for number in range(4_500)]
    await state.roster.beat(dict.fromkeys(names, "0.6"))
    await state.roster.change([StreamChange(bench.stream(name), opened=True) for name in names])
    assert await state.roster.active(View.TRAINING) == names
    assert [presence.client for presence in await listed(state.roster.list())] == names


async def test_the_memory_of_redis_is_read_once_in_a_step(state: RedisState, bench: Bench) -> None:
    def reads() -> int:
        return bench.raw.info("commandstats").get("cmdstat_info", {"calls": 0})["calls"]

    names = [f"c{number}" for number in range(100)]
    await state.roster.beat({})
    before = reads()
    await state.roster.beat(dict.fromkeys(names, "0.6"))
    await state.roster.change([StreamChange(bench.stream(name), opened=True) for name in names])
    # This look itself, and one for each of the two steps.
    assert reads() - before <= 3


async def test_many_changes_happen_in_their_order(bench: Bench, state: RedisState) -> None:
    one, two = bench.stream("c1"), bench.stream("c2")
    changes = [
        StreamChange(one, opened=True),
        StreamChange(two, opened=True),
        StreamChange(one, opened=False),
    ]
    await twice(lambda: state.roster.change(changes))
    assert await state.roster.active(View.ALL) == ["c2"]


async def test_a_stream_id_names_its_replica(state: RedisState) -> None:
    with pytest.raises(ValueError, match="replica"):
        await state.roster.opened(Stream("nameless", "c1", View.ALL, ""))


async def test_a_dead_replicas_streams_are_forgotten(bench: Bench, state: RedisState) -> None:
    await state.roster.opened(bench.stream("c1", replica="r1"))
    await state.roster.opened(bench.stream("c1", replica="r2"))
    await state.roster.opened(bench.stream("c2", replica="r1"))
    gone = bench.stream("c3", replica="r1")
    await state.roster.opened(gone)
    await opened(state, ["c2", "c3"])
    assert len(await state.tasks.claim([gone])) == 1
    async with following(state) as log:
        await twice(lambda: state.roster.forget_replica("r1"))
        assert await state.roster.active(View.ALL) == ["c1"]
        # a task that came back is named when somebody can show it
        await state.roster.opened(bench.stream("c3", replica="r2"))
        assert await state.roster.active(View.ALL) == ["c1", "c3"]
        await state.jobs.cancel("j1", "")
        await log.until("the end", lambda: "cancelled" in log.words())
    assert log.words() == ["resync", "cancelled"]
    assert not bench.raw.exists(bench.key("streams:r1"))


async def test_replicas_with_colons_in_their_names(bench: Bench, state: RedisState) -> None:
    await state.roster.opened(Stream("host:12080:1", "c1", View.ALL, ""))
    await state.roster.forget_replica("host")
    assert await state.roster.active(View.ALL) == ["c1"]
    await state.roster.forget_replica("host:12080")
    assert await state.roster.active(View.ALL) == []


async def test_who_waits_for_clients_hears_of_them(bench: Bench, state: RedisState) -> None:
    await claimed(state)
    async with following(state) as log:
        await state.roster.opened(bench.stream("c1"))  # nobody waits
        await twice(lambda: state.roster.want_clients("j1", True))
        await state.roster.opened(bench.stream("c2"))
        await log.until("c2", lambda: "client" in log.words())
        unseen(bench, "c1", 11)
        await state.roster.beat({"c1": "", "c2": "", "c3": ""})
        await log.until("who came back", lambda: log.words().count("client") == 2)
        await twice(lambda: state.roster.want_clients("j1", False))
        await state.roster.opened(bench.stream("c4"))
        await state.jobs.cancel("j1", "")
        await log.until("the end", lambda: "cancelled" in log.words())
    assert log.words() == ["resync", "waiting", "client", "client", "cancelled"]
    first, second = (event for event in log.events if event.what == "client")
    assert (first.client, first.clients) == ("c2", ("c2",))
    assert sorted(second.clients) == ["c1", "c3"]


@pytest.mark.parametrize("how", ["opened", "cancelled", "ended"])
async def test_nobody_waits_for_clients_for_ever(bench: Bench, state: RedisState, how: str) -> None:
    await state.jobs.submit(new_job("j0"))
    await state.roster.want_clients("j0", True)  # is not running
    assert not bench.raw.exists(bench.key("wanting"))
    lease = await state.jobs.claim("r1")
    assert lease is not None
    await state.roster.want_clients("j0", True)
    if how == "opened":
        await state.jobs.open(lease, [], 1, "{}")
    else:
        await state.jobs.cancel("j0", "")
        await state.roster.want_clients("j0", True)  # has ended
    assert not bench.raw.exists(bench.key("wanting"))


async def test_clients_unseen_for_a_week_are_forgotten(bench: Bench, state: RedisState) -> None:
    await state.roster.opened(Stream("dead:1", "c1", View.ALL, "0.6", "hospital"))
    await state.roster.beat({f"c{number}": "0.6" for number in range(2, 30)})
    await opened(state, ["c1"])
    for number in range(1, 30):
        unseen(bench, f"c{number}", 8 * 86_400)
    await state.roster.beat({"c0": ""})  # some at each call
    assert len(await listed(state.roster.list(all=True))) == 9
    await state.roster.beat({"c0": ""})
    assert [presence.client for presence in await listed(state.roster.list(all=True))] == ["c0"]
    assert bench.raw.hgetall(bench.key("eras")) == {}
    assert not bench.raw.exists(bench.key("tasks:c1"))
    assert not bench.raw.exists(bench.key("cut"))
    assert not bench.raw.exists(bench.key("names")) + bench.raw.exists(bench.key("named:hospital"))


async def test_a_client_that_we_cut_off_is_known_until_it_is_back(bench: Bench, state: RedisState) -> None:
    first, second = bench.stream("c1"), bench.stream("c1")
    for stream in (first, second):
        await state.roster.opened(stream)
    cut = []
    for step in (
        lambda: state.roster.closed(first, by_us=True),  # it has another one
        lambda: state.roster.closed(second, by_us=True),
        lambda: state.roster.opened(bench.stream("c1", replica="r2")),
        lambda: state.roster.forget_replica("r2"),
        lambda: state.roster.opened(first),
        lambda: state.roster.closed(first, by_us=False),
    ):
        await twice(step)
        cut.append((await state.roster.presence(["c1"]))[0].cut)
    assert cut == [False, True, False, True, False, False]


async def test_the_roster_is_bounded(bench: Bench) -> None:
    state = bench.state(max_roster=3)
    for number in range(5):
        await state.roster.opened(bench.stream(f"c{number}"))
        unseen(bench, f"c{number}", 100 - number)
    await state.roster.opened(bench.stream("c5"))
    assert await names(state) == ["c3", "c4", "c5"]


async def test_a_full_roster_takes_nobody_while_all_of_it_are_heard_of(bench: Bench) -> None:
    state = bench.state(max_roster=2)
    for client in ("c1", "c2", "c3"):
        stream = Stream(f"r1:{client}", client, View.ALL, "0.6")
        await twice(partial(state.roster.opened, stream))
    assert await names(state) == ["c1", "c2"]
    assert await state.roster.active(View.ALL) == ["c1", "c2"]
    assert (await state.upkeep.memory()).names_refused == 2
    await state.roster.closed(Stream("r1:c3", "c3", View.ALL, "0.6"), by_us=False)
    assert not bench.raw.hexists(bench.key("subs:all"), "c3")


async def test_names_without_a_stream_push_nobody_out(bench: Bench) -> None:
    state = bench.state(max_roster=16)
    for number in range(10):
        await state.roster.opened(bench.stream(f"c{number}"))
    made_up = {f"x{number}": "" for number in range(1000)}
    await twice(lambda: state.roster.beat(made_up))
    found = await names(state)
    assert [name for name in found if name[0] == "c"] == [f"c{number}" for number in range(10)]
    guests = [name for name in found if name[0] == "x"]
    assert len(guests) == 2
    assert (await state.upkeep.memory()).names_refused == 2 * 998
    # The silent one makes room, and with a stream it is no guest any more.
    bench.raw.zadd(bench.key("guests"), {guests[0]: 1})
    await state.roster.beat({"late": ""})
    await state.roster.opened(bench.stream("late"))
    await state.roster.beat({"later": ""})
    assert {"late", "later", guests[1]} <= set(await names(state))


async def test_a_forgotten_client_fails_what_it_was_asked(bench: Bench) -> None:
    state = bench.state(max_roster=1)
    await state.roster.opened(bench.stream("c1"))
    await opened(state, ["c1"])
    unseen(bench, "c1", 60)
    await state.roster.opened(bench.stream("c2"))
    record = (await job_of(state)).clients["c1"]
    assert (record.state, record.reason) == (ClientState.FAILED, "client_lost")
    assert not bench.raw.exists(bench.key("tasks:c1"))


async def test_a_guest_with_a_stream_needs_room_like_any_other(bench: Bench) -> None:
    state = bench.state(max_roster=2)
    await state.roster.beat({"guest": ""})
    for client in ("c1", "c2", "guest"):
        await state.roster.opened(bench.stream(client))
    assert await state.roster.active(View.ALL) == await names(state) == ["c1", "c2"]


async def test_streams_that_found_no_room_are_called_back_when_there_is_some(bench: Bench) -> None:
    state = bench.state(max_roster=1, recall_ms=-1)
    await state.roster.opened(bench.stream("c1"))
    await state.roster.opened(waiting := bench.stream("c2"))
    async with following(state) as follower:
        await state.roster.beat({"c1": ""})
        assert await state.roster.active(View.ALL) == ["c1"]
        wide = bench.state(max_roster=2, recall_ms=-1)
        await wide.roster.beat({"c1": ""})
        await follower.until("the call", lambda: follower.words() == ["resync", "resync"])
        await wide.roster.opened(waiting)
        await wide.roster.beat({"c1": ""})
        assert await wide.roster.active(View.ALL) == ["c1", "c2"]
        assert follower.words() == ["resync", "resync"]

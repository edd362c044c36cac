"""What the adapter does when Redis is away, full, too new, or does not get its replies through."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import redis
from combiner.adapters import connection
from combiner.adapters.limits import SCHEMA
from combiner.adapters.state import RedisState
from combiner.domain.types import ClientState, Job, Kind, Session, State
from combiner.ports import (
    Ask,
    Lease,
    Received,
    SchemaTooNew,
    StateUnavailable,
    Stream,
    Verdict,
    View,
)

from tests.contract.state_kit import (
    TASK_DATA,
    Bench,
    Server,
    a_model,
    claimed,
    client_state,
    closed,
    job_of,
    listed,
    new_job,
    opened,
    receive,
)


class LossyProxy:
    """Between the adapter and Redis. `lose` counts the scripts whose replies get lost."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self.lose = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_redis, to_redis = await asyncio.open_unix_connection(self._target)
        self._writers |= {writer, to_redis}
        script = asyncio.Event()
        requests = asyncio.create_task(self._requests(reader, to_redis, script))
        while data := await from_redis.read(1 << 16):
            if self.lose > 0 and script.is_set():
                self.lose -= 1
                break
            writer.write(data)
        requests.cancel()
        for end in (writer, to_redis):
            end.close()
            self._writers.discard(end)

    async def _requests(
        self, reader: asyncio.StreamReader, to_redis: asyncio.StreamWriter, script: asyncio.Event
    ) -> None:
        while data := await reader.read(1 << 16):
            if b"EVALSHA" in data:
                script.set()
            to_redis.write(data)
        to_redis.close()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


@pytest.fixture
async def proxy(valkey: Server) -> AsyncIterator[LossyProxy]:
    made = LossyProxy(valkey.url.removeprefix("unix://"))
    path = Path(valkey.url.removeprefix("unix://")).with_name("proxy")
    server = await asyncio.start_unix_server(made, path)
    yield made
    server.close()
    made.close()


@pytest.fixture
async def lossy(bench: Bench, proxy: LossyProxy) -> RedisState:
    """A replica whose replies can be lost; every script is known to the server already."""
    state = RedisState(bench.server.url.removesuffix("/s") + "/proxy", prefix=bench.prefix)
    bench.opened.append(state)
    for script in state._connection._scripts.values():
        await state._connection.command("SCRIPT", "LOAD", script.script)
    return state


Step = Callable[[RedisState, Lease], Awaitable[object]]

STEPS: dict[str, Step] = {
    "submit": lambda s, _: s.jobs.submit(new_job("j2")),
    "open": lambda s, lease: s.jobs.open(lease, [Ask("x", "t")], 1, TASK_DATA),
    "receive": lambda s, _: receive(s, "c1", "u1"),
    "refuse": lambda s, _: s.jobs.refuse(client="c1", task_id="", job_id="j1", reason="shape", detail=""),
    "fail_client": lambda s, _: s.jobs.fail_client(
        client="c1", task_id="", job_id="j1", reason="r", detail=""
    ),
    "not asked": lambda s, _: receive(s, "c9", "u1", task_id=""),
    "add_unrecorded": lambda s, _: s.jobs.add_unrecorded(client="c1", task_id="", job_id="j1"),
    "accept": lambda s, lease: s.jobs.accept(lease, "c2"),
    "reject": lambda s, lease: s.jobs.reject(lease, "c2", "shape", ""),
    "close": lambda s, lease: s.jobs.close(lease, "why"),
    "end": lambda s, lease: s.jobs.end(lease, State.FAILED, "why"),
    "cancel": lambda s, _: s.jobs.cancel("j1", "why"),
    "start": lambda s, _: s.sessions.start(Session("s1", State.QUEUED, "", "m", "m", {})),
    "register": lambda s, _: s.models.register(a_model("m1")),
    "release": lambda s, lease: s.leases.release(lease),
    "opened": lambda s, _: s.roster.opened(Stream("r1:1", "c1", View.ALL, "")),
    "closed": lambda s, _: s.roster.closed(Stream("r1:0", "c1", View.ALL, ""), by_us=False),
    "want": lambda s, _: s.roster.want_clients("j1", True),
    "forget": lambda s, _: s.roster.forget_replica("r1"),
    "put_raw": lambda s, _: s.tasks.put_raw(client="c1", kind=Kind.TRAINING, task_id="x", raw=b""),
}


async def prepare(state: RedisState) -> Lease:
    """A job with c1 asked, its task on a stream of r1, and c2 received."""
    stream = Stream("r1:0", "c1", View.ALL, "")
    await state.roster.opened(stream)
    lease = await opened(state, ["c1", "c2"])
    await state.tasks.claim([stream])
    await receive(state, "c2", "u2")
    return lease


def contents(bench: Bench, prefix: str) -> dict[str, object]:
    """Everything under a prefix, times, tokens and marks of claims left out."""
    found: dict[str, object] = {}
    for key in bench.raw.keys(f"{prefix}*"):
        name = key.removeprefix(prefix)
        kind = bench.raw.type(key)
        if kind == "hash":
            found[name] = {k: v for k, v in bench.raw.hgetall(key).items() if not k.endswith("_ms")}
        elif kind == "zset":
            found[name] = sorted(bench.raw.zrange(key, 0, -1))
        elif kind == "list":
            found[name] = bench.raw.lrange(key, 0, -1)
        elif kind == "set":
            found[name] = bench.raw.smembers(key)
        elif kind == "stream":
            found[name] = [fields for _, fields in bench.raw.xrange(key)]
        elif name not in ("fence",):
            found[name] = bench.raw.get(key)
    return found


def without_times(contents: dict[str, object]) -> str:
    text = re.sub(r"\d{13}", "<ms>", repr(sorted(contents.items(), key=lambda item: item[0])))
    return re.sub(r"[0-9a-f]{12}(?=\\*\")", "<nonce>", text)


@pytest.mark.parametrize("step", STEPS)
async def test_a_step_whose_reply_is_lost_happens_once(
    bench: Bench, proxy: LossyProxy, lossy: RedisState, step: str
) -> None:
    """The adapter sends it again by itself. Redis then holds the same as after a step that went well."""
    lease = await prepare(lossy)
    proxy.lose = 1
    await STEPS[step](lossy, lease)
    assert proxy.lose == 0
    smooth = RedisState(bench.server.url, prefix=f"smooth-{bench.prefix}")
    bench.opened.append(smooth)
    await STEPS[step](smooth, await prepare(smooth))
    expected = without_times(contents(bench, f"smooth-{bench.prefix}"))
    assert without_times(contents(bench, bench.prefix)) == expected


async def test_a_commit_whose_reply_is_lost_happens_once(proxy: LossyProxy, lossy: RedisState) -> None:
    lease = await prepare(lossy)
    await lossy.jobs.accept(lease, "c2")
    await closed(lossy, lease)
    proxy.lose = 1
    await lossy.jobs.commit(lease, a_model("m1"), {})
    proxy.lose = 2
    with pytest.raises(StateUnavailable):
        await lossy.jobs.commit(lease, a_model("m1"), {})
    await lossy.jobs.commit(lease, a_model("m1"), {})
    job = await job_of(lossy)
    assert (job.state, job.model_id) == (State.SUCCEEDED, "m1")
    assert [model.model_id for model in await listed(lossy.models.list())] == ["m1"]


async def test_an_update_is_received_whatever_is_lost(proxy: LossyProxy, lossy: RedisState) -> None:
    await opened(lossy, ["c1"])
    proxy.lose = 2
    with pytest.raises(StateUnavailable):
        await receive(lossy, "c1", "u1")
    assert await receive(lossy, "c1", "u1") == Received(Verdict.REPEATED, "j1")
    assert await client_state(lossy, "c1") is ClientState.RECEIVED


@pytest.mark.parametrize("lost", [1, 2])
async def test_tasks_in_a_lost_reply_are_handed_out_again(
    bench: Bench, proxy: LossyProxy, lossy: RedisState, lost: int
) -> None:
    one, two = bench.stream("c1"), bench.stream("c2")
    for stream in (one, two):
        await lossy.roster.opened(stream)
    await opened(lossy, ["c1", "c2"])
    proxy.lose = lost
    try:
        tasks = await lossy.tasks.claim([one, two])
    except StateUnavailable:
        tasks = [*await lossy.tasks.claim([two]), *await lossy.tasks.claim([one])]
    assert sorted(task.task_id for _, task in tasks) == ["t-j1-c1", "t-j1-c2"]
    assert await lossy.tasks.claim([one, two]) == []
    # it was one delivery: two more are allowed
    for deliveries in (2, 3):
        await lossy.roster.closed(one, by_us=False)
        assert await client_state(lossy, "c1") is ClientState.ASKED
        one = bench.stream("c1")
        await lossy.roster.opened(one)
        assert len(await lossy.tasks.claim([one])) == 1, deliveries
    await lossy.roster.closed(one, by_us=False)
    assert await client_state(lossy, "c1") is ClientState.FAILED


async def test_a_claim_whose_reply_is_lost_shows_in_the_leases(proxy: LossyProxy, lossy: RedisState) -> None:
    await lossy.jobs.submit(new_job("j1"))
    proxy.lose = 1
    assert await lossy.jobs.claim("r1") is None  # the second time nothing is queued any more
    _, views = await lossy.leases.renew("r1", [])
    [seen] = [view for view in views if view.work == "job:j1"]
    lease = await lossy.leases.take_over(seen, "r1")
    assert lease is not None
    await lossy.jobs.end(lease, State.FAILED, "")


async def test_a_cancelled_call_leaves_the_connections_in_order(lossy: RedisState) -> None:
    for number in range(100):
        task = asyncio.create_task(lossy.jobs.submit(new_job(f"j{number}")))
        for _ in range(number % 7):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    jobs: list[Job | None] = [await lossy.jobs.get(f"j{number}") for number in range(100)]
    assert all(job is None or job.job_id == f"j{number}" for number, job in enumerate(jobs))


# --- Redis is not as it should be


async def test_a_redis_that_is_away(bench: Bench) -> None:
    state = RedisState("unix:///nowhere/at/all")
    for step in (state.jobs.counts, state.log.now_ms, lambda: state.log.statuses([{"a": "b"}])):
        with pytest.raises(StateUnavailable, match="nowhere"):
            await step()
    await state.aclose()


async def test_a_redis_that_hangs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    monkeypatch.setattr(connection, "COMMAND_S", 0.1)
    path = Path(bench.server.url.removeprefix("unix://")).with_name("silent")
    server = await asyncio.start_unix_server(silent, path)
    state = RedisState(f"unix://{path}")
    with pytest.raises(StateUnavailable, match="did not answer"):
        await state.jobs.counts()
    await state.aclose()
    server.close()


async def test_it_goes_on_after_a_restart(bench: Bench) -> None:
    server = Server()
    server.start()
    state = RedisState(server.url)
    try:
        lease = await opened(state, ["c1"])
        server.kill()
        with pytest.raises(StateUnavailable):
            await receive(state, "c1", "u1")
        server.start()
        assert await receive(state, "c1", "u1") == Received(Verdict.RECEIVED, "j1")
        await state.jobs.accept(lease, "c1")
    finally:
        await state.aclose()
        server.close()


async def test_a_full_redis_refuses_whole_steps(bench: Bench, state: RedisState) -> None:
    await opened(state, ["c1"])
    before = await job_of(state)
    bench.raw.config_set("maxmemory", "1mb")
    try:
        with pytest.raises(StateUnavailable, match="full"):
            await state.jobs.submit(new_job("j2"))
        assert await job_of(state) == before  # which can be read
        assert await state.jobs.get("j2") is None
    finally:
        bench.raw.config_set("maxmemory", "0")
    await state.jobs.submit(new_job("j2"))


async def test_a_read_only_redis(bench: Bench, state: RedisState) -> None:
    bench.raw.replicaof("127.0.0.1", "1")
    try:
        with pytest.raises(StateUnavailable, match="read-only"):
            await state.jobs.submit(new_job("j1"))
    finally:
        bench.raw.replicaof("no", "one")


async def test_a_redis_with_a_password(bench: Bench) -> None:
    url = bench.server.url
    bench.raw.config_set("requirepass", "secret")
    try:
        stranger, friend = RedisState(url), RedisState(url.replace("unix://", "unix://:secret@"))
        bench.opened += [stranger, friend]
        with pytest.raises(StateUnavailable, match="Authentication required"):
            await stranger.jobs.counts()
        await friend.jobs.counts()
    finally:
        bench.raw.config_set("requirepass", "")


async def test_somebody_elses_data(bench: Bench, state: RedisState) -> None:
    bench.raw.set(bench.key("job:j1"), "not a hash")
    with pytest.raises(StateUnavailable, match="WRONGTYPE"):
        await state.jobs.get("j1")


async def test_the_schema_is_marked_at_first_contact(bench: Bench, state: RedisState) -> None:
    await state.jobs.counts()  # only reads
    assert bench.raw.get(bench.key("schema")) is None
    await state.jobs.submit(new_job("j1"))
    assert bench.raw.get(bench.key("schema")) == str(SCHEMA)


async def test_a_newer_schema_is_left_alone(bench: Bench, state: RedisState) -> None:
    lease = await claimed(state)
    bench.raw.set(bench.key("schema"), SCHEMA + 1)
    before = contents(bench, bench.prefix)
    for step in (
        lambda: state.jobs.counts(),
        lambda: state.jobs.close(lease, ""),
        lambda: state.leases.renew("r1", [lease]),
        lambda: state.log.statuses([{"text": "hello"}]),
        lambda: state.models.mark_complete(),
    ):
        with pytest.raises(SchemaTooNew):
            await step()
    assert contents(bench, bench.prefix) == before


async def test_stacks_share_a_redis_by_prefix(bench: Bench, state: RedisState) -> None:
    await state.jobs.submit(new_job("j1"))
    other = RedisState(bench.server.url, prefix=f"other-{bench.prefix}")
    bench.opened.append(other)
    assert await other.jobs.get("j1") is None
    assert await other.jobs.claim("r1") is None


async def test_connections_are_bounded(bench: Bench, state: RedisState) -> None:
    with redis.Redis.from_url(bench.server.url) as raw:
        before = len(raw.client_list())
        await asyncio.gather(*(state.jobs.submit(new_job(f"j{number}")) for number in range(300)))
        assert len(raw.client_list()) - before <= connection.CONNECTIONS
    assert await state.jobs.counts() == {State.QUEUED: 300, State.RUNNING: 0}

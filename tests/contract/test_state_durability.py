"""Confirmed steps survive the primary if REDIS_WAIT is set; and what Redis tells of its settings."""

from __future__ import annotations

import signal
import socket
from collections.abc import AsyncIterator, Iterator

import pytest
import redis
from combiner.adapters.state import RedisState
from combiner.domain.types import ClientState, State
from combiner.ports import StateUnavailable, Verdict

from tests.contract.state_kit import (
    Bench,
    Server,
    a_model,
    client_state,
    closed,
    eventually,
    job_of,
    opened,
    receive,
    running_server,
)


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def primary(port: int) -> Iterator[Server]:
    options = ("--bind", "127.0.0.1", "--port", str(port), "--repl-diskless-sync-delay", "0")
    with running_server(*options) as server:
        yield server


@pytest.fixture
async def replica(primary: Server, port: int) -> AsyncIterator[Server]:
    """In step with the primary when the test begins."""
    with running_server("--replicaof", f"127.0.0.1 {port}") as server:
        with redis.Redis.from_url(server.url, decode_responses=True) as raw:
            await eventually("the first copy", lambda: raw.info()["master_link_status"] == "up")
        yield server


@pytest.fixture
async def states() -> AsyncIterator[list[RedisState]]:
    made: list[RedisState] = []
    yield made
    for state in made:
        await state.aclose()


def a_state(server: Server, states: list[RedisState], wait: int = 0) -> RedisState:
    states.append(RedisState(server.url, wait=wait))
    return states[-1]


def fail_over(primary: Server, replica: Server) -> None:
    """The replica, cut off before, becomes the primary."""
    primary.kill()
    promote(replica)


def promote(replica: Server) -> None:
    with redis.Redis.from_url(replica.url) as raw:
        raw.replicaof("NO", "ONE")


async def test_a_confirmed_update_is_at_the_replica(
    primary: Server, replica: Server, states: list[RedisState]
) -> None:
    state = a_state(primary, states, wait=1)
    await opened(state, ["c1"])
    assert (await receive(state, "c1", "u1")).verdict is Verdict.RECEIVED
    fail_over(primary, replica)
    promoted = a_state(replica, states)
    assert await client_state(promoted, "c1") is ClientState.RECEIVED
    assert (await receive(promoted, "c1", "u1")).verdict is Verdict.REPEATED


async def test_nothing_is_confirmed_while_the_replica_lags_however_often_it_is_asked_for(
    primary: Server, replica: Server, states: list[RedisState]
) -> None:
    """Also over a connection that has written nothing: WAIT alone would let that pass."""
    state, other = a_state(primary, states, wait=1), a_state(primary, states, wait=1)
    lease = await opened(state, ["c1"])
    replica.signal(signal.SIGSTOP)
    for asked in (state, state, other):
        with pytest.raises(StateUnavailable, match=r"0 of 1 replicas of Redis \(REDIS_WAIT\)"):
            await receive(asked, "c1", "u1")
    await state.leases.renew("r1", [lease])  # leases wait for nobody
    replica.signal(signal.SIGCONT)
    assert (await receive(other, "c1", "u1")).verdict is Verdict.REPEATED


@pytest.mark.parametrize("wait", [0, 1])
async def test_what_a_failover_to_a_lagging_replica_costs(
    primary: Server, replica: Server, states: list[RedisState], wait: int
) -> None:
    """Without REDIS_WAIT a round that had ended, with its model. With it nobody was told of its end."""
    state = a_state(primary, states, wait=wait)
    lease = await opened(state, ["c1"])
    await receive(state, "c1", "u1")
    await state.jobs.accept(lease, "c1")
    await closed(state, lease)
    with redis.Redis.from_url(primary.url) as ahead, redis.Redis.from_url(replica.url) as raw:
        assert ahead.execute_command("WAIT", 1, 10_000) == 1
        raw.replicaof("NO", "ONE")  # it hears nothing any more
    told = False
    try:
        await state.jobs.commit(lease, a_model("m1"), {})
        told = True
    except StateUnavailable:
        assert (await job_of(state)).state is State.SUCCEEDED  # only not at the replica
    assert told is (wait == 0)
    fail_over(primary, replica)
    promoted = a_state(replica, states)
    job = await job_of(promoted)
    assert (job.state, job.clients["c1"].state) == (State.RUNNING, ClientState.ACCEPTED)
    assert await promoted.models.newest() is None
    await promoted.jobs.commit(lease, a_model("m1"), {})
    assert (await job_of(promoted)).state is State.SUCCEEDED


async def test_errors_of_a_step_that_waits_are_the_same(
    primary: Server, replica: Server, states: list[RedisState]
) -> None:
    plain, waiting = a_state(primary, states), a_state(primary, states, wait=1)
    lease = await opened(waiting, ["c1"])
    errors = []
    for state in (plain, waiting):
        with pytest.raises(Exception, match="not closed") as caught:
            await state.jobs.commit(lease, a_model("m1"), {})
        errors.append((caught.type, str(caught.value)))
    assert errors[0] == errors[1]


async def test_redis_tells_what_it_is_set_to(bench: Bench, states: list[RedisState]) -> None:
    state = bench.state()
    info = await state.info()
    assert (info["aof_enabled"], info["appendfsync"], info["maxmemory_policy"]) == (1, "always", "noeviction")


async def test_a_redis_that_refuses_config_is_asked_once(primary: Server, states: list[RedisState]) -> None:
    with redis.Redis.from_url(primary.url) as raw:
        raw.acl_setuser("some", enabled=True, passwords=["+pw"], commands=["+@all", "-config"], keys=["*"])
        state = RedisState(primary.url.replace("unix://", "unix://some:pw@"))
        states.append(state)
        for _ in range(3):
            info = await state.info()
            assert info["aof_enabled"] == 1
            assert "appendfsync" not in info
        refused = [row for row in raw.acl_log() if row["username"] == "some"]
        assert [int(row["count"]) for row in refused] == [1]

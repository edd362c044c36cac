"""Clients that ask for tasks by their id and answer by their name, as FEDn 0.11 to 0.26 does."""

from __future__ import annotations

from combiner.adapters.state import RedisState
from combiner.domain.types import ClientState, Kind, Reason
from combiner.ports import Stream, Verdict, View

from tests.contract.state_kit import Bench, client_state, job_of, opened, receive


async def named(state: RedisState, *clients: str, name: str = "hospital") -> None:
    for number, client in enumerate(clients):
        await state.roster.opened(Stream(f"r1:{number}", client, View.ALL, "0.9", name))


async def test_an_answer_by_name_is_that_of_the_client_whose_task_it_is(state: RedisState) -> None:
    await named(state, "id-1", "id-2")
    await opened(state, ["id-1", "id-2"])
    for number in (2, 1):
        received = await receive(state, "hospital", f"u{number}", task_id=f"t-j1-id-{number}")
        assert (received.verdict, received.job_id) == (Verdict.RECEIVED, "j1")
    clients = (await job_of(state)).clients
    assert {client: rec.update_id for client, rec in clients.items()} == {"id-1": "u1", "id-2": "u2"}


async def test_the_same_answer_by_name_again_changes_nothing(state: RedisState) -> None:
    await named(state, "id-1")
    await opened(state, ["id-1"])
    await receive(state, "hospital", "u1", task_id="t-j1-id-1")
    again = await receive(state, "hospital", "u1", task_id="t-j1-id-1")
    assert again.verdict is Verdict.REPEATED
    assert not (await job_of(state)).others


async def test_validation_and_failure_are_known_by_name_too(state: RedisState) -> None:
    await named(state, "id-1", "id-2")
    await opened(state, ["id-1", "id-2"], kind=Kind.VALIDATION)
    where = {"client": "hospital", "job_id": ""}
    await state.jobs.answer(**where, task_id="t-j1-id-1", model_id="seed", data="{}")
    assert await state.jobs.fail_client(
        **where, task_id="t-j1-id-2", reason=Reason.CLIENT_FAILED, detail="no data"
    )
    assert await client_state(state, "id-1") is ClientState.ACCEPTED
    assert await client_state(state, "id-2") is ClientState.FAILED


async def test_a_name_is_no_way_to_the_task_of_another(state: RedisState) -> None:
    await named(state, "id-1")
    await state.roster.opened(Stream("r1:9", "id-2", View.ALL, "0.9", "clinic"))
    await opened(state, ["id-1", "id-2"])
    assert (await receive(state, "clinic", "u1", task_id="t-j1-id-1")).verdict is Verdict.REJECTED
    assert (await receive(state, "hospital", "u2", task_id="")).verdict is Verdict.REJECTED
    assert await client_state(state, "id-1") is ClientState.ASKED


async def test_a_client_has_one_name_at_a_time(bench: Bench, state: RedisState) -> None:
    await named(state, "id-1", name="old")
    await named(state, "id-1", name="new")
    await opened(state, ["id-1"])
    assert (await receive(state, "old", "u1", task_id="t-j1-id-1")).verdict is Verdict.REJECTED
    assert (await receive(state, "new", "u2", task_id="t-j1-id-1")).verdict is Verdict.RECEIVED
    assert not bench.raw.exists(bench.key("named:old"))


async def test_a_name_is_that_of_a_bounded_number_of_clients(bench: Bench) -> None:
    """FEDn's clients have a new id at each start: who is gone makes room for who came back."""
    state = bench.state(max_named=3)
    await named(state, "working", name="hospital")
    await opened(state, ["working"])
    working = Stream("r1:0", "working", View.ALL, "0.9", "hospital")
    await state.roster.closed(working, by_us=False)
    for number in range(1000):
        stream = Stream(f"r2:{number}", f"id-{number}", View.ALL, "0.9", "hospital")
        await state.roster.opened(stream)
        await state.roster.closed(stream, by_us=False)
    members = bench.raw.smembers(bench.key("named:hospital"))
    assert len(members) == 3
    assert {"working", "id-999"} <= members, "a client with a task is not displaced, and the newest is there"
    assert bench.raw.hlen(bench.key("names")) == 3
    assert (await receive(state, "hospital", "u1", task_id="t-j1-working")).verdict is Verdict.RECEIVED


async def test_clients_with_streams_are_not_displaced_from_their_name(bench: Bench) -> None:
    state = bench.state(max_named=3)
    await named(state, *(f"id-{number}" for number in range(10)))
    assert bench.raw.smembers(bench.key("named:hospital")) == {"id-0", "id-1", "id-2"}

"""Refusals on the wire: what FEDn's clients can live with, and what our own client makes of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import combiner.app
import grpc
import grpc.aio
import httpx
import pytest
from combiner.settings import CombinerSettings

from fedcombiner.access.record import TokenRecord
from fedcombiner.access.redis_tokens import RedisTokens
from fedcombiner.access.roles import Role
from fedcombiner.access.secret import digest, new_token
from fedcombiner.client.client import FederatedClient
from fedcombiner.client.link import Link, token_metadata
from fedcombiner.client.messages import Messages
from fedcombiner.client.operator import OperatorClient
from fedcombiner.servicekit.errors import MEANT_TRAILER, PermissionDenied, Unauthenticated
from fedcombiner.wire.pb import fedn_pb2
from tests.contract.state_kit import Server
from tests.rpc.access_kit import DEADLINE, LOCAL, OPERATOR, TOKENS, put_tokens, running, scratch

STREAMS = ("ModelUpdateRequestStream", "ModelValidationRequestStream", "TaskStream")


@pytest.fixture(scope="module")
def redis_url(redis_server: Server) -> str:
    url = f"{redis_server.url}?db=2"
    asyncio.run(put_tokens(url))
    return url


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedcombiner.access.interceptor.REFUSAL_HOLD_S", 0.2)
    monkeypatch.setattr("fedcombiner.access.known.REFRESH_S", 0.05)
    monkeypatch.setattr("fedcombiner.access.known.LOOK_AGAIN_S", 0.05)


@pytest.fixture
async def ports(redis_url: str, tmp_path: Path) -> AsyncIterator[tuple[int, int]]:
    settings = CombinerSettings(
        **LOCAL,
        **scratch(tmp_path),
        redis_url=redis_url,
        operator_token=OPERATOR,
        require_client_tokens=True,
    )
    async with running(combiner.app.serve, settings) as found:
        yield found


@pytest.fixture
def address(ports: tuple[int, int]) -> str:
    return f"127.0.0.1:{ports[0]}"


def link(address: str, kind: str) -> Link:
    return Link(address, metadata=token_metadata(TOKENS[kind]))


async def beat(link: Link, name: str = "c1", client_id: str = "") -> fedn_pb2.Response:
    sender = fedn_pb2.Client(name=name, client_id=client_id)
    return await link.connector.SendHeartbeat(fedn_pb2.Heartbeat(sender=sender), timeout=DEADLINE)


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


@pytest.mark.parametrize(
    ("kind", "meant", "words"),
    [
        ("no token", "UNAUTHENTICATED", "a token is needed"),
        ("wrong", "UNAUTHENTICATED", "the token is not known"),
        ("expired", "UNAUTHENTICATED", "Token expired"),
        ("revoked", "UNAUTHENTICATED", "Token revoked"),
        (
            "combiner",
            "PERMISSION_DENIED",
            "a token of role combiner may not do this; allowed: client, operator",
        ),
    ],
)
async def test_clients_are_refused_with_the_one_status_that_none_dies_of(
    address: str, kind: str, meant: str, words: str
) -> None:
    async with link(address, kind) as channel:
        error = await refusal(beat(channel))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert error.details().startswith(f"{meant}: {words}")
    assert dict(error.trailing_metadata())[MEANT_TRAILER] == meant
    token = TOKENS[kind]
    assert token is None or token not in error.details()


@pytest.mark.parametrize("rpc", STREAMS)
async def test_a_refused_stream_is_held_first(address: str, rpc: str) -> None:
    async with link(address, "wrong") as channel:
        began = time.monotonic()
        stream = getattr(channel.combiner, rpc)(Messages("c1", "0.6").subscription, timeout=DEADLINE)
        error = await refusal(stream.read())
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - began >= 0.2


async def test_with_too_many_held_the_next_is_refused_at_once(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedcombiner.access.interceptor.REFUSAL_HOLD_S", 5 * DEADLINE)
    monkeypatch.setattr("fedcombiner.servicekit.waitingroom.MAX_HELD", 1)
    async with link(address, "wrong") as channel:
        streams = [channel.combiner.TaskStream(Messages("c1", "0.8").subscription) for _ in range(2)]
        reads = {asyncio.ensure_future(stream.read()) for stream in streams}
        done, held = await asyncio.wait(reads, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
        assert (len(done), len(held)) == (1, 1)
        assert (await refusal(done.pop())).code() is grpc.StatusCode.UNAVAILABLE
        for stream in streams:
            stream.cancel()
        await asyncio.wait(held)


async def test_operators_rpcs_are_refused_as_what_it_is(address: str) -> None:
    expected = {
        "no token": Unauthenticated,
        "wrong": Unauthenticated,
        "expired": Unauthenticated,
        "client": PermissionDenied,
        "combiner": PermissionDenied,
    }
    for kind, error in expected.items():
        async with OperatorClient(address, token=TOKENS[kind]) as operator:
            for call in (operator.list_jobs, operator.report):
                with pytest.raises(error):
                    await call()
    for kind in ("controller", "operator", "settings"):
        async with OperatorClient(address, token=TOKENS[kind]) as operator:
            assert await operator.list_jobs() == []
            assert "name" in await operator.report()


async def test_our_own_client_stops_and_says_why(address: str) -> None:
    client = FederatedClient(
        "c1", train=lambda model, config: (model, 1, {}), address=address, token="fct_wrong"
    )
    with pytest.raises(Unauthenticated, match="the token is not known"):
        await asyncio.wait_for(client.run(), DEADLINE)


async def test_a_header_that_is_there_twice_is_none(address: str) -> None:
    metadata = (("authorization", f"Bearer {OPERATOR}"),) * 2
    async with Link(address, metadata=metadata) as channel:
        assert "must be `Token TOKEN`" in (await refusal(beat(channel))).details()


@pytest.fixture
def token(redis_url: str) -> Callable[..., Awaitable[str]]:
    """Puts a client's token into Redis, as it is now."""
    secret = new_token()

    async def put(**values: object) -> str:
        store = RedisTokens(redis_url)
        await store.put(digest(secret), TokenRecord(id="new", role=Role.CLIENT, **values))  # type: ignore[arg-type]
        await store.aclose()
        return secret

    return put


async def test_a_token_bound_to_clients_is_good_for_those_only(address: str, token: Any) -> None:
    secret = await token(clients=("c1", "id-of-c2"))
    async with Link(address, metadata=token_metadata(secret)) as channel:
        await beat(channel, "c1")
        await beat(channel, "c2", client_id="id-of-c2")
        for name, client_id in (("c3", ""), ("", ""), ("c1", "victim")):
            error = await refusal(beat(channel, name, client_id))
            assert dict(error.trailing_metadata())[MEANT_TRAILER] == "PERMISSION_DENIED"
            assert "is not one of client" in error.details()


@pytest.mark.parametrize("end", [{"revoked": 1.0}, {"expires": 1.0}])
async def test_streams_end_soon_after_their_token(address: str, token: Any, end: dict[str, float]) -> None:
    secret = await token()
    async with Link(address, metadata=token_metadata(secret)) as channel:
        await beat(channel)
        stream = channel.combiner.TaskStream(Messages("c1", "0.8").subscription, timeout=DEADLINE)
        reading = asyncio.ensure_future(stream.read())
        done, _ = await asyncio.wait({reading}, timeout=0.3)
        assert not done
        await token(**end)
        error = await refusal(asyncio.wait_for(reading, DEADLINE))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert dict(error.trailing_metadata())[MEANT_TRAILER] == "UNAUTHENTICATED"
        assert (await refusal(beat(channel))).code() is grpc.StatusCode.UNAVAILABLE


async def test_refusals_are_counted_and_the_operators_page_is_guarded(
    address: str, ports: tuple[int, int]
) -> None:
    async with link(address, "wrong") as channel, httpx.AsyncClient(trust_env=False) as http:
        await refusal(beat(channel))
        private = f"http://127.0.0.1:{ports[1]}"
        assert (await http.get(f"{private}/readyz")).status_code == 200
        text = (await http.get(f"{private}/metrics")).text
        assert 'fedcombiner_access_refused_total{reason="unauthenticated"} 1.0' in text
        refused = await http.get(f"{private}/statusz")
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        for kind, code in (("client", 403), ("controller", 200)):
            headers = {"Authorization": f"Bearer {TOKENS[kind]}"}
            assert (await http.get(f"{private}/statusz", headers=headers)).status_code == code

"""Which client a transfer counts for: a bound token, or else the address it comes from."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc.aio
import modelstore.app
import pytest
from modelstore.settings import ModelstoreSettings

from fedcombiner.access.record import TokenRecord
from fedcombiner.access.redis_tokens import RedisTokens
from fedcombiner.access.roles import Role
from fedcombiner.access.secret import digest
from fedcombiner.client.link import token_metadata
from fedcombiner.modelstorage import servicer
from fedcombiner.servicekit.caller import address_of, share_of
from fedcombiner.wire.chunks import encode_request
from fedcombiner.wire.pb.fedn_pb2 import OK
from tests.contract.state_kit import Server
from tests.rpc.access_kit import DEADLINE, LOCAL, OPERATOR, put_tokens, running, scratch

BOUND = "fct_bound"


async def put_bound(url: str) -> None:
    await put_tokens(url)
    store = RedisTokens(url)
    await store.put(
        digest(BOUND), TokenRecord(id="bound", role=Role.CLIENT, created=time.time(), clients=("c1",))
    )
    await store.aclose()


async def test_a_bound_token_has_a_share_of_its_own(
    redis_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{redis_server.url}?db=3"
    await put_bound(url)
    shares: list[str] = []

    def noted(context: Any) -> str:
        shares.append(share_of(context))
        return shares[-1]

    monkeypatch.setattr(servicer, "share_of", noted)
    settings = ModelstoreSettings(
        **LOCAL, **scratch(tmp_path), redis_url=url, operator_token=OPERATOR, require_client_tokens=True
    )
    async with (
        running(modelstore.app.serve, settings) as (port, _),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        upload = channel.stream_unary("/fedn.ModelService/Upload")
        for token in (BOUND, f"fct_{Role.CLIENT}", BOUND):
            messages = [encode_request("m1", OK)]
            await asyncio.wait_for(
                upload(iter(messages), metadata=token_metadata(token), timeout=DEADLINE), DEADLINE
            )
    assert shares == [digest(BOUND), "ipv4:127.0.0.1", digest(BOUND)]


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.1:5000", "ipv4:10.0.0.1"),
        ("ipv6:%5B::1%5D:5000", "ipv6:%5B::1%5D"),
        ("unix:/run/x", "unix:/run/x"),
    ],
)
def test_an_address_is_a_peer_without_its_port(peer: str, address: str) -> None:
    assert address_of(peer) == address

"""Servers that would let everybody in do not start; and what counts while Redis is away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import combiner.app
import discovery_mock.app
import grpc
import grpc.aio
import httpx
import modelstore.app
import pytest
from combiner.settings import CombinerSettings
from discovery_mock.settings import DiscoverySettings
from modelstore.settings import ModelstoreSettings

from fedcombiner.access.policy import AccessSettings
from fedcombiner.client.errors import ModelNotFound
from fedcombiner.client.link import Link, token_metadata
from fedcombiner.client.transfer import download_bytes
from fedcombiner.servicekit.errors import StartupError
from fedcombiner.servicekit.lifecycle import Stop
from fedcombiner.standalone.app import Standalone, StandaloneSettings
from fedcombiner.wire.chunks import encode_request
from fedcombiner.wire.pb.fedn_pb2 import OK
from tests.contract.state_kit import Server
from tests.rpc.access_kit import DEADLINE, LOCAL, OPERATOR, TOKENS, put_tokens, running, scratch

Serve = Callable[..., Coroutine[Any, Any, None]]
SERVICES: list[tuple[Serve, type[AccessSettings]]] = [
    (combiner.app.serve, CombinerSettings),
    (modelstore.app.serve, ModelstoreSettings),
    (discovery_mock.app.serve, DiscoverySettings),
]
NO_PORTS = {"port": 0, "discovery_port": 0, "metrics_port": 0}
NOWHERE = "unix:///nowhere/s"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedcombiner.access.known.LOOK_AGAIN_S", 0.01)


@pytest.mark.parametrize(("serve", "kind"), SERVICES)
async def test_no_service_lets_everybody_in_by_default(
    serve: Serve, kind: type[AccessSettings], tmp_path: Path
) -> None:
    settings = kind(port=0, metrics_port=0, **scratch(tmp_path))
    with pytest.raises(StartupError, match=r"^HOST=0\.0\.0\.0, METRICS_HOST=0\.0\.0\.0: others could call"):
        await serve(settings, Stop())


@pytest.mark.parametrize(("serve", "kind"), SERVICES[1:])
async def test_clients_cannot_be_asked_for_tokens_that_nobody_has(
    serve: Serve, kind: type[AccessSettings], tmp_path: Path
) -> None:
    settings = kind(**LOCAL, **scratch(tmp_path), operator_token=OPERATOR, require_client_tokens=True)
    with pytest.raises(StartupError, match="set REDIS_URL, or REQUIRE_CLIENT_TOKENS=false"):
        await serve(settings, Stop())


async def test_without_redis_the_operators_first_token_counts(tmp_path: Path) -> None:
    settings = ModelstoreSettings(**LOCAL, **scratch(tmp_path), operator_token=OPERATOR)
    async with (
        running(modelstore.app.serve, settings) as (_, port),
        httpx.AsyncClient(trust_env=False) as http,
    ):
        for token, code in ((OPERATOR, 200), ("fct_operator", 401)):
            headers = {"Authorization": f"Bearer {token}"}
            answer = await http.get(f"http://127.0.0.1:{port}/statusz", headers=headers)
            assert answer.status_code == code


async def download(address: str, token: str | None) -> grpc.aio.AioRpcError | None:
    """The error of a raw Download, None if the handler answered."""
    async with Link(address, metadata=token_metadata(token)) as link:
        call = link.unary_stream("/fedn.ModelService/Download")(encode_request("none", OK), timeout=DEADLINE)
        try:
            await call.read()
        except grpc.aio.AioRpcError as error:
            return error
    return None


async def test_tokens_that_cannot_be_checked_make_nobody_give_up(tmp_path: Path) -> None:
    common = {**LOCAL, "redis_url": NOWHERE, "operator_token": OPERATOR, "require_client_tokens": True}
    async with running(modelstore.app.serve, ModelstoreSettings(**common, **scratch(tmp_path))) as (port, _):
        error = await download(f"127.0.0.1:{port}", "fct_client")
        assert error is not None
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "the token cannot be checked: Redis cannot be reached (REDIS_URL)" in error.details()
        assert await download(f"127.0.0.1:{port}", OPERATOR) is None
    async with (
        running(discovery_mock.app.serve, DiscoverySettings(**common, **scratch(tmp_path))) as (port, _),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http,
    ):
        http.headers["Authorization"] = "Token fct_client"
        for path in ("/add_client", "/api/v1/clients/add", "/add_combiner"):
            answer = await http.post(path, json={})
            assert (answer.status_code, answer.json()["status"]) == (203, "retry")
        assert (await http.get("/packages")).status_code == 503
        http.headers["Authorization"] = f"Bearer {OPERATOR}"
        assert (await http.get("/packages")).status_code == 200


async def test_the_last_copy_counts_while_redis_is_away(server: Server, tmp_path: Path) -> None:
    await put_tokens(server.url)
    settings = ModelstoreSettings(
        **LOCAL,
        **scratch(tmp_path),
        redis_url=server.url,
        operator_token=OPERATOR,
        require_client_tokens=True,
    )
    async with running(modelstore.app.serve, settings) as (port, _):
        address = f"127.0.0.1:{port}"
        assert await download(address, TOKENS["client"]) is None
        server.kill()
        assert await download(address, TOKENS["client"]) is None
        for token, words in (("fct_expired", "Token expired"), ("fct_wrong", "cannot be checked")):
            error = await download(address, token)
            assert error is not None
            assert words in error.details()
        async with Link(address, metadata=token_metadata(TOKENS["client"])) as link:
            with pytest.raises(ModelNotFound):
                await download_bytes(link, "none")


async def test_a_whole_stack_lets_nobody_in_by_default_either(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"^HOST=0\.0\.0\.0: others could call"):
        async with Standalone(StandaloneSettings(data_dir=tmp_path, host="0.0.0.0", **NO_PORTS)):
            pass


async def test_the_combiner_of_a_whole_stack_may_announce_itself(
    redis_server: Server, tmp_path: Path
) -> None:
    shared = ModelstoreSettings(operator_token=OPERATOR, require_client_tokens=True, **scratch(tmp_path))
    settings = StandaloneSettings(
        data_dir=tmp_path, redis_url=f"{redis_server.url}?db=5", modelstore=shared, **NO_PORTS
    )
    async with Standalone(settings) as stack, httpx.AsyncClient(trust_env=False) as http:
        http.headers["Authorization"] = f"Bearer {OPERATOR}"
        async with asyncio.timeout(DEADLINE):
            while not (await http.get(f"{stack.metrics_url}/statusz")).json()["discovery"]["combiners"]:
                await asyncio.sleep(0.02)
        refused = await http.post(f"{stack.discovery_url}/add_client", headers={"Authorization": "Bearer x"})
        assert refused.status_code == 401

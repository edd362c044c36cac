"""Every rpc and every endpoint, called over TLS with every kind of token: who gets in is what the table says.

A call that gets in carries an empty request; it counts as in when a handler answered it, whatever it said.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
import pytest_asyncio
from combiner.clients.streams import StreamHub
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from modelstore.settings import ModelstoreSettings

from fedcombiner.access.roles import Role
from fedcombiner.access.table import ENDPOINTS, RPCS, Access, Listener
from fedcombiner.servicekit.errors import MEANT_TRAILER, Unavailable
from fedcombiner.standalone.app import Standalone, StandaloneSettings
from fedcombiner.wire.pb import fedn_pb2
from fedcombiner.wire.registry import OWN_FILES
from tests.contract.state_kit import Server
from tests.rpc.access_kit import DEADLINE, OPERATOR, TOKENS, put_tokens, scratch
from tests.tls_kit import Certificates

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOT_GOOD = ("no token", "wrong", "expired", "revoked")
ROLE_OF = {**{role.value: role for role in Role}, "settings": Role.OPERATOR}
NEVER = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED}
REFUSALS = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
PLACES = [(listener, row) for listener, rows in ENDPOINTS.items() for row in rows]
FILES = (fedn_pb2.DESCRIPTOR, *OWN_FILES, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)
METHODS: dict[str, MethodDescriptor] = {
    f"{service.name}/{method.name}": method
    for file in FILES
    for service in file.services_by_name.values()
    for method in service.methods
}


def expected(access: Access, kind: str) -> str:
    """`in`, or the status that is meant."""
    if access.anyone:
        return "in"
    if kind in NOT_GOOD:
        return "UNAUTHENTICATED"
    return "in" if ROLE_OF[kind] in access.roles else "PERMISSION_DENIED"


@dataclass
class Stack:
    """A running stack, and a channel with each kind of token."""

    channels: dict[str, grpc.aio.Channel]
    http: httpx.AsyncClient
    urls: dict[Listener, str]


@pytest.fixture(scope="module")
def short_waits() -> Iterator[None]:
    async def reached(_hub: StreamHub) -> AsyncIterator[None]:
        raise Unavailable("a stream on which nothing is ever sent was reached")
        yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedcombiner.access.interceptor.REFUSAL_HOLD_S", 0.01)
        patch.setattr("fedcombiner.access.known.LOOK_AGAIN_S", 0.01)
        patch.setattr("combiner.servicers.streams.REFUSAL_HOLD_S", 0.01)
        patch.setattr(StreamHub, "idle", reached)
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(
    short_waits: None,
    redis_server: Server,
    certificates: Certificates,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Stack]:
    url = f"{redis_server.url}?db=4"
    await put_tokens(url)
    root: Path = tmp_path_factory.mktemp("stack")
    shared = ModelstoreSettings(operator_token=OPERATOR, **scratch(root), **certificates.good.settings)
    ports = {"port": 0, "discovery_port": 0, "metrics_port": 0}
    settings = StandaloneSettings(data_dir=root, redis_url=url, modelstore=shared, **ports)
    async with Standalone(settings) as running:
        channels = {kind: _channel(running.address, certificates, kind) for kind in TOKENS}
        verify = ssl.create_default_context(cafile=certificates.ca)
        async with httpx.AsyncClient(verify=verify, trust_env=False) as http:
            yield Stack(
                channels, http, {"discovery": running.discovery_url, "operations": running.metrics_url}
            )
        for channel in channels.values():
            await channel.close()


def _channel(address: str, certificates: Certificates, kind: str) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(certificates.ca_pem)
    token = TOKENS[kind]
    if token is not None:
        credentials = grpc.composite_channel_credentials(credentials, _as_fedn_sends_it(token))
    return grpc.aio.secure_channel(address, credentials, options=[("grpc.use_local_subchannel_pool", 1)])


def _as_fedn_sends_it(token: str) -> grpc.CallCredentials:
    class Plugin(grpc.AuthMetadataPlugin):
        def __call__(self, context: object, callback: grpc.AuthMetadataPluginCallback) -> None:
            callback((("authorization", f"Token {token}"),), None)

    return grpc.metadata_call_credentials(Plugin())


async def outcome(channel: grpc.aio.Channel, method: str) -> tuple[str, str]:
    """What came of an empty call: `in` or the status that is meant, and the status on the wire."""
    error = await _error(channel, method)
    if error is None:
        return "in", "OK"
    code = error.code()
    assert code not in NEVER, f"{code}: {error.details()}"
    meant = dict(error.trailing_metadata()).get(MEANT_TRAILER)
    if meant is not None:
        return str(meant), code.name
    return (code.name if code in REFUSALS else "in"), code.name


async def _error(channel: grpc.aio.Channel, method: str) -> grpc.aio.AioRpcError | None:
    try:
        await _call(channel, method)
    except grpc.aio.AioRpcError as error:
        return error
    return None


async def _call(channel: Any, method: str) -> None:
    """One empty request; of the answers, the first."""
    descriptor = METHODS[method.rpartition(".")[2]]
    requests = [b""]
    if descriptor.client_streaming and descriptor.server_streaming:
        call = channel.stream_stream(method)(requests, timeout=DEADLINE)
    elif descriptor.client_streaming:
        await channel.stream_unary(method)(requests, timeout=DEADLINE)
        return
    elif descriptor.server_streaming:
        call = channel.unary_stream(method)(b"", timeout=DEADLINE)
    else:
        await channel.unary_unary(method)(b"", timeout=DEADLINE)
        return
    await call.read()
    call.cancel()


@pytest.mark.parametrize("method", RPCS)
async def test_an_rpc_lets_in_whom_the_table_says(stack: Stack, method: str) -> None:
    access = RPCS[method]
    answers = await asyncio.gather(*(outcome(stack.channels[kind], method) for kind in TOKENS))
    assert {kind: meant for kind, (meant, _) in zip(TOKENS, answers, strict=True)} == {
        kind: expected(access, kind) for kind in TOKENS
    }
    # What FEDn's clients call is refused with what they can live with.
    refused = {code for meant, code in answers if meant != "in"}
    assert refused <= ({"UNAVAILABLE"} if Role.CLIENT in access.roles else {code.name for code in REFUSALS})


@pytest.mark.parametrize(("listener", "row"), PLACES)
async def test_an_endpoint_lets_in_whom_the_table_says(stack: Stack, listener: Listener, row: str) -> None:
    found = await asyncio.gather(*(http_outcome(stack, listener, row, token) for token in TOKENS.values()))
    assert dict(zip(TOKENS, found, strict=True)) == {
        kind: expected(ENDPOINTS[listener][row], kind) for kind in TOKENS
    }


async def http_outcome(stack: Stack, listener: Listener, row: str, token: str | None) -> str:
    method, _, path = row.partition(" ")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = await stack.http.request(method, stack.urls[listener] + path, headers=headers)
    meant = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED"}.get(answer.status_code, "in")
    assert answer.status_code < 500
    if meant != "in":
        assert answer.json()["success"] is False
        assert token is None or token not in answer.text
    return meant


async def test_many_callers_at_once_are_told_apart(stack: Stack) -> None:
    kinds = list(TOKENS) * 20
    method = "/combiner.v1.Jobs/List"
    found = await asyncio.gather(*(outcome(stack.channels[kind], method) for kind in kinds))
    assert [meant for meant, _ in found] == [expected(RPCS[method], kind) for kind in kinds]


async def test_what_a_client_may_is_this_and_nothing_else() -> None:
    """By hand, so that a row that opens something to clients is seen."""
    fedn = {
        "Connector/SendHeartbeat",
        "Connector/SendStatus",
        "Connector/SendModelMetric",
        "Combiner/ModelUpdateRequestStream",
        "Combiner/ModelValidationRequestStream",
        "Combiner/TaskStream",
        "Combiner/SendModelUpdate",
        "Combiner/SendModelValidation",
        "Combiner/SendModelPrediction",
        "Combiner/SendBackwardCompletion",
        "Combiner/SendModelMetric",
        "Combiner/SendAttributeMessage",
        "Combiner/SendTelemetryMessage",
        "ModelService/Upload",
        "ModelService/Download",
    }
    allowed = {method for method, access in RPCS.items() if Role.CLIENT in access.roles and not access.anyone}
    assert allowed == {f"/{package}.{name}" for package in ("grpc", "fedn") for name in fedn}

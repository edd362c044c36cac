"""A channel to a combiner, as a client of some FEDn generation uses it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc
import grpc.aio

from fedcombiner.client.trust import Trust
from fedcombiner.servicekit.binding import is_loopback
from fedcombiner.servicekit.errors import Unavailable
from fedcombiner.wire.pb import fedn_pb2_grpc
from fedcombiner.wire.registry import NEW_PACKAGE, OLD_PACKAGE

if TYPE_CHECKING:
    from fedcombiner.wire.pb.fedn_pb2_grpc import CombinerAsyncStub, ConnectorAsyncStub

Metadata = Sequence[tuple[str, str]]

_GENERATED = f"/{NEW_PACKAGE}."
_MAX_MESSAGE_BYTES = 256 << 20  # a job of thousands of clients is one message


class Link(grpc.aio.Channel):
    """A channel that calls FEDn's services in `package`, and sends `metadata` with every call.

    With a `trust` it speaks TLS, else plaintext. Generated stubs, which name the package `fedn`, can be used
    on it. The caller owns it: leave it as a context manager, or `close` it.
    """

    def __init__(
        self,
        address: str,
        *,
        metadata: Metadata = (),
        package: str = OLD_PACKAGE,
        trust: Trust | None = None,
    ) -> None:
        self.address = address
        self.trust = trust
        self._metadata = tuple(metadata)
        self._package = package
        self._channel = _open(address, trust)
        self.connector: ConnectorAsyncStub = fedn_pb2_grpc.ConnectorStub(self)
        self.combiner: CombinerAsyncStub = fedn_pb2_grpc.CombinerStub(self)

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._bind(self._channel.unary_unary(self._path(method), *args, **kwargs))

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._bind(self._channel.unary_stream(self._path(method), *args, **kwargs))

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._bind(self._channel.stream_unary(self._path(method), *args, **kwargs))

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._bind(self._channel.stream_stream(self._path(method), *args, **kwargs))

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    async def connect(self) -> None:
        """Wait for the connection. Raises Unavailable when an attempt at it has failed."""
        while (state := self._channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                raise Unavailable("cannot connect")
            await self._channel.wait_for_state_change(state)

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.close()

    def _path(self, method: str) -> str:
        if method.startswith(_GENERATED):
            return f"/{self._package}.{method.removeprefix(_GENERATED)}"
        return method

    def _bind(self, call: Any) -> Any:
        return partial(call, metadata=self._metadata) if self._metadata else call


def token_metadata(token: str | None) -> Metadata:
    """How a token is sent by FEDn clients of this generation."""
    return (("authorization", f"Token {token}"),) if token else ()


def host_of(address: str) -> str:
    """The host in `host:port`."""
    return address.rpartition(":")[0] or address


def channel_options(address: str) -> list[tuple[str, int]]:
    """The options of a channel to `host:port`, asynchronous or not."""
    return [
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        # A link is one connection of its own: a pool shared by target would merge clients of one process.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 3_000),
        # Notices a peer whose machine is gone; heartbeats keep C-core servers from counting pings as strikes.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.enable_http_proxy", 0 if is_loopback(host_of(address)) else 1),
    ]


def _open(address: str, trust: Trust | None) -> grpc.aio.Channel:
    options = channel_options(address)
    if trust is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, trust.credentials(), options=options)

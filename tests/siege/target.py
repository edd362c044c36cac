"""The target of an attacker, and what it may spend."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field

import grpc.aio

from fedcombiner.client.link import token_metadata
from fedcombiner.wire.pb import fedn_pb2


@dataclass
class Spending:
    """Bytes at `rate` a second and no faster, until `seconds` are over. `sent` are those so far."""

    rate: float
    seconds: float
    sent: int = 0
    booked: int = 0
    begun: float = field(default_factory=time.monotonic)

    @property
    def goes_on(self) -> bool:
        return time.monotonic() - self.begun < self.seconds

    async def spend(self, number: int) -> None:
        """Wait until so many bytes more are within the rate."""
        self.booked += number
        await asyncio.sleep(max(0.0, self.begun + self.booked / self.rate - time.monotonic()))
        self.sent += number


@dataclass(frozen=True)
class Target:
    """Addresses are `host:port`: of the gateway, or of the services past it.

    Attributes:
        http: where the combiner answers /readyz; of the gateway, its own port.
        token: empty for an attacker without one.
        name: of the client that the token is bound to, or that the attacker pretends to be.
        model_id: of a model that can be downloaded.
    """

    combiner: str
    modelstore: str
    http: str
    token: str
    name: str
    model_id: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def sender(self) -> fedn_pb2.Client:
        return fedn_pb2.Client(name=self.name, role=fedn_pb2.CLIENT)


class Calls:
    """Calls with raw bytes, on some connections to one server."""

    def __init__(self, channels: list[grpc.aio.Channel], token: str) -> None:
        self._channels = channels
        self._metadata = token_metadata(token)
        self._turn = 0

    def unary(self, path: str, content: bytes) -> Awaitable[object]:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel().unary_unary(path)
        return call(content, metadata=self._metadata, timeout=30)

    def unary_stream(self, path: str, content: bytes) -> grpc.aio.UnaryStreamCall[bytes, bytes]:
        call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel().unary_stream(path)
        return call(content, metadata=self._metadata)

    def stream_unary(self, path: str) -> grpc.aio.StreamUnaryCall[bytes, bytes]:
        call: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = self._channel().stream_unary(path)
        return call(metadata=self._metadata)

    def _channel(self) -> grpc.aio.Channel:
        self._turn += 1
        return self._channels[self._turn % len(self._channels)]


@asynccontextmanager
async def calls_to(address: str, token: str, connections: int = 4) -> AsyncIterator[Calls]:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(connections)]
    try:
        yield Calls(channels, token)
    finally:
        for channel in channels:
            await channel.close()


async def at_once(number: int, attempt: Callable[[int], Awaitable[object]], spending: Spending) -> None:
    """`number` of the attempts under way all the time, each begun anew when it has ended, however it did."""

    async def over_and_over(index: int) -> None:
        while spending.goes_on:
            with suppress(grpc.aio.AioRpcError, OSError, asyncio.InvalidStateError, TimeoutError, EOFError):
                await attempt(index)
            await asyncio.sleep(0.01)  # refused at once, it must not spin

    await within(spending, (over_and_over(index) for index in range(number)))


async def within(spending: Spending, running: Iterable[Awaitable[object]]) -> None:
    """Run these until they or the time are over."""
    left = spending.begun + spending.seconds - time.monotonic()
    tasks = [asyncio.ensure_future(one) for one in running]
    done, pending = await asyncio.wait(tasks, timeout=max(0.1, left))
    for task in pending:
        task.cancel()
    if pending:
        await asyncio.wait(pending)
    for task in done:
        task.result()

"""The gateway in front of a modelstore: nobody who does not read stalls anybody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import httpx
import modelstore.app
import pytest
from modelstore.settings import ModelstoreSettings

from fedcombiner.wire.chunks import CHUNK_SIZE
from tests.gateway_kit import gateway, haproxy_binary
from tests.rpc.access_kit import LOCAL, running, scratch
from tests.rpc.modelservice_kit import DEADLINE, Calls, messages_of

pytestmark = pytest.mark.skipif(haproxy_binary() is None, reason="there is no HAProxy")

READERS = 8
SMALL = b"small" * 1000


@dataclass
class Clients:
    """Clients of the gateway, each with a connection of its own."""

    address: str
    stack: AsyncExitStack

    async def connect(self) -> Calls:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.aio.insecure_channel(self.address, options=options)
        return Calls(await self.stack.enter_async_context(channel))


@asynccontextmanager
async def serving(directory: Path, **environment: str) -> AsyncIterator[str]:
    """The address of a gateway in front of a modelstore, both ready."""
    settings = ModelstoreSettings(**LOCAL, **scratch(directory))
    async with (
        running(modelstore.app.serve, settings) as (port, health_port),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{health_port}") as http,
    ):
        async with asyncio.timeout(DEADLINE):
            while (await http.get("/readyz")).status_code != httpx.codes.OK:
                await asyncio.sleep(0.02)
        async with gateway(directory, f"127.0.0.1:{port}", health_port, **environment) as address:
            yield address


@pytest.fixture
async def clients(tmp_path: Path) -> AsyncIterator[Clients]:
    async with serving(tmp_path) as address, AsyncExitStack() as stack:
        yield Clients(address, stack)


async def test_slow_readers_stall_nobody(clients: Clients) -> None:
    honest = await clients.connect()
    await honest.upload(*messages_of(bytes(64 * CHUNK_SIZE), "large"))
    await honest.upload(*messages_of(SMALL, "small"))
    for _ in range(READERS):
        reader = await clients.connect()
        assert (await reader.open_download("large").read()).data  # type: ignore[union-attr]
    for _ in range(3):
        client = await clients.connect()
        contents = await asyncio.wait_for(
            asyncio.gather(*(client.content("small") for _ in range(10))), DEADLINE
        )
        assert contents == [SMALL] * 10
        await client.upload(*messages_of(bytes(3 * CHUNK_SIZE), "again"))


# A client's first words in HTTP/2: the preface, and settings without any.
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


class Connections:
    """Connections to the gateway from one address, kept open."""

    def __init__(self, address: str) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._writers: list[asyncio.StreamWriter] = []

    async def add(self) -> bool:
        """Whether another connection is taken: the gateway says its settings then, else it closes it."""
        try:
            reader, writer = await asyncio.open_connection(self._host, self._port)
            writer.write(HELLO)
            taken = await asyncio.wait_for(reader.read(1), DEADLINE) != b""
        except ConnectionError:
            return False
        self._writers.append(writer)
        return taken

    def close(self, number: int | None = None) -> None:
        for writer in self._writers[:number]:
            writer.close()
        del self._writers[:number]


async def test_one_address_cannot_use_up_a_crowded_gateway(tmp_path: Path) -> None:
    async with serving(tmp_path, GATEWAY_CROWDED="4", GATEWAY_SHARE="2") as address:
        connections = Connections(address)
        # Three are more than the share of an address, but there are some left.
        assert [await connections.add() for _ in range(4)] == [True, True, True, False]
        connections.close(2)
        async with asyncio.timeout(DEADLINE):
            while not await connections.add():
                await asyncio.sleep(0.02)
        connections.close()

"""Which clients a combiner knows."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from fedcombiner.client.calls import Calls
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2_grpc

if TYPE_CHECKING:
    from fedcombiner.wire.pb.combiner.v1.combiner_pb2_grpc import ClientsAsyncStub

_LOOK_AGAIN: Final = 0.2  # seconds


class ClientsCalls(Calls):
    async def list_clients(self, *, all: bool = False, details: bool = False) -> list[pb.Client]:
        """The active clients by name; with `all` also those that were not heard of lately, with `details`
        what they told of themselves.
        """
        request = pb.ListClientsRequest(all=all, details=details)
        return await self._list(lambda: self._clients.List(request))

    async def find_clients(self, names: Collection[str]) -> list[pb.Client]:
        """Those of these clients that were ever heard of."""
        return await self._list(lambda: self._clients.List(pb.ListClientsRequest(clients=names)))

    async def wait_for_clients(self, names: Collection[str], *, timeout: float) -> None:
        """Wait until all of these clients are active.

        Raises:
            TimeoutError: some were not after `timeout` seconds; says how many.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        missing = set(names)
        while True:
            missing.difference_update(client.client for client in await self.list_clients() if client.active)
            if not missing:
                return
            if asyncio.get_running_loop().time() > deadline:
                raise TimeoutError(
                    f"{len(missing)} of {len(names)} clients are not there, such as {min(missing)}"
                )
            await asyncio.sleep(_LOOK_AGAIN)  # the combiner has no call that waits for clients

    @property
    def _clients(self) -> ClientsAsyncStub:
        return combiner_pb2_grpc.ClientsStub(self.link)

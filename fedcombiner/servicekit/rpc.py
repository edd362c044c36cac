"""The gRPC server of a service: its options, its port, its reflection, and how it is stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final, cast

import grpc
import grpc.aio
import structlog
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from fedcombiner.servicekit.binding import BindError, host_port, probe
from fedcombiner.servicekit.incoming import RequestReader
from fedcombiner.servicekit.interceptor import RpcInterceptor, RpcMetrics
from fedcombiner.servicekit.requests import RequestIds
from fedcombiner.servicekit.tls import ServerIdentity, server_credentials
from fedcombiner.servicekit.underway import CallsUnderWay

log = structlog.get_logger(__name__)

MIB: Final = 1 << 20
# The largest chunk of a model, and room for the fields and the framing around it.
MAX_RECEIVE_BYTES: Final = 4 * MIB + 64 * 1024

# Servers of a group: with eight, 300 clients' calls at once no longer hold up heartbeats by half a second.
LINES: Final = 8

# Time for calls that were ended to send their status.
FAREWELL_SECONDS: Final = 1.0

SERVER_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    # A port is shared by the servers of one group. `bind` looks first whether somebody else has it.
    ("grpc.so_reuseport", 1),
    # Clients of FEDn 0.19 and later ping every 1 to 5 s without a call; they must not be cut off for it.
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    # A peer that vanished without closing its connection is noticed after 30 + 10 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A peer that connects and says nothing, or never ends its handshake.
    ("grpc.server_handshake_timeout_ms", 20_000),
    # Calls of one connection. A client has a few; a gateway opens another connection for more.
    ("grpc.max_concurrent_streams", 1_000),
    ("grpc.http2.max_pings_without_data", 0),
    # What a slow reader can make the server hold: 7 MiB with these, 28 MiB with the defaults.
    ("grpc.http2.bdp_probe", 0),
    # Bytes that a waiting upload makes the server hold. More is let through while a message is read: a client
    # with a round trip of 50 ms sends 18 MiB/s, and 22 MiB/s with a mebibyte here.
    ("grpc.http2.lookahead_bytes", 96 * 1024),
)


def build_server(
    metrics: RpcMetrics,
    *,
    unavailable_on_bug: Collection[str] = (),
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    max_receive_bytes: int = MAX_RECEIVE_BYTES,
) -> ServerGroup:
    """A server that maps errors and counts calls; it must be made inside the running loop.

    `interceptors` run before a request is read, and what their handlers raise is mapped, too.
    `unavailable_on_bug` names services (`grpc.Combiner`) whose callers cannot live with INTERNAL: a bug there
    is UNAVAILABLE.

    Register services with `add_generic_rpc_handlers` (generated `add_*_to_server` functions through
    `generic_only`): grpc.aio waits on one future for each method that is *registered* by name, and goes
    through all of them on every call.
    """
    under_way = CallsUnderWay()
    mapping = RpcInterceptor(metrics, unavailable_on_bug, under_way)
    around = [RequestIds(), mapping, *interceptors, RequestReader()]
    options = [*SERVER_OPTIONS, ("grpc.max_receive_message_length", max_receive_bytes)]
    servers = [grpc.aio.server(interceptors=around, options=options) for _ in range(LINES)]
    return ServerGroup(servers, under_way)


class ServerGroup(grpc.aio.Server):
    """Servers on one port, over which the kernel spreads the connections.

    `grpc.aio` takes one new call at a time, and the next one a few turns of the loop later. When hundreds of
    clients call at once, the calls wait in that line, heartbeats among them; so there are several lines.
    """

    def __init__(self, servers: Sequence[grpc.aio.Server], under_way: CallsUnderWay) -> None:
        self._servers = servers
        self._under_way = under_way

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        handlers = tuple(generic_rpc_handlers)
        for server in self._servers:
            server.add_generic_rpc_handlers(handlers)

    def add_insecure_port(self, address: str) -> int:
        return self.listen(address, lambda server, at: server.add_insecure_port(at))

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        return self.listen(address, lambda server, at: server.add_secure_port(at, server_credentials))

    def listen(self, address: str, add_port: Callable[[grpc.aio.Server, str], int]) -> int:
        """Have `add_port` open this address, with port 0 any free one, at each server; the port's number."""
        first, *others = self._servers
        port = add_port(first, address)
        for server in others:
            add_port(server, f"{address.rpartition(':')[0]}:{port}")
        return port

    async def start(self) -> None:
        for server in self._servers:
            await server.start()

    async def stop(self, grace: float | None) -> None:
        """Take no new calls; those under way have `grace` seconds, and then end with UNAVAILABLE. None: cut
        them off at once."""
        limit = None if grace is None else grace + FAREWELL_SECONDS
        stopping = asyncio.gather(*(server.stop(limit) for server in self._servers))
        if grace is not None:
            done, _ = await asyncio.wait({stopping}, timeout=grace)
            if not done:
                log.warning("calls did not end in time", calls=self._under_way.end(), seconds=grace)
        await stopping

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        ended = (server.wait_for_termination(timeout) for server in self._servers)
        return all(await asyncio.gather(*ended))


class _GenericOnly:
    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """Drop them: the same methods were added as generic handlers."""


def generic_only(server: grpc.aio.Server) -> grpc.aio.Server:
    """The server for generated `add_*_to_server` functions, without registering methods twice."""
    return cast(grpc.aio.Server, _GenericOnly(server))


def add_reflection(server: grpc.aio.Server, services: Iterable[str]) -> None:
    """Serve the descriptors of these services, so that generic tools can list and call them."""
    servicer = reflection.aio.ReflectionServicer([*services, reflection.SERVICE_NAME])
    add_servicer: Any = reflection_pb2_grpc.add_ServerReflectionServicer_to_server
    add_servicer(servicer, generic_only(server))


def bind(
    server: ServerGroup,
    host: str,
    port: int,
    *,
    setting: str = "PORT",
    identity: ServerIdentity | None = None,
) -> int:
    """Open the port (0: any free one) and return its number: TLS with an identity, else plaintext.

    Raises BindError naming the `setting`.
    """
    address = host_port(host, port)
    try:
        # gRPC does not say why it cannot listen, and is content with one of several addresses of a name.
        probe(host, port)
        if identity is None:
            return server.add_insecure_port(address)
        # Credentials that are renewed serve one server only.
        return server.listen(address, lambda one, at: one.add_secure_port(at, server_credentials(identity)))
    except (OSError, RuntimeError) as error:
        raise BindError(host, port, setting, error) from None


class RpcServer:
    """A bound server as a component of a `Lifecycle`: stopping refuses new calls, gives those under way
    `grace` seconds, and ends the rest with UNAVAILABLE."""

    def __init__(self, server: ServerGroup, *, grace: float) -> None:
        self._server = server
        self._grace = grace

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(self._grace)

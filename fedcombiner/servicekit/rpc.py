"""The gRPC server of a service: its options, its port, and the one interceptor around every handler."""

import socket
from collections.abc import Collection, Sequence
from typing import Any, Final

import grpc
import grpc.aio

from fedcombiner.servicekit.errors import StartupError
from fedcombiner.servicekit.interceptor import RpcInterceptor, RpcMetrics

MIB: Final = 1 << 20
# The largest chunk of a model, and room for the fields and the framing around it.
MAX_RECEIVE_BYTES: Final = 4 * MIB + 64 * 1024

SERVER_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    # On by default, and then a second server starts on a taken port without a word.
    ("grpc.so_reuseport", 0),
    # Clients of FEDn 0.19 and later ping every 1 to 5 s without a call; they must not be cut off for it.
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    # A peer that vanished without closing its connection is noticed after 30 + 10 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # What a slow reader can make the server hold: 7 MiB with these, 28 MiB with the defaults.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", MIB),
)


class BindError(StartupError):
    """A server cannot listen where its settings say."""


def build_server(
    metrics: RpcMetrics,
    *,
    unavailable_on_bug: Collection[str] = (),
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    max_receive_bytes: int = MAX_RECEIVE_BYTES,
) -> grpc.aio.Server:
    """A server that maps errors and counts calls; it must be made inside the running loop.

    `interceptors` run inside ours, so what they raise is mapped too. `unavailable_on_bug` names services
    (`grpc.Combiner`) whose callers cannot live with INTERNAL: an unexpected error there is UNAVAILABLE.

    Register services with `add_generic_rpc_handlers`, not with generated `add_*_to_server` functions (or
    wrap the server in `GenericHandlersOnly`): grpc.aio waits on one future for each *registered* method
    and goes through all of them on every call.
    """
    return grpc.aio.server(
        interceptors=[RpcInterceptor(metrics, unavailable_on_bug), *interceptors],
        options=[*SERVER_OPTIONS, ("grpc.max_receive_message_length", max_receive_bytes)],
    )


class GenericHandlersOnly:
    """A server as generated code sees it, which passes on the generic handlers and drops the same methods
    when they are registered once more by name; `build_server` says why."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        pass


def bind(
    server: grpc.aio.Server,
    host: str,
    port: int,
    *,
    setting: str = "PORT",
    credentials: grpc.ServerCredentials | None = None,
) -> int:
    """Open the port (0: any free one) and return its number. Raises BindError naming the `setting`."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        _probe(host, port)
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except (OSError, RuntimeError) as error:
        raise bind_error(host, port, setting, error) from None


def bind_error(host: str, port: int, setting: str, error: Exception) -> BindError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return BindError(f"{setting}={port}: cannot listen on {host}:{port}: {reason}")


def _probe(host: str, port: int) -> None:
    """Open and close the port ourselves, because gRPC does not say why it could not, and is content with
    one of several addresses of a name. Raises OSError."""
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        with socket.socket(family, kind, protocol) as probe:
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            # Two sockets with SO_REUSEADDR may be bound to one port as long as neither listens.
            probe.listen(1)


class RpcServer:
    """A bound server as a component of a `Lifecycle`: stopping lets calls under way end within `grace`
    seconds, refuses new ones, and cuts the rest off."""

    def __init__(self, server: grpc.aio.Server, *, grace: float) -> None:
        self._server = server
        self._grace = grace

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(self._grace)

"""Opening the ports that settings name, with an error that a person can act on."""

import ipaddress
import socket
from contextlib import ExitStack

from fedcombiner.servicekit.errors import StartupError

BACKLOG = 1024


class BindError(StartupError):
    """A server cannot listen where its settings say."""

    def __init__(self, host: str, port: int, setting: str, error: Exception) -> None:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        super().__init__(f"{setting}={port}: cannot listen on {host}:{port}: {reason}")


def host_port(host: str, port: int) -> str:
    """HOST:PORT, as URLs and gRPC have it: an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if is_ipv6(host) else f"{host}:{port}"


def is_ipv6(host: str) -> bool:
    """Whether `host` is an IPv6 address without brackets."""
    return ":" in host and not host.startswith("[")


def listen(host: str, port: int) -> list[socket.socket]:
    """Listening sockets on all addresses of `host`; with port 0 all on one free port. Raises OSError."""
    with ExitStack() as opened:
        sockets: list[socket.socket] = []
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            sock = opened.enter_context(socket.socket(family, kind, protocol))
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            number = sockets[0].getsockname()[1] if sockets else port
            sock.bind((address[0], number, *address[2:]))
            # Two sockets with SO_REUSEADDR may share a port until one of them listens.
            sock.listen(BACKLOG)
            sockets.append(sock)
        opened.pop_all()
        return sockets


def probe(host: str, port: int) -> None:
    """Raise the OSError that keeps anyone from listening on this port now, if there is one."""
    for sock in listen(host, port):
        sock.close()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`, a name or an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"

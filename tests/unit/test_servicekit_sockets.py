"""A connection is found by its peer's address, and only that one is closed."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from fedcombiner.servicekit.sockets import close_connection

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=["127.0.0.1", "::1"])
def pairs(request: pytest.FixtureRequest) -> Iterator[list[Pair]]:
    """Both ends of two connections, the server's first."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with ExitStack() as stack, socket.create_server((request.param, 0), family=family) as server:
        made = []
        for _ in range(2):
            client = stack.enter_context(socket.create_connection(server.getsockname()[:2]))
            client.settimeout(20)
            made.append((stack.enter_context(server.accept()[0]), client))
        yield made


def peer_of(pair: Pair) -> str:
    """As gRPC names it."""
    host, port = pair[1].getsockname()[:2]
    return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"


def test_the_connection_with_that_peer_ends(pairs: list[Pair]) -> None:
    assert close_connection(peer_of(pairs[0]))
    assert pairs[0][1].recv(1) == b""
    pairs[1][0].sendall(b"x")
    assert pairs[1][1].recv(1) == b"x"


def test_what_is_no_connection_of_ours_is_not_found(pairs: list[Pair]) -> None:
    assert not close_connection("ipv4:127.0.0.1:1")
    assert not close_connection("unix:/run/x")
    assert not close_connection("")

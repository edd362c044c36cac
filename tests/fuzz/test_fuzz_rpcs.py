"""Every rpc of a running stack: whatever comes, no answer is a bug's, and nothing grows."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import pytest
from hypothesis import strategies as st

from tests.fuzz.fuzz_kit import METHODS, Target, fuzz, target
from tests.fuzz.hostile_kit import changed_calls, hostile_calls, random_bytes, random_calls, uploads

Calls = st.SearchStrategy[tuple[str, bytes]]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\x04\0\0\0\0\0"
STARTS = [b"", PREFACE, PREFACE + SETTINGS, b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01"]


@pytest.fixture(scope="module")
def running() -> Iterator[Target]:
    with target() as made:
        warm_up(made)
        before = made.usage()
        yield made
        after = made.settled(before)
        assert after.is_about(before), f"{before} grew to {after}"


def warm_up(stack: Target) -> None:
    """Each method once: what is made on first use is no growth."""
    for method, descriptor in METHODS.items():
        if not descriptor.client_streaming:
            stack.call(method, b"", streamed=descriptor.server_streaming)
    for start in STARTS:
        knock(stack, start)


@pytest.mark.parametrize("calls", [random_calls, changed_calls, hostile_calls, random_bytes])
def test_no_call_finds_a_bug(running: Target, calls: Callable[[Target], Calls]) -> None:
    def check(some: list[tuple[str, bytes]]) -> None:
        for method, request in some:
            streamed = method in METHODS and METHODS[method].server_streaming
            running.call(method, request, streamed=streamed)

    fuzz(st.lists(calls(running), min_size=1, max_size=10), check)
    running.is_well()


def test_no_upload_finds_a_bug(running: Target) -> None:
    fuzz(uploads(), running.upload, examples=50)
    running.is_well()


def test_no_bytes_on_the_port_end_the_server(running: Target) -> None:
    content = st.builds(bytes.__add__, st.sampled_from(STARTS), st.binary(max_size=200))
    fuzz(content, partial(knock, running), examples=50)
    running.is_well()


def knock(running: Target, content: bytes) -> None:
    """Send bytes to the port. It may close the connection, answer, or stay silent."""
    host, port = running.stack.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=0.02) as connection, suppress(OSError):
        connection.sendall(content)
        connection.recv(100)

"""Fixtures of the contract suites."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Iterator

import pytest
import redis
from combiner.adapters.state import RedisState

from tests.contract.s3_kit import MinioServer, minio_binary
from tests.contract.state_kit import Bench, Server, running_server


@pytest.fixture(scope="session")
def valkey() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """The URL of an S3 server in this process."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def minio() -> Iterator[str]:
    """The URL of a MinIO. Where there is none the tests are skipped, but not if REQUIRE_MINIO says so."""
    if minio_binary() is None:
        if os.environ.get("REQUIRE_MINIO"):
            pytest.fail("MINIO_BINARY names no MinIO, nor is one on the PATH")
        pytest.skip("MINIO_BINARY names no MinIO, nor is one on the PATH")
    server = MinioServer()
    server.start()
    yield server.url
    server.close()


_PREFIXES = itertools.count(1)


@pytest.fixture
async def bench(valkey: Server) -> AsyncIterator[Bench]:
    with redis.Redis.from_url(valkey.url, decode_responses=True) as raw:
        made = Bench(valkey, f"t{next(_PREFIXES)}:", raw, [], itertools.count(1))
        yield made
        for state in made.opened:
            await state.aclose()


@pytest.fixture
def state(bench: Bench) -> RedisState:
    return bench.state()

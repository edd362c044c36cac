"""Fixtures of the tests through real servers."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from combiner.server import Combiner

from tests.contract.state_kit import Server, running_server
from tests.rpc.combiner_kit import Replica, Stack, no_task_left
from tests.rpc.seed_kit import seed_combiner

_PREFIXES = itertools.count(1)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture
def server() -> Iterator[Server]:
    """A Redis for one test alone, to be killed and stopped."""
    with running_server() as server:
        yield server


@pytest.fixture
async def frail(server: Server, tmp_path: Path) -> AsyncIterator[Stack]:
    """A stack on that Redis."""
    async with no_task_left():
        made = Stack(server.url, "fc:", tmp_path)
        yield made
        await made.close()


@pytest.fixture
async def stack(redis_server: Server, tmp_path: Path) -> AsyncIterator[Stack]:
    """An empty stack; its combiners are stopped in order at the end, and leave no task behind."""
    async with no_task_left():
        made = Stack(redis_server.url, f"rpc{next(_PREFIXES)}:", tmp_path)
        yield made
        await made.close()


@pytest.fixture
async def combiner(stack: Stack) -> Replica:
    return await stack.combiner()


@pytest.fixture(scope="module")
def seed_server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture(scope="module")
def seed(seed_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Combiner]:
    """FEDn's combiner object, one for all tests of a module."""
    with seed_combiner(seed_server, tmp_path_factory.mktemp("seed")) as made:
        yield made

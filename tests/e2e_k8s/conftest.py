"""`--cluster`: the chart on a real cluster, the one that KUBECONFIG names. `make e2e-k8s` says it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

from fedcombiner.client import OperatorClient
from tests.e2e.stacks import free_port
from tests.e2e_k8s.cluster import Release, run


@dataclass(frozen=True)
class Tags:
    """Of the images: what is upgraded from, and to. "" is what the chart says itself."""

    previous: str = os.environ.get("PREVIOUS_TAG", "")
    this: str = os.environ.get("IMAGE_TAG", "")


@dataclass(frozen=True)
class Reached:
    """A release whose gateway is reached from here, as a stack of the end-to-end suite."""

    release: Release
    address: str
    discovery: str
    token: str
    name: str = "kubernetes"
    can: frozenset[str] = frozenset()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cluster", action="store_true", help="run what needs a Kubernetes cluster")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--cluster"):
        return
    for item in items:
        if "/e2e_k8s/" in str(item.path):
            item.add_marker(pytest.mark.skip(reason="needs a cluster: make e2e-k8s"))


@pytest.fixture(scope="session")
def tags() -> Tags:
    return Tags()


@pytest.fixture(scope="session")
def release() -> Iterator[Release]:
    """A namespace; what is installed there is up to the tests, in their order."""
    release = Release("fc-e2e")
    release.make_namespace()
    try:
        yield release
    finally:
        release.save_logs()
        run("kubectl", "delete", "namespace", release.namespace, "--wait")


@pytest.fixture(scope="session")
def gateway_port() -> int:
    return free_port()


@pytest.fixture
def reached(release: Release, gateway_port: int) -> Iterator[Reached]:
    with (
        release.forwarded("gateway", 12080, gateway_port) as gateway,
        release.forwarded("discovery", 8092) as discovery,
    ):
        yield Reached(
            release,
            f"127.0.0.1:{gateway}",
            f"http://127.0.0.1:{discovery}",
            release.secret("operator-token", "operator-token"),
        )


@pytest.fixture
async def operator(reached: Reached) -> AsyncIterator[OperatorClient]:
    async with OperatorClient(reached.address, token=reached.token, patience=60) as operator:
        yield operator

"""`--stack`: what the scenarios run against. What a stack cannot be asked for is skipped, and listed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import nullcontext

import pytest

from fedcombiner.client import OperatorClient
from tests.e2e.stacks import Compose, Remote, Stack, compose, standalone


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--stack",
        default="standalone",
        metavar="STACK",
        help="end to end: standalone (a process of its own), compose (containers of its own), or HOST[:PORT]",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", 'needs(what): of the stack: "logs", "metrics", "script", "services"')


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    stack = getattr(item, "funcargs", {}).get("stack")
    if report.failed and isinstance(stack, Compose):
        stack.save_logs(item.name)
    return report


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    chosen = str(request.config.getoption("--stack"))
    made = {"standalone": standalone, "compose": compose}.get(chosen)
    with made() if made else nullcontext(Remote(chosen)) as stack:
        yield stack


@pytest.fixture(autouse=True)
def _needed(request: pytest.FixtureRequest) -> None:
    needed = [mark.args[0] for mark in request.node.iter_markers("needs")]
    if not needed:
        return
    stack: Stack = request.getfixturevalue("stack")
    for what in needed:
        if what not in stack.can:
            pytest.skip(f"{stack.name} has no {what} to look at")


@pytest.fixture
def containers(stack: Stack) -> Compose:
    assert isinstance(stack, Compose)
    return stack


@pytest.fixture
async def operator(stack: Stack) -> AsyncIterator[OperatorClient]:
    async with OperatorClient(stack.address, token=stack.token, patience=60) as operator:
        yield operator


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if r.nodeid.startswith("tests/e2e/")]
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        terminalreporter.write_line(f"not run: {report.nodeid.partition('::')[2]} ({reason})")

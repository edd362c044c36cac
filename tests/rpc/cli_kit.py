"""The `combiner` command against a combiner in the test's loop."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from typer.testing import CliRunner, Result

from fedcombiner.cli.main import app
from tests.rpc.combiner_kit import DEADLINE, Replica


async def invoke(
    *words: str, typed: str | None = None, deadline: float = DEADLINE, **environment: str
) -> Result:
    """`combiner WORDS` in a thread, which has a loop of its own. `typed`: on its stdin."""
    call = asyncio.to_thread(CliRunner().invoke, app, words, input=typed, env=environment)
    result = await asyncio.wait_for(call, deadline)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def printed(result: Result) -> list[dict[str, Any]]:
    """What a command that succeeded said with `--json`."""
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


async def run(replica: Replica, *words: str, typed: str | None = None) -> Result:
    """As `invoke`, against this combiner."""
    return await invoke(*words, "--server", replica.address, typed=typed)


async def rows(replica: Replica, *words: str) -> list[dict[str, Any]]:
    """What a command that succeeds says with `--json`."""
    return printed(await run(replica, *words, "--json"))

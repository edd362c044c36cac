"""The `combiner` command against a combiner in the test's loop."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from typer.testing import CliRunner, Result

from fedcombiner.cli.main import app
from tests.rpc.combiner_kit import DEADLINE, Replica


async def run(replica: Replica, *words: str, typed: str | None = None) -> Result:
    """`combiner WORDS --server …` in a thread, which has a loop of its own. `typed`: on its stdin."""
    command = [*words, "--server", replica.address]
    call = asyncio.to_thread(CliRunner().invoke, app, command, input=typed)
    result = await asyncio.wait_for(call, DEADLINE)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


async def rows(replica: Replica, *words: str) -> list[dict[str, Any]]:
    """What a command that succeeds says with `--json`."""
    result = await run(replica, *words, "--json")
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]

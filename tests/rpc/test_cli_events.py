"""`combiner events` against a real server."""

from __future__ import annotations

import asyncio
import json
import signal
import sys

from tests.rpc import cli_kit
from tests.rpc.combiner_kit import DEADLINE, Connected, Replica, put_seed, training

FIELDS = {
    "at", "what", "session_id", "job_id", "kind", "round_id", "state", "clients", "reason", "text",
    "asked", "accepted", "rejected", "failed",
}  # fmt: skip


async def test_the_past_in_words_and_as_json(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 1) as here:
        job_id = await combiner.operator.start_job(training(seed))
        [task] = await here.tasks()
        await here.clients[0].train(task, 0)
        await combiner.operator.wait_job(job_id)
    result = await cli_kit.run(combiner, "events", "--job", job_id)
    assert result.exit_code == 0
    lines = [line.split("  ", 1)[1] for line in result.stdout.splitlines()]
    assert lines[0] == f"training of round 1 is queued as job {job_id}"
    assert "training of round 1: c0 is accepted (1 of 1 settled)" in lines
    assert lines[-1] == "training of round 1 SUCCEEDED: 1 updates are the new model"
    rows = await cli_kit.rows(combiner, "events", "--last", "3")
    assert len(rows) == 3
    assert all(set(row) == FIELDS for row in rows)


async def test_following_ends_with_ctrl_c(combiner: Replica) -> None:
    # Who runs in the background of a shell, and all its children, has SIGINT ignored.
    words = [
        "-c",
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from fedcombiner.cli.main import main; main()",
        "events",
        "--follow",
        "--json",
        "--last",
        "0",
    ]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, "--server", combiner.address, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(DEADLINE):
            row = None
            while row is None:  # until it listens, nothing is told
                await combiner.state.settings.put({"max_clients": "10"})
                try:
                    row = json.loads(await asyncio.wait_for(process.stdout.readline(), 0.2))
                except TimeoutError:
                    continue
            assert row["what"] == "settings"
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

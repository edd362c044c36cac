"""`combiner serve` and the command, as a user runs them: processes that know only addresses."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import redis.asyncio
from combiner.adapters.limits import SCHEMA

from fedcombiner.client import OperatorClient
from fedcombiner.client.made_up import MadeUp, one_hot
from fedcombiner.client.simulate import SimulatedFleet
from fedcombiner.standalone.redis_child import RedisChild
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb

COMMAND = (sys.executable, "-c", "from fedcombiner.cli.main import main; main()")
CLIENTS = 3
JOB_FIELDS = [
    *("job_id", "session_id", "kind", "state", "reason", "round_id", "model_id", "parent_model_id", "asked"),
    *("accepted", "rejected", "failed", "unrecorded", "started_at", "ended_at"),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def serving(
    data: Path, port: int = 0, *, command: tuple[str, ...] = COMMAND
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    process = await asyncio.create_subprocess_exec(
        *command,
        *("serve", "--port", str(port), "--discovery-port", "0", "--metrics-port", "0", "--data", str(data)),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(30):
            while line := (await process.stderr.readline()).decode():
                if found := re.search(r"gRPC (\S+:\d+)", line):
                    break
            else:
                raise AssertionError("combiner serve ended before it said its address")
        drained = asyncio.create_task(process.stderr.read())
        yield process, found[1]
        drained.cancel()
    finally:
        if process.returncode is None:
            process.terminate()
            await asyncio.wait_for(process.wait(), 20)


async def combiner(*words: str) -> tuple[int, list[Any], str]:
    """Exit code, the JSON objects on stdout, and stderr."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, [json.loads(line) for line in out.decode().splitlines()], err.decode()


def fleet_at(address: str) -> SimulatedFleet:
    return SimulatedFleet(CLIENTS, address, workload=lambda i: MadeUp(i, one_hot(CLIENTS)), name="e2e-{:02d}")


async def test_the_command_does_what_it_says(tmp_path: Path) -> None:
    """Every group of the command, against a stack in a directory with a space in its name."""
    file = tmp_path / "seed.npz"
    np.savez(file, w=np.zeros(CLIENTS, np.float32))
    async with serving(tmp_path / "a directory") as (process, address), fleet_at(address) as fleet:
        await fleet.wait_connected(20)
        on = ("--server", address, "--json")
        _, [model], _ = await combiner(*on, "model", "put", str(file), "--name", "seed")
        required = f"clients_required={CLIENTS}"
        words = (
            "session",
            "start",
            "--model",
            model["model_id"],
            "--rounds",
            "2",
            "--set",
            required,
            "--watch",
        )
        code, states, _ = await combiner(*on, *words)
        assert (code, states[-1]["state"], states[-1]["rounds_done"]) == (0, "SUCCEEDED", 2)
        _, jobs, _ = await combiner(*on, "job", "list", "--session", states[-1]["session_id"])
        assert [list(job) for job in jobs] == [JOB_FIELDS] * 4
        assert [job["kind"] for job in jobs] == ["training", "validation"] * 2
        assert jobs[1]["model_id"] is None
        _, [job], _ = await combiner(*on, "job", "show", jobs[0]["job_id"])
        assert job == {**jobs[0], "format": "npz dict", "left_out": []}
        _, models, _ = await combiner(*on, "model", "list")
        assert [m["parent_model_id"] for m in models] == [None, model["model_id"], models[1]["model_id"]]
        _, found, _ = await combiner(*on, "clients")
        assert [c["client"] for c in found] == list(fleet.names)
        _, [report], _ = await combiner(*on, "status")
        assert report["trainers"] == CLIENTS
        await combiner(*on, "model", "get", str(tmp_path / "got.npz"))
        with np.load(tmp_path / "got.npz") as got:
            np.testing.assert_array_equal(got["w"], np.full(CLIENTS, np.float32(1 / CLIENTS)))
        code, _, error = await combiner(*on, "job", "show", "nobody")
        assert (code, "nobody" in error) == (2, True)
        code, _, error = await combiner(*on, "session", "start", "--set", "round_timeout=soon")
        assert (code, "round_timeout" in error) == (2, True)
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_an_unreachable_server_is_exit_code_3() -> None:
    code, _, error = await combiner("--server", f"127.0.0.1:{free_port()}", "status")
    assert (code, "combiner serve" in error, "Traceback" in error) == (3, True, False)


async def test_a_directory_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    async def everything(layout: int | None = None) -> dict[bytes, bytes]:
        child = RedisChild(tmp_path)
        await child.start()
        try:
            async with redis.asyncio.from_url(child.url) as state:
                if layout is not None:
                    await state.set("fc:schema", layout)
                return {key: await state.dump(key) async for key in state.scan_iter()}
        finally:
            await child.stop()

    before = await everything(layout=SCHEMA + 1)
    words = ("serve", "--port", "0", "--discovery-port", "0", "--metrics-port", "0", "--data", str(tmp_path))
    process = await asyncio.create_subprocess_exec(*COMMAND, *words, stderr=asyncio.subprocess.PIPE)
    _, said = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    assert b"the state of a newer version" in said
    assert b"Traceback" not in said
    assert b"exc_type" not in said
    assert b"gRPC 127.0.0.1" not in said
    assert await everything() == before


async def test_a_session_goes_on_after_a_kill(tmp_path: Path) -> None:
    """SIGKILL in mid-session; on the same data directory everything is there and the session ends."""
    port = free_port()
    config = {"rounds": 40, "clients_required": CLIENTS, "round_timeout": 60, "wait_for_clients": 60}
    async with (
        serving(tmp_path, port) as (process, address),
        fleet_at(address) as fleet,
        OperatorClient(address, patience=60) as operator,
    ):
        await fleet.wait_connected(20)
        model = await operator.put_model({"w": np.zeros(CLIENTS, np.float32)})
        session = await operator.start_session(config, model_id=model.model_id)
        async for event in operator.watch_session(session.session_id):
            if event.HasField("session") and event.session.rounds_done >= 3:
                break
        process.kill()
        await process.wait()
        async with serving(tmp_path, port):
            ended = await asyncio.wait_for(operator.wait_session(session.session_id), 90)
            assert (ended.state, ended.rounds_done) == (pb.SUCCEEDED, 40), ended.reason
            models = await operator.list_models(session_id=session.session_id)
            jobs = await operator.list_jobs(session_id=session.session_id)
            trained = [job for job in jobs if job.kind == pb.TRAINING and job.state == pb.SUCCEEDED]
            assert [m.model_id for m in models] == [job.model_id for job in trained]
            assert all(job.accepted == list(fleet.names) for job in trained)

"""The operator's client against a server that goes away and refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from fedcombiner.client import OperatorClient
from fedcombiner.client.arrays import read_arrays
from fedcombiner.client.errors import ServerUnreachable
from fedcombiner.servicekit.errors import NotFound
from fedcombiner.wire.pb import fedn_pb2
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.rpc.client_kit import DEADLINE, FakeCombiner, serving


class FakeJobs:
    """Jobs whose streams end as told: each entry of `watches` is one stream, events or a status."""

    def __init__(self, *watches: list[pb.JobEvent | grpc.StatusCode]) -> None:
        self.watches = list(watches)
        self.starts: list[dict[str, str]] = []
        self.start_error: grpc.StatusCode | None = None
        self.gets = 0

    async def Watch(self, request: pb.JobRequest, context: Any) -> AsyncIterator[pb.JobEvent]:
        for event in self.watches.pop(0):
            if isinstance(event, grpc.StatusCode):
                await context.abort(event, "told to fail")
            else:
                yield event

    async def Get(self, request: pb.JobRequest, context: Any) -> pb.Job:
        self.gets += 1
        if self.gets < 3:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        return pb.Job(job_id=request.job_id)

    async def List(self, request: pb.ListJobsRequest, context: Any) -> AsyncIterator[pb.Job]:
        for index in range(request.limit):
            yield pb.Job(job_id=f"{request.session_id}{index}")

    async def Start(self, request: fedn_pb2.ControlRequest, context: Any) -> fedn_pb2.ControlResponse:
        self.starts.append({parameter.key: parameter.value for parameter in request.parameter})
        if self.start_error is not None:
            await context.abort(self.start_error, "told to fail")
        return fedn_pb2.ControlResponse(parameter=[fedn_pb2.Parameter(key="job_id", value="j1")])


class FakeModels:
    def __init__(self) -> None:
        self.put: list[tuple[str, str]] = []

    async def Put(self, request: pb.PutModelRequest, context: Any) -> pb.Model:
        self.put.append((request.model_id, request.name))
        return pb.Model(model_id=request.model_id)

    async def Get(self, request: pb.ModelRequest, context: Any) -> pb.Model:
        return pb.Model(model_id=request.model_id or self.put[-1][0])


def asked(count: int) -> pb.JobEvent:
    return pb.JobEvent(job_id="j1", what="asked", asked=count)


ENDED = pb.JobEvent(what="snapshot", job=pb.Job(job_id="j1", state=pb.SUCCEEDED))


async def test_a_watch_goes_on_where_the_server_comes_back() -> None:
    jobs = FakeJobs([asked(1), grpc.StatusCode.UNAVAILABLE], [asked(2)], [grpc.StatusCode.CANCELLED], [ENDED])
    async with serving({"Jobs": jobs}) as address, OperatorClient(address, patience=DEADLINE) as operator:
        events = [event async for event in operator.watch_job("j1")]
    assert events == [asked(1), asked(2), ENDED]


async def test_a_watch_without_patience_ends_with_the_outage() -> None:
    jobs = FakeJobs([asked(1), grpc.StatusCode.UNAVAILABLE])
    async with serving({"Jobs": jobs}) as address, OperatorClient(address) as operator:
        events = operator.watch_job("j1")
        assert await anext(events) == asked(1)
        with pytest.raises(ServerUnreachable, match=f"{address}: told to fail"):
            await anext(events)


async def test_a_watch_of_nothing_is_not_repeated() -> None:
    jobs = FakeJobs([grpc.StatusCode.NOT_FOUND])
    async with serving({"Jobs": jobs}) as address, OperatorClient(address, patience=DEADLINE) as operator:
        with pytest.raises(NotFound, match="told to fail"):
            await operator.wait_job("j1")


async def test_waiting_gives_the_job_as_it_ended() -> None:
    async with serving({"Jobs": FakeJobs([asked(1), ENDED])}) as address, OperatorClient(address) as operator:
        assert await operator.wait_job("j1") == ENDED.job


async def test_questions_are_repeated_and_lists_are_lists() -> None:
    async with (
        serving({"Jobs": FakeJobs()}) as address,
        OperatorClient(address, patience=DEADLINE) as operator,
    ):
        assert (await operator.get_job("j1")).job_id == "j1"
        assert [job.job_id for job in await operator.list_jobs(session_id="s", limit=2)] == ["s0", "s1"]


async def test_a_job_is_started_once_and_values_are_sent_as_fedn_writes_them() -> None:
    jobs = FakeJobs()
    async with (
        serving({"Control": jobs}) as address,
        OperatorClient(address, patience=DEADLINE) as operator,
    ):
        assert await operator.start_job({"task": "training", "validate": True, "n": 3, "x": None}) == "j1"
        jobs.start_error = grpc.StatusCode.UNAVAILABLE
        with pytest.raises(ServerUnreachable):
            await operator.start_job({"task": "training"})
    assert jobs.starts == [
        {"task": "training", "validate": "True", "n": "3", "x": "None"},
        {"task": "training"},
    ]


async def test_arrays_become_a_model_and_come_back(tmp_path: Path) -> None:
    fake, models = FakeCombiner(), FakeModels()
    arrays = {"file": np.arange(6, dtype=np.float32).reshape(2, 3), "b.bias": np.float64(2.5)}
    async with (
        serving({"ModelService": fake, "Models": models}) as address,
        OperatorClient(address) as operator,
    ):
        model = await operator.put_model(arrays, name="seed")
        assert await operator.get_model("", tmp_path / "got.npz") == model
    assert models.put == [(model.model_id, "seed")]
    got = read_arrays(tmp_path / "got.npz")
    assert list(got) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(got[name], array)

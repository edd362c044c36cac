"""What clients tell beside their answers, and clients that sign some messages by name and others by id."""

from __future__ import annotations

import json
import math
import time

import pytest

from fedcombiner.client.messages import Task
from fedcombiner.wire.pb import fedn_pb2
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.rpc.combiner_kit import (
    DEADLINE,
    Client,
    Replica,
    eventually,
    put_seed,
    reasons,
    training,
    until_job,
    until_streams,
    zeros,
)

ID = "2f6e2f0a-1d7c-4f2e-9d55-0d6f6f7a1b11"


def modern(
    replica: Replica, name: str = "site-a", client_id: str = ID, role: int = fedn_pb2.CLIENT
) -> Client:
    """A client of FEDn 0.20 or later: it subscribes with name, id and its own role."""
    client = replica.client(name, package="fedn", generation="0.8")
    client.messages.subscription.sender.client_id = client_id
    client.messages.subscription.sender.role = role
    client.messages.heartbeat.CopyFrom(fedn_pb2.Heartbeat(sender=client.messages.subscription.sender))
    return client


def metric(client: Client, session_id: str = "", round_id: str = "", **values: float) -> fedn_pb2.ModelMetric:
    return fedn_pb2.ModelMetric(
        sender=client.messages.subscription.sender,
        metrics=[fedn_pb2.MetricElem(key=key, value=value) for key, value in values.items()],
        session_id=session_id,
        round_id=round_id,
    )


def telemetry(client: Client, **values: float) -> fedn_pb2.TelemetryMessage:
    return fedn_pb2.TelemetryMessage(
        sender=client.messages.subscription.sender,
        telemetries=[fedn_pb2.TelemetryElem(key=key, value=value) for key, value in values.items()],
    )


async def told(replica: Replica, name: str) -> pb.ClientReport:
    found = [c for c in await replica.operator.list_clients(all=True, details=True) if c.client == name]
    return found[0].report if found else pb.ClientReport()


async def test_telemetry_and_attributes_are_kept_with_the_client(combiner: Replica) -> None:
    client = modern(combiner)
    client.open("TaskStream")
    await until_streams(combiner, 1)
    sender = client.messages.subscription.sender
    attributes = [
        fedn_pb2.AttributeElem(key="site", value="Uppsala"),
        fedn_pb2.AttributeElem(key="", value="x"),
    ]
    await client.link.combiner.SendAttributeMessage(
        fedn_pb2.AttributeMessage(sender=sender, attributes=attributes), timeout=DEADLINE
    )
    for cpu in (20.0, 40.0):
        await client.link.combiner.SendTelemetryMessage(
            telemetry(client, cpu_usage=cpu, memory_usage=math.nan), timeout=DEADLINE
        )

    async def known() -> bool:
        report = await told(combiner, ID)
        return dict(report.telemetry) == {"cpu_usage": 40.0} and dict(report.attributes) == {
            "site": "Uppsala"
        }

    await client.beat()
    await eventually(known, "what the client told")
    plain = await combiner.operator.list_clients(all=True)
    assert not any(c.HasField("report") for c in plain)


async def test_heartbeats_of_0_24_carry_telemetry(combiner: Replica) -> None:
    client = modern(combiner)
    client.open("TaskStream")
    await until_streams(combiner, 1)
    client.messages.heartbeat.cpu_utilisation = 12.5
    client.messages.heartbeat.memory_utilisation = 50.0
    await client.beat()

    async def known() -> bool:
        return dict((await told(combiner, ID)).telemetry) == {"cpu_usage": 12.5, "memory_usage": 50.0}

    await eventually(known, "utilisation")


@pytest.mark.parametrize("service", ["combiner", "connector"])
async def test_metrics_are_kept_with_their_round(combiner: Replica, service: str) -> None:
    seed = await put_seed(combiner)
    client = modern(combiner)
    stream = client.open("TaskStream")
    await until_streams(combiner, 1)
    job_id = await combiner.operator.start_job(training(seed, session_id="s1"))
    task = await stream.next()
    rpc = getattr(client.link, service).SendModelMetric
    await rpc(metric(client, "s1", "1", loss=0.5, accuracy=math.inf), timeout=DEADLINE)
    await rpc(metric(client, "s1", "2", loss=99.0), timeout=DEADLINE)  # of no round that it works on
    await client.link.combiner.SendTelemetryMessage(telemetry(client, cpu_usage=10), timeout=DEADLINE)

    async def known() -> bool:
        reports = (await combiner.operator.get_job(job_id)).reports
        return [(r.client, dict(r.metrics), dict(r.telemetry)) for r in reports] == [
            (ID, {"loss": 0.5}, {"cpu_usage": 10.0})
        ]

    await eventually(known, "the metric in its job")
    update = client.update(task, await client.upload(b""))
    update.sender.CopyFrom(client.messages.subscription.sender)
    await client.send(update)
    job = await combiner.operator.wait_job(job_id)
    assert reasons(job.failed) == {ID: "empty_upload"}
    await rpc(metric(client, "s1", "1", loss=0.25), timeout=DEADLINE)  # told after its answer

    async def newer() -> bool:
        reports = (await combiner.operator.get_job(job_id)).reports
        return dict(reports[0].metrics) == {"loss": 0.25}

    await eventually(newer, "the metric that came last")


async def test_a_session_shows_what_its_clients_told(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    clients = [modern(combiner, f"site-{i}", f"id-{i}") for i in range(2)]
    streams = [client.open("TaskStream") for client in clients]
    await until_streams(combiner, 2)
    config = {"rounds": 1, "validate": "False", "clients_required": 2, "wait_for_clients": DEADLINE}
    session = await combiner.operator.start_session(config, model_id=seed, session_id="told")
    for index, (client, stream) in enumerate(zip(clients, streams, strict=True)):
        task = await stream.next()
        await client.link.combiner.SendModelMetric(metric(client, "told", "1", loss=index), timeout=DEADLINE)
        update = client.update(task, await client.upload(zeros()))
        update.sender.CopyFrom(client.messages.subscription.sender)
        await client.send(update)
    await combiner.operator.wait_session(session.session_id)

    async def mean() -> bool:
        found = await combiner.operator.get_session("told")
        return [dict(result.reported) for result in found.results] == [{"loss": 0.5}]

    await eventually(mean, "the mean of what they told")


async def test_more_names_than_are_kept_are_left_out(combiner: Replica) -> None:
    client = modern(combiner)
    client.open("TaskStream")
    await until_streams(combiner, 1)
    for start in range(0, 200, 20):
        values = {f"m{number}": 1.0 for number in range(start, start + 20)}
        await client.link.combiner.SendTelemetryMessage(telemetry(client, **values), timeout=DEADLINE)

    async def full() -> bool:
        clients = await combiner.operator.list_clients(all=True, details=True)
        return any(len(c.report.telemetry) == 16 for c in clients)

    await eventually(full, "16 names")


async def test_a_backward_pass_is_confirmed(combiner: Replica) -> None:
    client = modern(combiner)
    done = fedn_pb2.BackwardCompletion(sender=client.messages.subscription.sender, gradient_id="g1")
    answer = await client.link.combiner.SendBackwardCompletion(done, timeout=DEADLINE)
    assert answer.response.startswith("RECEIVED")


# --- an id on the stream, the name alone on answers and failures


async def asked(replica: Replica, client: Client, **more: object) -> tuple[str, Task]:
    stream = client.open("TaskStream")
    await until_streams(replica, 1)
    job_id = await replica.operator.start_job(training(await put_seed(replica), **more))
    return job_id, await stream.next()


async def test_an_update_signed_by_name_is_that_of_the_id(combiner: Replica) -> None:
    """FEDn 0.11 to 0.18."""
    client = modern(combiner, role=0)
    job_id, task = await asked(combiner, client)
    await client.train(task, 0)
    assert list((await combiner.operator.wait_job(job_id)).accepted) == [ID]


async def test_an_answer_signed_by_name_is_that_of_the_id(combiner: Replica) -> None:
    """A validation of FEDn 0.11 to 0.26; a prediction of all that have them."""
    client = modern(combiner)
    job_id, task = await asked(combiner, client, task="validation")
    await client.validate(task, loss=0.5)
    job = await combiner.operator.wait_job(job_id)
    assert [(a.client, json.loads(a.data)) for a in job.answers] == [(ID, {"loss": 0.5})]


async def test_a_failure_signed_by_name_is_that_of_the_id(combiner: Replica) -> None:
    client = modern(combiner, role=0)
    job_id, task = await asked(combiner, client)
    await client.fail(task)
    assert reasons((await combiner.operator.wait_job(job_id)).failed) == {ID: "client_failed"}


async def test_of_two_clients_with_one_name_the_task_tells(combiner: Replica) -> None:
    """The second one has the name alone, the third another id."""
    first = modern(combiner, "twin", "id-1", role=0)
    second = combiner.client("twin", package="fedn", generation="0.8")
    third = modern(combiner, "twin", "id-3", role=0)
    streams = [client.open("TaskStream") for client in (first, second, third)]
    await until_streams(combiner, 3)
    job_id = await combiner.operator.start_job(training(await put_seed(combiner), clients_required=2))
    tasks = [await stream.next() for stream in streams]
    await second.train(tasks[1], 1)
    await first.fail(tasks[0])
    await third.train(tasks[2], 2)
    job = await until_job(combiner.operator, job_id, lambda job: bool(job.ended_at), "the job's end")
    assert (list(job.accepted), reasons(job.failed)) == (["id-3", "twin"], {"id-1": "client_failed"})


async def test_the_era_of_a_stream_outlives_heartbeats(combiner: Replica) -> None:
    """They do not tell 0.8 from 0.5."""
    client = combiner.client("old", generation="0.8")
    client.open("TaskStream")
    await until_streams(combiner, 1)
    await client.beat()
    started = time.monotonic()

    async def beaten() -> bool:
        [found] = await combiner.operator.list_clients()
        return found.seen_seconds_ago < time.monotonic() - started

    await eventually(beaten, "a heartbeat")
    [found] = await combiner.operator.list_clients()
    assert found.era == "0.8"

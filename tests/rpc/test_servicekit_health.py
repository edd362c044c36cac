import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from fedcombiner.servicekit.health import Health
from fedcombiner.servicekit.metrics import Metrics
from fedcombiner.servicekit.rpc import RpcServer, add_reflection, bind, build_server

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Health, grpc.aio.Channel]]:
    metrics = Metrics()
    health = Health(metrics)
    server = build_server(metrics.rpc)
    health.add_to(server)
    add_reflection(server, ["grpc.health.v1.Health"])
    port = bind(server, "127.0.0.1", 0)
    component = RpcServer(server, grace=0.1)
    await health.start()
    await component.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield health, channel
    finally:
        await health.stop()
        await component.stop()


class Watch:
    def __init__(self, channel: grpc.aio.Channel, service: str) -> None:
        stub = health_pb2_grpc.HealthStub(channel)
        self._call = stub.Watch(health_pb2.HealthCheckRequest(service=service))

    async def next(self) -> int:
        async with asyncio.timeout(20):
            return (await self._call.read()).status


async def test_the_process_is_serving_from_ready_to_draining() -> None:
    async with serving() as (health, channel):
        watch = Watch(channel, "")
        assert await watch.next() == NOT_SERVING
        health.readiness.mark_ready()
        assert await watch.next() == SERVING
        health.readiness.mark_draining()
        assert await watch.next() == NOT_SERVING


async def test_jobs_follow_the_back_ends_and_the_process_does_not() -> None:
    async with serving() as (health, channel):
        redis, store = health.backends.register("redis"), health.backends.register("store")
        redis.mark_up()
        store.mark_up()
        health.readiness.mark_ready()
        process, jobs = Watch(channel, ""), Watch(channel, "jobs")
        states = [await jobs.next()]
        if states[0] != SERVING:
            states.append(await jobs.next())
        assert states[-1] == SERVING
        store.mark_down("disk is gone")
        assert await jobs.next() == NOT_SERVING
        store.mark_up()
        assert await jobs.next() == SERVING
        assert await process.next() == SERVING


async def test_nothing_is_serving_once_health_was_stopped() -> None:
    async with serving() as (health, channel):
        health.readiness.mark_ready()
        watch = Watch(channel, "")
        while await watch.next() != SERVING:
            pass
        await health.stop()
        assert await watch.next() == NOT_SERVING
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service="jobs"))
        assert answer.status == NOT_SERVING


async def test_an_unknown_service_is_not_found() -> None:
    async with serving() as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="x"))
        assert error.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_services() -> None:
    async with serving() as (_, channel):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        names = {service.name async for answer in call for service in answer.list_services_response.service}
        assert names == {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


async def test_all_services_are_listed_at_once() -> None:
    async with serving() as (health, channel):
        health.readiness.mark_ready()
        health.backends.register("redis")
        listed = await health_pb2_grpc.HealthStub(channel).List(health_pb2.HealthListRequest())
        assert {name: status.status for name, status in listed.statuses.items()} == {
            "": health_pb2.HealthCheckResponse.SERVING,
            "jobs": health_pb2.HealthCheckResponse.NOT_SERVING,
        }

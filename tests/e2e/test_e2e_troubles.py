"""What an operator got wrong, or what went away, is said in one line that names the setting.

What is mended needs no help: no process is started anew for it, and a session succeeds.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fedcombiner.client import OperatorClient
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.e2e.fleets import ended, fleet, seed, start
from tests.e2e.stacks import PROJECT, ROOT, Compose

pytestmark = [pytest.mark.needs("services"), pytest.mark.timeout(300)]

SAID_S = 60.0
WATCHED = ("combiner-1", "modelstore-1")
SECRETS = [
    "REDIS_PASSWORD",
    "TOKENS_REDIS_PASSWORD",
    "MINIO_ROOT_USER",
    "MINIO_ROOT_PASSWORD",
    "COMBINER_MINIO_SECRET_KEY",
    "MODELSTORE_MINIO_SECRET_KEY",
    "DISCOVERY_MINIO_SECRET_KEY",
    "GRAFANA_ADMIN_PASSWORD",
    "ADVERTISE",
]
REDIS_REFUSES = (
    "redis-cli config set requirepass other && REDISCLI_AUTH=other redis-cli client kill type normal"
)
REDIS_TAKES = 'REDISCLI_AUTH=other redis-cli config set requirepass "$REDISCLI_AUTH"'
TOKENS_REFUSED = "redis-cli acl setuser tokens off && redis-cli client kill user tokens"
TOKENS_TAKEN = "redis-cli acl setuser tokens on"


class Said:
    """What services say from now on. Use `begin` for one."""

    def __init__(self, containers: Compose, read: dict[str, int]) -> None:
        self._containers = containers
        self._read = read

    @classmethod
    async def begin(cls, containers: Compose) -> Said:
        return cls(containers, {service: len(await cls._lines(containers, service)) for service in WATCHED})

    async def until(self, service: str, *words: str) -> None:
        """Until a line, after those of earlier calls, has all of these words."""
        deadline = asyncio.get_running_loop().time() + SAID_S
        while True:
            new = (await self._lines(self._containers, service))[self._read[service] :]
            for number, line in enumerate(new, 1):
                if all(word in line for word in words):
                    self._read[service] += number
                    return
            assert asyncio.get_running_loop().time() < deadline, f"{service} did not say {words}: {new}"
            await asyncio.sleep(0.2)  # docker tells nobody of new lines

    @staticmethod
    async def _lines(containers: Compose, service: str) -> list[str]:
        return (await containers.do("logs", "--no-log-prefix", "--no-color", service)).splitlines()


@asynccontextmanager
async def no_new_process(containers: Compose) -> AsyncIterator[None]:
    started = await asyncio.to_thread(containers.started, *WATCHED)
    yield
    assert await asyncio.to_thread(containers.started, *WATCHED) == started


async def a_session_succeeds(containers: Compose, operator: OperatorClient) -> None:
    async with fleet(containers, 2) as clients:
        await clients.wait_connected(60)
        done = await ended(operator, await start(operator, await seed(operator, 2), 2, rounds=1))
    assert done.state == pb.SUCCEEDED, done.reason


@pytest.mark.parametrize("setting", SECRETS)
async def test_what_is_not_set_is_named(containers: Compose, setting: str) -> None:
    said = await containers.refused("--profile", "*", "config", "--quiet", **{setting: ""})
    assert f"required variable {setting} is missing a value" in said
    assert "deploy/.env" in said


async def test_a_wrong_password_of_redis(containers: Compose, operator: OperatorClient) -> None:
    said = await Said.begin(containers)
    async with no_new_process(containers):
        await containers.do("exec", "-T", "redis", "sh", "-c", REDIS_REFUSES)
        await said.until("combiner-1", '"back end is down"', '"redis"', "password in REDIS_URL")
        await containers.do("exec", "-T", "redis", "sh", "-c", REDIS_TAKES)
        await said.until("combiner-1", '"back end is up"', '"redis"')
        await a_session_succeeds(containers, operator)


async def test_a_wrong_password_for_tokens(containers: Compose, operator: OperatorClient) -> None:
    said = await Said.begin(containers)
    async with no_new_process(containers):
        await containers.do("exec", "-T", "redis", "sh", "-c", TOKENS_REFUSED)
        await said.until("modelstore-1", "tokens cannot be read", "password in REDIS_URL")
        await containers.do("exec", "-T", "redis", "sh", "-c", TOKENS_TAKEN)
        await said.until("modelstore-1", '"back end is up"', '"redis"')
        await a_session_succeeds(containers, operator)


async def test_a_wrong_key_of_minio(containers: Compose, operator: OperatorClient) -> None:
    other = [f"{service}_MINIO_SECRET_KEY=another-secret" for service in ("COMBINER", "MODELSTORE")]
    changed = [word for variable in other for word in ("-e", variable)]
    said = await Said.begin(containers)
    async with no_new_process(containers):
        await containers.do("run", "--rm", "--no-deps", "-T", *changed, "storage-setup")
        for service in ("combiner-1", "modelstore-1"):
            await said.until(service, '"back end is down"', '"store"', "MINIO_SECRET_KEY is not the secret")
        await containers.do("run", "--rm", "--no-deps", "-T", "storage-setup")
        for service in ("combiner-1", "modelstore-1"):
            await said.until(service, '"back end is up"', '"store"')
        await a_session_succeeds(containers, operator)


async def test_back_ends_that_are_away_at_the_start(containers: Compose, operator: OperatorClient) -> None:
    said = await Said.begin(containers)
    await containers.do("stop", "redis", "minio")
    try:
        await containers.do("restart", *WATCHED)
        async with no_new_process(containers):
            await said.until("combiner-1", '"back end is down"', '"redis"', "REDIS_URL")
            await said.until("modelstore-1", '"back end is down"', '"store"', "MINIO_URL")
            await containers.do("start", "redis", "minio")
            await said.until("combiner-1", '"back end is up"', '"redis"')
            await said.until("modelstore-1", '"back end is up"', '"store"')
            await a_session_succeeds(containers, operator)
    finally:
        await containers.do("start", "redis", "minio")


@pytest.mark.parametrize(
    ("service", "setting", "value"),
    [
        ("modelstore-1", "OPERATOR_TOKEN_FILE", "/nowhere"),
        ("modelstore-1", "STORE", "tape"),
        ("discovery-mock", "MINIO_URL", "minio"),
    ],
)
async def test_what_cannot_be_right_ends_a_service_in_one_line(
    containers: Compose, service: str, setting: str, value: str
) -> None:
    said = await containers.refused("run", "--rm", "--no-deps", "-T", "-e", f"{setting}={value}", service)
    [line] = [line for line in said.splitlines() if setting in line]
    assert value in line
    assert "Traceback" not in said


async def test_a_wrong_administrator_of_minio(containers: Compose) -> None:
    wrong = ("-e", "MINIO_ROOT_PASSWORD=wrong-but-long-enough")
    said = await containers.refused("run", "--rm", "--no-deps", "-T", *wrong, "storage-setup")
    assert "MINIO_ROOT_PASSWORD" in said
    assert "Traceback" not in said


async def test_a_port_that_another_process_has(containers: Compose) -> None:
    project = f"{PROJECT}-port"
    up = ("up", "--detach", "--no-build", "--no-deps", "--wait", "gateway")
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        try:
            await containers.refused(*up, project=project, GATEWAY_PORT=str(port))
            why = await asyncio.to_thread(said_why, project, port)
            assert why == f"gateway: another process has port {port}: set GATEWAY_PORT in deploy/.env\n"
        finally:
            await containers.do("-p", project, "down", "--volumes")


def said_why(project: str, port: int) -> str:
    command = [sys.executable, str(ROOT / "deploy/say_why.py"), str(ROOT / "deploy/docker-compose.yml")]
    environment = os.environ | {"COMPOSE_PROJECT_NAME": project, "GATEWAY_PORT": str(port)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    return done.stderr

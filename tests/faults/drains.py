"""Replicas that are told to stop while rounds run: `python -m tests.faults.drains`.

Combiners and modelstores behind HAProxy are drained and started again by turns, with clients as strict as
FEDn's oldest: none of their calls and transfers is tried twice. None may fail, and streams may end with
UNAVAILABLE only, as a status that was sent.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from statistics import median
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import grpc
import grpc.aio
import httpx

from fedcombiner.client.link import Link
from fedcombiner.client.messages import Messages, Task, Timings
from fedcombiner.client.operator import OperatorClient
from fedcombiner.client.transfer import DOWNLOAD, UPLOAD
from fedcombiner.wire.chunks import decode_response, encode_request
from fedcombiner.wire.pb import fedn_pb2
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.faults.fleet import seed_model, update_of
from tests.faults.stack import Stack, haproxy_binary

CLIENTS: Final = 6
TURNS: Final = (("combiner-1", "modelstore-1"), ("combiner-2", "modelstore-2"))
# A transfer of about two seconds, so that many are under way when their replica is told to stop.
SLOW_CHUNKS: Final = 20
SLOW_S: Final = 0.1
CHUNK: Final = 64 << 10
BEAT_S: Final = 0.05
UP_S: Final = 60.0
BALANCED: Final = ("check_status", "L7OK")  # a new gateway takes servers for up that it has not looked at
ENDED_S: Final = 60.0

T = TypeVar("T")


class Tally:
    """The outcomes of calls, transfers and streams."""

    def __init__(self) -> None:
        self.fine: Counter[str] = Counter()
        self.failed: list[str] = []
        self.streams: Counter[str] = Counter()

    async def note(self, what: str, call: Awaitable[T]) -> T | None:
        """The answer of a call; None if it failed, which is noted."""
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            self.failed.append(f"{what}: {error.code().name} {error.details()}")
            return None
        self.fine[what] += 1
        return answer

    def stream_ended(self, code: grpc.StatusCode, details: str) -> None:
        reset = " by RST_STREAM" if "RST_STREAM" in details else ""
        self.streams[code.name + reset] += 1

    def check(self) -> None:
        """Raise AssertionError if anything ended as it may not."""
        assert not self.failed, f"{len(self.failed)} calls failed: {self.failed[:10]}"
        assert set(self.streams) <= {"UNAVAILABLE"}, f"streams ended with {dict(self.streams)}"


class StrictClient:
    """Holds both streams of a client, answers its tasks, and beats; nothing is tried again."""

    def __init__(self, index: int, address: str, tally: Tally) -> None:
        self._index = index
        self._link = Link(address)
        self._messages = Messages(f"client-{index}", "0.6")
        self._tally = tally
        self._tasks: asyncio.TaskGroup

    async def run(self) -> None:
        async with self._link, asyncio.TaskGroup() as self._tasks:
            for rpc in ("ModelUpdateRequestStream", "ModelValidationRequestStream"):
                self._tasks.create_task(self._follow(rpc))
            self._tasks.create_task(self._beat())
            self._tasks.create_task(self._transfer_slowly())

    async def _follow(self, rpc: str) -> None:
        while True:
            call: Any = getattr(self._link.combiner, rpc)(self._messages.subscription)
            try:
                async for request in call:
                    task = Task.of(request)
                    assert task is not None
                    self._tasks.create_task(self._train(task))
            except grpc.aio.AioRpcError:
                pass  # its status is noted
            self._tally.stream_ended(await call.code(), await call.details())

    async def _train(self, task: Task) -> None:
        await self._tally.note("download", self._download(task.model_id))
        update_id = str(uuid.uuid4())
        content = update_of(self._index, task)
        if await self._tally.note("upload", self._upload(update_id, content)):
            update = self._messages.update(task, update_id, 1, {}, Timings(0, 0, 0, 0))
            await self._tally.note("SendModelUpdate", self._link.combiner.SendModelUpdate(update))

    async def _beat(self) -> None:
        while True:
            await self._tally.note(
                "SendHeartbeat", self._link.connector.SendHeartbeat(self._messages.heartbeat)
            )
            await asyncio.sleep(BEAT_S)

    async def _transfer_slowly(self) -> None:
        content = bytes(SLOW_CHUNKS * CHUNK)
        while True:
            name = str(uuid.uuid4())
            if await self._tally.note("slow upload", self._upload(name, content, pause=SLOW_S)):
                await self._tally.note("slow download", self._download(name, pause=SLOW_S))

    async def _upload(self, model_id: str, content: bytes, pause: float = 0) -> bool:
        async def messages() -> AsyncIterator[bytes]:
            for start in range(0, len(content), CHUNK):
                yield encode_request(model_id, fedn_pb2.IN_PROGRESS, content[start : start + CHUNK])
                await asyncio.sleep(pause)
            yield encode_request(model_id, fedn_pb2.OK)

        call: Any = self._link.stream_unary(UPLOAD)(messages())
        return decode_response(await call).status == fedn_pb2.OK

    async def _download(self, model_id: str, pause: float = 0) -> None:
        """Raises AioRpcError also if the stream ended without the end of the model."""
        call: Any = self._link.unary_stream(DOWNLOAD)(encode_request(model_id, fedn_pb2.UNKNOWN))
        last = None
        async for message in call:
            last = decode_response(message)
            await asyncio.sleep(pause)
        assert last is not None, f"{model_id}: the download ended before it began"
        assert last.status == fedn_pb2.OK, f"{model_id}: the download ended with {last.status}"


class Drains:
    """The stack with its clients and rounds, for the length of an `async with` block."""

    def __init__(self) -> None:
        self.stack = Stack(minio=False, modelstores=2)
        self.tally = Tally()
        self.rounds = 0
        self.seconds: list[float] = []
        self._open = AsyncExitStack()
        self._background: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self._open.enter_async_context(self.stack)
        for name in (name for turn in TURNS for name in turn):
            await self._until_gateway_says(name, *BALANCED)
        self._operator = OperatorClient(self.stack.gateway, patience=UP_S)
        self._open.push_async_callback(self._operator.close)
        clients = [StrictClient(index, self.stack.gateway, self.tally) for index in range(CLIENTS)]
        work = [*(client.run() for client in clients), self._train()]
        self._background = [asyncio.create_task(one) for one in work]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.wait(self._background)
        await self._open.__aexit__(kind, error, trace)

    async def run(self, number: int) -> None:
        """Drain so many replicas, a combiner and a modelstore at a time."""
        for turn in range((number + 1) // 2):
            await self._in_mid_round()
            await asyncio.gather(*(self._drain(name) for name in TURNS[turn % 2]))
            self._check_background()
            self.tally.check()
        await self._in_mid_round()

    async def _train(self) -> None:
        """One round after the other."""
        seed = (await self._operator.put_model(seed_model())).model_id
        while True:
            config = {"model_id": seed, "round_id": str(self.rounds), "clients_required": CLIENTS}
            job_id = await self._operator.start_job(
                {**config, "task": "training", "helper_type": "numpyhelper", "round_timeout": 120}
                | {"wait_for_clients": UP_S}
            )
            job = await self._operator.wait_job(job_id)
            assert job.state == pb.SUCCEEDED, job
            self.rounds += 1

    async def _in_mid_round(self) -> None:
        """Wait for an update of the round that runs, or of the next one."""
        before, deadline = self.tally.fine["SendModelUpdate"], time.monotonic() + UP_S
        while self.tally.fine["SendModelUpdate"] == before:
            assert time.monotonic() < deadline, "waited for an update"
            self._check_background()
            await asyncio.sleep(0.02)

    def _check_background(self) -> None:
        for task in self._background:
            if task.done():
                task.result()

    async def _drain(self, name: str) -> None:
        """SIGTERM, exit code 0, and the replica is back in the gateway's balancing."""
        program = self.stack.programs[name]
        begun = time.monotonic()
        program.signal(signal.SIGTERM)
        async with asyncio.timeout(ENDED_S):
            code = await program.ended()
        assert code == 0, f"{name} ended with {code}: see {program.log}"
        self.seconds.append(time.monotonic() - begun)
        await self._until_gateway_says(name, "status", "DOWN")
        await program.start()
        await program.ready()
        await self._until_gateway_says(name, *BALANCED)

    async def _until_gateway_says(self, name: str, metric: str, state: str) -> None:
        proxy = f"{name.rpartition('-')[0]}s"
        wanted = f'haproxy_server_{metric}{{proxy="{proxy}",server="{name}",state="{state}"}} 1'
        async with asyncio.timeout(UP_S), httpx.AsyncClient(trust_env=False) as http:
            while True:
                answer = await http.get(f"http://{self.stack.gateway_operations}/metrics")
                if wanted in answer.text.splitlines():
                    return
                await asyncio.sleep(0.05)

    def told(self) -> str:
        seconds = self.seconds or [0.0]
        return "\n".join(
            [
                f"{len(self.seconds)} drains, median {median(seconds):.1f} s, at most {max(seconds):.1f} s",
                f"{self.rounds} rounds, all with {CLIENTS} of {CLIENTS} updates",
                f"calls and transfers: {dict(self.tally.fine)}, failed: {len(self.tally.failed)}",
                f"streams ended: {dict(self.tally.streams)}",
            ]
        )


async def drain(number: int) -> None:
    """Say what came of so many drains. Raises AssertionError if any call, transfer or stream failed."""
    async with Drains() as drains:
        try:
            await drains.run(number)
        finally:
            print(drains.told(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--drains", type=int, default=200)
    if haproxy_binary() is None:
        sys.exit("HAProxy is not installed")
    asyncio.run(drain(parser.parse_args().drains))


if __name__ == "__main__":
    main()

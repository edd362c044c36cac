"""Shared by the fixture of an old state and its test: the clients, and the view of an operator."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from fedcombiner.client.made_up import to_npz
from fedcombiner.client.messages import Task
from fedcombiner.client.operator import ENDED, OperatorClient
from fedcombiner.client.simulate import SimulatedFleet
from fedcombiner.client.transfer import download_bytes
from fedcombiner.client.workload import Fetch, Metrics, Update

GENERATIONS: Final = ("0.6", "0.8")
IN_EACH: Final = 4
CLIENTS: Final = len(GENERATIONS) * IN_EACH
NOISE: Final = 1_000
OPERATOR_TOKEN: Final = "operator-of-the-upgrade-tests"
SETTINGS: Final[Mapping[str, str]] = {"OPERATOR_TOKEN": OPERATOR_TOKEN, "REQUIRE_CLIENT_TOKENS": "true"}
FINISHED: Final = "finished"  # session ids
IN_MID_ROUND: Final = "in-mid-round"
QUEUED: Final = "queued"


def name_of(index: int) -> str:
    generation = GENERATIONS[index // IN_EACH]
    return f"client-{generation}-{index % IN_EACH}"


def examples_of(index: int) -> int:
    return 10 * index + 3


def arrays_of(index: int) -> dict[str, np.ndarray[Any, Any]]:
    """A one at the client's place, and numbers whose sum depends on the order unless it is exact."""
    who = np.zeros(CLIENTS, np.float32)
    if index >= 0:
        who[index] = 1
    rng = np.random.default_rng(index + 1)
    return {"who": who, "noise": rng.standard_normal(NOISE, np.float32)}


@dataclass
class Scripted:
    """Client `index`: before it answers a training task, it does what `act` says; it may raise.

    Attributes:
        act: gets the index; returns the bytes to upload, or None for the update as it should be.
    """

    index: int
    act: Callable[[int], Any] | None = None
    trains: bool = field(default=True, init=False)
    validates: bool = field(default=True, init=False)

    async def train(self, task: Task, fetch: Fetch) -> Update:
        content = await self.act(self.index) if self.act else None
        return Update(content or to_npz(arrays_of(self.index)), examples_of(self.index))

    async def validate(self, task: Task, fetch: Fetch) -> Metrics:
        return {"loss": 1 / (1 + self.index), "accuracy": self.index / CLIENTS}


@asynccontextmanager
async def fleet(address: str, token: str, act: Callable[[int], Any] | None = None) -> AsyncIterator[None]:
    """Eight clients of two generations, each under its own name."""

    def of(first: int) -> Callable[[int], Scripted]:
        return lambda index: Scripted(first + index, act)

    async with AsyncExitStack() as stack:
        fleets = [
            SimulatedFleet(
                IN_EACH,
                address,
                workload=of(position * IN_EACH),
                name=f"client-{generation}-{{}}",
                generation=generation,
                token=token,
            )
            for position, generation in enumerate(GENERATIONS)
        ]
        for one in fleets:
            await stack.enter_async_context(one)
        await asyncio.gather(*(one.wait_connected(60) for one in fleets))
        yield


async def shown(operator: OperatorClient) -> dict[str, Any]:
    """Everything that an operator can see of what has ended, and of clients, models and tokens."""
    sessions = [await operator.get_session(one.session_id) for one in await operator.list_sessions()]
    jobs = [await operator.get_job(one.job_id) for one in await operator.list_jobs()]
    models = await operator.list_models()
    return {
        "sessions": {one.session_id: _dict(one) for one in sessions if one.state in ENDED},
        "jobs": {one.job_id: _dict(one) for one in jobs if one.state in ENDED},
        "models": {one.model_id: _dict(one) for one in models},
        "contents": {one.model_id: await _sha256(operator, one.model_id) for one in models},
        "tokens": {one.token_id: _dict(one) for one in await operator.list_tokens()},
        "clients": {one.client: _told(one) for one in await operator.list_clients(all=True, details=True)},
    }


def _told(client: Message) -> dict[str, Any]:
    """A client, without what depends on the time and on its connections."""
    found = _dict(client)
    return {key: found.get(key) for key in ("client", "name", "era", "report")}


def _dict(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    for key, value in found.items():
        if isinstance(value, list) and all(isinstance(item, str | dict) for item in value):
            found[key] = sorted(value, key=lambda item: json.dumps(item, sort_keys=True))
    return found


async def _sha256(operator: OperatorClient, model_id: str) -> str:
    return hashlib.sha256(await download_bytes(operator.link, model_id)).hexdigest()

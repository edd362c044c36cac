"""A client of a federation: trains on its own data whenever it is asked."""

from __future__ import annotations

import asyncio
import logging
import re
import tempfile
from functools import partial
from math import inf
from pathlib import Path
from typing import NoReturn

from fedcombiner.client.connection import Connection, one_error
from fedcombiner.client.errors import ServerUnreachable
from fedcombiner.client.join import Assignment, join
from fedcombiner.client.link import Link, token_metadata
from fedcombiner.client.messages import GENERATIONS, Messages
from fedcombiner.client.trust import Trust, tls_trouble
from fedcombiner.client.worker import Worker
from fedcombiner.client.workload import CallbackWorkload, Train, Validate

logger = logging.getLogger(__name__)

# After this long without an answer, discovery may know a better combiner; FEDn's clients wait as long.
_ASK_AGAIN_AFTER = 60.0  # seconds
_NAME = re.compile(r"[A-Za-z0-9_-]+")


class FederatedClient:
    """Joins a combiner and does what it asks for, until cancelled.

    The callbacks run in threads, one task at a time, and get the model as a dict of arrays and the round's
    config as the server sent it (values are text). What they raise fails that task only.

    Args:
        name: letters, digits, `_` and `-`; the server knows the client by it, so it must be the only one.
        train: returns the trained arrays, under the same names and in the same shapes, the number of
            examples they were trained on (the weight in the average), and metrics to go with them.
        validate: returns metrics of a model on this client's data, as numbers by name.
        infer: returns predictions of a model, as anything that JSON can hold.
        address: `host:port` of a combiner; or else
        discovery: URL of the discovery service.
        trust: whose certificates to believe, at the combiner and at an https discovery; None: plaintext with
            the combiner, unless discovery says otherwise.
        token: sent with every call; without TLS anyone on the way can read it.
        generation: of FEDn clients to be on the wire, "0.6" or "0.8".
        give_up_after: seconds without an answer after which `run` raises; None: never.

    Raises:
        ValueError: the arguments do not make a client.
    """

    def __init__(
        self,
        name: str,
        *,
        train: Train | None = None,
        validate: Validate | None = None,
        infer: Validate | None = None,
        address: str | None = None,
        discovery: str | None = None,
        trust: Trust | None = None,
        token: str | None = None,
        preferred_combiner: str | None = None,
        generation: str = "0.6",
        heartbeat_interval: float = 2.0,
        give_up_after: float | None = None,
    ) -> None:
        _check(name, address, discovery, generation, (train, validate, infer))
        self.name = name
        self._workload = partial(CallbackWorkload, train=train, validate=validate, infer=infer)
        self._address = address
        self._discovery = discovery
        self._trust = trust
        self._token = token
        self._preferred = preferred_combiner
        self._messages = Messages(name, generation)
        self._interval = heartbeat_interval
        self._give_up_after = give_up_after
        self._lost_after = give_up_after if discovery is None else min(_ASK_AGAIN_AFTER, give_up_after or inf)
        self._links = _CurrentLink()

    async def run(self) -> NoReturn:
        """Be a client until cancelled.

        A connection that breaks does not stop a training under way. Once cancelled, a callback that still
        runs goes on in its thread, and its result is dropped.

        Raises:
            JoinRefused: discovery does not want this client.
            ServerUnreachable: no answer for `give_up_after` seconds.
            ServiceError: the combiner does not want this client.
        """
        with tempfile.TemporaryDirectory(prefix="federated-client-", ignore_cleanup_errors=True) as scratch:
            workload = self._workload(Path(scratch))
            worker = Worker(self._messages, workload, self._links.get)
            async with one_error() as tasks:
                tasks.create_task(worker.run())
                tasks.create_task(self._stay(worker, workload))
        raise AssertionError("none of the tasks ends by itself")

    async def _stay(self, worker: Worker, workload: CallbackWorkload) -> NoReturn:
        while True:
            assignment = await self._assignment()
            try:
                await self._be_at(assignment, worker, workload)
            except ServerUnreachable as error:
                if self._discovery is None:
                    raise
                logger.warning("%s: %s; asking discovery again", self.name, error)

    async def _be_at(self, assignment: Assignment, worker: Worker, workload: CallbackWorkload) -> NoReturn:
        metadata = (("client", self.name), ("grpc-server", assignment.host), *token_metadata(self._token))
        async with Link(assignment.address, metadata=metadata, trust=assignment.trust) as link:
            connection = Connection(
                link,
                self._messages,
                worker.deliver,
                trains=workload.trains,
                validates=workload.validates,
                heartbeat_interval=self._interval,
                lost_after=self._lost_after,
                explain=partial(tls_trouble, assignment.address, assignment.trust),
            )
            self._links.set(link)
            try:
                await connection.run()
            finally:
                self._links.clear()

    async def _assignment(self) -> Assignment:
        if self._discovery is None:
            return Assignment.at(self._address or "", self._trust)
        return await join(
            self._discovery,
            self.name,
            token=self._token,
            preferred_combiner=self._preferred,
            trust=self._trust,
            give_up_after=self._give_up_after,
        )


class _CurrentLink:
    """The connection of the moment, for those who can wait for one."""

    def __init__(self) -> None:
        self._link: Link | None = None
        self._there = asyncio.Event()

    def set(self, link: Link) -> None:
        self._link = link
        self._there.set()

    def clear(self) -> None:
        self._link = None
        self._there.clear()

    async def get(self) -> Link:
        while self._link is None:
            await self._there.wait()
        return self._link


def _check(
    name: str, address: str | None, discovery: str | None, generation: str, callbacks: tuple[object, ...]
) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"name {name!r}: letters, digits, _ and - only")
    if (address is None) == (discovery is None):
        raise ValueError("give either address or discovery")
    if generation not in GENERATIONS:
        raise ValueError(f"generation {generation!r}: one of {', '.join(GENERATIONS)}")
    if not any(callbacks):
        raise ValueError("give at least one of train, validate and infer")

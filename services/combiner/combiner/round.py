"""FEDn's round controller: rounds by their config, one at a time or from the queue.

The rounds themselves are run by `combiner.rounds`, under a lease and with a journal; this is a blocking face
on them, for plain threads.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from combiner.aggregation import AGGREGATORS
from combiner.domain.config import ID_ALLOWED, MAX_ROUND_TIMEOUT, ConfigError
from combiner.domain.params import Params, is_id
from combiner.domain.types import Kind
from combiner.helpers import Helper
from combiner.modelservice import ModelService
from combiner.ports import StateUnavailable
from combiner.roundresult import training_result, validation_result
from combiner.servicers.common import IN_PROCESS
from combiner.servicers.control import config_error
from combiner.servicers.operator import JobsServicer
from fedcombiner.client.messages import parameters, text_values
from fedcombiner.modelstorage.store import STORE_AWAY, ModelStore, ObjectKey, parse_id
from fedcombiner.servicekit.backoff import Backoff, retry
from fedcombiner.servicekit.errors import InvalidArgument, Unavailable
from fedcombiner.wire.pb import fedn_pb2
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb

if TYPE_CHECKING:
    from combiner.server import Combiner


class ModelUpdateError(Exception):
    """There is no complete model update of that id."""


class RoundController:
    """Round controller.

    The round controller receives round configurations from the global controller and coordinates model
    updates and aggregation, and model validations.

    Args:
        aggregator_name: the name of the aggregator, `fedavg`.
        storage: model repository of the combiner, from which models are staged.
        server: a handle to the Combiner, which has a controller of its own as `control`.
        modelservice: a handle to the combiner's model service.

    Raises:
        InvalidArgument: there is no such aggregator.
    """

    def __init__(
        self, aggregator_name: str, storage: ModelStore, server: Combiner, modelservice: ModelService
    ) -> None:
        if aggregator_name not in AGGREGATORS:
            raise InvalidArgument("aggregator", aggregator_name, ", ".join(AGGREGATORS))
        self.aggregator_name = aggregator_name
        self.storage = storage
        self.server = server
        self.modelservice = modelservice
        self._jobs = JobsServicer(server.app.shared, server.app.feed)

    def push_round_config(self, round_config: Mapping[str, Any]) -> str:
        """Add a round to the queue, which `run` works off; returns the id of its job.

        Raises:
            InvalidArgument: the round cannot run; names the key.
            NotFound: there is no such model.
        """
        config = {"aggregator": self.aggregator_name, **round_config}
        request = fedn_pb2.ControlRequest(command=fedn_pb2.START, parameter=parameters(config))
        # An upload becomes a model on the way; a large one takes its time.
        reply = self.server.call(lambda: self.server.Start(request, IN_PROCESS), seconds=None)
        return {parameter.key: parameter.value for parameter in reply.parameter}["job_id"]

    def execute_training_round(self, round_config: Mapping[str, Any]) -> dict[str, Any]:
        """Coordinate a training round as specified in config, after those that are queued before it.

        Args:
            round_config: the round config object (docs/sessions.md has its keys).

        Returns:
            `status` ("Success" or "Failed"), `reason`, `name` of the combiner, `config`, `round_id`,
            `model_id` of the aggregate if there is one, `time_exec_training` in seconds, and `data` with what
            was expected, required and averaged.

        Raises as `push_round_config` does.
        """
        return training_result(self._execute({**round_config, "task": Kind.TRAINING}), self.server.id)

    def execute_validation_round(self, round_config: Mapping[str, Any]) -> dict[str, Any]:
        """Coordinate validation rounds as specified in config, after those that are queued before it.

        Args:
            round_config: the round config object; its `task` may be `inference`.

        Returns:
            `status` ("Success" or "Failed"), `reason`, `name` of the combiner, `config`, `round_id`, and
            `data`: the answer of each client, JSON text by the client's name.

        Raises as `push_round_config` does.
        """
        job = self._execute({"task": Kind.VALIDATION, **round_config})
        return validation_result(job, self.server.id)

    def load_model_update(self, helper: Helper, model_id: str) -> Any:
        """Load model update in its native format: what `helper.load` makes of it.

        Args:
            helper: ML framework specific helper, such as `combiner.helpers.NpzDictHelper`.
            model_id: the ID of the model update, UUID in str format.

        Raises:
            ModelUpdateError: there is no complete update of that id.
        """
        update = self.load_model_update_str(model_id)
        if update is None:
            raise ModelUpdateError(
                f"there is no complete model update {model_id!r}; clients upload them first"
            )
        return self.modelservice.load_model_from_BytesIO(update, helper)

    def load_model_update_str(self, model_id: str, retry: int = 3) -> io.BytesIO | None:
        """Load model update object and return it as BytesIO; None if there is no complete one of that id.

        `retry` is ignored: a store that is away is waited for, and an update is complete before anyone is
        told its id, so looking again would not find more.
        """
        return self.modelservice.get_model(model_id)

    def run(self, polling_interval: float = 1.0) -> None:
        """Main control loop. Execute rounds based on round config on the queue, until the combiner stops.

        The combiner runs its loop from its start; this waits for its end, also from several threads.
        `polling_interval` is ignored: the loop is told of a new config, and so is this of the end.
        """
        self.server.wait()

    def stage_model(self, model_id: str, timeout_retry: float = 3, retry: int = 2) -> None:
        """Download a model from persistent storage and set in modelservice; register it for rounds.

        Does nothing if that was done before. While the storage is away it is tried again with growing
        pauses, for about `timeout_retry` seconds `retry` times.

        Raises:
            NotFound: there is neither a model nor a completed upload of that id.
            InvalidArgument: it is no id, or the upload cannot be averaged.
            Unavailable: the storage, or Redis, stayed away.
        """
        parse_id(model_id, "model_id")
        self.server.call(lambda: self._stage_patiently(model_id, timeout_retry * retry), seconds=None)

    def waitforit(
        self, config: Mapping[str, Any], buffer_size: int = 100, polling_interval: float = 0.1
    ) -> None:
        """Defines the policy for how long the server should wait before starting to aggregate models.

        The policy is as follows: wait a maximum of `round_timeout` seconds until the round times out.
        Terminate if a preset number of model updates (buffer_size) are in the queue: received, and not
        rejected. Also terminates when the job takes no more updates.

        Args:
            config: the round's config, with its `_job_id` as `push_round_config` returned it.
            buffer_size: number of model updates to wait for.
            polling_interval: ignored: each update of the job is told.

        Raises:
            InvalidArgument: `_job_id` or `round_timeout` is no such value.
            NotFound: there is no such job.
        """
        params = Params(text_values(config))
        try:
            job_id = params.text("_job_id", is_id, ID_ALLOWED)
            timeout = params.seconds("round_timeout", 180.0, more_than=0.0, at_most=MAX_ROUND_TIMEOUT)
        except ConfigError as error:
            raise config_error(error) from error
        self.server.call(lambda: self._until_received(job_id, buffer_size, timeout), seconds=None)

    def _execute(self, round_config: Mapping[str, Any]) -> pb.Job:
        """The job of a round once it has ended, however long Redis is away meanwhile."""
        job_id = self.push_round_config(round_config)
        return self.server.call(
            lambda: retry(lambda: self._until_ended(job_id), on=Unavailable, timeout=None), seconds=None
        )

    async def _until_ended(self, job_id: str) -> pb.Job:
        job = pb.Job()
        async with aclosing(self._jobs.Watch(pb.JobRequest(job_id=job_id), IN_PROCESS)) as events:
            async for event in events:
                if event.HasField("job"):
                    job = event.job
        if job.more_answers:
            request = pb.AnswersRequest(job_id=job_id, after=job.answers[-1].client)
            job.answers.extend([answer async for answer in self._jobs.Answers(request, IN_PROCESS)])
        return job

    async def _until_received(self, job_id: str, number: int, seconds: float) -> None:
        queue: set[str] = set()
        try:
            async with (
                asyncio.timeout(seconds),
                aclosing(self._jobs.Watch(pb.JobRequest(job_id=job_id), IN_PROCESS)) as events,
            ):
                async for event in events:
                    _follow(queue, event)
                    if len(queue) >= number or event.what == "closed":
                        return
        except TimeoutError:
            return

    async def _stage_patiently(self, model_id: str, patience: float) -> None:
        away = (StateUnavailable, *STORE_AWAY)
        await retry(lambda: self._stage(model_id), on=away, timeout=patience, backoff=Backoff())

    async def _stage(self, model_id: str) -> None:
        app = self.server.app
        key = ObjectKey("models", model_id)
        if self.storage is not app.store and await app.store.head(key) is None:
            await _copy(self.storage, app.store, key)
        await app.catalog.adopt(model_id)


def _follow(queue: set[str], event: pb.JobEvent) -> None:
    """Keep the names of the clients whose updates wait or are averaged."""
    if event.HasField("job"):
        queue.clear()
        queue.update(event.job.received, event.job.accepted)
    elif event.what in ("received", "accepted"):
        queue.add(event.client)
    elif event.what in ("rejected", "failed"):
        queue.discard(event.client)


async def _copy(source: ModelStore, target: ModelStore, key: ObjectKey) -> None:
    """Copy a model from store to store, if it is there, without holding it in memory."""
    await source.start()
    info = await source.head(key)
    if info is None:
        return
    async with target.writer(key, max_bytes=info.size) as writer, aclosing(source.reader(key)) as chunks:
        async for chunk in chunks:
            await writer.write(chunk)
        await writer.commit()

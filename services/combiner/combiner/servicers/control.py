"""Control and Reducer: jobs from FEDn's controller or anybody who speaks its interface (section 3.3 of
FEDn's wire).
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping

import structlog

from combiner.catalog import Catalog
from combiner.domain.config import ConfigError, RoundConfig
from combiner.domain.types import ClientState, Job, Kind, NewJob, State
from combiner.ports import QueueFull, Shared, StateUnavailable, View
from combiner.servicers.common import Context, model_removed, parameters, redis_away
from combiner.tuning import Tuning
from fedcombiner.servicekit.errors import InvalidArgument, NotFound, ResourceExhausted
from fedcombiner.wire.pb import fedn_pb2

log = structlog.get_logger()

OPEN = (State.QUEUED, State.RUNNING)


def config_error(error: ConfigError) -> InvalidArgument:
    return InvalidArgument(error.key, "nothing" if error.value is None else error.value, error.allowed)


class ControlServicer:
    def __init__(self, name: str, shared: Shared, catalog: Catalog, tuning: Tuning) -> None:
        self._name = name
        self._shared = shared
        self._catalog = catalog
        self._tuning = tuning

    async def Start(self, control: fedn_pb2.ControlRequest, context: Context) -> fedn_pb2.ControlResponse:
        """Queue a job. A config that cannot run is refused here, naming the key, and so is a model that needs
        more memory or scratch than a combiner has.
        """
        try:
            config = RoundConfig.parse(parameters(control))
        except ConfigError as error:
            raise config_error(error) from error
        try:
            await self._catalog.adopt(config.model_id)
            if config.task is Kind.TRAINING:
                await self._catalog.check_room(config.model_id)
            job_id = str(uuid.uuid4())
            await self._shared.jobs.submit(
                NewJob(
                    job_id=job_id,
                    session_id=config.session_id,
                    kind=config.task,
                    round_id=config.round_id,
                    parent_model_id=config.model_id,
                    config=config.params,
                )
            )
            if await self._shared.models.get(config.model_id) is None:
                await self._shared.jobs.cancel(job_id, "its model was removed")
                raise model_removed(config.model_id)
        except StateUnavailable as error:
            raise redis_away(error) from error
        except QueueFull as error:
            raise ResourceExhausted(str(error)) from error
        log.info("job queued", job_id=job_id, kind=config.task, round_id=config.round_id)
        return _response("", {"job_id": job_id})

    async def Stop(self, control: fedn_pb2.ControlRequest, context: Context) -> fedn_pb2.ControlResponse:
        """Cancel every open job, or the one that the parameter `job_id` names, and say how many.

        Sessions go on: cancel a session to end all of its jobs (a cancelled job is a failed round to its
        session).
        """
        given = parameters(control)
        for key in given:
            if key != "job_id":
                raise InvalidArgument("parameter", key, "job_id")
        try:
            count = await self._cancel(given.get("job_id", ""))
        except StateUnavailable as error:
            raise redis_away(error) from error
        return _response(f"{count} job{'s' * (count != 1)} cancelled", {"cancelled": str(count)})

    async def _cancel(self, job_id: str) -> int:
        if job_id:
            job = await self._shared.jobs.get(job_id)
            if job is None:
                raise NotFound(f"job_id: there is no job {job_id[:128]!r}")
            jobs = [job]
        else:
            jobs = await self._open_jobs()
        return sum([await self._cancel_one(job) for job in jobs if job.state in OPEN])

    async def _open_jobs(self) -> list[Job]:
        jobs = [await self._shared.jobs.get(job_id) for job_id in await self._shared.jobs.unended()]
        return [job for job in jobs if job is not None and job.state in OPEN]

    async def _cancel_one(self, job: Job) -> bool:
        ended = await self._shared.jobs.cancel(job.job_id, "cancelled by Control.Stop")
        return ended is not None and ended.state is State.CANCELLED

    async def Configure(self, control: fedn_pb2.ControlRequest, context: Context) -> fedn_pb2.ReportResponse:
        """Set known settings, for all replicas; anything else is refused."""
        try:
            await self._tuning.put(parameters(control))
        except StateUnavailable as error:
            raise redis_away(error) from error
        return fedn_pb2.ReportResponse()

    async def FlushAggregationQueue(
        self, control: fedn_pb2.ControlRequest, context: Context
    ) -> fedn_pb2.ControlResponse:
        """Answered as FEDn does.

        An update belongs to the round it was made for here, so none is ever left to flush.
        """
        return fedn_pb2.ControlResponse(message="Success")

    async def SetAggregator(
        self, control: fedn_pb2.ControlRequest, context: Context
    ) -> fedn_pb2.ControlResponse:
        """The operator's configuration chooses the aggregator of each round; the one there is may be
        named.
        """
        name = parameters(control).get("aggregator", "")
        if name != "fedavg":
            raise InvalidArgument("aggregator", name, "fedavg")
        return fedn_pb2.ControlResponse(message="Success")

    async def Report(self, control: fedn_pb2.ControlRequest, context: Context) -> fedn_pb2.ReportResponse:
        """FEDn's eight keys, in its order, as text."""
        try:
            trainers = await self._shared.roster.active(View.TRAINING)
            validators = await self._shared.roster.active(View.VALIDATION)
            open_jobs = await self._open_jobs()
        except StateUnavailable as error:
            raise redis_away(error) from error
        queued = sum(job.state is State.QUEUED for job in open_jobs)
        waiting = sum(len(job.of_state(ClientState.RECEIVED)) for job in open_jobs)
        values = {
            "queue_len": str(waiting),
            "nr_active_trainers": str(len(trainers)),
            "nr_active_validators": str(len(validators)),
            "active_trainers": _client_list(trainers),
            "active_validators": _client_list(validators),
            "nr_active_clients": str(len(trainers) + len(validators)),
            "nr_unprocessed_compute_plans": str(queued),
            "name": self._name,
        }
        return fedn_pb2.ReportResponse(parameter=_parameters(values))


class ReducerServicer:
    def __init__(self, name: str, shared: Shared) -> None:
        self._name = name
        self._shared = shared

    async def GetGlobalModel(
        self, request: fedn_pb2.GetGlobalModelRequest, context: Context
    ) -> fedn_pb2.GetGlobalModelResponse:
        """The id of the newest global model. NOT_FOUND while there is none."""
        try:
            model = await self._shared.models.newest()
        except StateUnavailable as error:
            raise redis_away(error) from error
        if model is None:
            raise NotFound("there is no model yet; put one with `combiner model put FILE`")
        return fedn_pb2.GetGlobalModelResponse(
            sender=fedn_pb2.Client(name=self._name, role=fedn_pb2.COMBINER),
            receiver=request.sender,
            model_id=model.model_id,
        )


def _parameters(values: Mapping[str, str]) -> list[fedn_pb2.Parameter]:
    return [fedn_pb2.Parameter(key=key, value=value) for key, value in values.items()]


def _response(message: str, values: Mapping[str, str]) -> fedn_pb2.ControlResponse:
    return fedn_pb2.ControlResponse(message=message, parameter=_parameters(values))


def _client_list(names: list[str]) -> str:
    """Python's text of a list of protobuf Client messages: FEDn's dashboard takes it apart."""
    return str([fedn_pb2.Client(name=name) for name in names])

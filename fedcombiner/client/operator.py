"""The operator's side: jobs, sessions, models and clients of a combiner, on one channel."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fedcombiner.client.arrays import write_arrays
from fedcombiner.client.backup import BackupCalls
from fedcombiner.client.calls import TIMEOUT
from fedcombiner.client.clients import ClientsCalls
from fedcombiner.client.events import EventsCalls
from fedcombiner.client.messages import parameters, text_values
from fedcombiner.client.patience import Progress
from fedcombiner.client.tokens import TokensCalls
from fedcombiner.client.transfer import PATIENCE, Sink, download, upload
from fedcombiner.client.trust import Trust
from fedcombiner.client.upkeep import UpkeepCalls
from fedcombiner.wire.pb import fedn_pb2, fedn_pb2_grpc
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2_grpc

if TYPE_CHECKING:
    from fedcombiner.wire.pb.combiner.v1.combiner_pb2_grpc import (
        JobsAsyncStub,
        ModelsAsyncStub,
        SessionsAsyncStub,
    )
    from fedcombiner.wire.pb.fedn_pb2_grpc import ControlAsyncStub

Config = Mapping[str, object]

ENDED: Final = frozenset({pb.SUCCEEDED, pb.FAILED, pb.CANCELLED})
_ADOPT_TIMEOUT: Final = 600.0  # seconds; the server reads and copies the whole model


class OperatorClient(ClientsCalls, EventsCalls, TokensCalls, UpkeepCalls, BackupCalls):
    """Typed calls to one combiner. Leave it as a context manager, or `close` it.

    Everything raises `ServerUnreachable` when there is no answer for `patience` seconds (0: at the first
    failure), and the other classes of `fedcombiner.servicekit.errors` as the server raised them: `NotFound`
    for an id that is not there, `InvalidArgument` and `FailedPrecondition` for what cannot be done.

    Args:
        address: `host:port`.
        trust: TLS, with servers that it holds for; None: plaintext.
        token: sent with every call; without TLS anyone on the way can read it.
    """

    def __init__(
        self, address: str, *, trust: Trust | None = None, token: str | None = None, patience: float = 0.0
    ) -> None:
        super().__init__(address, trust=trust, token=token, patience=patience)
        self._control: ControlAsyncStub = fedn_pb2_grpc.ControlStub(self.link)
        self._jobs: JobsAsyncStub = combiner_pb2_grpc.JobsStub(self.link)
        self._sessions: SessionsAsyncStub = combiner_pb2_grpc.SessionsStub(self.link)
        self._models: ModelsAsyncStub = combiner_pb2_grpc.ModelsStub(self.link)

    # Sessions

    async def start_session(
        self, config: Config | None = None, *, model_id: str = "", session_id: str = ""
    ) -> pb.Session:
        """Queue a session on a registered model or a completed upload; on the newest model if none is named.

        `config` has the keys of docs/sessions.md; values are sent as text. Starting again under the same
        `session_id` answers with the session that is there.
        """
        request = pb.StartSessionRequest(
            session_id=session_id or str(uuid.uuid4()), model_id=model_id, config=text_values(config or {})
        )
        return await self._call(lambda: self._sessions.Start(request, timeout=TIMEOUT))

    async def get_session(self, session_id: str) -> pb.Session:
        request = pb.SessionRequest(session_id=session_id)
        return await self._call(lambda: self._sessions.Get(request, timeout=TIMEOUT))

    async def list_sessions(self, limit: int = 0) -> list[pb.Session]:
        """The newest `limit` sessions (0: the server's own limit), oldest first."""
        return await self._list(lambda: self._sessions.List(pb.ListSessionsRequest(limit=limit)))

    async def cancel_session(self, session_id: str) -> pb.Session:
        """End a session and its job at once; one that has ended stays as it is."""
        request = pb.SessionRequest(session_id=session_id)
        return await self._call(lambda: self._sessions.Cancel(request, timeout=TIMEOUT))

    async def watch_session(self, session_id: str) -> AsyncGenerator[pb.SessionEvent, None]:
        """The session as it is, then every change, until it has ended; the last event carries it whole.

        Goes on where the server comes back within the patience: then it is told as it is, anew.
        """
        request = pb.SessionRequest(session_id=session_id, changes_only=True)
        results: list[pb.RoundResult] = []
        async with aclosing(self._watch(lambda: self._sessions.Watch(request))) as events:
            async for event in events:
                if event.HasField("session"):
                    results[event.session.first_result :] = event.session.results
                    event.session.ClearField("results")
                    event.session.ClearField("first_result")
                    event.session.results.extend(results)
                yield event
                if event.HasField("session") and event.session.state in ENDED:
                    return

    # Jobs

    async def start_job(self, config: Config) -> str:
        """Queue one round by `Control.Start`, as FEDn's controller does. Returns the job's id.

        Not repeated when there is no answer: the job may have been queued all the same.
        """
        request = fedn_pb2.ControlRequest(command=fedn_pb2.START, parameter=parameters(config))
        reply = await self._reach(lambda: self._control.Start(request, timeout=TIMEOUT))
        return {parameter.key: parameter.value for parameter in reply.parameter}["job_id"]

    async def get_job(self, job_id: str) -> pb.Job:
        job = await self._call(lambda: self._jobs.Get(pb.JobRequest(job_id=job_id), timeout=TIMEOUT))
        return await self._with_answers(job)

    async def list_jobs(self, *, session_id: str = "", limit: int = 0) -> list[pb.Job]:
        """The newest `limit` jobs (0: the server's own limit) of one session or of all, oldest first."""
        request = pb.ListJobsRequest(session_id=session_id, limit=limit)
        jobs: list[pb.Job] = await self._list(lambda: self._jobs.List(request))
        return [await self._with_answers(job) for job in jobs]

    async def cancel_job(self, job_id: str) -> pb.Job:
        """End a queued or running job at once; one that has ended stays as it is."""
        job = await self._call(lambda: self._jobs.Cancel(pb.JobRequest(job_id=job_id), timeout=TIMEOUT))
        return await self._with_answers(job)

    async def _with_answers(self, job: pb.Job) -> pb.Job:
        """Also with those that the message had no room for."""
        if job.more_answers:
            after = job.answers[-1].client if job.answers else ""
            request = pb.AnswersRequest(job_id=job.job_id, after=after)
            job.answers.extend(await self._list(lambda: self._jobs.Answers(request)))
            job.more_answers = False
        return job

    async def watch_job(self, job_id: str) -> AsyncGenerator[pb.JobEvent, None]:
        """The job as it is, then every change, until it has ended; the last event carries it whole.

        Goes on where the server comes back within the patience: then it is told as it is, anew.
        """
        async with aclosing(self._watch(lambda: self._jobs.Watch(pb.JobRequest(job_id=job_id)))) as events:
            async for event in events:
                if event.HasField("job"):
                    await self._with_answers(event.job)
                yield event
                if event.HasField("job") and event.job.state in ENDED:
                    return

    async def wait_job(self, job_id: str) -> pb.Job:
        """The job once it has ended."""
        job = pb.Job()
        async for event in self.watch_job(job_id):
            job = event.job
        return job

    async def wait_session(self, session_id: str) -> pb.Session:
        """The session once it has ended."""
        session = pb.Session()
        async for event in self.watch_session(session_id):
            session = event.session
        return session

    # Models

    async def put_model(
        self,
        source: Path | bytes | Mapping[str, np.ndarray[Any, Any]],
        *,
        name: str = "",
        model_id: str = "",
        progress: Progress | None = None,
    ) -> pb.Model:
        """Upload a `.npz` file, its bytes, or arrays by name, and register it as a model."""
        model_id = model_id or str(uuid.uuid4())
        if isinstance(source, Path | bytes):
            await self._upload(model_id, source, progress)
        else:
            with tempfile.TemporaryDirectory(prefix="federated-model-") as scratch:
                path = Path(scratch) / "model.npz"
                await asyncio.to_thread(write_arrays, path, source)
                await self._upload(model_id, path, progress)
        request = pb.PutModelRequest(model_id=model_id, name=name)
        return await self._call(lambda: self._models.Put(request, timeout=_ADOPT_TIMEOUT))

    async def get_model(
        self, model_id: str, target: Path | Sink, *, progress: Progress | None = None
    ) -> pb.Model:
        """Download a model (no id: the newest) into a file, which appears whole or not at all, or a sink."""
        model = await self.describe_model(model_id)
        patience = self._patience or PATIENCE
        await self._reach(
            lambda: download(self.link, model.model_id, target, progress=progress, patience=patience)
        )
        return model

    async def describe_model(self, model_id: str = "") -> pb.Model:
        """What is known of a model, of the newest global model if no id is given."""
        request = pb.ModelRequest(model_id=model_id)
        return await self._call(lambda: self._models.Get(request, timeout=TIMEOUT))

    async def list_models(self, *, session_id: str = "", limit: int = 0) -> list[pb.Model]:
        """The newest `limit` models (0: the server's own limit) of one session or of all, oldest first."""
        request = pb.ListModelsRequest(session_id=session_id, limit=limit)
        return await self._list(lambda: self._models.List(request))

    # The combiner itself

    async def report(self) -> dict[str, str]:
        """What `Control.Report` says: the combiner's name, counts of active clients and of queued jobs."""
        request = fedn_pb2.ControlRequest(command=fedn_pb2.REPORT)
        reply = await self._call(lambda: self._control.Report(request, timeout=TIMEOUT))
        return {parameter.key: parameter.value for parameter in reply.parameter}

    async def _upload(self, model_id: str, source: Path | bytes, progress: Progress | None) -> None:
        # A transfer has more patience than other calls, but for a server that was there.
        await self._call(self.link.connect)
        patience = self._patience or PATIENCE
        await self._reach(lambda: upload(self.link, model_id, source, progress=progress, patience=patience))

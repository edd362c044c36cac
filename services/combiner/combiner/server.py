"""FEDn's combiner as one object: the whole gRPC server, in an event loop of its own.

    combiner = Combiner({"host": "localhost", "port": 12080, "redis_url": "redis://localhost:6379/0"})
    combiner.run()

The rpc handlers are coroutines of that loop; every other method blocks and is for plain threads.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import structlog
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

from combiner.app import CombinerApp
from combiner.domain.types import Kind
from combiner.modelservice import ModelService
from combiner.ports import Task, View
from combiner.roles import WIRE, Role, role_to_proto_role
from combiner.round import RoundController
from combiner.seedconfig import SeedConfig
from combiner.servicers.common import IN_PROCESS
from combiner.servicers.connector import ConnectorServicer
from combiner.servicers.control import ControlServicer, ReducerServicer
from combiner.servicers.streams import CombinerServicer
from combiner.threaded import ThreadedServer
from fedcombiner.client.messages import text_values
from fedcombiner.servicekit.errors import NotFound
from fedcombiner.wire.eras import identity
from fedcombiner.wire.pb import fedn_pb2

__all__ = ["Combiner", "Role", "role_to_proto_role"]

log = structlog.get_logger()
_LEVELS: Final = {
    fedn_pb2.DEBUG: logging.DEBUG,
    fedn_pb2.WARNING: logging.WARNING,
    fedn_pb2.ERROR: logging.ERROR,
}


class Combiner(ThreadedServer, CombinerServicer, ReducerServicer, ConnectorServicer, ControlServicer):
    """Combiner gRPC server: its services and the model service on one port, serving once it is constructed.

    Args:
        config: configuration for the combiner. FEDn's keys: `name`, `host` and `port` (where clients reach
            it), `fqdn`, `max_clients`, `aggregator`, and with a discovery to announce to `discover_host`,
            `discover_port` and `token`. With `secure` clients speak TLS, and so does the discovery, which
            hands out certificate and key unless `tls_cert_file` and `tls_key_file` are given; with `verify`
            False its own certificate is not looked at. Besides, `bind` is the address to listen on (default:
            loopback if `host` is, else all), and every setting of the combiner may be given by its name in
            lower case: `redis_url`, `data`, `store`, ...

    Raises:
        InvalidArgument: a key is not known, or a value of FEDn's cannot be.
        StartupError: a value of ours cannot be, the port is taken, or the discovery that is to hand out the
            certificate does not want to.

    Methods raise Unavailable while Redis is away, and DeadlineExceeded after ten seconds without an answer.
    Leave it as a context manager, or `stop` it.

    Attributes:
        id: the combiner's name.
        port: the port it serves on, also where 0 was asked for.
        modelservice: its `ModelService`.
        control: its `RoundController`.
        app: the object graph behind it.
    """

    app: CombinerApp
    modelservice: ModelService
    control: RoundController

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = SeedConfig.read(config)
        self.id = self._config.settings.name
        self.role = Role.COMBINER
        super().__init__(self._config.settings, self._face, self._config.discovery_trust)

    def _face(self, app: CombinerApp) -> Mapping[str, object]:
        """What is served: this object in place of the servicers that it is, and the model service."""
        self.app = app
        name, shared = self.id, app.shared
        CombinerServicer.__init__(self, name, app.hub, app.inbox, shared.tasks, app.meter, app.report_rpcs)
        ReducerServicer.__init__(self, name, shared)
        ConnectorServicer.__init__(
            self, app.beats, app.statuses, app.inbox, shared.roster, app.tuning, app.meter, app.report_rpcs
        )
        ControlServicer.__init__(self, name, shared, app.catalog, app.tuning)
        self.modelservice = ModelService(app.store, thread=self._thread)
        self.control = RoundController(self._config.aggregator, app.store, self, self.modelservice)
        this = dict.fromkeys(("Combiner", "Reducer", "Connector", "Control"), self)
        return {**app.servicers, **this, "ModelService": self.modelservice}

    def get_active_trainers(self) -> list[fedn_pb2.Client]:
        """Get a list of active trainers, by name: with a stream for training, heard of lately."""
        return self._active(fedn_pb2.MODEL_UPDATE_REQUESTS)

    def get_active_validators(self) -> list[fedn_pb2.Client]:
        """Get a list of active validators, by name: with a stream for validation, heard of lately."""
        return self._active(fedn_pb2.MODEL_VALIDATION_REQUESTS)

    def nr_active_trainers(self) -> int:
        """Get the number of active trainers."""
        return len(self.get_active_trainers())

    def nr_active_validators(self) -> int:
        """Get the number of active validators."""
        return len(self.get_active_validators())

    def _active(self, channel: fedn_pb2.Channel.ValueType) -> list[fedn_pb2.Client]:
        request = fedn_pb2.ListClientsRequest(channel=channel)
        return list(self.call(lambda: self.ListActiveClients(request, IN_PROCESS)).client)

    def request_model_update(
        self, config: Mapping[str, Any], clients: Sequence[str | fedn_pb2.Client] = ()
    ) -> list[str]:
        """Ask clients for a model update, outside of any round, as the rpc SendModelUpdateRequest does.

        An update that answers it is kept as an upload and averaged by nobody; a round that asks, collects and
        averages is `control.execute_training_round`.

        Args:
            config: what the clients are told, as text; its `model_id` is the model that they train.
            clients: names or Client messages; empty means all active trainers.

        Returns:
            The names of those that were asked.

        Raises:
            NotFound: there is no such model, or one of the clients has never connected.
        """
        return self.call(lambda: self._ask(Kind.TRAINING, str(config.get("model_id", "")), config, clients))

    def request_model_validation(
        self, model_id: str, config: Mapping[str, Any], clients: Sequence[str | fedn_pb2.Client] = ()
    ) -> list[str]:
        """Ask clients to validate a model, outside of any round, as SendModelValidationRequest does.

        Args:
            model_id: the model to validate.
            config: what the clients are told, as text; with the `task` inference they are asked for that.
            clients: names or Client messages; empty means all active validators.

        Returns and raises as `request_model_update` does.
        """
        kind = Kind.INFERENCE if config.get("task") == Kind.INFERENCE else Kind.VALIDATION
        return self.call(lambda: self._ask(kind, model_id, config, clients))

    async def _ask(
        self,
        kind: Kind,
        model_id: str,
        config: Mapping[str, Any],
        clients: Sequence[str | fedn_pb2.Client],
    ) -> list[str]:
        if await self.modelservice.find(model_id) is None:
            raise NotFound(f"model_id: there is no model {model_id[:128]!r}")
        names = [client if isinstance(client, str) else identity(client) for client in clients]
        if not names:
            view = View.TRAINING if kind is Kind.TRAINING else View.VALIDATION
            names = await self.app.shared.roster.active(view)
        for name in names:
            task_id = str(uuid.uuid4())
            data = json.dumps({**text_values(config), "_task_id": task_id})
            task = Task(task_id, name, kind, job_id="", session_id="", model_id=model_id, data=data)
            training = kind is Kind.TRAINING
            request = self._request(task, WIRE) if training else self._validation_request(task, WIRE)
            await self._put_raw(request, kind)
        return names

    def register_model_validation(self, validation: fedn_pb2.ModelValidation) -> None:
        """Register a model validation, as the rpc SendModelValidation does for its sender."""
        self.call(lambda: self.SendModelValidation(validation, IN_PROCESS))

    def flush_model_update_queue(self) -> bool:
        """Reset the model update queue: True. No update is ever left in it for another round."""
        reply = self.call(lambda: self.FlushAggregationQueue(fedn_pb2.ControlRequest(), IN_PROCESS))
        return reply.message == "Success"

    def report_status(
        self,
        msg: str,
        log_level: int = 0,
        type: fedn_pb2.StatusType.ValueType | None = None,
        request: Message | None = None,
        flush: bool = True,
    ) -> None:
        """Report status of the combiner: into its log, and beside the statuses that clients report.

        Args:
            msg: the message to report.
            log_level: FEDn's level on the wire: INFO 0, DEBUG 1, WARNING 2, ERROR 3, AUDIT 4.
            type: the type of status to report.
            request: the request to report status for.
            flush: ignored: a line of the log is written at once.
        """
        status = fedn_pb2.Status(
            sender=self._sender(WIRE),
            status=msg,
            log_level=cast("fedn_pb2.LogLevel.ValueType", log_level),
            type=type or fedn_pb2.LOG,
            data="" if request is None else MessageToJson(request),
        )
        self.call(lambda: self._note(status))

    async def _note(self, status: fedn_pb2.Status) -> None:
        level = WIRE.read_log_level(status.log_level)
        log.log(_LEVELS.get(level, logging.INFO), status.status, combiner=self.id)
        self.app.statuses.note(self.id, status, WIRE)

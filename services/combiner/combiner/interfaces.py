"""FEDn's interface to a combiner that runs somewhere: what a controller asks of it.

    combiner = CombinerInterface({"name": "api"}, "combiner", "localhost", None, 12080)
    combiner.submit({"task": "training", "model_id": "...", "round_id": "1"})

Every method blocks and is for plain threads; every call has a deadline.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final, Self, TypeVar

from google.protobuf.json_format import MessageToJson

from combiner.channel import Channel, target_of, trust_in
from combiner.interfacejson import read_document, to_base64
from fedcombiner.client.errors import ModelNotFound, TlsFailed, rpc_errors
from fedcombiner.client.link import Link, token_metadata
from fedcombiner.client.messages import parameters
from fedcombiner.client.transfer import download_bytes
from fedcombiner.client.trust import tls_trouble
from fedcombiner.servicekit.errors import DeadlineExceeded, Unavailable
from fedcombiner.servicekit.loopthread import LoopThread
from fedcombiner.wire.pb import fedn_pb2, fedn_pb2_grpc

__all__ = ["Channel", "CombinerInterface", "CombinerUnavailableError"]

T = TypeVar("T")

TIMEOUT_S: Final = 10.0
DEFAULT_CONFIG: Final[Mapping[str, Any]] = {"max_clients": 8}


class CombinerUnavailableError(Exception):
    """The combiner cannot be reached, or cannot answer now; the same call may be tried again."""


class CombinerInterface:
    """Interface for the Combiner (aggregation server): abstraction on top of the gRPC server's services.

    Args:
        parent: who controls the combiner, such as `{"name": "api"}`.
        name: name of the combiner.
        address: host name or IP address at which it is called.
        fqdn: fully qualified domain name of the combiner, or None; kept, never called.
        port: port of the combiner.
        certificate: PEM text of its certificate or of the authority to trust (optional).
        key: PEM text of its key (optional); kept, never used.
        ip: ip of the combiner (optional); kept, never called.
        config: configuration of the combiner (optional), for `configure`.
        token: token of a controller or operator (optional), sent with every call.
        timeout: seconds that an answer may take, and a download may go without progress.

    Raises:
        InvalidArgument: the address or the port cannot be one, or `certificate` holds none.

    All calls raise CombinerUnavailableError when nothing answers in time, and a subclass of
    `fedcombiner.servicekit.errors.ServiceError` for what the combiner refuses.
    """

    def __init__(
        self,
        parent: Mapping[str, Any],
        name: str,
        address: str,
        fqdn: str | None,
        port: int,
        certificate: bytes | str | None = None,
        key: bytes | str | None = None,
        ip: str | None = None,
        config: Mapping[str, Any] | None = None,
        *,
        token: str | None = None,
        timeout: float = TIMEOUT_S,
    ) -> None:
        self.parent = parent
        self.name = name
        self.address = address
        self.fqdn = fqdn
        self.port = port
        self.certificate = certificate
        self.key = key
        self.ip = ip
        self.config = dict(config or DEFAULT_CONFIG)
        self._target = target_of(address, port)
        self._trust = trust_in(certificate)
        self._token = token
        self._timeout = timeout

    @classmethod
    def from_json(cls, combiner_config: Mapping[str, Any] | str) -> Self:
        """Initialize the combiner config from a json document, such as `to_dict` and `to_json` give.

        Args:
            combiner_config: the combiner configuration, as an object or as its text. `name`, `address` and
                `port` are needed; `certificate` and `key` are base64 text of PEM; `report` is ignored.

        Returns:
            An instance of the combiner interface.

        Raises:
            InvalidArgument: a key is missing, not known, or of a wrong type.
        """
        return cls(**read_document(combiner_config))

    def to_dict(self) -> dict[str, Any]:
        """Everything as an object for JSON: certificate and key in base64, `report` None if unavailable."""
        try:
            report: dict[str, str] | None = self.report()
        except CombinerUnavailableError:
            report = None
        return {
            "parent": dict(self.parent),
            "name": self.name,
            "address": self.address,
            "fqdn": self.fqdn,
            "port": self.port,
            "ip": self.ip,
            "certificate": self.get_certificate(),
            "key": self.get_key(),
            "config": self.config,
            "report": report,
        }

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict())

    def get_certificate(self) -> str | None:
        """Get combiner certificate: base64 of its PEM text, None if no certificate is set."""
        return to_base64(self.certificate)

    def get_key(self) -> str | None:
        """Get combiner key: base64 of its PEM text, None if no key is set."""
        return to_base64(self.key)

    def report(self) -> dict[str, str]:
        """Receive a status report from the combiner.

        Returns:
            A dictionary describing the combiner state: `queue_len`, `nr_active_trainers`,
            `nr_active_validators`, `active_trainers`, `active_validators`, `nr_active_clients`,
            `nr_unprocessed_compute_plans` and `name`, all as text.

        Raises:
            CombinerUnavailableError: the combiner is unavailable.
        """
        request = fedn_pb2.ControlRequest(command=fedn_pb2.REPORT)
        reply = self._ask(lambda link: fedn_pb2_grpc.ControlStub(link).Report(request, timeout=self._timeout))
        return {parameter.key: parameter.value for parameter in reply.parameter}

    def configure(self, config: Mapping[str, Any] | None = None) -> None:
        """Configure the combiner. Set the parameters in config at the server, for all of its replicas.

        Args:
            config: a dictionary containing parameters; without one, those given to the constructor.

        Raises:
            InvalidArgument: a parameter is not known, or has a value that cannot be.
        """
        request = fedn_pb2.ControlRequest(parameter=parameters(config or self.config))
        self._ask(lambda link: fedn_pb2_grpc.ControlStub(link).Configure(request, timeout=self._timeout))

    def flush_model_update_queue(self) -> None:
        """Reset the model update queue on the combiner.

        An update belongs to the round that it was made for, so there is never one that a later round would
        take: this only makes sure that the combiner answers.
        """
        request = fedn_pb2.ControlRequest()
        self._ask(
            lambda link: fedn_pb2_grpc.ControlStub(link).FlushAggregationQueue(request, timeout=self._timeout)
        )

    def submit(self, config: Mapping[str, Any]) -> fedn_pb2.ControlResponse:
        """Submit a compute plan to the combiner.

        Args:
            config: the job configuration, with the keys of a round (docs/sessions.md); values are sent as
                text.

        Returns:
            Server ControlResponse object; its one parameter is the `job_id`.

        Raises:
            InvalidArgument: the job cannot run; names the key.
            NotFound: there is no such model.
        """
        request = fedn_pb2.ControlRequest(command=fedn_pb2.START, parameter=parameters(config))
        return self._ask(lambda link: fedn_pb2_grpc.ControlStub(link).Start(request, timeout=self._timeout))

    def get_model(self, id: str) -> io.BytesIO | None:
        """Download a model from the combiner server.

        Args:
            id: the model id.

        Returns:
            A file-like object containing the model, positioned at its start; None if the model is not
            available.
        """
        try:
            return io.BytesIO(
                self._ask(lambda link: download_bytes(link, id, patience=self._timeout)),
            )
        except ModelNotFound:
            return None

    def allowing_clients(self) -> bool:
        """Check if the combiner is allowing additional client connections: True if accepting, else False."""
        request = fedn_pb2.ConnectionRequest()
        reply = self._ask(lambda link: link.connector.AcceptingClients(request, timeout=self._timeout))
        return reply.status == fedn_pb2.ACCEPTING

    def list_active_clients(self) -> str:
        """List active clients: JSON text of an object whose `client` is a list of objects with a `name`."""
        request = fedn_pb2.ListClientsRequest(channel=fedn_pb2.MODEL_UPDATE_REQUESTS)
        reply = self._ask(lambda link: link.connector.ListActiveClients(request, timeout=self._timeout))
        return MessageToJson(reply)

    def _ask(self, call: Callable[[Link], Awaitable[T]]) -> T:
        """What one call on a channel of its own gives, as FEDn's interface keeps no connection either."""
        try:
            with LoopThread(f"a call to {self.name}") as thread:
                return thread.call(self._call(call))
        except (Unavailable, DeadlineExceeded) as error:
            raise CombinerUnavailableError(
                f"combiner {self.name} at {self._target} is unavailable: {error}"
            ) from error

    async def _call(self, call: Callable[[Link], Awaitable[T]]) -> T:
        async with Link(self._target, metadata=token_metadata(self._token), trust=self._trust) as link:
            try:
                with rpc_errors():
                    return await call(link)
            except Unavailable:
                await self._check_tls()
                raise

    async def _check_tls(self) -> None:
        """Raise TlsFailed if that is why there is no answer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                if trouble := await tls_trouble(self._target, self._trust):
                    raise TlsFailed(self._target, trouble)

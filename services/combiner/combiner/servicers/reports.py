"""What clients of FEDn 0.24 and later tell beside their answers.

Never fails: an error would end the client.
"""

from __future__ import annotations

from combiner.clients.reports import ClientReports, numbers, texts
from combiner.clients.statuses import Statuses
from combiner.ports import Report, ReportKind
from combiner.rounds.meter import Meter
from combiner.servicers.common import Context, client_name
from fedcombiner.wire.eras import ERAS
from fedcombiner.wire.pb import fedn_pb2

ID_CHARS = 128


class ReportRpcs:
    """Rpcs of Combiner, and of Connector in FEDn 0.26."""

    def __init__(self, reports: ClientReports, statuses: Statuses, meter: Meter) -> None:
        self._reports = reports
        self._statuses = statuses
        self._meter = meter

    async def SendModelMetric(self, request: fedn_pb2.ModelMetric, context: Context) -> fedn_pb2.Response:
        """Kept with the client and the job of its round."""
        if name := self._name(request.sender, "SendModelMetric"):
            self._reports.note(
                Report(
                    client=name,
                    kind=ReportKind.METRIC,
                    values=numbers((metric.key, metric.value) for metric in request.metrics),
                    session_id=request.session_id[:ID_CHARS],
                    round_id=request.round_id[:ID_CHARS],
                    model_id=request.model_id[:ID_CHARS],
                )
            )
        return fedn_pb2.Response(response="RECEIVED ModelMetric from client")

    async def SendTelemetryMessage(
        self, request: fedn_pb2.TelemetryMessage, context: Context
    ) -> fedn_pb2.Response:
        """Kept with the client and the job that it works on."""
        if name := self._name(request.sender, "SendTelemetryMessage"):
            values = numbers((telemetry.key, telemetry.value) for telemetry in request.telemetries)
            self._reports.note(Report(name, ReportKind.TELEMETRY, values))
        return fedn_pb2.Response(response="RECEIVED Telemetry from client")

    async def SendAttributeMessage(
        self, request: fedn_pb2.AttributeMessage, context: Context
    ) -> fedn_pb2.Response:
        """Kept with the client."""
        if name := self._name(request.sender, "SendAttributeMessage"):
            values = texts((attribute.key, attribute.value) for attribute in request.attributes)
            self._reports.note(Report(name, ReportKind.ATTRIBUTE, values))
        return fedn_pb2.Response(response="RECEIVED Attribute from client")

    async def SendBackwardCompletion(
        self, request: fedn_pb2.BackwardCompletion, context: Context
    ) -> fedn_pb2.Response:
        """Nobody is asked for a backward pass here; what a client says of one is kept like a status."""
        if name := self._name(request.sender, "SendBackwardCompletion"):
            status = fedn_pb2.Status(
                status=f"backward pass completed: gradient {request.gradient_id[:ID_CHARS]}",
                log_level=fedn_pb2.INFO,
                type=fedn_pb2.BACKWARD,
            )
            self._statuses.note(name, status, ERAS["0.20"])
        return fedn_pb2.Response(response="RECEIVED BackwardCompletion from client")

    def note_utilisation(self, client: str, heartbeat: fedn_pb2.Heartbeat) -> None:
        """FEDn 0.24 to 0.26 put into heartbeats what later ones send as telemetry."""
        told = (("memory_usage", heartbeat.memory_utilisation), ("cpu_usage", heartbeat.cpu_utilisation))
        if any(value for _, value in told):
            self._reports.note(Report(client, ReportKind.TELEMETRY, numbers(told)))

    def _name(self, sender: fedn_pb2.Client, rpc: str) -> str:
        name = client_name(sender)
        if not name:
            self._meter.nameless(rpc)
        return name

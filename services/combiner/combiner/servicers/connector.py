"""Connector: heartbeats, statuses, and who is there (section 3 of FEDn's wire)."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from combiner.clients.beats import Beats
from combiner.clients.inbox import Inbox
from combiner.clients.statuses import Statuses
from combiner.domain.updates import parse_failure
from combiner.ports import Roster, StateUnavailable, View
from combiner.rounds.meter import Meter
from combiner.servicers.common import Context, client_name, redis_away
from combiner.servicers.reports import ReportRpcs
from combiner.tuning import Tuning
from fedcombiner.wire.eras import era_of_sender
from fedcombiner.wire.pb import fedn_pb2
from fedcombiner.wire.registry import OLD_PACKAGE, with_package

log = structlog.get_logger()

VIEW_OF_CHANNEL: Mapping[int, View] = {
    fedn_pb2.DEFAULT: View.TRAINING,
    fedn_pb2.MODEL_UPDATE_REQUESTS: View.TRAINING,
    fedn_pb2.MODEL_VALIDATION_REQUESTS: View.VALIDATION,
}


class ConnectorServicer:
    def __init__(
        self,
        beats: Beats,
        statuses: Statuses,
        inbox: Inbox,
        roster: Roster,
        tuning: Tuning,
        meter: Meter,
        reports: ReportRpcs,
    ) -> None:
        self._beats = beats
        self._statuses = statuses
        self._inbox = inbox
        self._roster = roster
        self._tuning = tuning
        self._meter = meter
        self._reports = reports
        self.SendModelMetric = reports.SendModelMetric  # where FEDn 0.26 has it

    @with_package
    async def SendHeartbeat(
        self, heartbeat: fedn_pb2.Heartbeat, context: Context, package: str = OLD_PACKAGE
    ) -> fedn_pb2.Response:
        """From memory: never waits for a back end."""
        name = client_name(heartbeat.sender)
        if name:
            self._beats.note(name, era_of_sender(package, heartbeat.sender).name)
            self._reports.note_utilisation(name, heartbeat)
        else:
            self._meter.nameless("SendHeartbeat")
        return fedn_pb2.Response(sender=heartbeat.sender, response="Heartbeat received")

    @with_package
    async def SendStatus(
        self, status: fedn_pb2.Status, context: Context, package: str = OLD_PACKAGE
    ) -> fedn_pb2.Response:
        """Kept in a bounded log; a warning about a task says that its client has failed. Never fails."""
        name = client_name(status.sender)
        era = era_of_sender(package, status.sender)
        if not name:
            self._meter.nameless("SendStatus")
        self._statuses.note(name, status, era)
        if name and era.is_warning(status.log_level) and status.data:
            ref = parse_failure(status.data)
            if ref.task_id or ref.job_id:
                await self._inbox.failure(name, ref, status.status[:200])
        return fedn_pb2.Response(response="Status received.")

    async def ListActiveClients(
        self, request: fedn_pb2.ListClientsRequest, context: Context
    ) -> fedn_pb2.ClientList:
        """Channel 0 is answered as channel 1: FEDn answered nothing, which helped nobody."""
        view = VIEW_OF_CHANNEL.get(request.channel)
        if view is None:
            return fedn_pb2.ClientList()
        try:
            names = await self._roster.active(view)
        except StateUnavailable as error:
            raise redis_away(error) from error
        # The role stays 0: WORKER in the generations that call this.
        return fedn_pb2.ClientList(client=[fedn_pb2.Client(name=name) for name in names])

    async def AcceptingClients(
        self, request: fedn_pb2.ConnectionRequest, context: Context
    ) -> fedn_pb2.ConnectionResponse:
        """Advice for a controller that spreads clients; a client that comes all the same is served."""
        try:
            active = len(await self._roster.active(View.TRAINING))
        except StateUnavailable:
            return fedn_pb2.ConnectionResponse(status=fedn_pb2.TRY_AGAIN_LATER)
        accepting = active < self._tuning.max_clients
        return fedn_pb2.ConnectionResponse(status=fedn_pb2.ACCEPTING if accepting else fedn_pb2.NOT_ACCEPTING)

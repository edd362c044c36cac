"""A process that serves FEDn's services behind the gate, for tests of what calls cost it in memory.

Prints its port, and ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from fedcombiner.access.policy import Policy
from fedcombiner.access.record import TokenRecord
from fedcombiner.access.roles import Role
from fedcombiner.access.secret import digest
from fedcombiner.access.setup import AccessControl
from fedcombiner.access.store import Snapshot
from fedcombiner.modelstorage.disk import DiskStore
from fedcombiner.modelstorage.limits import TransferLimits
from fedcombiner.modelstorage.servicer import ModelServiceServicer
from fedcombiner.servicekit.health import Health
from fedcombiner.servicekit.metrics import Metrics
from fedcombiner.servicekit.rpc import bind, build_server
from fedcombiner.wire.pb import fedn_pb2
from fedcombiner.wire.registry import add_services, service_names

CLIENT = "fct_client"
OPERATOR = "fct_operator"


class NoTokens:
    """A token reader that holds no tokens."""

    async def load(self, known: str = "") -> Snapshot | None:
        return None if known else Snapshot("1", {})

    async def aclose(self) -> None:
        pass


class Connector:
    async def SendHeartbeat(self, request: fedn_pb2.Heartbeat, _context: object) -> fedn_pb2.Response:
        return fedn_pb2.Response(sender=request.sender)


class Combiner:
    async def SendTelemetryMessage(self, _request: object, _context: object) -> fedn_pb2.Response:
        return fedn_pb2.Response()


class Control:
    async def Start(self, _request: object, _context: object) -> fedn_pb2.ControlResponse:
        return fedn_pb2.ControlResponse()


async def main(directory: Path) -> None:
    store = DiskStore(directory)
    await store.start()
    metrics = Metrics()
    tokens = {
        digest(token): TokenRecord(id=role, role=role)
        for token, role in ((CLIENT, Role.CLIENT), (OPERATOR, Role.OPERATOR))
    }
    policy = Policy(enforced=True, client_tokens=True, fixed=tokens)
    access = AccessControl(policy, metrics, Health(metrics), NoTokens())
    servicers = {
        "Connector": Connector(),
        "Combiner": Combiner(),
        "Control": Control(),
        "ModelService": ModelServiceServicer(store, TransferLimits(max_transfers=2, max_slow_transfers=2)),
    }
    clients = service_names({"Connector": None, "Combiner": None, "ModelService": None})
    server = build_server(metrics.rpc, unavailable_on_bug=clients, interceptors=access.interceptors)
    add_services(server, servicers)
    port = bind(server, "127.0.0.1", 0)
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)
    await store.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        asyncio.run(main(Path(made)))

"""The one table of who may call what: every rpc and every HTTP endpoint that any of our servers has.

The gRPC interceptor, the HTTP middleware, docs/access.md and the test that calls everything with every kind
of token are made from it. Whatever is served and has no row is refused to everybody, and fails the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from fedcombiner.access.roles import Role
from fedcombiner.wire.registry import NEW_PACKAGE, OLD_PACKAGE, OWN_PACKAGE

Listener = Literal["rpc", "discovery", "operations"]


@dataclass(frozen=True, slots=True)
class Access:
    """Who may call something. `anyone`: no token is looked at."""

    roles: frozenset[Role]
    anyone: bool = False


def _only(*roles: Role) -> Access:
    return Access(frozenset({*roles, Role.OPERATOR}))


ANYONE: Final = Access(frozenset(Role), anyone=True)
OPERATORS: Final = _only()
CONTROLLERS: Final = _only(Role.CONTROLLER)
COMBINERS: Final = _only(Role.COMBINER)
CLIENTS: Final = _only(Role.CLIENT)
MODELS: Final = _only(Role.CLIENT, Role.CONTROLLER)

# Served as grpc.X and as fedn.X.
_FEDN: Final[Mapping[str, Mapping[str, Access]]] = {
    "Connector": {
        "SendHeartbeat": CLIENTS,
        "SendStatus": CLIENTS,
        "SendModelMetric": CLIENTS,
        "AcceptingClients": CONTROLLERS,
        # Names of other clients, and moving them about, are not a client's business.
        "ListActiveClients": CONTROLLERS,
        "AllianceStatusStream": CONTROLLERS,
        "ReassignClient": CONTROLLERS,
        "ReconnectClient": CONTROLLERS,
    },
    "Combiner": {
        "ModelUpdateRequestStream": CLIENTS,
        "ModelValidationRequestStream": CLIENTS,
        "TaskStream": CLIENTS,
        "SendModelUpdate": CLIENTS,
        "SendModelValidation": CLIENTS,
        "SendModelPrediction": CLIENTS,
        "SendBackwardCompletion": CLIENTS,
        "SendModelMetric": CLIENTS,
        "SendAttributeMessage": CLIENTS,
        "SendTelemetryMessage": CLIENTS,
        # What the clients answer, and requests in the combiner's name: no client ever called these.
        "ModelUpdateStream": CONTROLLERS,
        "ModelValidationStream": CONTROLLERS,
        "SendModelUpdateRequest": CONTROLLERS,
        "SendModelValidationRequest": CONTROLLERS,
    },
    "ModelService": {"Upload": MODELS, "Download": MODELS},
    "Control": {
        "Start": CONTROLLERS,
        "Stop": CONTROLLERS,
        "Configure": CONTROLLERS,
        "FlushAggregationQueue": CONTROLLERS,
        "Report": CONTROLLERS,
        "SetAggregator": CONTROLLERS,
        "SetServerFunctions": CONTROLLERS,
    },
    "Reducer": {"GetGlobalModel": CONTROLLERS},
}

_OWN: Final[Mapping[str, Mapping[str, Access]]] = {
    "Jobs": {
        "Get": CONTROLLERS,
        "List": CONTROLLERS,
        "Watch": CONTROLLERS,
        "Cancel": CONTROLLERS,
        "Answers": CONTROLLERS,
    },
    "Sessions": {
        "Start": CONTROLLERS,
        "Get": CONTROLLERS,
        "List": CONTROLLERS,
        "Watch": CONTROLLERS,
        "Cancel": CONTROLLERS,
    },
    "Models": {"Put": CONTROLLERS, "List": CONTROLLERS, "Get": CONTROLLERS},
    "Clients": {"List": CONTROLLERS},
    "Events": {"Watch": CONTROLLERS},
    # Removing what cannot come back is an operator's, and so is the whole of the state.
    "Upkeep": {
        "Status": CONTROLLERS,
        "Collect": OPERATORS,
        "Prune": OPERATORS,
        "Backup": OPERATORS,
        "Restore": OPERATORS,
    },
    "Tokens": {"Create": OPERATORS, "List": OPERATORS, "Revoke": OPERATORS},
}

_TOOLS: Final[Mapping[str, Mapping[str, Access]]] = {
    # Probes have no token.
    "grpc.health.v1.Health": {"Check": ANYONE, "Watch": ANYONE, "List": ANYONE},
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": CONTROLLERS},
}

RPCS: Final[Mapping[str, Access]] = {
    f"/{name}/{method}": access
    for services in (
        *(
            {f"{package}.{name}": rpcs for name, rpcs in _FEDN.items()}
            for package in (OLD_PACKAGE, NEW_PACKAGE)
        ),
        {f"{OWN_PACKAGE}.{name}": rpcs for name, rpcs in _OWN.items()},
        _TOOLS,
    )
    for name, rpcs in services.items()
    for method, access in rpcs.items()
}
"""By full method, such as `/grpc.Connector/SendHeartbeat`."""

ENDPOINTS: Final[Mapping[Listener, Mapping[str, Access]]] = {
    "discovery": {
        "POST /add_combiner": COMBINERS,
        "GET /assign": CLIENTS,
        "GET /context": CLIENTS,
        "GET /checksum": CLIENTS,
        "POST /add_client": CLIENTS,
        "GET /download_package": CLIENTS,
        "GET /get_package_checksum": CLIENTS,
        "POST /api/v1/clients/add": CLIENTS,
        "GET /api/v1/packages/download": CLIENTS,
        "GET /api/v1/packages/checksum": CLIENTS,
        "GET /get_client_config": CLIENTS,
        "GET /packages": CONTROLLERS,
        "POST /packages": CONTROLLERS,
        "GET /packages/{package}": CONTROLLERS,
        "POST /packages/{package}/activate": CONTROLLERS,
    },
    # Port 9464 of every service.
    "operations": {
        "GET /metrics": ANYONE,
        "GET /healthz": ANYONE,
        "GET /readyz": ANYONE,
        "GET /statusz": CONTROLLERS,
        # Of the discovery only.
        "GET /script": OPERATORS,
        "PUT /script": OPERATORS,
        "DELETE /script": OPERATORS,
    },
}
"""By method and path of the route. HEAD is as GET."""

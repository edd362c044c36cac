"""What combiners and clients of FEDn say, checked, and the answers to it. Statuses and keys are FEDn's."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast, get_args

from discovery_mock.fields import (
    BadRequest,
    boolean_of,
    check_keys,
    count_of,
    host_of,
    json_object,
    name_of,
    optional_name,
    port_of,
)
from discovery_mock.helpers import Generation
from discovery_mock.registry import Combiner
from fedcombiner.servicekit.errors import shown
from fedcombiner.wire.announcement import ACTIVE_CLIENTS_HEADER, MAX_CLIENTS_HEADER

Package = Literal["remote", "local"]

_ANNOUNCE_KEYS: Final = ("combiner_id", "address", "fqdn", "port", "secure_grpc")
# 0.6 to 0.10 send `client_id`, their name, and `preferred_combiner`; `name`, with a uuid as `client_id`, came
# with 0.11, `package` with 0.14. FEDn's server reads `combiner_preferred`, which no client sends.
_CLIENT_KEYS: Final = ("client_id", "name", "package", "preferred_combiner", "combiner_preferred")
_SINCE_011: Final = frozenset({"name", "package"})
_ANDROID_KEYS: Final = ("status", "host", "fqdn", "ip", "port", "helper_type", "package", "client_id")
_ASSIGN_KEYS: Final = ("name", "combiner")


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """A client that looks for a combiner. `package`: where it says that it has its compute package from."""

    name: str
    client_id: str
    generation: Generation
    preferred_combiner: str | None = None
    package: Package | None = None


def parse_announce(body: bytes, headers: Mapping[str, str]) -> Combiner:
    """Of `POST /add_combiner`; our combiners also say in `headers` how many clients they have.

    Raises:
        BadRequest: a key, or a header.
    """
    given = json_object(body, _ANNOUNCE_KEYS, required=_ANNOUNCE_KEYS)
    fqdn = given["fqdn"]
    return Combiner(
        name=name_of("combiner_id", given["combiner_id"]),
        address=host_of("address", given["address"]),
        port=port_of(given["port"]),
        fqdn=None if fqdn in (None, "") else host_of("fqdn", fqdn),
        secure=boolean_of("secure_grpc", given["secure_grpc"]),
        active_clients=count_of(headers, ACTIVE_CLIENTS_HEADER),
        max_clients=count_of(headers, MAX_CLIENTS_HEADER),
    )


def parse_add_client(body: bytes, authorization: str) -> ClientRequest:
    """Of `POST /add_client`, with its authorization header: 0.6 to 0.20. Raises BadRequest."""
    given = json_object(body, _CLIENT_KEYS)
    known = not _SINCE_011.isdisjoint(given) or authorization.lower().startswith("bearer")
    return _client(given, Generation.NEW if known else Generation.UNSURE)


def parse_new_client(body: bytes) -> ClientRequest:
    """Of `POST /api/v1/clients/add`: 0.21 and newer. Raises BadRequest."""
    return _client(json_object(body, _CLIENT_KEYS), Generation.NEW)


def parse_assign(query: Mapping[str, str]) -> ClientRequest:
    """Of `GET /assign`: 0.5. Raises BadRequest."""
    check_keys(query, _ASSIGN_KEYS, required=("name",))
    name = name_of("name", query["name"])
    return ClientRequest(name, name, Generation.OLD, optional_name("combiner", query.get("combiner")))


def parse_query_name(query: Mapping[str, str]) -> str | None:
    """Of the requests for a package and its checksum: which one; None: the active one. Raises BadRequest."""
    check_keys(query, ("name",))
    return query.get("name") or None


def parse_wants_checksum(query: Mapping[str, str]) -> bool:
    """Of `GET /get_client_config`. Raises BadRequest."""
    check_keys(query, ("checksum",))
    return boolean_of("checksum", query.get("checksum", "true").capitalize())


def announced(network_id: str, pair: Mapping[str, str] | None = None) -> dict[str, object]:
    """The answer to an announcement: FEDn's sections are there, but nothing in them is a secret or of use.

    `pair`: the combiner's certificate and key, for its own eyes only.
    """
    storage = (
        "storage_hostname",
        "storage_port",
        "storage_access_key",
        "storage_secret_key",
        "storage_bucket",
        "context_bucket",
        "storage_secure_mode",
    )
    return {
        "success": True,
        "status": "added",
        "message": "Combiner added successfully.",
        "storage": {"storage_type": "S3", "storage_config": dict.fromkeys(storage)},
        "statestore": {
            "type": "MongoDB",
            "mongo_config": dict.fromkeys(("username", "password", "host", "port")),
            "network_id": network_id,
        },
        **(pair or {"certificate": None, "key": None}),
    }


def assigned(
    combiner: Combiner, client: ClientRequest, *, helper: str, package: Package, certificate: str | None
) -> dict[str, object]:
    """An assignment that clients of the generation of `client` understand."""
    # 0.5 compares with this text, and cannot live with null.
    no_fqdn = "None" if client.generation is Generation.OLD else None
    return {
        "success": True,
        "status": "assigned",
        "host": combiner.address,
        "port": combiner.port,
        "fqdn": combiner.fqdn or no_fqdn,
        "ip": combiner.address,
        "certificate": certificate,
        "package": package,
        "helper_type": helper,
        "model_type": helper,
        "client_id": client.client_id,
    }


def in_short(answer: Mapping[str, object]) -> dict[str, object]:
    """An assignment for the Android client, which takes an answer with any other key for none."""
    return {key: answer[key] for key in _ANDROID_KEYS}


def not_yet(message: str, package: Package) -> dict[str, object]:
    """With status 203, the one answer after which a client of any generation asks again."""
    return {"success": False, "status": "retry", "package": package, "message": message, "msg": message}


def refused(message: str) -> dict[str, object]:
    # 0.5 reads `package` before anything else.
    return {"success": False, "package": "remote", "message": message, "msg": message}


def _client(given: Mapping[str, Any], generation: Generation) -> ClientRequest:
    client_id = optional_name("client_id", given.get("client_id"))
    name = optional_name("name", given.get("name")) or client_id
    if name is None:
        raise BadRequest("name is missing (client_id, for a client up to 0.10)")
    preferred = given.get("preferred_combiner") or given.get("combiner_preferred")
    return ClientRequest(
        name=name,
        client_id=client_id or str(uuid.uuid4()),
        generation=generation,
        preferred_combiner=optional_name("preferred_combiner", preferred),
        package=_package(given.get("package")),
    )


def _package(value: object) -> Package | None:
    if value is None:
        return None
    if value not in get_args(Package):
        raise BadRequest(f"package cannot be {shown(value)}; allowed: {', '.join(get_args(Package))}")
    return cast(Package, value)

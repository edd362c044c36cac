"""What combiners and clients of FEDn say, checked, and the answers to it. Statuses and keys are FEDn's."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast, get_args

from discovery_mock.helpers import Generation
from discovery_mock.registry import Combiner
from fedcombiner.servicekit.errors import shown
from fedcombiner.wire.announcement import ACTIVE_CLIENTS_HEADER, MAX_CLIENTS_HEADER

Package = Literal["remote", "local"]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")
_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,253}")
_COUNT = re.compile(r"[0-9]{1,9}")
_ANNOUNCE_KEYS: Final = ("combiner_id", "address", "fqdn", "port", "secure_grpc")
# 0.6 to 0.10 send `client_id`, their name, and `preferred_combiner`; `name`, with a uuid as `client_id`, came
# with 0.11, `package` with 0.14. FEDn's server reads `combiner_preferred`, which no client sends.
_CLIENT_KEYS: Final = ("client_id", "name", "package", "preferred_combiner", "combiner_preferred")
_SINCE_011: Final = frozenset({"name", "package"})
_ASSIGN_KEYS: Final = ("name", "combiner")


class BadRequest(Exception):
    """The message names what is wrong, for the person who reads the client's log."""


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
    given = _object(body, _ANNOUNCE_KEYS, required=_ANNOUNCE_KEYS)
    fqdn = given["fqdn"]
    return Combiner(
        name=_name("combiner_id", given["combiner_id"]),
        address=_host("address", given["address"]),
        port=_port(given["port"]),
        fqdn=None if fqdn in (None, "") else _host("fqdn", fqdn),
        secure=_boolean("secure_grpc", given["secure_grpc"]),
        active_clients=_count(headers, ACTIVE_CLIENTS_HEADER),
        max_clients=_count(headers, MAX_CLIENTS_HEADER),
    )


def parse_add_client(body: bytes, authorization: str) -> ClientRequest:
    """Of `POST /add_client`, with its authorization header: 0.6 to 0.20. Raises BadRequest."""
    given = _object(body, _CLIENT_KEYS)
    known = not _SINCE_011.isdisjoint(given) or authorization.lower().startswith("bearer")
    return _client(given, Generation.NEW if known else Generation.UNSURE)


def parse_new_client(body: bytes) -> ClientRequest:
    """Of `POST /api/v1/clients/add`: 0.21 and newer. Raises BadRequest."""
    return _client(_object(body, _CLIENT_KEYS), Generation.NEW)


def parse_assign(query: Mapping[str, str]) -> ClientRequest:
    """Of `GET /assign`: 0.5. Raises BadRequest."""
    _check_keys(query, _ASSIGN_KEYS, required=("name",))
    name = _name("name", query["name"])
    return ClientRequest(name, name, Generation.OLD, _optional_name("combiner", query.get("combiner")))


def parse_query_name(query: Mapping[str, str]) -> str | None:
    """Of the requests for a package and its checksum: which one; None: the active one. Raises BadRequest."""
    _check_keys(query, ("name",))
    return query.get("name") or None


def parse_wants_checksum(query: Mapping[str, str]) -> bool:
    """Of `GET /get_client_config`. Raises BadRequest."""
    _check_keys(query, ("checksum",))
    return _boolean("checksum", query.get("checksum", "true").capitalize())


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


def not_yet(message: str, package: Package) -> dict[str, object]:
    """With status 203, the one answer after which a client of any generation asks again."""
    return {"success": False, "status": "retry", "package": package, "message": message, "msg": message}


def refused(message: str) -> dict[str, object]:
    # 0.5 reads `package` before anything else.
    return {"success": False, "package": "remote", "message": message, "msg": message}


def _client(given: Mapping[str, Any], generation: Generation) -> ClientRequest:
    client_id = _optional_name("client_id", given.get("client_id"))
    name = _optional_name("name", given.get("name")) or client_id
    if name is None:
        raise BadRequest("name is missing (client_id, for a client up to 0.10)")
    preferred = given.get("preferred_combiner") or given.get("combiner_preferred")
    return ClientRequest(
        name=name,
        client_id=client_id or str(uuid.uuid4()),
        generation=generation,
        preferred_combiner=_optional_name("preferred_combiner", preferred),
        package=_package(given.get("package")),
    )


def _object(body: bytes, known: Collection[str], required: Collection[str] = ()) -> Mapping[str, Any]:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("the body is not JSON") from None
    if not isinstance(given, dict):
        raise BadRequest("the body is not a JSON object")
    _check_keys(given, known, required)
    return given


def _check_keys(given: Collection[str], known: Collection[str], required: Collection[str] = ()) -> None:
    for key in required:
        if key not in given:
            raise BadRequest(f"{key} is missing")
    for key in given:
        if key not in known:
            raise BadRequest(f"{shown(key)} is not a known key; allowed: {', '.join(known)}")


def _name(key: str, value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise BadRequest(f"{key} cannot be {shown(value)}; allowed: 1 to 128 letters, digits, '_' and '-'")
    return value


def _optional_name(key: str, value: object) -> str | None:
    return None if value in (None, False, "") else _name(key, value)


def _host(key: str, value: object) -> str:
    if not isinstance(value, str) or not _HOST.fullmatch(value):
        raise BadRequest(f"{key} cannot be {shown(value)}; allowed: a host name or an address")
    return value


def _port(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65535:
        raise BadRequest(f"port cannot be {shown(value)}; allowed: a whole number from 1 to 65535")
    return value


def _boolean(key: str, value: object) -> bool:
    """Also as FEDn's own server expected it: the text True or False."""
    if value in ("True", "False"):
        return value == "True"
    if not isinstance(value, bool):
        raise BadRequest(f"{key} cannot be {shown(value)}; allowed: true, false")
    return value


def _package(value: object) -> Package | None:
    if value is None:
        return None
    if value not in get_args(Package):
        raise BadRequest(f"package cannot be {shown(value)}; allowed: {', '.join(get_args(Package))}")
    return cast(Package, value)


def _count(headers: Mapping[str, str], name: str) -> int | None:
    value = headers.get(name)
    if value is None:
        return None
    if not _COUNT.fullmatch(value):
        raise BadRequest(f"the header {name} cannot be {shown(value)}; allowed: a whole number")
    return int(value)

"""The JSON of combiners and clients, checked, and the answers to it. Statuses and keys are FEDn 0.6's."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from discovery_mock.registry import Combiner
from fedcombiner.servicekit.errors import shown

_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")
_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,253}")
_ANNOUNCE_KEYS = ("combiner_id", "address", "fqdn", "port", "secure_grpc")
# 0.6 to 0.10 send the first and the last; later ones say `name`, with a uuid as `client_id`, and `package`.
_CLIENT_KEYS = ("client_id", "name", "package", "preferred_combiner")


class BadRequest(Exception):
    """The message names what is wrong, for the person who reads the client's log."""


@dataclass(frozen=True, slots=True)
class ClientRequest:
    name: str
    client_id: str
    preferred_combiner: str | None


def parse_announce(body: bytes) -> Combiner:
    """Of `POST /add_combiner`. Raises BadRequest."""
    given = _object(body, _ANNOUNCE_KEYS, required=_ANNOUNCE_KEYS)
    fqdn = given["fqdn"]
    return Combiner(
        name=_name("combiner_id", given["combiner_id"]),
        address=_host("address", given["address"]),
        port=_port(given["port"]),
        fqdn=None if fqdn in (None, "") else _host("fqdn", fqdn),
        secure=_boolean("secure_grpc", given["secure_grpc"]),
    )


def parse_client(body: bytes) -> ClientRequest:
    """Of `POST /add_client`. Raises BadRequest."""
    given = _object(body, _CLIENT_KEYS, required=("client_id",))
    client_id = _name("client_id", given["client_id"])
    preferred = given.get("preferred_combiner")
    return ClientRequest(
        name=_name("name", given.get("name") or client_id),
        client_id=client_id,
        preferred_combiner=None if preferred in (None, False, "") else _name("preferred_combiner", preferred),
    )


def announced(network_id: str) -> dict[str, object]:
    """The answer to an announcement: FEDn's sections are there, but nothing in them is a secret or of use."""
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
        "certificate": None,
        "key": None,
    }


def assigned(
    combiner: Combiner, client: ClientRequest, *, helper_type: str, package: str
) -> dict[str, object]:
    """An assignment that clients of every generation understand."""
    return {
        "success": True,
        "status": "assigned",
        "host": combiner.address,
        "port": combiner.port,
        "fqdn": combiner.fqdn,
        "ip": combiner.address,
        "certificate": None,
        "package": package,
        "helper_type": helper_type,
        "model_type": helper_type,
        "client_id": client.client_id,
    }


def not_yet(message: str, package: str) -> dict[str, object]:
    """With status 203, the one answer after which a client of any generation asks again."""
    return {"success": False, "status": "retry", "package": package, "message": message, "msg": message}


def refused(message: str) -> dict[str, object]:
    return {"success": False, "message": message, "msg": message}


def _object(body: bytes, known: Collection[str], required: Collection[str]) -> Mapping[str, Any]:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("the body is not JSON") from None
    if not isinstance(given, dict):
        raise BadRequest("the body is not a JSON object")
    for key in required:
        if key not in given:
            raise BadRequest(f"{key} is missing")
    for key in given:
        if key not in known:
            raise BadRequest(f"{shown(key)} is not a known key; allowed: {', '.join(known)}")
    return given


def _name(key: str, value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise BadRequest(f"{key} cannot be {shown(value)}; allowed: 1 to 128 letters, digits, '_' and '-'")
    return value


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

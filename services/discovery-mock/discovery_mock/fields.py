"""Fields of requests, checked one by one. Everything raises BadRequest."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any, Final

from fedcombiner.servicekit.errors import shown

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_HOST: Final = re.compile(r"[A-Za-z0-9._:\[\]-]{1,253}")
_COUNT: Final = re.compile(r"[0-9]{1,9}")


class BadRequest(Exception):
    """The message names what is wrong, for the person who reads the client's log."""


def json_object(body: bytes, known: Collection[str], required: Collection[str] = ()) -> Mapping[str, Any]:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("the body is not JSON") from None
    if not isinstance(given, dict):
        raise BadRequest("the body is not a JSON object")
    check_keys(given, known, required)
    return given


def check_keys(given: Collection[str], known: Collection[str], required: Collection[str] = ()) -> None:
    for key in required:
        if key not in given:
            raise BadRequest(f"{key} is missing")
    for key in given:
        if key not in known:
            raise BadRequest(f"{shown(key)} is not a known key; allowed: {', '.join(known)}")


def name_of(key: str, value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise BadRequest(f"{key} cannot be {shown(value)}; allowed: 1 to 128 letters, digits, '_' and '-'")
    return value


def optional_name(key: str, value: object) -> str | None:
    return None if value in (None, False, "") else name_of(key, value)


def host_of(key: str, value: object) -> str:
    if not isinstance(value, str) or not _HOST.fullmatch(value):
        raise BadRequest(f"{key} cannot be {shown(value)}; allowed: a host name or an address")
    return value


def port_of(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65535:
        raise BadRequest(f"port cannot be {shown(value)}; allowed: a whole number from 1 to 65535")
    return value


def boolean_of(key: str, value: object) -> bool:
    """Also as FEDn's own server expected it: the text True or False."""
    if value in ("True", "False"):
        return value == "True"
    if not isinstance(value, bool):
        raise BadRequest(f"{key} cannot be {shown(value)}; allowed: true, false")
    return value


def count_of(headers: Mapping[str, str], name: str) -> int | None:
    value = headers.get(name)
    if value is None:
        return None
    if not _COUNT.fullmatch(value):
        raise BadRequest(f"the header {name} cannot be {shown(value)}; allowed: a whole number")
    return int(value)

"""A combiner's interface as a JSON document, as FEDn's controller kept it."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, Final

from combiner.channel import as_bytes
from fedcombiner.servicekit.errors import InvalidArgument

_FIELDS: Final = ("parent", "name", "address", "fqdn", "port", "certificate", "key", "ip", "config")
_NEEDED: Final = ("name", "address", "port")
_OBJECTS: Final = ("parent", "config")
_BASE64_ALLOWED: Final = "base64 text of a PEM file, or null"


def read_document(given: Mapping[str, Any] | str) -> dict[str, Any]:
    """The arguments of an interface that a document holds; `report` is left out.

    Raises:
        InvalidArgument: it is none, a key is missing or not known, or a value has a wrong type.
    """
    values = _read_object(given)
    for name in _NEEDED:
        if values.get(name) is None:
            raise InvalidArgument(name, values.get(name), "required")
    for name in values:
        if name not in (*_FIELDS, "report"):
            raise InvalidArgument("combiner_config", name, f"the keys {', '.join(_FIELDS)}")
    for name in _OBJECTS:
        if not isinstance(values.get(name) or {}, Mapping):
            raise InvalidArgument(name, values[name], "an object")
    read = {name: value for name, value in values.items() if name != "report"}
    pems = {name: from_base64(name, values.get(name)) for name in ("certificate", "key")}
    return {"fqdn": None, **read, **pems, "parent": values.get("parent") or {}}


def to_base64(content: bytes | str | None) -> str | None:
    return base64.b64encode(as_bytes(content)).decode() if content else None


def from_base64(name: str, text: object) -> bytes | None:
    """Raises InvalidArgument for the field `name` if `text` is neither None nor base64."""
    if text is None:
        return None
    try:
        if isinstance(text, str):
            return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise InvalidArgument(name, text, _BASE64_ALLOWED)


def _read_object(given: Mapping[str, Any] | str) -> Mapping[str, Any]:
    try:
        values = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, Mapping):
        raise InvalidArgument("combiner_config", given, "a JSON object")
    return values

"""JSON from the wire: whatever it holds, reading it raises nothing and costs little."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def read_object(text: str, max_chars: int) -> Mapping[str, Any] | None:
    """The JSON object in `text`; None if it is something else, or longer than `max_chars`.

    NaN and Infinity, which Python's own JSON writes, are read as floats.
    """
    if not text or len(text) > max_chars:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # ValueError also stands for numbers of more than 4,300 digits
        return None
    return value if isinstance(value, dict) else None


def text_of(value: object, max_chars: int) -> str:
    """A short printable text, or a whole number as text; else an empty one."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
        return str(value)
    usable = isinstance(value, str) and len(value) <= max_chars and value.isprintable()
    return str(value) if usable else ""

"""What is read of HTTP answers, whoever asks."""

from __future__ import annotations

import json
from typing import Any

import httpx


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body; an empty one if there is none."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def over_https(response: httpx.Response) -> bool:
    """Whether an answer came over https at every step, so that nobody on the way had a hand in it."""
    return all(step.url.scheme == "https" for step in (*response.history, response))


def host_in(url: str) -> str:
    """The host that an http or https URL names; empty if it is no such URL."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return ""
    return parsed.host if parsed.scheme in ("http", "https") else ""

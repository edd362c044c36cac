"""Logs of a process: structlog's and the standard library's, in one format, on one stream.

`bound` adds `job_id`, `round_id` or `client` to every line logged inside a `with` block, also by code that
knows nothing of them, and to no line of another task.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, Processor

from fedcombiner.servicekit.requests import add_request_id
from fedcombiner.servicekit.settings import LogFormat, LogLevel

MAX_VALUE_CHARS: Final = 2000

bound = structlog.contextvars.bound_contextvars


def configure(log_format: LogFormat, level: LogLevel, service: str, stream: TextIO | None = None) -> None:
    """Send all logging of this process to `stream` (stderr), as JSON lines or for a console."""
    target = stream or sys.stderr

    def add_service(_logger: Any, _method: str, event: EventDict) -> EventDict:
        event["service"] = service
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        add_request_id,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_service,
        without_payloads,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.PositionalArgumentsFormatter(), *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(log_format, target),
            ],
        )
    )
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    # It says at info what every single request came to; who makes one says what matters.
    logging.getLogger("httpx").setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
    logging.captureWarnings(True)


def _renderers(log_format: LogFormat, target: TextIO) -> list[Processor]:
    if log_format == "json":
        tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        return [
            structlog.processors.ExceptionRenderer(tracebacks),
            structlog.processors.JSONRenderer(default=repr),
        ]
    # Not the default formatter: with Rich at hand that one prints the local variables of every frame.
    return [
        structlog.dev.ConsoleRenderer(
            colors=target.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    ]


def without_payloads(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> EventDict:
    """Bytes become their length, and long texts are cut: models and messages do not belong into logs."""
    for key, value in event.items():
        if isinstance(value, bytes | bytearray | memoryview):
            event[key] = f"<{len(value)} bytes>"
        elif isinstance(value, str) and len(value) > MAX_VALUE_CHARS:
            event[key] = f"{value[:MAX_VALUE_CHARS]}…"
    return event

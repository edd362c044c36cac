import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from fedcombiner.servicekit.logs import bound, configure
from fedcombiner.servicekit.settings import LogFormat, LogLevel


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


def configured(log_format: LogFormat = "json", level: LogLevel = "info") -> io.StringIO:
    stream = io.StringIO()
    configure(log_format, level, "combiner", stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_our_lines_and_those_of_libraries_have_one_form() -> None:
    stream = configured()
    structlog.get_logger("ours").info("round started", clients=3)
    logging.getLogger("uvicorn.error").warning("port %d", 80)
    ours, theirs = lines(stream)
    assert (ours["event"], ours["clients"], ours["level"]) == ("round started", 3, "info")
    assert (theirs["event"], theirs["level"]) == ("port 80", "warning")
    for line in (ours, theirs):
        assert line["service"] == "combiner"
        assert line["timestamp"].endswith("Z")
    assert (ours["logger"], theirs["logger"]) == ("ours", "uvicorn.error")


def test_the_level_holds_for_both() -> None:
    stream = configured(level="warning")
    structlog.get_logger("ours").info("quiet")
    logging.getLogger("theirs").info("quiet")
    structlog.get_logger("ours").error("loud")
    assert [line["event"] for line in lines(stream)] == ["loud"]


async def test_bound_values_are_on_all_lines_of_a_task_and_of_no_other() -> None:
    stream = configured()
    log = structlog.get_logger()

    async def work(job_id: str) -> None:
        with bound(job_id=job_id):
            await asyncio.sleep(0)
            log.info("inside")
            logging.getLogger("library").info("inside")
        log.info("outside")

    await asyncio.gather(work("a"), work("b"))
    seen = [(line["event"], line.get("job_id")) for line in lines(stream)]
    assert sorted(seen, key=str) == sorted(
        [("inside", "a")] * 2 + [("inside", "b")] * 2 + [("outside", None)] * 2, key=str
    )


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_tracebacks_have_frames_and_no_local_variables(log_format: LogFormat) -> None:
    stream = configured(log_format)
    weights = "the weights of a client"
    try:
        assert weights
        raise ValueError("broken")
    except ValueError:
        structlog.get_logger().exception("failed")
    text = stream.getvalue()
    assert "broken" in text
    assert "test_tracebacks_have_frames_and_no_local_variables" in text
    assert weights not in text.replace('weights = "the weights of a client"', "")


def test_payloads_do_not_get_into_logs() -> None:
    stream = configured()
    structlog.get_logger().info("chunk", data=b"secret" * 1000, text="x" * 100_000)
    assert lines(stream)[0]["data"] == "<6000 bytes>"
    assert len(stream.getvalue()) < 3000

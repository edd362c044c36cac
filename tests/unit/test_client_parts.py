"""Parts of the client library that need no server: arrays, threads, messages, made-up content."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from fedcombiner.client.arrays import read_arrays, write_arrays
from fedcombiner.client.errors import rpc_errors
from fedcombiner.client.link import host_of
from fedcombiner.client.made_up import one_hot, random_like, sent_as_is, to_npz
from fedcombiner.client.messages import Messages, Task, Timings
from fedcombiner.client.threads import in_daemon_thread
from fedcombiner.servicekit.binding import is_loopback
from fedcombiner.wire.eras import TRAINING, read_timestamp
from fedcombiner.wire.pb import fedn_pb2

NAMES = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters="._-"), min_size=1)
ARRAYS = arrays_of.arrays(
    dtype=st.sampled_from([np.float16, np.float32, np.float64, np.int64, np.uint8, np.bool_]),
    shape=arrays_of.array_shapes(min_dims=0, min_side=0, max_side=4),
)
TASK = Task(TRAINING, fedn_pb2.TaskRequest(model_id="m", correlation_id="t", data='{"round_id": "3"}'))
NOW = datetime(2026, 1, 2, 3, 4, 5, 6, UTC)


@given(st.dictionaries(NAMES, ARRAYS, max_size=4))
def test_arrays_come_back_in_order_and_to_the_bit(arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    got = read_arrays(io.BytesIO(to_npz(arrays)))
    assert list(got) == list(arrays)
    for name, array in arrays.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
        assert got[name].tobytes() == array.tobytes()


def test_names_that_numpy_takes_for_its_own_arguments() -> None:
    assert set(read_arrays(io.BytesIO(to_npz({"file": np.zeros(1), "allow_pickle": np.ones(1)})))) == {
        *("file", "allow_pickle")
    }


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04cut", b"\x93NUMPY", to_npz({"a": np.zeros(9)})[:-30]])
def test_what_is_no_model_is_a_value_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"not a \.npz file of arrays"):
        read_arrays(tmp_path / "m.npz")


def test_objects_are_neither_written_nor_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Object arrays"):
        write_arrays(tmp_path / "m.npz", {"o": np.array([object()])})
    np.savez(tmp_path / "pickled.npz", o=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="Object arrays"):
        read_arrays(tmp_path / "pickled.npz")


async def test_a_thread_gives_its_result_or_its_error() -> None:
    assert await in_daemon_thread(lambda: threading.current_thread().name, "mine") == "mine"
    with pytest.raises(ZeroDivisionError):
        await in_daemon_thread(lambda: 1 // 0, "mine")


@pytest.mark.parametrize("error", [StopIteration(), SystemExit(3), KeyboardInterrupt()])
async def test_what_a_future_cannot_raise_becomes_an_error_of_the_thread(error: BaseException) -> None:
    def stop() -> None:
        raise error

    with pytest.raises(RuntimeError, match=r"in thread mine"):
        await asyncio.wait_for(in_daemon_thread(stop, "mine"), 10)


async def test_a_thread_whose_result_nobody_wants_any_more_is_left_alone() -> None:
    started, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        go_on.wait(20)
        done.set()

    task = asyncio.create_task(in_daemon_thread(work, "mine"))
    assert await asyncio.to_thread(started.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    assert await asyncio.to_thread(done.wait, 20)


async def test_a_cancellation_of_ones_own_is_not_taken_for_an_outage() -> None:
    async def wait() -> None:
        with rpc_errors():
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("generation", ["0.6", "0.8"])
def test_statuses_speak_the_language_of_their_generation(generation: str) -> None:
    messages = Messages("alice", generation, now=lambda: NOW)
    status = messages.failed(TASK, "ValueError")
    assert status.log_level == 2  # WARNING before 0.20
    assert status.sender.role == 0  # WORKER before 0.20
    assert json.loads(status.data)["correlationId"] == "t"
    assert read_timestamp(status.timestamp) == NOW
    assert status.timestamp.startswith(b"2026-01-02 03:04:05.000006") == (generation == "0.6")


def test_metrics_may_be_numbers_of_numpy() -> None:
    update = Messages("alice", "0.6").update(
        TASK, "u", 5, {"loss": np.float32(0.5), "n": np.int64(3), "num_examples": 99}, Timings(1, 2, 3, 6)
    )
    assert json.loads(update.meta)["training_metadata"] == {"loss": 0.5, "n": 3.0, "num_examples": 5}


@pytest.mark.parametrize("data", ["", "[]", "{", "null", "[" * 100_000])
def test_a_config_that_is_no_object_is_empty(data: str) -> None:
    assert Task(TRAINING, fedn_pb2.TaskRequest(data=data)).config == {}


def test_requests_for_what_the_library_cannot_do_are_no_tasks() -> None:
    assert Task.of(fedn_pb2.TaskRequest(type=fedn_pb2.FORWARD_REQUEST)) is None
    training = Task.of(fedn_pb2.TaskRequest())
    assert training is not None
    assert training.kind == TRAINING


def test_made_up_content() -> None:
    np.testing.assert_array_equal(read_arrays(io.BytesIO(_bytes(one_hot(3)(1, TASK))))["w"], [0, 1, 0])
    content = random_like({"a": np.zeros((2, 2), np.float32)}, seed=7)
    assert content(1, TASK) == content(1, TASK) != content(2, TASK)
    assert sent_as_is(b"junk")(5, TASK) == b"junk"


@pytest.mark.parametrize(
    ("address", "host", "loopback"),
    [
        ("localhost:1", "localhost", True),
        ("127.0.0.1:1", "127.0.0.1", True),
        ("[::1]:1", "[::1]", True),
        ("example.org:1", "example.org", False),
        ("10.0.0.1:1", "10.0.0.1", False),
    ],
)
def test_hosts(address: str, host: str, loopback: bool) -> None:
    assert host_of(address) == host
    assert is_loopback(host) == loopback


def _bytes(content: Path | bytes) -> bytes:
    assert isinstance(content, bytes)
    return content

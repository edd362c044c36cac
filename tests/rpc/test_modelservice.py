"""ModelService through a real server, over a disk store: what goes in and out, and what is refused."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from fedcombiner.modelstorage.disk import DiskStore
from fedcombiner.modelstorage.store import ObjectKey
from fedcombiner.wire.chunks import CHUNK_SIZE, encode_request
from fedcombiner.wire.pb.fedn_pb2 import FAILED, IN_PROGRESS, OK, ModelRequest, ModelResponse
from tests.rpc.modelservice_kit import (
    DEADLINE,
    Service,
    chunk,
    data_of,
    eventually,
    messages_of,
    put,
    serve,
    started,
)

UPLOAD = ObjectKey("uploads", "m1")
PACKAGES = pytest.mark.parametrize("package", ["grpc", "fedn"])


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[DiskStore]:
    async with started(DiskStore(tmp_path)) as store:
        yield store


@pytest.fixture
async def service(disk: DiskStore) -> AsyncIterator[Service]:
    async with serve(disk) as service:
        yield service


# ---- what FEDn's clients do ----


@PACKAGES
@pytest.mark.parametrize("size", [1, CHUNK_SIZE, 3 * CHUNK_SIZE + 17])
async def test_a_model_goes_in_and_out(service: Service, package: str, size: int) -> None:
    data = data_of(size)[:size]
    reply = await service.upload(*messages_of(data), package=package)
    assert reply == ModelResponse(id="m1", status=OK, message="Got model successfully.")
    messages = await service.download("m1", package)
    assert b"".join(message.data for message in messages) == data
    assert [message.status for message in messages[:-1]] == [IN_PROGRESS] * (len(messages) - 1)
    assert messages[-1] == ModelResponse(id="m1", status=OK)
    assert all(len(message.data) <= CHUNK_SIZE and message.id == "m1" for message in messages)
    assert sum(service.received) == sum(service.sent) == size


async def test_the_reply_has_fedns_bytes(service: Service) -> None:
    call = service.channel.stream_unary("/grpc.ModelService/Upload")
    reply = await call(messages_of(b"x"), timeout=DEADLINE)
    assert reply == bytes.fromhex("12026d312217") + b"Got model successfully."


async def test_messages_that_protobuf_makes_are_understood(service: Service) -> None:
    request = ModelRequest(id="m1", status=IN_PROGRESS, data=b"abc")
    request.sender.name = "client"
    await service.upload(request.SerializeToString(), ModelRequest(id="m1").SerializeToString())
    assert await service.content("m1") == b"abc"


async def test_a_model_without_bytes_is_a_model(service: Service) -> None:
    await service.upload(encode_request("m1", OK))
    assert await service.download("m1") == [ModelResponse(id="m1", status=OK)]


async def test_a_chunk_of_four_mebibytes_passes(service: Service) -> None:
    data = data_of(4 << 20)[: 4 << 20]
    await service.upload(*messages_of(data, size=4 << 20))
    assert await service.content("m1") == data


@pytest.mark.parametrize("missing", ["unknown", "", "../x", "/etc/passwd", "x" * 200, "tmp/lock"])
async def test_what_does_not_exist_is_failed(service: Service, missing: str) -> None:
    assert await service.download(missing) == [ModelResponse(id=missing, status=FAILED)]


async def test_models_come_before_uploads(service: Service) -> None:
    await put(service.store, UPLOAD, b"upload")
    assert await service.content("m1") == b"upload"
    await put(service.store, ObjectKey("models", "m1"), b"model")
    assert await service.content("m1") == b"model"


# ---- what breaks the protocol ----


@pytest.mark.parametrize(
    ("messages", "details"),
    [
        ([], "end of the stream"),
        ([chunk(b"x")], "end of the stream"),
        ([chunk(b"x", "")], "id: ''"),
        ([encode_request("", OK)], "id: ''"),
        ([chunk(b"x", "../../m1")], "id: '../../m1'"),
        ([chunk(b"x"), chunk(b"y", "m2")], "one id in a stream"),
        ([chunk(b"x"), encode_request("m1", OK, b"y")], "'OK with 1 bytes'"),
        ([encode_request("m1", FAILED, b"y")], "'FAILED with 1 bytes'"),
        ([chunk(b"x"), b"\xff"], "a serialized ModelRequest"),
    ],
)
async def test_a_broken_upload_says_why_and_leaves_nothing(
    service: Service, tmp_path: Path, messages: list[bytes], details: str
) -> None:
    error = await service.refusal(*messages)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details in (error.details() or "")
    assert list(tmp_path.rglob("data")) == []
    await service.upload(*messages_of(b"good"))
    assert await service.content("m1") == b"good"


async def test_a_malformed_download_says_so(service: Service) -> None:
    call = service.channel.unary_stream("/grpc.ModelService/Download")(b"\xff", timeout=DEADLINE)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_model_that_is_too_large(disk: DiskStore) -> None:
    async with serve(disk, max_bytes=10) as service:
        error = await service.refusal(*messages_of(b"x" * 11, size=4))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "at most 10 bytes" in (error.details() or "")
        assert await disk.head(UPLOAD) is None
        await service.upload(*messages_of(b"x" * 10, size=4))
        assert "at most 10 bytes" in str((await service.refusal(*messages_of(b"x" * 11, size=4))).details())


async def test_a_message_beyond_the_limit_of_grpc_leaves_nothing(service: Service) -> None:
    """gRPC itself refuses it, with RESOURCE_EXHAUSTED, which a client may see as a failed write."""
    call = service.channel.stream_unary("/grpc.ModelService/Upload")
    messages = [chunk(b"x"), chunk(bytes(5 << 20)), encode_request("m1", OK)]
    with pytest.raises(grpc.aio.AioRpcError):
        await call(iter(messages), timeout=DEADLINE)
    await service.upload(*messages_of(b"whole"))
    assert await service.content("m1") == b"whole"


# ---- the same id again ----


async def test_an_upload_is_answered_when_its_stream_has_ended(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway may pass on the reset that follows an earlier answer, in place of the answer."""
    monkeypatch.setattr("fedcombiner.modelstorage.servicer.END_SECONDS", 3600.0)
    call = service.open_upload()
    for message in messages_of(b"12345"):
        await call.write(message)
    async with asyncio.timeout(DEADLINE):
        while (await service.download("m1"))[-1].status != OK:
            pass
    await service.content("m1")  # an answer would have come before that of this later call
    assert not call.done()
    await call.done_writing()
    assert (await call).status == OK


async def test_an_upload_whose_stream_does_not_end_is_answered_all_the_same(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedcombiner.modelstorage.servicer.END_SECONDS", 0.01)
    call = service.open_upload()
    for message in messages_of(b"12345"):
        await call.write(message)
    assert (await call).status == OK


async def test_uploading_a_complete_id_again_keeps_the_first_bytes(service: Service) -> None:
    first = data_of(CHUNK_SIZE)
    await service.upload(*messages_of(first))
    again = await service.upload(*messages_of(data_of(5 * CHUNK_SIZE, seed=2)))
    assert again == ModelResponse(id="m1", status=OK, message="Got model successfully.")
    assert await service.content("m1") == first
    assert (await service.refusal(chunk(b"x"))).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_of_simultaneous_uploads_of_an_id_one_wins_whole(service: Service) -> None:
    contents = [data_of(3 * CHUNK_SIZE, seed) for seed in range(4)]
    replies = await asyncio.gather(*(service.upload(*messages_of(data)) for data in contents))
    assert [reply.status for reply in replies] == [OK] * 4
    assert await service.content("m1") in contents


async def test_an_upload_that_its_client_leaves_can_be_made_again(disk: DiskStore, tmp_path: Path) -> None:
    async with serve(disk, max_transfers=1) as service:
        call = service.open_upload()
        await call.write(chunk(data_of(CHUNK_SIZE)))
        await eventually(lambda: sum(service.received) > 0, "the first chunk to arrive")
        call.cancel()
        await service.upload(*messages_of(b"whole"))
        assert await service.content("m1") == b"whole"
        assert len(list(tmp_path.rglob("data"))) == 1

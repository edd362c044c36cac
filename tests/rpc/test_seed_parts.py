"""FEDn's ModelService on its own, its helpers, and its ConnectorCombiner, from plain threads."""

from __future__ import annotations

import io
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from combiner.connect import ConnectorCombiner, Status
from combiner.helpers import Helper, NpzDictHelper, NpzListHelper, get_helper
from combiner.modelservice import ModelService

from fedcombiner.modelstorage.disk import DiskStore
from fedcombiner.modelstorage.limits import TransferLimits
from fedcombiner.modelstorage.store import ObjectTooLarge
from fedcombiner.servicekit.errors import InvalidArgument, StartupError
from fedcombiner.servicekit.loopthread import LoopThread
from fedcombiner.wire.chunks import CHUNK_SIZE
from fedcombiner.wire.pb import fedn_pb2, fedn_pb2_grpc
from fedcombiner.wire.registry import add_services
from tests.rpc.seed_kit import DEADLINE, Discovery, npz
from tests.tls_kit import Certificates


@pytest.fixture(scope="module")
def service() -> Iterator[ModelService]:
    with ModelService() as made:
        yield made


@contextmanager
def served(service: ModelService) -> Iterator[fedn_pb2_grpc.ModelServiceStub]:
    """The service on a port, in a loop of its own."""

    async def start() -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server()
        add_services(server, {"ModelService": service})
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    with LoopThread("server") as thread:
        server, port = thread.call(start())
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield fedn_pb2_grpc.ModelServiceStub(channel)
        thread.call(server.stop(0))


def uploading(model_id: str, *chunks: bytes) -> Iterator[fedn_pb2.ModelRequest]:
    for chunk in chunks:
        yield fedn_pb2.ModelRequest(id=model_id, data=chunk, status=fedn_pb2.IN_PROGRESS)
    yield fedn_pb2.ModelRequest(id=model_id, status=fedn_pb2.OK)


def new_id() -> str:
    return str(uuid.uuid4())


def test_what_is_uploaded_can_be_read_here(service: ModelService) -> None:
    model_id = new_id()
    assert not service.exist(model_id)
    assert service.get_model(model_id) is None
    with served(service) as stub:
        answer = stub.Upload(uploading(model_id, b"a" * CHUNK_SIZE, b"b"), timeout=DEADLINE)
    assert (answer.id, answer.status) == (model_id, fedn_pb2.OK)
    assert service.exist(model_id)
    model = service.get_model(model_id)
    assert model is not None
    assert (model.tell(), model.read()) == (0, b"a" * CHUNK_SIZE + b"b")


def test_what_is_set_here_can_be_downloaded(service: ModelService) -> None:
    model_id, content = new_id(), bytes(range(256)) * 10_000
    source = io.BytesIO(content)
    source.seek(100)
    service.set_model(source, model_id)
    with served(service) as stub:
        answers = list(stub.Download(fedn_pb2.ModelRequest(id=model_id), timeout=DEADLINE))
    assert b"".join(answer.data for answer in answers) == content
    assert [answer.status for answer in answers] == [fedn_pb2.IN_PROGRESS] * 3 + [fedn_pb2.OK]
    service.set_model(io.BytesIO(b"other"), model_id)
    model = service.get_model(model_id)
    assert model is not None
    assert model.read() == content, "the first bytes stay"


def test_a_stream_of_pieces_is_set(service: ModelService) -> None:
    class Answer:
        """As an S3 client gives it."""

        def stream(self, amt: int) -> Iterator[bytes]:
            assert amt == CHUNK_SIZE
            yield from (b"one", b"", b"two")

    model_id = new_id()
    service.set_model(Answer(), model_id)
    model = service.get_model(model_id)
    assert model is not None
    assert model.read() == b"onetwo"


@pytest.mark.parametrize("model_id", ["", "../x", "/etc/passwd", "a b", "x" * 129])
def test_ids_that_are_none(service: ModelService, model_id: str) -> None:
    assert not service.exist(model_id)
    assert service.get_model(model_id) is None
    with pytest.raises(InvalidArgument, match="id: "):
        service.set_model(io.BytesIO(b"x"), model_id)


def test_a_model_that_is_too_large_or_breaks_leaves_nothing(tmp_path: Path) -> None:
    class Broken:
        def stream(self, amt: int) -> Iterator[bytes]:
            yield b"x"
            raise OSError("connection lost")

    with ModelService(DiskStore(tmp_path), limits=TransferLimits(max_bytes=10)) as service:
        with pytest.raises(ObjectTooLarge, match="at most 10 bytes"):
            service.set_model(io.BytesIO(b"x" * 11), "large")
        with pytest.raises(OSError, match="connection lost"):
            service.set_model(Broken(), "broken")
        assert not service.exist("large")
        assert not service.exist("broken")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"]


def test_a_service_of_its_own_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with ModelService() as service:
        service.set_model(io.BytesIO(b"x"), "m")
        assert any(tmp_path.iterdir())
    assert not any(tmp_path.iterdir())
    service.close()


class PathOfItsOwn:
    """As a helper of FEDn that chooses the path itself, and loads by path only."""

    def load(self, path: str) -> str:
        return Path(path).read_text()

    def save(self, model: str, path: str | None = None) -> str:
        chosen = f"{path}-chosen"
        Path(chosen).write_text(model)
        return chosen


class Silent(PathOfItsOwn):
    """Says nothing: it is where it was told to be."""

    def save(self, model: str, path: str | None = None) -> None:  # type: ignore[override]
        assert path is not None
        Path(path).write_text(model)


@pytest.mark.parametrize(
    ("helper", "model"),
    [
        (NpzDictHelper(), {"b.weight": np.ones((2, 3)), "a": np.arange(3, dtype=np.int64)}),
        (NpzListHelper(), [np.ones((2, 3), np.float16), np.zeros(()), np.arange(12)]),
        (PathOfItsOwn(), "a model"),
        (Silent(), "a model"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_helpers_make_models_bytes_and_back(
    service: ModelService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, helper: Helper, model: Any
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    content = service.serialize_model_to_BytesIO(model, helper)
    assert content.tell() == 0
    for source in (content, content.getvalue()):
        same(service.load_model_from_BytesIO(source, helper), model)
    assert not any(tmp_path.iterdir()), "no temporary file is left"


def same(loaded: Any, model: Any) -> None:
    if isinstance(model, str):
        assert loaded == model
        return
    assert type(loaded) is type(model)
    pairs = zip(loaded.items(), model.items(), strict=True) if isinstance(model, Mapping) else ()
    for (name, array), (expected_name, expected) in pairs:
        assert name == expected_name
        np.testing.assert_array_equal(array, expected, strict=True)
    if isinstance(model, list):
        for array, expected in zip(loaded, model, strict=True):
            np.testing.assert_array_equal(array, expected, strict=True)


def test_helpers_refuse_what_is_no_model(service: ModelService) -> None:
    with pytest.raises(ValueError, match="arrays named \\['w'\\]; allowed: '0' to '0'"):
        service.load_model_from_BytesIO(npz(w=[1]), NpzListHelper())
    with pytest.raises((ValueError, zipfile.BadZipFile)):
        service.load_model_from_BytesIO(b"no model", NpzDictHelper())


def test_helpers_by_name() -> None:
    assert isinstance(get_helper("kerashelper"), NpzListHelper)
    assert isinstance(get_helper("numpyhelper"), NpzListHelper)
    assert isinstance(get_helper("pytorchhelper"), NpzDictHelper)
    with pytest.raises(InvalidArgument, match="helper_type: 'os' is not valid; allowed: kerashelper"):
        get_helper("os")


def test_helpers_save_where_nobody_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = NpzListHelper().save([np.ones(2)])
    assert Path(path).parent == tmp_path
    np.testing.assert_array_equal(NpzListHelper().load(path)[0], np.ones(2))


@pytest.fixture
def discovery() -> Iterator[Discovery]:
    with Discovery.running() as server:
        yield server


def connector(port: int, **more: Any) -> ConnectorCombiner:
    return ConnectorCombiner("127.0.0.1", port, "combiner", None, 12080, "secret", "c1", **more)


@pytest.mark.parametrize(
    ("code", "body", "status", "answer"),
    [
        (200, {"status": "added", "storage": {}}, Status.Assigned, {"status": "added", "storage": {}}),
        (200, {"status": "retry", "message": "later"}, Status.TryAgain, "later"),
        (203, {"status": "retry", "message": "later"}, Status.TryAgain, "later"),
        (400, {"message": "no such key"}, Status.UnMatchedConfig, "no such key"),
        (401, {"message": "who are you"}, Status.UnAuthorized, "who are you"),
        (500, {}, Status.Unassigned, "HTTP 500 Internal Server Error"),
        (200, {}, Status.Unassigned, "HTTP 200 OK"),
    ],
)
def test_every_answer_of_a_discovery_is_a_status(
    discovery: Discovery, code: int, body: object, status: Status, answer: object
) -> None:
    discovery.answer = (code, body)
    assert connector(discovery.port).announce() == (status, answer)
    assert discovery.asked == (
        "/add_combiner",
        "Token secret",
        {"combiner_id": "c1", "address": "combiner", "fqdn": None, "port": 12080, "secure_grpc": False},
    )


def test_the_certificate_of_a_discovery_is_verified_if_told_so(
    discovery: Discovery, certificates: Certificates
) -> None:
    discovery.speak_tls(certificates.good)
    discovery.answer = (200, {"status": "added"})
    status, message = connector(discovery.port, secure=True, verify=True).announce()
    assert status is Status.Unassigned
    assert "certificate verify failed" in str(message)
    assert connector(discovery.port, secure=True).announce() == (Status.Assigned, {"status": "added"})


def test_a_discovery_that_is_away_is_a_status(discovery: Discovery) -> None:
    with Discovery() as gone:
        port = gone.port
    status, message = connector(port).announce()
    assert (status, bool(message)) == (Status.Unassigned, True)


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(StartupError, match="must be HOST:PORT"):
        ConnectorCombiner("127.0.0.1", 1, "combiner", None, 70_000, None, "c1")

"""The upload protocol, message by message."""

import pytest

from fedcombiner.modelstorage.store import ObjectKey
from fedcombiner.modelstorage.upload import UploadProtocol, decode
from fedcombiner.servicekit.errors import InvalidArgument
from fedcombiner.wire.chunks import encode_request
from fedcombiner.wire.pb.fedn_pb2 import FAILED, IN_PROGRESS, IN_PROGRESS_OK, OK, UNKNOWN


def test_a_model_in_chunks() -> None:
    protocol = UploadProtocol()
    assert protocol.feed(encode_request("m1", IN_PROGRESS, b"ab")) == b"ab"
    assert protocol.key == ObjectKey("uploads", "m1")
    assert protocol.feed(encode_request("m1", IN_PROGRESS)) == b""
    assert protocol.feed(encode_request("m1", IN_PROGRESS, b"c")) == b"c"
    assert protocol.feed(encode_request("m1", OK)) is None


def test_a_model_without_bytes() -> None:
    protocol = UploadProtocol()
    assert protocol.feed(encode_request("m1", OK)) is None
    assert protocol.key == ObjectKey("uploads", "m1")


@pytest.mark.parametrize("status", [IN_PROGRESS_OK, FAILED, UNKNOWN, 77, -1])
def test_a_status_that_says_nothing_is_ignored(status: int) -> None:
    protocol = UploadProtocol()
    assert protocol.feed(encode_request("m1", status)) == b""
    assert protocol.feed(encode_request("m1", IN_PROGRESS, b"x")) == b"x"


@pytest.mark.parametrize(
    ("status", "name"), [(OK, "OK"), (IN_PROGRESS_OK, "IN_PROGRESS_OK"), (FAILED, "FAILED"), (77, "77")]
)
def test_data_is_never_dropped_in_silence(status: int, name: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"status: '{name} with 3 bytes'"):
        UploadProtocol().feed(encode_request("m1", status, b"abc"))


@pytest.mark.parametrize("bad", ["", "../x", "/etc/passwd", "a" * 129])
def test_an_id_that_is_none(bad: str) -> None:
    with pytest.raises(InvalidArgument, match="id: "):
        UploadProtocol().feed(encode_request(bad, IN_PROGRESS, b"x"))


@pytest.mark.parametrize("second", ["m2", ""])
def test_a_second_id(second: str) -> None:
    protocol = UploadProtocol()
    protocol.feed(encode_request("m1", IN_PROGRESS, b"x"))
    with pytest.raises(InvalidArgument, match="one id in a stream, here 'm1'"):
        protocol.feed(encode_request(second, IN_PROGRESS, b"x"))


def test_a_stream_without_end_names_what_is_missing() -> None:
    assert "then OK without data" in str(UploadProtocol().end())


def test_malformed_bytes_are_the_callers_fault() -> None:
    with pytest.raises(InvalidArgument, match="a serialized ModelRequest"):
        decode(b"\xff")

"""The raw chunk codec against protobuf itself."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from fedcombiner.wire.chunks import (
    MAX_FIELDS,
    MalformedMessage,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
    status_name,
)
from fedcombiner.wire.pb import fedn_pb2

INT32 = st.integers(-(2**31), 2**31 - 1)
STATUS = st.one_of(st.sampled_from(fedn_pb2.ModelStatus.values()), INT32)
DATA = st.one_of(st.binary(max_size=300), st.sampled_from([bytes(127), bytes(128), bytes(16_384)]))
CLIENTS = st.builds(fedn_pb2.Client, role=INT32, name=st.text(), client_id=st.text())


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


@st.composite
def fields(draw: st.DrawFn) -> bytes:
    """A field that may be known or unknown, with a wire type that may be the expected one or not."""
    number = draw(st.one_of(st.integers(1, 6), st.integers(7, 2**29 - 1)))
    wire_type = draw(st.sampled_from([0, 1, 2, 5]))
    payload = {
        0: varint(draw(st.integers(0, 2**64 - 1))),
        1: draw(st.binary(min_size=8, max_size=8)),
        5: draw(st.binary(min_size=4, max_size=4)),
    }.get(wire_type)
    if payload is None:
        # Empty for the fields that are messages, which the codec skips unread and protobuf parses.
        content = b"" if number < 3 else draw(st.text(max_size=20)).encode()
        payload = varint(len(content)) + content
    return varint(number << 3 | wire_type) + payload


@given(st.text(), STATUS, DATA)
def test_writes_requests_as_protobuf_does(model_id: str, status: int, data: bytes) -> None:
    expected = fedn_pb2.ModelRequest(id=model_id, status=status, data=data).SerializeToString()
    assert encode_request(model_id, status, data) == expected
    assert encode_request(model_id, status, memoryview(data)) == expected


@given(st.text(), STATUS, DATA, st.text())
def test_writes_responses_as_protobuf_does(model_id: str, status: int, data: bytes, message: str) -> None:
    expected = fedn_pb2.ModelResponse(id=model_id, status=status, data=data, message=message)
    assert encode_response(model_id, status, data, message) == expected.SerializeToString()


@given(st.text(), STATUS, DATA, CLIENTS)
def test_reads_requests_as_protobuf_writes_them(
    model_id: str, status: int, data: bytes, sender: fedn_pb2.Client
) -> None:
    request = fedn_pb2.ModelRequest(sender=sender, receiver=sender, id=model_id, status=status, data=data)
    assert decode_request(request.SerializeToString()) == (model_id, status, data)


@given(st.text(), STATUS, DATA, st.text())
def test_reads_responses_as_protobuf_writes_them(
    model_id: str, status: int, data: bytes, message: str
) -> None:
    response = fedn_pb2.ModelResponse(id=model_id, status=status, data=data, message=message)
    assert decode_response(response.SerializeToString()) == (model_id, status, data)


@given(st.lists(fields(), max_size=MAX_FIELDS))
def test_reads_any_fields_as_protobuf_does(parts: list[bytes]) -> None:
    raw = b"".join(parts)
    expected = fedn_pb2.ModelRequest.FromString(raw)
    assert decode_request(raw) == (expected.id, expected.status, expected.data)


@given(st.lists(fields(), min_size=1, max_size=MAX_FIELDS), st.data())
def test_refuses_what_is_cut(parts: list[bytes], data: st.DataObject) -> None:
    cut = b"".join(parts)[: -data.draw(st.integers(1, len(parts[-1]) - 1))]
    with pytest.raises(DecodeError):
        fedn_pb2.ModelRequest.FromString(cut)
    with pytest.raises(MalformedMessage):
        decode_request(cut)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    """Nothing but `MalformedMessage` comes out, and what protobuf reads is read alike or refused (groups)."""
    try:
        chunk = decode_request(raw)
    except MalformedMessage:
        return
    try:
        expected = fedn_pb2.ModelRequest.FromString(raw)
    except DecodeError:
        return  # inside sender or receiver, which are not looked at
    assert chunk == (expected.id, expected.status, expected.data)


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"\x02\x00", "field number 0"),
        (b"\x2b\x2c", "wire type 3"),
        (b"\x2e", "wire type 6"),
        (b"\x28" + b"\xff" * 10, "varint without end"),
        (b"\x80\x80\x80\x80\x80\x00\x01", "varint without end"),
        (b"\x1a\xff\xff\xff\xff\x0f", "field of 4294967295 bytes at byte 6 of 6"),
        (b"\x22\x01\xff", "id is not UTF-8"),
    ],
)
def test_says_what_is_malformed(raw: bytes, complaint: str) -> None:
    with pytest.raises(MalformedMessage, match=complaint):
        decode_request(raw)


class CountingView:
    """A memoryview that counts how often it is looked into."""

    def __init__(self, raw: bytes) -> None:
        self._view = memoryview(raw)
        self.looks = 0

    def __len__(self) -> int:
        return len(self._view)

    def __getitem__(self, at: slice) -> memoryview:
        self.looks += 1
        return self._view[at]


def test_megabytes_of_tiny_fields_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    views: list[CountingView] = []

    def view(raw: bytes) -> CountingView:
        views.append(CountingView(raw))
        return views[-1]

    monkeypatch.setattr("fedcombiner.wire.chunks.memoryview", view, raising=False)
    with pytest.raises(MalformedMessage, match="more than 16 fields"):
        decode_request(b"\x08\x01" * (1 << 20))
    assert views[0].looks <= 2 * MAX_FIELDS


@pytest.mark.parametrize("fields", [MAX_FIELDS, MAX_FIELDS + 1])
def test_bounds_the_number_of_fields(fields: int) -> None:
    raw = b"\x38\x01" * (fields - 1) + b"\x22\x01m"
    if fields <= MAX_FIELDS:
        assert decode_request(raw).id == "m"
    else:
        with pytest.raises(MalformedMessage):
            decode_request(raw)


def test_data_is_a_view_of_the_message() -> None:
    raw = encode_request("m", fedn_pb2.IN_PROGRESS, b"chunk")
    data = decode_request(raw).data
    assert isinstance(data, memoryview)
    assert data.obj is raw


def test_names_statuses_for_people() -> None:
    assert status_name(fedn_pb2.IN_PROGRESS_OK) == "IN_PROGRESS_OK"
    assert status_name(77) == "77"

"""The chunk protocol's two messages, `ModelRequest` and `ModelResponse`, as raw bytes.

Making a protobuf object of a chunk costs two copies of a mebibyte and more time than everything else that is
done to it. Here a chunk is read as a view of the message it came in, and written with a single join. The
bytes are those that protobuf itself writes (https://protobuf.dev/programming-guides/encoding). Fields that
are not needed, and known ones of an unexpected wire type, are skipped unread; the last of several values
counts. Groups, which proto3 cannot express, are refused. So are messages of many fields: the event loop waits
while they are read, field by field in Python.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

from fedcombiner.wire.pb import fedn_pb2

CHUNK_SIZE: Final = 1 << 20
# The messages have five fields at most; the rest is for fields of later releases.
MAX_FIELDS: Final = 16

Buffer = bytes | bytearray | memoryview

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10
_MAX_TAG_BYTES = _MAX_LENGTH_BYTES = 5


class MalformedMessage(ValueError):
    """Bytes that are not a serialized message. The text says what is wrong and where, and quotes nothing."""


class Chunk(NamedTuple):
    """The fields that both messages share. `data` is a view of the message's bytes and keeps them alive."""

    id: str
    status: int
    data: Buffer


@dataclass(frozen=True, slots=True)
class _Layout:
    data: int
    id: int
    status: int


_REQUEST = _Layout(data=3, id=4, status=5)
_RESPONSE = _Layout(data=1, id=2, status=3)
_RESPONSE_MESSAGE = 4


def decode_request(message: bytes) -> Chunk:
    """Read a serialized `ModelRequest`.

    Raises:
        MalformedMessage: the bytes are cut, hold a group or more than MAX_FIELDS fields, or the id is not
            UTF-8.
    """
    return _decode(memoryview(message), _REQUEST)


def decode_response(message: bytes) -> Chunk:
    """Read a serialized `ModelResponse`, without its `message`.

    Raises:
        MalformedMessage: the bytes are cut, hold a group or more than MAX_FIELDS fields, or the id is not
            UTF-8.
    """
    return _decode(memoryview(message), _RESPONSE)


def encode_request(model_id: str, status: int, data: Buffer = b"") -> bytes:
    """The bytes of `ModelRequest(id=model_id, status=status, data=data)`."""
    return b"".join((*_bytes_field(_REQUEST.data, data), *_tail(_REQUEST, model_id, status)))


def encode_response(model_id: str, status: int, data: Buffer = b"", message: str = "") -> bytes:
    """The bytes of `ModelResponse(id=model_id, status=status, data=data, message=message)`."""
    return b"".join(
        (
            *_bytes_field(_RESPONSE.data, data),
            *_tail(_RESPONSE, model_id, status),
            *_bytes_field(_RESPONSE_MESSAGE, message.encode()),
        )
    )


def status_name(status: int) -> str:
    """The name of a `ModelStatus` for a person to read, or its number if it has none."""
    value = fedn_pb2.DESCRIPTOR.enum_types_by_name["ModelStatus"].values_by_number.get(status)
    return value.name if value else str(status)


def _decode(view: memoryview, layout: _Layout) -> Chunk:
    data: Buffer = b""
    model_id: Buffer = b""
    status = 0
    position, end, fields = 0, len(view), 0
    while position < end:
        fields += 1
        if fields > MAX_FIELDS:
            raise MalformedMessage(f"more than {MAX_FIELDS} fields")
        tag, position = _read_varint(view, position, _MAX_TAG_BYTES)
        field, wire_type = tag >> 3, tag & 7
        if not 0 < field < 1 << 29:
            raise MalformedMessage(f"field number {field} before byte {position}")
        if wire_type == _VARINT:
            value, position = _read_varint(view, position, _MAX_VARINT_BYTES)
            status = _to_int32(value) if field == layout.status else status
            continue
        start, position = _span(view, position, wire_type)
        if wire_type == _BYTES and field == layout.data:
            data = view[start:position]
        elif wire_type == _BYTES and field == layout.id:
            model_id = view[start:position]
    return Chunk(_text(model_id), status, data)


def _span(view: memoryview, position: int, wire_type: int) -> tuple[int, int]:
    """Start and end of the payload of a field that is not a varint."""
    if wire_type == _BYTES:
        length, position = _read_varint(view, position, _MAX_LENGTH_BYTES)
    elif wire_type in (_FIXED32, _FIXED64):
        length = 4 if wire_type == _FIXED32 else 8
    else:
        raise MalformedMessage(f"wire type {wire_type} before byte {position}")
    if length > len(view) - position:
        raise MalformedMessage(f"field of {length} bytes at byte {position} of {len(view)}")
    return position, position + length


def _read_varint(view: memoryview, position: int, limit: int) -> tuple[int, int]:
    value = 0
    for shift, byte in enumerate(view[position : position + limit]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position + shift + 1
    raise MalformedMessage(f"varint without end at byte {position} of {len(view)}")


def _to_int32(value: int) -> int:
    low = value & 0xFFFF_FFFF
    return low - (1 << 32) if low >> 31 else low


def _text(raw: Buffer) -> str:
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError:
        raise MalformedMessage("id is not UTF-8") from None


def _tail(layout: _Layout, model_id: str, status: int) -> tuple[Buffer, ...]:
    parts = _bytes_field(layout.id, model_id.encode())
    return (*parts, _varint(layout.status << 3 | _VARINT), _varint(status)) if status else parts


def _bytes_field(field: int, value: Buffer) -> tuple[Buffer, ...]:
    return (_varint(field << 3 | _BYTES), _varint(len(value)), value) if len(value) else ()


def _varint(value: int) -> bytes:
    value &= 0xFFFF_FFFF_FFFF_FFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)

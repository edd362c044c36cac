"""The protocol of one Upload stream, without any input or output.

    IN_PROGRESS with data      appended (no data is allowed and appends nothing)
    OK without data            the end: the model is complete, and may have no bytes at all
    any other without data     ignored, as FEDn's server does: it says nothing about the model
    any other with data        INVALID_ARGUMENT. FEDn's server drops the data in silence, and stores the rest

All messages carry the same id. FEDn's server takes several interleaved ids, of which it completes one; no
client sends them.
"""

from typing import Final

from fedcombiner.modelstorage.store import Buffer, ObjectKey, parse_id
from fedcombiner.servicekit.errors import InvalidArgument
from fedcombiner.wire.chunks import Chunk, MalformedMessage, decode_request, status_name
from fedcombiner.wire.pb import fedn_pb2

_STATUS_ALLOWED: Final = "IN_PROGRESS with data, then OK without data"


class UploadProtocol:
    """What the messages of a stream mean, one after the other."""

    def __init__(self) -> None:
        self._id = ""

    @property
    def key(self) -> ObjectKey:
        """Where the model belongs; known once a message was fed."""
        return ObjectKey("uploads", self._id)

    def feed(self, message: bytes) -> Buffer | None:
        """The data to append, a view of `message`; None at the end of the model.

        Raises:
            InvalidArgument: the message is malformed, or breaks the protocol.
        """
        chunk = decode(message)
        self._check_id(chunk.id)
        if chunk.status == fedn_pb2.IN_PROGRESS:
            return chunk.data
        if len(chunk.data):
            shown = f"{status_name(chunk.status)} with {len(chunk.data)} bytes"
            raise InvalidArgument("status", shown, _STATUS_ALLOWED)
        return None if chunk.status == fedn_pb2.OK else b""

    def end(self) -> InvalidArgument:
        """The error that a stream is which has ended before its model."""
        return InvalidArgument("status", "end of the stream", _STATUS_ALLOWED)

    def _check_id(self, model_id: str) -> None:
        if not self._id:
            self._id = parse_id(model_id)
        elif model_id != self._id:
            raise InvalidArgument("id", model_id, f"one id in a stream, here '{self._id}'")


def decode(message: bytes) -> Chunk:
    """Read a `ModelRequest`.

    Raises:
        InvalidArgument: it is not one.
    """
    try:
        return decode_request(message)
    except MalformedMessage as error:
        raise InvalidArgument("ModelRequest", message, f"a serialized ModelRequest ({error})") from None

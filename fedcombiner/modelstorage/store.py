"""The port through which models are stored: named, immutable objects that appear only when they are complete.

An adapter (`disk`) must keep these promises, which the contract suite checks:

- An object is seen by nobody before `commit`, whole by everybody after it, and lost by no crash from then on.
- The first commit of a key wins. A later one changes nothing and answers with what is there.
- Nothing is left of a writer that did not commit, whatever ended it.
- A reader of an object that is deleted meanwhile reads on to its end.
- The memory of a transfer is a few chunks, whatever the object's size.
"""

import re
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Literal, Protocol, get_args

from fedcombiner.servicekit.errors import InvalidArgument, NotFound, Unavailable

Kind = Literal["uploads", "models", "packages"]
Buffer = bytes | bytearray | memoryview

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ID_ALLOWED: Final = "1 to 128 letters, digits, '.', '_' and '-', the first one a letter or a digit"


def parse_id(text: str, field: str = "id") -> str:
    """The one check of an id from the wire: what passes is a file name everywhere, and never a path.

    Raises:
        InvalidArgument: it is not an id; `field` is named in the message.
    """
    if not is_id(text):
        raise InvalidArgument(field, text, _ID_ALLOWED)
    return text


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class ObjectKey:
    """The name of an object.

    Clients write `uploads` only; `models` are what the stack has accepted or made; `packages` are the
    discovery's.

    Raises:
        InvalidArgument: the kind or the id is not one.
    """

    kind: Kind
    id: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidArgument("kind", self.kind, " or ".join(KINDS))
        parse_id(self.id)

    def __str__(self) -> str:
        return f"{self.kind}/{self.id}"


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What is known of a complete object: size in bytes, sha256 in hex, the time of its commit in UTC."""

    key: ObjectKey
    size: int
    sha256: str
    modified: datetime


@dataclass(frozen=True, slots=True)
class Leftover:
    """Bytes of a writer that was killed, under a name of the store's own."""

    name: str
    size: int


class ObjectNotFound(NotFound):
    """There is no complete object of that key."""

    def __init__(self, key: ObjectKey) -> None:
        super().__init__(f"{key} does not exist")
        self.key = key


class ObjectTooLarge(InvalidArgument):
    """An object has, or would have, more bytes than allowed. Not retryable, and fatal to no client
    generation.
    """

    def __init__(self, key: ObjectKey, max_bytes: int, size: int | None = None) -> None:
        found = f"more than {max_bytes} bytes" if size is None else f"{size} bytes"
        super().__init__(str(key), found, f"at most {max_bytes} bytes")
        self.key = key
        self.max_bytes = max_bytes


class StoreUnavailable(Unavailable):
    """The store cannot be reached or does not work for now."""


class ObjectDamaged(Unavailable):
    """The store works, but what it holds of this one object is not what was written. Trying again does not
    help.
    """


class StoreFull(Unavailable):
    """No space or quota is left. UNAVAILABLE on the wire: RESOURCE_EXHAUSTED would end FEDn's clients."""

    answered = True


class ObjectWriter(Protocol):
    """One object in the making. One call at a time."""

    async def write(self, data: Buffer) -> None:
        """Append `data`, which must not change before `commit` has returned.

        Waits while more than a few chunks are under way. An error of an earlier write may show up here.

        Raises:
            ObjectTooLarge: the object would be larger than `max_bytes`.
            StoreFull, StoreUnavailable: nothing more can be written; leave the writer.
        """

    async def commit(self) -> ObjectInfo:
        """Make the object durable and visible, and answer what is now stored under its key.

        Raises:
            StoreFull, StoreUnavailable: nothing is stored.
        """


class ModelStore(Protocol):
    """Where models are. All methods may raise `StoreUnavailable`. Between `start` and `close` only.

    Methods that read an object or its record raise `ObjectDamaged` where that is all that is wrong.
    """

    async def start(self) -> None:
        """Make the store ready. May be called again: after a failure to try again, else it does nothing."""

    async def close(self) -> None:
        """Give up what the store holds, after all transfers have ended."""

    async def head(self, key: ObjectKey) -> ObjectInfo | None:
        """What is known of an object, None if it does not exist."""

    def writer(self, key: ObjectKey, *, max_bytes: int) -> AbstractAsyncContextManager[ObjectWriter]:
        """A writer for `key`. Leaving the context without `commit` leaves nothing behind."""

    def reader(self, key: ObjectKey, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """The object's bytes from `offset` on, in chunks of 1 MiB; close it (`aclosing`) to end early.

        Raises:
            ObjectNotFound: at the first chunk.
            StoreUnavailable: at any chunk; reading may be resumed at the offset reached.
        """

    def local_file(
        self, key: ObjectKey, *, max_bytes: int | None = None
    ) -> AbstractAsyncContextManager[Path]:
        """A readable local file with the object's bytes, for as long as the context and the object last.

        It is not to be changed. Once opened, it stays readable when the object is deleted.

        Raises:
            ObjectNotFound: the object does not exist.
            ObjectTooLarge: it has more than `max_bytes`. Nothing was copied.
        """

    async def copy(self, source: ObjectKey, target: ObjectKey) -> ObjectInfo:
        """Commit the bytes of `source` as `target` too, past this process if that is possible.

        Raises:
            ObjectNotFound: the source does not exist.
            StoreFull: nothing is stored.
        """

    async def delete(self, key: ObjectKey) -> bool:
        """Remove an object; False if it does not exist."""

    def list(self, kind: Kind, prefix: str = "") -> AsyncGenerator[ObjectInfo, None]:
        """The complete objects of a kind whose ids begin with `prefix`, sorted by id; without those whose
        record is damaged.
        """

    def sweep(self, kind: Kind, older_than: timedelta, *, dry_run: bool) -> AsyncGenerator[Leftover, None]:
        """Remove what killed writers have left of objects of this kind, telling each; or only tell.

        No writer may be at work on one object for as long as `older_than`, at least an hour.
        """

    async def ping(self) -> None:
        """Return if objects can be written and read, else raise `StoreUnavailable` or `StoreFull`."""


def check_size(info: ObjectInfo | None, key: ObjectKey, max_bytes: int | None) -> None:
    """Raise what `local_file` raises before anything is read."""
    if info is None:
        raise ObjectNotFound(key)
    if max_bytes is not None and info.size > max_bytes:
        raise ObjectTooLarge(key, max_bytes, info.size)


STORE_AWAY: Final = (StoreUnavailable, StoreFull)
"""What a store raises that only time, or an operator, can mend."""


async def check_store(store: ModelStore) -> None:
    """Start the store if that is still to be done, and see that it works. Raises one of `STORE_AWAY`."""
    await store.start()
    await store.ping()

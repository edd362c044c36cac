"""Where stores under test keep their objects, and short ways to write and read them."""

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from fedcombiner.modelstorage.store import ModelStore, ObjectInfo, ObjectKey
from fedcombiner.wire.chunks import CHUNK_SIZE

LIMIT = 64 << 20
KEY = ObjectKey("uploads", "u1")


@dataclass(frozen=True)
class Home:
    """`make` gives a store that is not started; `stored` names everything in it, behind the port."""

    make: Callable[[], ModelStore]
    stored: Callable[[], list[str]]


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes in which every mebibyte differs from every other."""
    block = hashlib.shake_128(bytes([seed])).digest(65_521)
    return (block * (size // len(block) + 1))[:size]


async def put(
    store: ModelStore, key: ObjectKey, data: bytes, piece: int = CHUNK_SIZE, max_bytes: int = LIMIT
) -> ObjectInfo:
    async with store.writer(key, max_bytes=max_bytes) as writer:
        for start in range(0, len(data), piece):
            await writer.write(memoryview(data)[start : start + piece])
        return await writer.commit()


async def get(store: ModelStore, key: ObjectKey, offset: int = 0) -> bytes:
    async with aclosing(store.reader(key, offset)) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def ids(store: ModelStore, prefix: str = "") -> list[str]:
    return [info.key.id async for info in store.list("uploads", prefix)]


def files_under(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and path.name != "lock"]


async def until(condition: Callable[[], bool], what: str, timeout: float = 20.0) -> None:
    """Return as soon as the condition holds; TimeoutError, saying `what` was waited for."""
    try:
        async with asyncio.timeout(timeout):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise TimeoutError(f"waited {timeout:g} s until {what}") from None

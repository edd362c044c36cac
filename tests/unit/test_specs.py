"""What models consist of is read once, and forgotten when there is too much of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from combiner.domain.types import ClientRecord, ClientState
from combiner.ports import Lease
from combiner.rounds.folding import Folder
from combiner.rounds.workshop import Workshop
from combiner.specs import Specs

from fedcombiner.client.made_up import to_npz
from fedcombiner.modelstorage.disk import DiskStore
from fedcombiner.modelstorage.formats import FormatError
from fedcombiner.modelstorage.store import ObjectInfo, ObjectKey


class Counting(DiskStore):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.opened: list[str] = []

    @asynccontextmanager
    async def local_file(self, key: ObjectKey, *, max_bytes: int | None = None) -> AsyncIterator[Path]:
        self.opened.append(key.id)
        async with super().local_file(key, max_bytes=max_bytes) as path:
            yield path


@pytest.fixture
async def store(tmp_path: Path) -> AsyncGenerator[Counting, None]:
    store = Counting(tmp_path)
    await store.start()
    yield store
    await store.close()


async def put(store: Counting, name: str, content: bytes) -> ObjectInfo:
    async with store.writer(ObjectKey("models", name), max_bytes=1 << 20) as writer:
        await writer.write(content)
        return await writer.commit()


def arrays(*shapes: int) -> bytes:
    return to_npz({f"w{i}": np.zeros(shape, np.float32) for i, shape in enumerate(shapes)})


async def test_the_same_bytes_are_read_once_under_any_id(store: Counting) -> None:
    specs = Specs(store)
    first, same = await put(store, "first", arrays(3, 2)), await put(store, "same", arrays(3, 2))
    assert [tensor.shape for tensor in (await specs.of(first)).tensors] == [(3,), (2,)]
    assert await specs.of(same) == await specs.of(first)
    assert store.opened == ["first"]


async def test_an_id_that_was_used_again_is_read_again(store: Counting) -> None:
    specs = Specs(store)
    await specs.of(await put(store, "m", arrays(3)))
    await store.delete(ObjectKey("models", "m"))
    spec = await specs.of(await put(store, "m", arrays(5)))
    assert [tensor.shape for tensor in spec.tensors] == [(5,)]


async def test_the_longest_unused_ones_make_room(store: Counting) -> None:
    specs = Specs(store, most_tensors=4)
    a, b, c = [await put(store, name, arrays(size, 1)) for size, name in enumerate("abc", 1)]
    for info in (a, b, a, c, a, b):
        await specs.of(info)
    assert store.opened == ["a", "b", "c", "b"]


async def test_one_that_is_larger_than_all_the_room_is_kept_until_the_next(store: Counting) -> None:
    specs = Specs(store, most_tensors=1)
    large, other = await put(store, "large", arrays(1, 2, 3)), await put(store, "other", arrays(1))
    for info in (large, large, other, other, large):
        await specs.of(info)
    assert store.opened == ["large", "other", "large"]


async def test_what_is_no_model_is_said_each_time(store: Counting) -> None:
    specs = Specs(store)
    info = await put(store, "m", b"no archive")
    for _ in range(2):
        with pytest.raises(FormatError):
            await specs.of(info)


async def test_an_aggregate_need_not_be_read_to_be_the_next_parent(store: Counting, tmp_path: Path) -> None:
    arrays = {
        "w": np.zeros((2, 3), np.float32),
        "n": np.zeros(4, np.int64),
        "scalar": np.zeros((), np.float64),
    }
    parent, update = await put(store, "parent", to_npz(arrays)), to_npz(arrays)
    async with store.writer(ObjectKey("uploads", "u"), max_bytes=1 << 20) as writer:
        await writer.write(update)
        await writer.commit()
    journal: Any = Journal()
    workshop = Workshop(tmp_path)
    specs = Specs(store)
    folder = await Folder.open(
        Lease("job:j1", 1),
        journal,
        store,
        workshop,
        parent=parent.key,
        specs=specs,
        aggregator="fedavg",
        meter=journal,
    )
    await folder.judge(ClientRecord("c", ClientState.RECEIVED, "t", "u", 1))
    aggregate = await folder.write(ObjectKey("models", "aggregate"))
    folder.close()
    workshop.close()
    store.opened.clear()
    assert await specs.of(aggregate) == await Specs(store).of(aggregate)
    assert store.opened == ["aggregate"], "by the second one alone"


class Journal:
    """Journal and meter: takes all."""

    async def accept(self, lease: Lease, client: str, *, folded: int = 0) -> None: ...

    def accepted(self) -> None: ...

    def part(self, part: str, seconds: float) -> None: ...

"""Judging updates: checked, journaled, folded whole and once, whatever fails in between."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from combiner.aggregation.expansion import Expansions
from combiner.domain.types import ClientRecord, ClientState, Reason
from combiner.ports import Lease, LeaseLost
from combiner.rounds.capacity import Capacity
from combiner.rounds.folding import Folder
from combiner.rounds.workshop import RoundFailed, Workshop
from combiner.specs import Specs

from fedcombiner.client.made_up import to_npz
from fedcombiner.modelstorage.formats.arrays import save_arrays
from fedcombiner.modelstorage.formats.npz import read_spec
from fedcombiner.modelstorage.store import (
    ObjectDamaged,
    ObjectInfo,
    ObjectKey,
    StoreUnavailable,
    check_size,
)

PARENT = ObjectKey("models", "parent")


class Writer:
    def __init__(self, back: Back, key: ObjectKey) -> None:
        self._back = back
        self._key = key
        self._written = bytearray()

    async def write(self, data: bytes) -> None:
        self._written += data

    async def commit(self) -> ObjectInfo | None:
        self._back.put(self._key.id, bytes(self._written))
        return await self._back.head(self._key)


class Back:
    """Journal, store and meter at once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.damaged: set[str] = set()
        self.refusals: dict[str, int] = {}  # of a key: how often the store is away yet
        self.fails_on_close: set[str] = set()
        self.judged: list[tuple[str, str]] = []
        self.lost = False
        self.progress: list[int] = []

    def put(self, key: str, content: bytes) -> None:
        (self._root / key).write_bytes(content)

    async def head(self, key: ObjectKey) -> ObjectInfo | None:
        path = self._root / key.id
        if not path.exists():
            return None
        content = path.read_bytes()
        return ObjectInfo(key, len(content), sha256(content).hexdigest(), datetime.now(UTC))

    @asynccontextmanager
    async def local_file(self, key: ObjectKey, *, max_bytes: int | None = None) -> AsyncIterator[Path]:
        if self.refusals.get(key.id, 0):
            self.refusals[key.id] -= 1
            raise StoreUnavailable("away")
        if key.id in self.damaged:
            raise ObjectDamaged(f"{key} is damaged")
        path = self._root / key.id
        info = await self.head(key)
        check_size(info, key, max_bytes)
        yield path
        if key.id in self.fails_on_close:
            raise StoreUnavailable("away")

    @asynccontextmanager
    async def writer(self, key: ObjectKey, *, max_bytes: int) -> AsyncIterator[Writer]:
        yield Writer(self, key)

    async def accept(self, lease: Lease, client: str, *, folded: int = 0) -> None:
        if self.lost:
            raise LeaseLost(lease.work)
        self.progress.append(folded)
        self.judged.append((client, "accepted"))

    async def reject(self, lease: Lease, client: str, reason: str, detail: str) -> None:
        self.judged.append((client, reason))

    def accepted(self) -> None: ...

    def rejected(self, reason: str) -> None: ...

    def part(self, part: str, seconds: float) -> None: ...


@pytest.fixture
def back(tmp_path: Path) -> Back:
    made = Back(tmp_path)
    made.put("parent", vector(0, 0))
    return made


@pytest.fixture
async def folder(back: Back, tmp_path: Path) -> AsyncIterator[Folder]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    workshop = Workshop(scratch)
    made = await a_folder(back, workshop)
    yield made
    made.close()
    workshop.close()
    assert not list(scratch.iterdir())


async def a_folder(back: Back, workshop: Workshop, parent: ObjectKey = PARENT) -> Folder:
    ports: Any = back
    return await Folder.open(
        Lease("job:j1", 1),
        ports,
        ports,
        workshop,
        parent=parent,
        specs=Specs(ports),
        aggregator="fedavg",
        meter=ports,
    )


def vector(*values: float) -> bytes:
    return to_npz({"w": np.array(values, np.float32)})


def received(client: str, num_examples: int = 1, state: ClientState = ClientState.RECEIVED) -> ClientRecord:
    return ClientRecord(client, state, f"t-{client}", f"u-{client}", num_examples)


async def test_a_good_update_is_accepted_and_folded(back: Back, folder: Folder) -> None:
    for number, client in enumerate(("a", "b")):
        back.put(f"u-{client}", vector(number, 1))
        await folder.judge(received(client, 3))
    assert back.judged == [("a", "accepted"), ("b", "accepted")]
    assert back.progress == [0, 1]
    assert (folder.updates, folder.num_examples) == (2, 6)


async def test_an_update_accepted_before_is_folded_without_a_second_judgement(
    back: Back, folder: Folder
) -> None:
    back.put("u-a", vector(1, 1))
    await folder.judge(received("a", state=ClientState.ACCEPTED))
    assert (back.judged, folder.updates) == ([], 1)


async def test_a_bad_update_is_rejected_and_nothing_of_it_is_folded(back: Back, folder: Folder) -> None:
    back.put("u-a", vector(1, float("nan")))
    await folder.judge(received("a"))
    assert (back.judged, folder.updates) == ([("a", Reason.NON_FINITE)], 0)


async def test_an_update_that_is_not_there_is_rejected(back: Back, folder: Folder) -> None:
    await folder.judge(received("a"))
    assert back.judged == [("a", Reason.NOT_UPLOADED)]


@pytest.mark.parametrize("content", [None, b"overwritten"])
async def test_an_accepted_update_that_is_gone_fails_the_round(
    back: Back, folder: Folder, content: bytes | None
) -> None:
    if content is not None:
        back.put("u-a", content)
    with pytest.raises(RoundFailed, match="accepted update u-a of a cannot be read again"):
        await folder.judge(received("a", state=ClientState.ACCEPTED))
    assert folder.updates == 0


async def test_a_damaged_update_is_rejected_at_once(back: Back, folder: Folder) -> None:
    back.put("u-b", vector(1, 1))
    back.damaged = {"u-a"}
    await folder.judge(received("a"))
    await folder.judge(received("b"))
    assert back.judged == [("a", Reason.NOT_A_MODEL), ("b", "accepted")]
    assert folder.updates == 1


async def test_an_accepted_update_that_is_damaged_fails_the_round_at_once(back: Back, folder: Folder) -> None:
    back.damaged = {"u-a"}
    with pytest.raises(RoundFailed, match="accepted update u-a of a cannot be read again: uploads/u-a is da"):
        await folder.judge(received("a", state=ClientState.ACCEPTED))


async def test_a_damaged_parent_fails_the_round_at_once(back: Back, tmp_path: Path) -> None:
    back.put("other", vector(0, 0))
    back.damaged = {"other"}
    workshop = Workshop(tmp_path)
    with pytest.raises(RoundFailed, match="model_id: models/other is damaged"):
        await a_folder(back, workshop, ObjectKey("models", "other"))
    workshop.close()


async def test_an_upload_that_no_update_of_this_model_can_be_is_rejected_unread(
    back: Back, folder: Folder
) -> None:
    back.put("u-a", vector(*[0.0] * 300_000))
    await folder.judge(received("a"))
    assert back.judged == [("a", Reason.TOO_LARGE)]


@pytest.mark.parametrize("compress", [False, True])
def test_the_largest_update_of_a_model_is_not_too_large(tmp_path: Path, compress: bool) -> None:
    parent = {f"{'ä' * 100}{number}": np.zeros((1,) * 31 + (number,)) for number in range(40)}
    save_arrays(tmp_path / "parent.npz", parent)
    noise = np.random.default_rng(0)
    update = {name: noise.standard_normal(values.shape) for name, values in parent.items()}
    save_arrays(tmp_path / "update.npz", update, compress=compress)
    slack = 1 << 20
    assert (tmp_path / "update.npz").stat().st_size < read_spec(
        tmp_path / "parent.npz"
    ).max_update_bytes - slack


async def test_a_store_that_is_away_is_asked_again(back: Back, folder: Folder) -> None:
    back.put("u-a", vector(1, 1))
    back.refusals["u-a"] = 2
    await folder.judge(received("a"))
    assert (back.judged, folder.updates) == ([("a", "accepted")], 1)


async def test_a_store_that_goes_away_after_the_fold_makes_no_second_one(back: Back, folder: Folder) -> None:
    back.put("u-a", vector(1, 1))
    back.fails_on_close = {"u-a"}
    with pytest.raises(StoreUnavailable):
        await folder.judge(received("a"))
    assert (back.judged, folder.updates) == ([("a", "accepted")], 1)


async def test_who_lost_the_lease_folds_nothing(back: Back, folder: Folder) -> None:
    back.put("u-a", vector(1, 1))
    back.lost = True
    with pytest.raises(LeaseLost):
        await folder.judge(received("a"))
    assert folder.updates == 0


async def test_a_scratch_directory_that_is_gone_fails_the_round(back: Back, tmp_path: Path) -> None:
    workshop = Workshop(tmp_path / "nowhere")
    folder = await a_folder(back, workshop)
    back.put("u-a", vector(1, 1))
    with pytest.raises(RoundFailed, match="the update of a could not be worked on"):
        await folder.judge(received("a"))
    folder.close()
    workshop.close()


@pytest.mark.parametrize(("content", "said"), [(None, "is not in the store"), (b"x", "cannot be averaged")])
async def test_a_parent_that_cannot_be_worked_on_fails_the_round(
    back: Back, tmp_path: Path, content: bytes | None, said: str
) -> None:
    if content is not None:
        back.put("other", content)
    workshop = Workshop(tmp_path)
    with pytest.raises(RoundFailed, match=f"model_id: other {said}"):
        await a_folder(back, workshop, ObjectKey("models", "other"))
    workshop.close()


async def test_sums_that_were_dropped_are_made_again_from_the_store(
    back: Back, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [received(client, 3) for client in "abcd"]
    for number, record in enumerate(records):
        back.put(record.update_id, vector(2.0 ** (-40 * number), 1))
    with monkeypatch.context() as patch:
        patch.setattr(Expansions, "add", lambda longer, block, *_: longer.dropped.add(block))
        for record in records:
            await folder.judge(record)
    await folder.settle([replace(record, state=ClientState.ACCEPTED) for record in records])
    assert len(back.judged) == 4
    await folder.write(ObjectKey("models", "aggregate"))
    mean = np.load(back._root / "aggregate")["w"]
    assert mean.tolist() == [np.float32((1 + 2.0**-40 + 2.0**-80 + 2.0**-120) / 4), 1.0]


async def test_an_update_that_is_gone_when_sums_are_made_again_fails_the_round(
    back: Back, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [received(client) for client in "abc"]
    monkeypatch.setattr(Expansions, "add", lambda longer, block, *_: longer.dropped.add(block))
    for number, record in enumerate(records):
        back.put(record.update_id, vector(2.0 ** (-60 * number), 1))
        await folder.judge(record)
    (back._root / "u-b").unlink()
    with pytest.raises(RoundFailed, match="accepted update u-b of b cannot be read again"):
        await folder.settle([replace(record, state=ClientState.ACCEPTED) for record in records])


async def test_a_model_that_never_fits_into_memory_fails_the_round(back: Back, tmp_path: Path) -> None:
    workshop = Workshop(tmp_path, capacity=Capacity(limit=90_000_000, idle=80_000_000, scratch=tmp_path))
    with pytest.raises(RoundFailed, match=r"parent: a round takes 17 MB of memory .* has 10 MB for it"):
        await a_folder(back, workshop)
    workshop.close()


async def test_a_round_waits_for_the_memory_of_another(back: Back, tmp_path: Path) -> None:
    capacity = Capacity(limit=30_000_000, idle=0, scratch=tmp_path)
    workshop = Workshop(tmp_path, capacity=capacity)
    first = await a_folder(back, workshop)
    second = asyncio.create_task(a_folder(back, workshop))
    third = asyncio.create_task(a_folder(back, workshop))
    done, _ = await asyncio.wait({second, third}, timeout=0.05)
    assert not done
    second.cancel()
    first.close()
    folder = await asyncio.wait_for(third, 20)
    folder.close()
    (await a_folder(back, workshop)).close()
    with pytest.raises(asyncio.CancelledError):
        await second
    workshop.close()


async def test_a_cancelled_caller_waits_for_its_thread(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path, slots=1)
    begun, may_end = threading.Event(), threading.Event()
    ended: list[bool] = []

    def work() -> None:
        begun.set()
        may_end.wait(20)
        ended.append(True)

    caller = asyncio.create_task(workshop.run(work))
    await asyncio.to_thread(begun.wait, 20)
    caller.cancel()
    await asyncio.sleep(0)
    assert not caller.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended == [True]
    workshop.close()


async def test_at_most_so_many_updates_are_worked_on_at_once(back: Back, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    workshop = Workshop(scratch, slots=2)
    folder = await a_folder(back, workshop)
    under_way: list[int] = []
    open_now = 0
    local_file = back.local_file

    @asynccontextmanager
    async def counted(key: ObjectKey, *, max_bytes: int | None = None) -> AsyncIterator[Path]:
        nonlocal open_now
        open_now += 1
        under_way.append(open_now)
        async with local_file(key) as path:
            yield path
        open_now -= 1

    back.local_file = counted  # type: ignore[method-assign]
    for number in range(6):
        back.put(f"u-{number}", vector(number, 1))
    await asyncio.gather(*(folder.judge(received(str(number))) for number in range(6)))
    assert (max(under_way), folder.updates) == (2, 6)
    folder.close()
    workshop.close()

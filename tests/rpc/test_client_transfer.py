"""Upload and download against a combiner that cuts, fails and waits."""

import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc.aio._call import StreamUnaryCall

from fedcombiner.client.errors import ModelNotFound, TransferBroken
from fedcombiner.client.link import Link
from fedcombiner.client.transfer import download, download_bytes, upload
from tests.rpc.client_kit import FakeCombiner, fake_services, serving

MIB = 1 << 20


@pytest.fixture
def fake() -> FakeCombiner:
    return FakeCombiner()


@pytest.fixture
async def link(fake: FakeCombiner) -> AsyncIterator[Link]:
    async with serving(fake_services(fake)) as address, Link(address) as link:
        yield link


def data_of(size: int) -> bytes:
    return bytes(i * 37 % 251 for i in range(1021)) * (size // 1021 + 1)


@pytest.mark.parametrize("size", [0, 1, MIB, 5 * MIB + 3])
async def test_bytes_and_files_go_both_ways(
    fake: FakeCombiner, link: Link, tmp_path: Path, size: int
) -> None:
    data = data_of(size)[:size]
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(data)
    assert await upload(link, "from-bytes", data) == size
    assert await upload(link, "from-file", source) == size
    assert fake.models == {"from-bytes": data, "from-file": data}
    assert await download(link, "from-file", target) == size
    assert target.read_bytes() == data
    assert await download_bytes(link, "from-bytes") == data
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source", "target"]


async def test_progress_is_told_with_the_size_where_it_is_known(link: Link) -> None:
    told: list[tuple[int, int]] = []
    await upload(link, "m", bytes(3 * MIB + 1), progress=lambda done, size: told.append((done, size)))
    assert told == [(n, 3 * MIB + 1) for n in (MIB, 2 * MIB, 3 * MIB, 3 * MIB + 1)]
    told.clear()
    await download(link, "m", io.BytesIO(), progress=lambda done, size: told.append((done, size)))
    assert told == [(n, 0) for n in (MIB, 2 * MIB, 3 * MIB, 3 * MIB + 1)]


async def test_a_model_that_is_not_there(link: Link, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="'nowhere'"):
        await download(link, "nowhere", tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


async def test_a_cut_download_is_done_again_whole(fake: FakeCombiner, link: Link, tmp_path: Path) -> None:
    fake.models["m"] = data_of(3 * MIB)
    fake.cut_downloads = 2
    await download(link, "m", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == fake.models["m"]
    assert fake.downloads == ["m"] * 3


async def test_a_download_that_is_always_cut_ends_as_an_error_and_leaves_nothing(
    fake: FakeCombiner, link: Link, tmp_path: Path
) -> None:
    fake.models["m"] = data_of(3 * MIB)
    fake.cut_downloads = 1_000
    (tmp_path / "target").write_bytes(b"old")
    with pytest.raises(TransferBroken, match="without its end mark"):
        await download(link, "m", tmp_path / "target", patience=0.5)
    assert (tmp_path / "target").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["target"]


async def test_a_sink_gets_no_byte_twice(fake: FakeCombiner, link: Link) -> None:
    fake.models["m"] = data_of(3 * MIB)
    fake.cut_downloads = 1
    sink = io.BytesIO()
    with pytest.raises(TransferBroken):
        await download(link, "m", sink)
    assert fake.downloads == ["m"]
    assert sink.getvalue() == fake.models["m"][:MIB]


async def test_an_upload_is_repeated_under_the_same_id(fake: FakeCombiner, link: Link) -> None:
    fake.cut_uploads = 2
    fake.errors["Upload"] = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN]
    data = data_of(4 * MIB)
    await upload(link, "m", data)
    assert fake.models == {"m": data}
    assert set(fake.uploads) == {"m"}


async def test_an_upload_whose_call_ends_just_before_its_last_word_is_done_again(
    fake: FakeCombiner, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    """grpc then raises an error of its own and no status, where `write` would have raised the status."""
    says_so = StreamUnaryCall.done_writing
    ended = 0

    async def has_ended(call: Any) -> None:
        nonlocal ended
        ended += 1
        if ended == 1:
            call.cancel()
            raise grpc.aio.InternalError("Failed to execute a batch")
        await says_so(call)

    monkeypatch.setattr(StreamUnaryCall, "done_writing", has_ended)
    assert await upload(link, "m", b"some bytes") == 10
    assert fake.models == {"m": b"some bytes"}
    assert ended == 2


async def test_a_call_that_the_server_cancels_is_an_outage_not_a_cancellation(
    fake: FakeCombiner, link: Link
) -> None:
    fake.errors["Upload"] = [grpc.StatusCode.CANCELLED]
    await upload(link, "m", b"data")
    assert fake.models == {"m": b"data"}


async def test_nobody_there_is_given_up_by_patience() -> None:
    async with serving({}) as address:
        pass
    async with Link(address) as link:
        with pytest.raises(TransferBroken, match="given up after 0 bytes"):
            await upload(link, "m", b"data", patience=0.3)

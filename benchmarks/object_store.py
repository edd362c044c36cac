"""The MinIO store against the plain client of MinIO (fput_object, fget_object), by turns in one run.

Both move the same file to and from the same server, on loopback, from one process. Ours hashes the whole on
its way up and checks it on its way down, which the plain client does not, and an event loop feeds and drains
it. The ratios are what counts. Needs MINIO_BINARY, or minio on the PATH.
Run: python -m benchmarks.object_store [--mib 100] [--repeats 7]
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from fedcombiner.modelstorage.memory import keep_freed_chunks
from fedcombiner.modelstorage.minio import MinioStore
from fedcombiner.modelstorage.store import ObjectKey
from fedcombiner.wire.chunks import CHUNK_SIZE
from tests.contract.s3_kit import MinioServer, Place, minio_binary, new_place

MIB = 1 << 20
PLAIN = "plain"


class Bench:
    """One file, one bucket, both clients."""

    def __init__(self, place: Place, store: MinioStore, directory: Path, mib: int) -> None:
        self._place = place
        self._store = store
        self._file = directory / "model"
        self._target = directory / "back"
        self._file.write_bytes(os.urandom(MIB) * mib)
        self._key = ObjectKey("uploads", "ours")
        self.mib = mib

    async def plain_upload(self) -> None:
        bucket = self._place.location.bucket
        await asyncio.to_thread(self._place.client.fput_object, bucket, PLAIN, str(self._file))

    async def plain_download(self) -> None:
        bucket = self._place.location.bucket
        await asyncio.to_thread(self._place.client.fget_object, bucket, PLAIN, str(self._target))

    async def upload(self) -> None:
        size = self._file.stat().st_size
        async with self._store.writer(self._key, max_bytes=size) as writer:
            with self._file.open("rb", buffering=0) as source:
                while block := source.read(CHUNK_SIZE):
                    await writer.write(block)
            await writer.commit()

    async def download(self) -> None:
        async with self._store.local_file(self._key):
            pass

    async def stream(self) -> None:
        async for _chunk in self._store.reader(self._key):
            pass

    async def forget(self) -> None:
        await self._store.delete(self._key)


async def timed(work: Callable[[], Awaitable[None]]) -> float:
    started = time.perf_counter()
    await work()
    return time.perf_counter() - started


async def measure(bench: Bench, repeats: int) -> None:
    pairs = (
        ("upload", bench.plain_upload, bench.upload),
        ("download to a file", bench.plain_download, bench.download),
        ("download as a stream", bench.plain_download, bench.stream),
    )
    print(f"{'':22}{'plain MiB/s':>12}{'ours MiB/s':>12}{'ratio':>8}{'lowest':>8}{'highest':>8}")
    for name, plain, ours in pairs:
        both: list[tuple[float, float]] = []
        for _ in range(repeats):
            if name == "upload":
                await bench.forget()
            both.append((await timed(plain), await timed(ours)))
        ratios = sorted(theirs / mine for theirs, mine in both)
        speeds = [bench.mib / statistics.median(times) for times in zip(*both, strict=True)]
        print(
            f"{name:22}{speeds[0]:12.0f}{speeds[1]:12.0f}{statistics.median(ratios):8.2f}"
            f"{ratios[0]:8.2f}{ratios[-1]:8.2f}"
        )


async def run(mib: int, repeats: int) -> None:
    server = MinioServer()
    server.start()
    try:
        with tempfile.TemporaryDirectory() as directory:
            place = new_place(server.url)
            store = place.store(Path(directory) / "scratch")
            await store.start()
            await measure(Bench(place, store, Path(directory), mib), repeats)
            await store.close()
    finally:
        server.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    if minio_binary() is None:
        sys.exit("MINIO_BINARY names no MinIO, nor is one on the PATH")
    keep_freed_chunks()
    asyncio.run(run(arguments.mib, arguments.repeats))


if __name__ == "__main__":
    main()

"""A model of 2 GB through MinIO: up, through a round of two clients, and down again.

    python -m benchmarks.large_model [--elements 500000000]

Each client is a process of its own that streams the model to its disk, adds a number to every element block
by block, and streams the result back: no process holds a model, but the stack the sum of one. Bytes are
compared by sha256, and every element of the aggregate by value. Needs MINIO_BINARY, or minio on the PATH, and
some 30 GB of disk for 2 GB.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from benchmarks.stack import peak_bytes, running_stack
from fedcombiner.client import OperatorClient
from fedcombiner.client.messages import Task
from fedcombiner.client.simulate import SimulatedFleet
from fedcombiner.client.workload import Fetch, Metrics, Update
from fedcombiner.modelstorage.formats import Block, ModelSpec, TensorSpec
from fedcombiner.modelstorage.formats.npz import check_update, read_spec, write_model
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.contract.s3_kit import ROOT_SECRET, ROOT_USER, MinioServer, new_place

BLOCK = 1 << 20  # elements
TENSORS = 10
# What client i adds to every element; all numbers are small and whole, so their mean is exact in float32.
ADDED = (1.0, 3.0)
PERIOD = 1000  # of the seed's elements
HASHED = 4 << 20


@dataclass
class Adds:
    """The workload of one client: adds a number to every element, in files."""

    added: float
    directory: Path
    trains: bool = True
    validates: bool = False

    async def train(self, task: Task, fetch: Fetch) -> Update:
        model, update = self.directory / "model.npz", self.directory / "update.npz"
        await fetch(model)
        await asyncio.to_thread(add_to_file, model, update, self.added)
        return Update(update, num_examples=1)

    async def validate(self, task: Task, fetch: Fetch) -> Metrics:
        raise NotImplementedError


def add_to_file(source: Path, target: Path, added: float) -> None:
    spec = read_spec(source)
    with check_update(source, spec, source.parent) as model:
        summed = ((index, start, values + np.float32(added)) for index, start, values in model.blocks(BLOCK))
        write_model(target, spec, summed)


def write_seed(path: Path, elements: int) -> None:
    each = elements // TENSORS
    spec = ModelSpec(tuple(TensorSpec(f"layer{i}", np.dtype(np.float32), (each,)) for i in range(TENSORS)))
    write_model(path, spec, seed_blocks(spec))


def seed_blocks(spec: ModelSpec) -> Iterator[Block]:
    for index, tensor in enumerate(spec.tensors):
        for start in range(0, tensor.elements, BLOCK):
            yield index, start, seed_values(start, min(BLOCK, tensor.elements - start))


def seed_values(start: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return (np.arange(start, start + count) % PERIOD).astype(np.float32)


def is_the_mean(path: Path) -> bool:
    """Whether every element of the aggregate is the seed's plus the mean of what was added."""
    with check_update(path, read_spec(path), path.parent) as model:
        return all(
            np.array_equal(values, seed_values(start, values.size) + np.float32(sum(ADDED) / len(ADDED)))
            for _, start, values in model.blocks(BLOCK)
        )


def sha256_of(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(HASHED):
            found.update(data)
    return found.hexdigest()


async def be_client(address: str, index: int, directory: Path) -> None:
    async with SimulatedFleet(
        1, address, workload=lambda _: Adds(ADDED[index], directory), name=f"client-{index}"
    ):
        await asyncio.Event().wait()


@asynccontextmanager
async def clients(address: str, directory: Path) -> AsyncIterator[list[psutil.Process]]:
    children = []
    for index in range(len(ADDED)):
        own = directory / f"client-{index}"
        own.mkdir()
        words = ("-m", "benchmarks.large_model", "--client", address, str(index), str(own))
        children.append(await asyncio.create_subprocess_exec(sys.executable, *words))
    try:
        yield [psutil.Process(child.pid) for child in children]
    finally:
        for child in children:
            child.terminate()
            await child.wait()


class Steps:
    """Prints each step with its seconds."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def done(self, what: str) -> None:
        now = time.perf_counter()
        print(f"{now - self._began:8.1f} s  {what}", flush=True)
        self._began = now


async def one_round(operator: OperatorClient, model_id: str) -> pb.Job:
    config = {"task": "training", "round_id": "1", "model_id": model_id, "round_timeout": 3600}
    enough = {"clients_required": len(ADDED), "wait_for_clients": 60}
    job = await operator.wait_job(await operator.start_job({**config, **enough}))
    if job.state != pb.SUCCEEDED:
        raise SystemExit(f"the round failed: {job.reason}")
    return job


async def through(address: str, directory: Path, elements: int) -> dict[str, float]:
    """All steps on a running stack. Returns the peaks of the clients, in bytes."""
    seed, back, aggregate = (directory / f"{name}.npz" for name in ("seed", "back", "aggregate"))
    steps = Steps()
    await asyncio.to_thread(write_seed, seed, elements)
    steps.done(f"seed of {seed.stat().st_size} bytes made")
    async with OperatorClient(address, patience=600) as operator, clients(address, directory) as processes:
        model = await operator.put_model(seed)
        steps.done("uploaded and registered")
        await operator.get_model(model.model_id, back)
        steps.done("downloaded")
        assert sha256_of(seed) == sha256_of(back) == model.sha256, "the bytes have changed"
        back.unlink()
        steps.done(f"sha256 {model.sha256} before and after")
        job = await one_round(operator, model.model_id)
        timings = {part: round(seconds, 1) for part, seconds in sorted(job.timings.items())}
        steps.done(f"round of {len(job.accepted)} clients: {timings}")
        made = await operator.get_model(job.model_id, aggregate)
        steps.done("aggregate downloaded")
        assert sha256_of(aggregate) == made.sha256, "the aggregate's bytes have changed"
        assert await asyncio.to_thread(is_the_mean, aggregate), "the aggregate is not the mean"
        steps.done(f"aggregate of {made.size} bytes is the mean, sha256 {made.sha256}")
        return {f"client {index}": peak_bytes(process.pid) for index, process in enumerate(processes)}


async def run(elements: int) -> None:
    print(f"{elements} float32, {len(ADDED)} clients; {psutil.virtual_memory().total >> 20} MiB of memory")
    server = MinioServer()
    server.start()
    try:
        location = new_place(server.url).location
        settings = {
            "STORE": "minio",
            "MINIO_URL": location.url,
            "MINIO_BUCKET": location.bucket,
            "MINIO_ACCESS_KEY": ROOT_USER,
            "MINIO_SECRET_KEY": ROOT_SECRET,
        }
        with tempfile.TemporaryDirectory(prefix="fc-bench-") as directory:
            async with running_stack(settings) as stack:
                idle = stack.rss()
                peaks = await through(stack.address, Path(directory), elements)
                peaks |= {"stack": stack.peak(), "stack before": idle, "MinIO": peak_bytes(server.pid)}
        peaks["this process, which uploads, downloads and compares"] = peak_bytes("self")
    finally:
        server.close()
    for name, size in peaks.items():
        print(f"{size / 1e6:8.0f} MB  {name}")
    print(json.dumps(peaks))


def main() -> None:
    keep_lines = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=keep_lines)
    parser.add_argument("--elements", type=int, default=500_000_000)
    parser.add_argument("--client", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        address, index, directory = args.client
        asyncio.run(be_client(address, int(index), Path(directory)))
    else:
        asyncio.run(run(args.elements))


if __name__ == "__main__":
    main()

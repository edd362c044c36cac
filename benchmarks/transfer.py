"""Upload and Download of ModelService against bare `grpc.aio` handlers of raw bytes, in one run.

Both servers run in processes of their own and are driven by the same client: one like FEDn's, with a thread
and protobuf objects, or one that only passes raw messages on (--client raw). The bare server drops what it
reads, and sends one chunk over and over; ours hashes, writes and syncs every upload, and reads every download
from the disk (its page cache). The ratios are what counts, and no upload can be faster than the disk, whose
own speed is the last line. Run: python benchmarks/transfer.py [--mib 100] [--repeats 7]
"""

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

import grpc
import grpc.aio
import numpy as np

from fedcombiner.modelstorage.disk import DiskStore
from fedcombiner.modelstorage.memory import keep_freed_chunks
from fedcombiner.modelstorage.servicer import ModelServiceServicer
from fedcombiner.servicekit.metrics import Metrics
from fedcombiner.servicekit.rpc import MAX_RECEIVE_BYTES, SERVER_OPTIONS, build_server
from fedcombiner.wire.chunks import CHUNK_SIZE, encode_request, encode_response
from fedcombiner.wire.pb import fedn_pb2_grpc
from fedcombiner.wire.pb.fedn_pb2 import IN_PROGRESS, OK, ModelRequest
from fedcombiner.wire.registry import add_services, raw_messages

MIB = 1 << 20
CLIENT_OPTIONS = [("grpc.max_receive_message_length", -1)]


class BareService:
    def __init__(self, mib: int) -> None:
        self._mib = mib
        self._message = encode_response("model", IN_PROGRESS, bytes(CHUNK_SIZE))

    @raw_messages
    async def Upload(self, _requests: object, context: grpc.aio.ServicerContext) -> bytes:
        while await context.read() is not grpc.aio.EOF:
            pass
        return encode_response("model", OK)

    @raw_messages
    async def Download(self, _request: bytes, context: grpc.aio.ServicerContext) -> None:
        for _ in range(self._mib):
            await context.write(self._message)
        await context.write(encode_response("model", OK))


async def serve(kind: str, root: Path, mib: int) -> None:
    """Serve until standard input is closed; the port is the only line of standard output."""
    keep_freed_chunks()
    store = DiskStore(root)
    await store.start()
    if kind == "bare":
        options = [*SERVER_OPTIONS, ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES)]
        server = grpc.aio.server(options=options)
        add_services(server, {"ModelService": BareService(mib)})
    else:
        server = build_server(Metrics().rpc)
        add_services(server, {"ModelService": ModelServiceServicer(store)})
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)
    await store.close()


class RawClient:
    """Sends one message over and over and looks at none: it costs the servers least of all clients."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._upload = channel.stream_unary("/fedn.ModelService/Upload")
        self._download = channel.unary_stream("/fedn.ModelService/Download")

    def upload(self, model_id: str, model: bytes) -> None:
        def messages() -> Iterator[bytes]:
            message = encode_request(model_id, IN_PROGRESS, model[:CHUNK_SIZE])
            for _ in range(len(model) // CHUNK_SIZE):
                yield message
            yield encode_request(model_id, OK)

        self._upload(messages())

    def download(self, model_id: str) -> int:
        return sum(len(message) for message in self._download(encode_request(model_id, OK)))


class FednClient:
    """What FEDn's clients do, without the files: messages made from and gathered into an in-memory file."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = fedn_pb2_grpc.ModelServiceStub(channel)

    def upload(self, model_id: str, model: bytes) -> None:
        def messages() -> Iterator[ModelRequest]:
            source = BytesIO(model)
            while data := source.read(CHUNK_SIZE):
                yield ModelRequest(id=model_id, status=IN_PROGRESS, data=data)
            yield ModelRequest(id=model_id, status=OK)

        self._stub.Upload(messages())

    def download(self, model_id: str) -> int:
        target = BytesIO()
        for message in self._stub.Download(ModelRequest(id=model_id)):
            if message.status == IN_PROGRESS:
                target.write(message.data)
        return target.tell()


CLIENTS = {"fedn": FednClient, "raw": RawClient}


@dataclass
class Peer:
    """A server process and the client of it."""

    process: "subprocess.Popen[str]"
    channel: grpc.Channel
    client: FednClient | RawClient
    idle_kib: int

    @classmethod
    def start(cls, kind: str, root: str, mib: int, client: str) -> "Peer":
        command = [sys.executable, __file__, "--mib", str(mib), "--serve", kind, root]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        channel = grpc.insecure_channel(f"127.0.0.1:{int(process.stdout.readline())}", CLIENT_OPTIONS)
        grpc.channel_ready_future(channel).result(30)
        return cls(process, channel, CLIENTS[client](channel), _status_kib(process.pid, "VmRSS"))

    def peak_mib(self) -> float:
        return (_status_kib(self.process.pid, "VmHWM") - self.idle_kib) / 1024

    def stop(self) -> None:
        self.channel.close()
        self.process.communicate()


def _status_kib(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def timed(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def measure(peers: dict[str, Peer], root: Path, mib: int, repeats: int) -> dict[tuple[str, str], float]:
    """Median seconds of each way and server; the servers take turns, so that both see the same machine."""
    model = np.random.default_rng(0).bytes(mib * MIB)
    seconds: dict[tuple[str, str], list[float]] = {}
    for turn in range(-1, repeats):
        for kind, peer in peers.items():
            model_id = f"m{turn + 1}"
            up = timed(partial(peer.client.upload, model_id, model))
            down = timed(partial(peer.client.download, model_id))
            # As after a round. Also, a virtual machine whose host must find new memory for each file is slow.
            shutil.rmtree(root / kind / "uploads" / model_id, ignore_errors=True)
            if turn >= 0:  # the first one warms up
                seconds.setdefault(("upload", kind), []).append(up)
                seconds.setdefault(("download", kind), []).append(down)
    return {key: statistics.median(values) for key, values in seconds.items()}


def disk_seconds(path: Path, mib: int, repeats: int) -> float:
    """Median seconds to write and fsync a file of zeros with nothing else going on."""
    block = memoryview(bytes(MIB))

    def write() -> None:
        with path.open("wb", buffering=0) as file:
            for _ in range(mib):
                file.write(block)
            os.fsync(file.fileno())

    return statistics.median(timed(write) for _ in range(repeats))


def report(medians: dict[tuple[str, str], float], peers: dict[str, Peer], mib: int) -> None:
    print(f"{'':10}{'bare MiB/s':>12}{'ours MiB/s':>12}{'ratio':>8}")
    for way in ("upload", "download"):
        bare, ours = medians[way, "bare"], medians[way, "ours"]
        print(f"{way:10}{mib / bare:12.0f}{mib / ours:12.0f}{bare / ours:8.2f}")
    print(
        "peak MiB above idle: " + ", ".join(f"{kind} {peer.peak_mib():.1f}" for kind, peer in peers.items())
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=100, help="size of a model")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--client", choices=CLIENTS, default="fedn")
    parser.add_argument("--serve", nargs=2, metavar=("KIND", "ROOT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.serve[0], Path(options.serve[1]), options.mib))
        return
    with tempfile.TemporaryDirectory(prefix="transfer-") as root:
        peers = {
            kind: Peer.start(kind, f"{root}/{kind}", options.mib, options.client) for kind in ("bare", "ours")
        }
        report(measure(peers, Path(root), options.mib, options.repeats), peers, options.mib)
        disk = disk_seconds(Path(root, "file"), options.mib, options.repeats)
        print(f"write and fsync of a file alone: {options.mib / disk:.0f} MiB/s")
        for peer in peers.values():
            peer.stop()


if __name__ == "__main__":
    main()

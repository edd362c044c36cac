"""FEDn's combiner object on a Valkey of its own, and clients of it, for tests in plain threads."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
from combiner.interfaces import Channel, CombinerInterface
from combiner.server import Combiner

from fedcombiner.client import FederatedClient, OperatorClient
from fedcombiner.client.arrays import Arrays
from fedcombiner.client.made_up import to_npz
from fedcombiner.servicekit.loopthread import LoopThread
from fedcombiner.wire.pb import fedn_pb2, fedn_pb2_grpc
from tests.contract.state_kit import Server
from tests.tls_kit import PairFiles

T = TypeVar("T")
DEADLINE = 20.0


@contextmanager
def seed_combiner(server: Server, directory: Path, **config: Any) -> Iterator[Combiner]:
    """A combiner on loopback, at any free port."""
    places = {"data": directory / "models", "scratch": directory / "scratch", "redis_url": server.url}
    ports = {"port": 0, "metrics_port": 0, "host": "localhost", "name": "seed"}
    with Combiner({**ports, **places, **config}) as combiner:
        yield combiner


def interface_to(combiner: Combiner, **more: Any) -> CombinerInterface:
    return CombinerInterface({"name": "api"}, combiner.id, "127.0.0.1", None, combiner.port, **more)


@contextmanager
def stubs_to(combiner: Combiner) -> Iterator[grpc.Channel]:
    with Channel("127.0.0.1", combiner.port).get_channel() as channel:
        yield channel


def operator(combiner: Combiner, call: Callable[[OperatorClient], Coroutine[Any, Any, T]]) -> T:
    """What one call of an operator gives."""

    async def ask() -> T:
        async with OperatorClient(f"127.0.0.1:{combiner.port}", patience=DEADLINE) as client:
            return await call(client)

    with LoopThread("operator") as thread:
        return thread.call(ask())


def put_seed(combiner: Combiner) -> str:
    """A registered model of zeros, `w` of eight float32. Returns its id."""
    return operator(combiner, lambda client: client.put_model({"w": np.zeros(8, np.float32)})).model_id


def until(condition: Callable[[], object], what: str) -> None:
    """For what nobody tells us of: looks again and again, until the deadline."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE:g} s for {what}"
        time.sleep(0.005)


class Caller:
    """A client on the wire, one step at a time: its streams are open as long as the block."""

    def __init__(self, channel: grpc.Channel, name: str) -> None:
        self.name = name
        self.sender = fedn_pb2.Client(name=name, role=fedn_pb2.CLIENT)
        self.stub = fedn_pb2_grpc.CombinerStub(channel)
        self.connector = fedn_pb2_grpc.ConnectorStub(channel)
        self.calls: dict[str, Any] = {}

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        for call in self.calls.values():
            call.cancel()

    def open(self, *rpcs: str) -> None:
        message = fedn_pb2.ClientAvailableMessage(sender=self.sender)
        for rpc in rpcs:
            self.calls[rpc] = getattr(self.stub, rpc)(message, timeout=5 * DEADLINE)

    def next(self, rpc: str) -> Any:
        """The next message of a stream, waited for in a thread because nothing else can end the wait."""
        got: Future[Any] = Future()
        threading.Thread(target=lambda: got.set_result(next(self.calls[rpc])), daemon=True).start()
        return got.result(DEADLINE)


@contextmanager
def trainers(combiner: Combiner, *names: str) -> Iterator[None]:
    """Clients whose update of w is w + their index + 1, of index + 1 examples; their metric is its sum."""

    def client(index: int, name: str) -> FederatedClient:
        def train(arrays: Arrays, _config: dict[str, Any]) -> tuple[Arrays, int, dict[str, Any]]:
            return {"w": arrays["w"] + np.float32(index + 1)}, index + 1, {}

        def validate(arrays: Arrays, _config: dict[str, Any]) -> dict[str, float]:
            return {"sum": float(arrays["w"].sum())}

        return FederatedClient(name, train=train, validate=validate, address=f"127.0.0.1:{combiner.port}")

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            for index, name in enumerate(names):
                group.create_task(client(index, name).run())

    with LoopThread("clients") as thread:
        thread.submit(run())
        yield


def npz(**arrays: Any) -> bytes:
    return to_npz({name: np.asarray(values, np.float32) for name, values in arrays.items()})


class Discovery(ThreadingHTTPServer):
    """Answers every announcement with `answer` (status, body), and keeps the last one."""

    answer: tuple[int, object]
    asked: tuple[str, str, object] = ("", "", None)

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.port: int = self.server_address[1]

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Discovery]:
        with cls() as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
            thread.start()
            yield server
            server.shutdown()
            thread.join(DEADLINE)

    def speak_tls(self, pair: PairFiles) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate, pair.key)
        self.socket = context.wrap_socket(self.socket, server_side=True)


class _Handler(BaseHTTPRequestHandler):
    server: Discovery

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked = (self.path, self.headers.get("Authorization", ""), body)
        code, answer = self.server.answer
        content = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass

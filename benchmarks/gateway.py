"""Upload and Download through the gateway against bare HAProxies, in one run.

  gateway    deploy/haproxy/haproxy.cfg in front of the modelstore, which hashes, writes and syncs
  same       the same configuration in front of a bare `grpc.aio` echo of raw bytes
  defaults   HAProxy as it is out of the box in front of that echo

Each on loopback, and with 50 ms of round trip put between client and HAProxy by a forwarder. The ratios are
what counts. Needs HAProxy on the PATH. Run: python -m benchmarks.gateway [--mib 100] [--repeats 5]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc

from benchmarks import transfer
from benchmarks.transfer import CLIENT_OPTIONS, CLIENTS, MIB, timed
from tests.e2e.forwarder import slow_way

OURS = Path(__file__).parents[1] / "deploy" / "haproxy" / "haproxy.cfg"
DEFAULTS = """
defaults
    mode http
    timeout connect 2s
    timeout client 1h
    timeout server 1h
listen bare
    bind "${GATEWAY_BIND}" proto h2
    server bare "${MODELSTORE_1}" proto h2
"""
DELAY_S = 0.05
KINDS = ("gateway", "same", "defaults")
HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def ready_port() -> Iterator[int]:
    """Where everything is ready: the echo has no such port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Ready)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


@contextmanager
def model_server(kind: str, root: str, mib: int) -> Iterator[str]:
    command = [sys.executable, "-m", transfer.__name__, "--mib", str(mib), "--serve", kind, root]
    with child(command) as process:
        assert process.stdout is not None
        yield f"127.0.0.1:{int(process.stdout.readline())}"


@contextmanager
def haproxy(config: Path, server: str, ready: int) -> Iterator[str]:
    assert HAPROXY is not None
    names = [f"{name}_{number}" for name in ("COMBINER", "MODELSTORE") for number in (1, 2)]
    address = f"127.0.0.1:{free_port()}"
    environment = {
        "GATEWAY_BIND": address,
        "GATEWAY_METRICS_BIND": f"127.0.0.1:{free_port()}",
        **dict.fromkeys(names, server),
        **{f"{name}_HEALTH_PORT": str(ready) for name in names},
    }
    with child([HAPROXY, "-db", "-f", str(config)], environment):
        yield address


@contextmanager
def far_away(address: str) -> Iterator[str]:
    with child([sys.executable, "-m", "benchmarks.gateway", "--forward", address]) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()


async def forward(target: str) -> None:
    """Until standard input is closed; the address is the only line of standard output."""
    async with slow_way(target, delay=DELAY_S / 2) as address:
        print(address, flush=True)
        await asyncio.to_thread(sys.stdin.read)


@contextmanager
def child(command: list[str], environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | (environment or {}),
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def measure(addresses: dict[str, str], root: str, mib: int, repeats: int) -> dict[tuple[str, str], float]:
    """Median MiB/s of each way and kind; the kinds take turns, so that all see the same machine."""
    model = os.urandom(mib * MIB)
    seconds: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as stack:
        clients = {}
        for kind, address in addresses.items():
            channel = stack.enter_context(grpc.insecure_channel(address, CLIENT_OPTIONS))
            grpc.channel_ready_future(channel).result(30)
            clients[kind] = CLIENTS["fedn"](channel)
        for turn in range(-1, repeats):
            for kind, client in clients.items():
                model_id = f"m{turn + 1}"
                up = timed(partial(client.upload, model_id, model))
                down = timed(partial(client.download, model_id))
                shutil.rmtree(Path(root, "uploads", model_id), ignore_errors=True)
                if turn >= 0:  # the first one warms up
                    seconds.setdefault(("upload", kind), []).append(up)
                    seconds.setdefault(("download", kind), []).append(down)
    return {key: mib / statistics.median(values) for key, values in seconds.items()}


def report(where: str, speeds: dict[tuple[str, str], float]) -> None:
    for way in ("upload", "download"):
        ours, same, defaults = (speeds[way, kind] for kind in KINDS)
        print(
            f"{where:12}{way:10}{ours:10.0f}{same:10.0f}{defaults:10.1f}"
            f"{ours / same:12.2f}{ours / defaults:14.2f}",
            flush=True,
        )


def compare(mib: int, repeats: int) -> None:
    print(f"{'':12}{'MiB/s':10}{'gateway':>10}{'same':>10}{'defaults':>10}{'to same':>12}{'to defaults':>14}")
    for where, size, times in (("loopback", mib, repeats), ("50 ms", mib // 4, max(1, repeats // 2))):
        with tempfile.TemporaryDirectory(prefix="gateway-") as root, ExitStack() as stack:
            defaults = Path(root, "defaults.cfg")
            defaults.write_text(DEFAULTS)
            ready = stack.enter_context(ready_port())
            store, echo = (stack.enter_context(model_server(kind, root, size)) for kind in ("ours", "bare"))
            behind = {"gateway": (OURS, store), "same": (OURS, echo), "defaults": (defaults, echo)}
            addresses = {
                kind: stack.enter_context(haproxy(config, server, ready))
                for kind, (config, server) in behind.items()
            }
            if where != "loopback":
                addresses = {kind: stack.enter_context(far_away(at)) for kind, at in addresses.items()}
            report(where, measure(addresses, root, size, times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=100, help="size of a model; a quarter of it at 50 ms")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--forward", metavar="ADDRESS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.forward:
        asyncio.run(forward(options.forward))
    elif HAPROXY is None:
        sys.exit("there is no HAProxy: apt-get install haproxy")
    else:
        compare(options.mib, options.repeats)


if __name__ == "__main__":
    main()

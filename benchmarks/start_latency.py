"""How long it takes from `Control.Start` until a client has the request, on an idle stack.

    python -m benchmarks.start_latency [--rounds 50] [--clients 1 10 100]

The stack is a process of its own with an embedded Redis that syncs every write; operator and clients share
this one. A job is cancelled as soon as all clients have their request. `first` is the first request at any
client, `all` the last one; times in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Sequence
from contextlib import AsyncExitStack

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.stack import running_stack
from fedcombiner.client.link import Link
from fedcombiner.client.messages import Messages
from fedcombiner.client.operator import OperatorClient

CLIENTS_PER_CONNECTION = 100
WARM_UP = 3


class Arrivals:
    """Clients that take requests and do nothing with them."""

    def __init__(self, links: Sequence[Link], n: int) -> None:
        self._clients = [
            (links[index // CLIENTS_PER_CONNECTION], Messages(f"client-{index:05d}", "0.6"))
            for index in range(n)
        ]
        self._streams = [
            link.combiner.ModelUpdateRequestStream(messages.subscription) for link, messages in self._clients
        ]

    async def beat(self) -> None:
        """Stay active, until cancelled."""
        while True:
            for link, messages in self._clients:
                await link.connector.SendHeartbeat(messages.heartbeat)
            await asyncio.sleep(2.0)

    async def times(self) -> list[float]:
        """When each had its next request, in loop time, sorted."""
        clock = asyncio.get_running_loop().time

        async def next_time(stream: object) -> float:
            await stream.read()  # type: ignore[attr-defined]
            return clock()

        return sorted(await asyncio.gather(*(next_time(stream) for stream in self._streams)))


async def measure(address: str, n: int, rounds: int) -> tuple[list[float], list[float]]:
    clock = asyncio.get_running_loop().time
    first, last = [], []
    async with AsyncExitStack() as stack:
        operator = await stack.enter_async_context(OperatorClient(address))
        links = [await stack.enter_async_context(Link(address)) for _ in range(0, n, CLIENTS_PER_CONNECTION)]
        seed = await operator.put_model({"w": np.zeros(1000, np.float32)})
        arrivals = Arrivals(links, n)
        heart = asyncio.create_task(arrivals.beat())
        stack.callback(heart.cancel)
        config = {
            "task": "training",
            "model_id": seed.model_id,
            "clients_required": n,
            "clients_requested": n,
        }
        for number in range(WARM_UP + rounds):
            reading = asyncio.ensure_future(arrivals.times())
            # Not before the clients are there; and the last job must be over.
            begun = clock()
            job_id = await operator.start_job({**config, "round_id": number, "wait_for_clients": 30})
            times = await asyncio.wait_for(reading, 60)
            await operator.cancel_job(job_id)
            if number >= WARM_UP:
                first.append((times[0] - begun) * 1000)
                last.append((times[-1] - begun) * 1000)
    return first, last


async def main(rounds: int, clients: Sequence[int]) -> None:
    table = Table("clients", "first: median", "p90", "all: median", "p90", title="Start to request, ms")
    for n in clients:
        async with running_stack() as stack:
            first, last = await measure(stack.address, n, rounds)
        cells = [
            f"{value:.1f}" for times in (first, last) for value in (statistics.median(times), p90(times))
        ]
        table.add_row(str(n), *cells)
    Console().print(table)


def p90(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=10)[-1] if len(values) > 1 else values[0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 10, 100])
    arguments = parser.parse_args()
    asyncio.run(main(arguments.rounds, arguments.clients))

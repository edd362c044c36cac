"""One of the demo's clients: `python -m fedcombiner.demo.one_client HOST:PORT CLIENTS SEED INDEX`.

Runs until SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import signal

from fedcombiner.demo import digits
from fedcombiner.demo.clients import Order, make_client


async def run(order: Order, index: int) -> None:
    data, held_out = digits.load(order.seed)
    own = digits.split(data, order.count, order.seed)[index]
    running = asyncio.ensure_future(make_client(order, index, own, held_out).run())
    # The first process of a container does not even notice a signal without a handler.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    await asyncio.wait([running])
    if not running.cancelled():
        running.result()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fedcombiner.demo.one_client")
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("clients", type=int, help="how many share the data")
    parser.add_argument("seed", type=int)
    parser.add_argument("index", type=int, help="which of them this is, from 0")
    given = parser.parse_args()
    if not 0 <= given.index < given.clients:
        parser.error(f"index {given.index}: must be 0 to {given.clients - 1}")
    asyncio.run(run(Order.of(given.address, given.clients, given.seed, None), given.index))


if __name__ == "__main__":
    main()

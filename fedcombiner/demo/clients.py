"""The demo's clients, in a process of their own: `python -m fedcombiner.demo.clients HOST:PORT CLIENTS SEED`.

Ends when its standard input is closed, which the kernel does however the parent ends.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping

from fedcombiner.client import FederatedClient
from fedcombiner.demo import digits

Answer = tuple[Mapping[str, digits.Array], int, Mapping[str, float]]


def name(index: int) -> str:
    return f"digits-{index:02d}"


def make_client(
    address: str, index: int, own: digits.Data, held_out: digits.Data, seed: int
) -> FederatedClient:
    def train(model: digits.Parameters, config: Mapping[str, object]) -> Answer:
        round_id = int(str(config.get("round_id", "0")))
        trained = digits.train(model, own, seed=seed * 1_000_003 + round_id * 1009 + index)
        return trained, len(own.digits), digits.evaluate(trained, own)

    def validate(model: digits.Parameters, config: Mapping[str, object]) -> Mapping[str, float]:
        return digits.evaluate(model, held_out)

    return FederatedClient(name(index), train=train, validate=validate, address=address)


async def run(address: str, count: int, seed: int) -> None:
    data, held_out = digits.load(seed)
    shares = digits.split(data, count, seed)
    clients = [make_client(address, i, own, held_out, seed) for i, own in enumerate(shares)]
    closed = asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))
    tasks = [asyncio.ensure_future(client.run()) for client in clients]
    done, _ = await asyncio.wait([closed, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in done - {closed}:
        task.result()


def main() -> None:
    address, count, seed = sys.argv[1:]
    try:
        asyncio.run(run(address, int(count), int(seed)))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()

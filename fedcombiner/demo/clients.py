"""The demo's clients, in a process of their own: `python -m fedcombiner.demo.clients`.

It reads an `Order` as a line of JSON, and ends when its standard input is closed, which the kernel does
however the parent ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self

from fedcombiner.client import FederatedClient, Trust
from fedcombiner.demo import digits

Answer = tuple[Mapping[str, digits.Array], int, Mapping[str, float]]


@dataclass(frozen=True)
class Order:
    """What the process is to do. `authorities`: PEM to verify TLS with, of the public ones if empty."""

    address: str
    count: int
    seed: int
    tls: bool
    authorities: str
    token: str

    @classmethod
    def of(cls, address: str, count: int, seed: int, trust: Trust | None, token: str = "") -> Self:
        authorities = b"" if trust is None else trust.authorities or b""
        return cls(address, count, seed, trust is not None, authorities.decode("ascii", "ignore"), token)

    @property
    def trust(self) -> Trust | None:
        return Trust(self.authorities.encode() or None) if self.tls else None

    def line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"


def name(index: int) -> str:
    return f"digits-{index:02d}"


def make_client(order: Order, index: int, own: digits.Data, held_out: digits.Data) -> FederatedClient:
    def train(model: digits.Parameters, config: Mapping[str, object]) -> Answer:
        round_id = int(str(config.get("round_id", "0")))
        trained = digits.train(model, own, seed=order.seed * 1_000_003 + round_id * 1009 + index)
        return trained, len(own.digits), digits.evaluate(trained, own)

    def validate(model: digits.Parameters, config: Mapping[str, object]) -> Mapping[str, float]:
        return digits.evaluate(model, held_out)

    return FederatedClient(
        name(index),
        train=train,
        validate=validate,
        address=order.address,
        trust=order.trust,
        token=order.token,
    )


async def run(order: Order) -> None:
    data, held_out = digits.load(order.seed)
    shares = digits.split(data, order.count, order.seed)
    clients = [make_client(order, i, own, held_out) for i, own in enumerate(shares)]
    closed = asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))
    tasks = [asyncio.ensure_future(client.run()) for client in clients]
    done, _ = await asyncio.wait([closed, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in done - {closed}:
        task.result()


def main() -> None:
    order = Order(**json.loads(sys.stdin.readline()))
    try:
        asyncio.run(run(order))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()

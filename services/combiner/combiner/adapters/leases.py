"""Who works on what: one hash, work -> token, beat, owner."""

from __future__ import annotations

from collections.abc import Sequence

from combiner.adapters.connection import Connection
from combiner.ports import Lease, LeaseView


class RedisLeases:
    """`ports.Leases`."""

    def __init__(self, connection: Connection) -> None:
        self._run = connection.run
        self._lives: dict[str, int] = {}  # of the replicas that renew here: in practice, this one

    async def renew(self, replica: str, leases: Sequence[Lease]) -> tuple[list[Lease], list[LeaseView]]:
        held = [(lease.work, lease.token) for lease in leases]
        life = self._lives.get(replica, 0)
        lost, rows = await self._run("renew", replica=replica, life=life, leases=held)
        views = [LeaseView(*row) for row in rows]
        own = f"replica:{replica}"
        self._lives[replica] = next(view.token for view in views if view.work == own)
        return [leases[number - 1] for number in lost], views

    async def take_over(self, seen: LeaseView, replica: str) -> Lease | None:
        if seen.work.startswith("replica:"):
            raise ValueError("a replica's life cannot be taken over")
        token = await self._run(
            "take_over", work=seen.work, token=seen.token, beat=seen.beat, replica=replica
        )
        return Lease(seen.work, token) if token else None

    async def views(self) -> list[LeaseView]:
        return [LeaseView(*row) for row in await self._run("leases")]

    async def release(self, lease: Lease) -> None:
        await self._run("release", work=lease.work, token=lease.token)

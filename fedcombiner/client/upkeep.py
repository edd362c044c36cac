"""Looking after a stack: how it is, and what can go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedcombiner.client.calls import TIMEOUT, Calls
from fedcombiner.wire.pb.combiner.v1 import upkeep_pb2 as pb
from fedcombiner.wire.pb.combiner.v1 import upkeep_pb2_grpc

if TYPE_CHECKING:
    from fedcombiner.wire.pb.combiner.v1.upkeep_pb2_grpc import UpkeepAsyncStub


class UpkeepCalls(Calls):
    async def stack_status(self) -> pb.StackStatus:
        """How the stack is, as the combiner that answers sees it; also while a back end is away."""
        return await self._call(lambda: self._upkeep.Status(pb.StatusRequest(), timeout=TIMEOUT))

    async def collect_garbage(self, *, dry_run: bool) -> list[pb.Removal]:
        """Remove what nothing needs any more (docs/house-keeping.md), or only say what that is."""
        return await self._list(lambda: self._upkeep.Collect(pb.CollectRequest(dry_run=dry_run)))

    async def prune_models(
        self,
        keep: int,
        *,
        dry_run: bool,
        session_id: str = "",
        keep_best: str = "",
        lowest_is_best: bool = False,
        only: Sequence[str] = (),
    ) -> list[pb.Removal]:
        """Remove models that rounds made, or only say which.

        Of each session, or of the one that is named, the `keep` newest stay, and the one that is best by the
        metric `keep_best`; every model in use stays, too. `only`: of the rest remove no others than these.
        """
        request = pb.PruneRequest(
            dry_run=dry_run,
            session_id=session_id,
            keep=keep,
            keep_best=keep_best,
            lowest_is_best=lowest_is_best,
            only=only,
        )
        return await self._list(lambda: self._upkeep.Prune(request))

    @property
    def _upkeep(self) -> UpkeepAsyncStub:
        return upkeep_pb2_grpc.UpkeepStub(self.link)

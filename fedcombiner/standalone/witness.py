"""What the discovery asks combiners for, answered within the process."""

from __future__ import annotations

from combiner.ports import Roster, StateUnavailable
from discovery_mock.registry import Combiner


class RosterWitness:
    """The discovery's `helpers.Witness`, from what the combiner of this process keeps of its clients."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster

    async def heard_lately(self, combiner: Combiner, client: str, seconds: float) -> bool:
        try:
            (presence,) = await self._roster.presence([client])
        except StateUnavailable:
            return False
        return 0 <= presence.seen_ms_ago <= seconds * 1000

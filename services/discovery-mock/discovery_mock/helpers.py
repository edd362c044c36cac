"""Which helper a client is told to load. The wrong one ends it at its start.

FEDn up to 0.7 has `kerashelper` and `pytorchhelper`, FEDn from 0.8 on `numpyhelper`; no name is in both. Most
clients show by their request which of the two they are. Those of 0.6, 0.7 and 0.8 ask alike: they get the old
one, unless they come again without ever having reached their combiner, for then it was the wrong one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import structlog

from discovery_mock.registry import Combiner
from fedcombiner.servicekit.fairqueue import FairDict

log = structlog.get_logger(__name__)

MAX_REMEMBERED = 10_000


class Generation(Enum):
    """What can be told from a request about who sends it."""

    OLD = "0.5"
    UNSURE = "0.6 to 0.8"
    NEW = "0.9 or newer"


@dataclass(frozen=True, slots=True)
class Helpers:
    """`old` is for clients up to 0.7, `new` for those from 0.8 on; `by_name` for single clients."""

    old: str
    new: str
    by_name: Mapping[str, str]

    def other(self, helper: str) -> str:
        return self.old if helper == self.new else self.new


class Witness(Protocol):
    """Who knows which clients have reached a combiner."""

    async def heard_lately(self, combiner: Combiner, client: str, seconds: float) -> bool:
        """Whether the client was heard of there within the last `seconds`. False if that cannot be known."""
        ...


class HelperChoice:
    """Remembers what the last 10,000 unsure clients were told. Beyond that, the oldest of the sender that
    named the most is forgotten.
    """

    def __init__(
        self, helpers: Helpers, witness: Witness, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._helpers = helpers
        self._witness = witness
        self._clock = clock
        self._told: FairDict[tuple[str, float]] = FairDict(MAX_REMEMBERED)  # client -> helper and when

    async def choose(self, client: str, generation: Generation, combiner: Combiner, sender: str = "") -> str:
        """The helper for a client that is sent to `combiner` now. `sender`: who asks, as far as it cannot be
        made up.
        """
        helpers = self._helpers
        if client in helpers.by_name:
            return helpers.by_name[client]
        if generation is not Generation.UNSURE:
            return helpers.new if generation is Generation.NEW else helpers.old
        helper = await self._learned(client, combiner)
        self._told.put(client, (helper, self._clock()), sender)
        return helper

    async def _learned(self, client: str, combiner: Combiner) -> str:
        if client not in self._told:
            return self._helpers.old
        helper, when = self._told[client]
        if await self._witness.heard_lately(combiner, client, self._clock() - when):
            return helper
        other = self._helpers.other(helper)
        log.info("a client came again without having reached its combiner", client=client, helper=other)
        return other

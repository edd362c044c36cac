"""How fast a peer sends or takes what it is sent."""

import math
from typing import Final

# A peer that was fast is soon known to be slow: what it moved before counts for a third more than it must.
_CREDIT: Final = 4 / 3


class Pace:
    """The bytes a second of a peer while it was waited for; the last `span` seconds count the most.

    Pure: the caller says how long it has waited, so time spent on anything else does not count.
    """

    def __init__(self, least: float, span: float) -> None:
        self._least = least
        self._span = span
        self._level = 0.0
        self.waited = 0.0

    def moved(self, count: int, seconds: float) -> None:
        """`count` bytes have been moved after a wait of this time."""
        self.waited += seconds
        kept = self._level * math.exp(-seconds / self._span)
        self._level = min(kept + count, self._least * self._span * _CREDIT)

    def rate(self, waiting: float = 0.0) -> float:
        """Bytes a second, if the peer has been waited for so long again since."""
        time = self.waited + waiting
        if not time:
            return math.inf
        kept = self._level * math.exp(-waiting / self._span)
        return kept / (self._span * -math.expm1(-time / self._span))

    def is_slow(self, waiting: float = 0.0) -> bool:
        return self.rate(waiting) < self._least

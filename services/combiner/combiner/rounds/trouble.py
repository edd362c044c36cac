"""When our side was broken last, as far as this replica can see: who failed meanwhile is not to blame."""

from __future__ import annotations

import time
from collections.abc import Callable


class Trouble:
    """Noted by whoever meets it: Redis or the object store does not answer, another replica is gone. A
    process that has just started may be the successor of one that broke.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._last = monotonic()

    def note(self) -> None:
        self._last = self._monotonic()

    @property
    def seconds_ago(self) -> float:
        """How long everything has been well."""
        return self._monotonic() - self._last

"""The tokens that a process knows: a copy that is at most a few seconds old, kept while Redis is away."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from fedcombiner.access.record import TokenRecord
from fedcombiner.access.store import Snapshot, TokenReader, TokensUnavailable
from fedcombiner.servicekit.errors import Unavailable
from fedcombiner.servicekit.status import BackendStatus

log = structlog.get_logger(__name__)

REFRESH_S: Final = 5.0
# How often tokens that are not in the copy make us look for them, however many come: one may be brand-new.
LOOK_AGAIN_S: Final = 1.0
MAX_WAITING: Final = 1000  # calls with such tokens; beyond that, calls are refused at once


class KnownTokens:
    """`fixed` are tokens by digest that count whatever Redis says; without a `reader` there are no others.

    The copy is renewed every 5 s by `run`, and earlier when a token is not in it, once a second at most: so a
    token that was just made is good at once, and a wrong one costs its bearer up to a second. A revoked token
    is known as such after 5 s.
    """

    def __init__(
        self,
        fixed: Mapping[str, TokenRecord],
        reader: TokenReader | None = None,
        *,
        backend: BackendStatus | None = None,
    ) -> None:
        self._fixed = fixed
        self._reader = reader
        self._backend = backend
        self._copy: Snapshot | None = None
        self._away = "it was not asked yet"
        self._tried_at = -math.inf
        self._loading = asyncio.Lock()
        self._waiting = 0

    async def find(self, key: str) -> TokenRecord | None:
        """The record of the token with this digest; None if there is none.

        Raises:
            Unavailable: that cannot be known now, or too many unknown tokens are being looked for.
        """
        record = self.get(key)
        if record is None and self._reader is not None:
            await self._wait_for_look()
            record = self.get(key)
            if record is None and self._away:
                raise Unavailable(f"the token cannot be checked: {self._away}; try again")
        return record

    def get(self, key: str) -> TokenRecord | None:
        """As `find`, of what is known already."""
        return self._fixed.get(key) or (self._copy.tokens.get(key) if self._copy else None)

    async def refresh(self) -> None:
        """Look at Redis now, if there is one; without an answer everything stays as it is."""
        async with self._loading:
            await self._load()

    async def run(self, after: Callable[[], None] = lambda: None) -> None:
        """Until cancelled: renew the copy, and call `after`."""
        while True:
            await self.refresh()
            after()
            await asyncio.sleep(REFRESH_S)

    async def _wait_for_look(self) -> None:
        if self._waiting >= MAX_WAITING:
            raise Unavailable("the token is not known, and too many others are being looked for; try again")
        self._waiting += 1
        try:
            await self._look_again()
        finally:
            self._waiting -= 1

    async def _look_again(self) -> None:
        """Look once more, together with everybody else who wants that within the same second."""
        asked = time.monotonic()
        async with self._loading:
            if self._tried_at >= asked:
                return
            await asyncio.sleep(self._tried_at + LOOK_AGAIN_S - asked)
            await self._load()

    async def _load(self) -> None:
        if self._reader is None:
            return
        self._tried_at = time.monotonic()
        try:
            found = await self._reader.load(self._copy.version if self._copy else "")
        except TokensUnavailable as error:
            self._note_away(str(error))
            return
        self._copy = found or self._copy
        self._away = ""
        if self._backend is not None:
            self._backend.mark_up()

    def _note_away(self, reason: str) -> None:
        if not self._away:
            log.warning("tokens cannot be read; the last copy counts", reason=reason)
        self._away = reason
        if self._backend is not None:
            self._backend.mark_down(reason)

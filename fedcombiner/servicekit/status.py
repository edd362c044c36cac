"""Whether this process answers clients, and whether its back ends answer it.

The two are kept apart: a gateway looks at readiness only, and must not cut clients off because a back
end is away.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Literal

import structlog
from prometheus_client import Gauge

from fedcombiner.servicekit.errors import Unavailable, printable
from fedcombiner.servicekit.settings import without_credentials

log = structlog.get_logger(__name__)

# A gateway asks every second; somebody who has not asked for longer does not go by the answer.
WATCHED_SECONDS: Final = 5.0
MAX_WATCHERS: Final = 100

State = Literal["starting", "ready", "draining"]


class Readiness:
    """Says *this process answers clients*: from the first contact with its back ends until it drains."""

    def __init__(
        self, notify: Callable[[], None] = lambda: None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.state: State = "starting"
        self._notify = notify
        self._clock = clock
        self._asked: dict[str, tuple[float, State]] = {}  # the last that asked is the last
        self._told = asyncio.Event()

    @property
    def ready(self) -> bool:
        return self.state == "ready"

    def ask(self, who: str) -> State:
        """The state, for somebody who may send calls to this process by it."""
        self._asked.pop(who, None)
        self._asked[who] = (self._clock(), self.state)
        while len(self._asked) > MAX_WATCHERS:
            del self._asked[next(iter(self._asked))]
        if self.state == "draining" and all(state == "draining" for state in self._watchers()):
            self._told.set()
        return self.state

    @property
    def watched(self) -> bool:
        """Whether anybody has asked lately."""
        return bool(self._watchers())

    async def everybody_told(self) -> None:
        """Return when everybody who asks has been told that this process drains."""
        await self._told.wait()

    def _watchers(self) -> list[State]:
        """What those were told who have asked lately."""
        return [state for at, state in self._asked.values() if self._clock() - at < WATCHED_SECONDS]

    def mark_ready(self) -> None:
        """Ready, unless it is draining already: there is no way back from that."""
        if self.state == "starting":
            self._enter("ready")

    def mark_draining(self) -> None:
        if self.state != "draining":
            self._enter("draining")

    def _enter(self, state: State) -> None:
        log.info("readiness changed", state=state, was=self.state)
        self.state = state
        self._notify()


class BackendStatus:
    """What is known of one back end. Adapters call `mark_up` and `mark_down` after each contact, as often
    as they like; only a change is logged and passed on."""

    def __init__(
        self,
        name: str,
        gauge: Gauge,
        *,
        notify: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.up: bool | None = None
        self.since: float | None = None
        self.last_error = ""
        self.contacted = asyncio.Event()
        self._gauge = gauge
        self._notify = notify
        self._clock = clock
        gauge.set(0)

    def mark_up(self) -> None:
        if self.up:
            return
        away = None if self.since is None else round(self._clock() - self.since, 1)
        self._enter(up=True)
        self.contacted.set()
        log.info("back end is up", backend=self.name, away_seconds=away)

    def mark_down(self, error: BaseException | str) -> None:
        """A full back end has answered: what it holds can be read, and removed."""
        if isinstance(error, Unavailable) and error.answered:
            self.contacted.set()
        self.last_error = printable(without_credentials(str(error) or type(error).__name__))
        if self.up is False:
            return
        self._enter(up=False)
        log.warning("back end is down", backend=self.name, error=self.last_error)

    def _enter(self, *, up: bool) -> None:
        self.up = up
        self.since = self._clock()
        self._gauge.set(int(up))
        self._notify()

    def snapshot(self) -> dict[str, object]:
        """For `/statusz`; `since` is the ISO time of the last change, null before the first contact."""
        since = None if self.since is None else datetime.fromtimestamp(self.since, UTC).isoformat()
        return {"up": bool(self.up), "since": since, "last_error": self.last_error or None}


class Backends:
    """The back ends of a process, each under its name. `gauge` has the one label `backend`."""

    def __init__(
        self,
        gauge: Gauge,
        *,
        notify: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._gauge = gauge
        self._notify = notify
        self._clock = clock
        self._known: dict[str, BackendStatus] = {}

    def register(self, name: str) -> BackendStatus:
        """The status of the back end; services that share a process share it."""
        known = self._known.get(name)
        if known is None:
            gauge = self._gauge.labels(name)
            known = BackendStatus(name, gauge, notify=self._notify, clock=self._clock)
            self._known[name] = known
        return known

    @property
    def all_up(self) -> bool:
        return all(backend.up for backend in self._known.values())

    async def first_contact(self) -> None:
        """Return when each back end has answered once."""
        for backend in list(self._known.values()):
            await backend.contacted.wait()

    def snapshot(self) -> dict[str, dict[str, object]]:
        return {name: backend.snapshot() for name, backend in self._known.items()}

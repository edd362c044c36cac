"""Which clients have had tasks lately, as every replica learns from the log."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from combiner.ports import Event
from combiner.rounds.feed import Feed

LIMIT: Final = 20_000


class AskedClients:
    """The last `LIMIT` of them. What the log said before this process began is not known."""

    def __init__(self, feed: Feed) -> None:
        self._names: OrderedDict[str, None] = OrderedDict()
        feed.listen(self._on_event)

    def __contains__(self, client: object) -> bool:
        return client in self._names

    def _on_event(self, event: Event) -> None:
        if event.what != "tasks":
            return
        for client in event.clients:
            self._names[client] = None
            self._names.move_to_end(client)
        while len(self._names) > LIMIT:
            self._names.popitem(last=False)

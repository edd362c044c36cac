"""Openings and closings of streams that the roster has not been told of yet."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from combiner.ports import Stream, StreamChange


class StreamChanges:
    """A queue of at most one change for each stream.

    A stream that closes before the roster can know of it leaves nothing behind, so while Redis is unavailable
    the queue holds at most the open streams, those that were open when the outage began, and one batch.
    """

    def __init__(self) -> None:
        self._queue: dict[str, StreamChange] = {}
        self._sent: set[str] = set()  # streams whose opening the roster may have seen

    def __len__(self) -> int:
        return len(self._queue)

    def opened(self, stream: Stream) -> None:
        self._queue[stream.stream_id] = StreamChange(stream, opened=True)

    def closed(self, stream: Stream, *, by_us: bool) -> None:
        queued = self._queue.get(stream.stream_id)
        if queued is not None and queued.opened and stream.stream_id not in self._sent:
            del self._queue[stream.stream_id]
        else:
            # In the place of its opening, if that waits: the next batch then names the streams that the last
            # one named, and an outage marks no more than one batch of them as sent.
            self._queue[stream.stream_id] = StreamChange(stream, opened=False, by_us=by_us)

    def batch(self, most: int) -> Sequence[StreamChange]:
        """The oldest changes. They stay queued until `confirm`, and count as sent from now on."""
        changes = list(islice(self._queue.values(), most))
        self._sent.update(change.stream.stream_id for change in changes if change.opened)
        return changes

    def confirm(self, changes: Sequence[StreamChange]) -> None:
        """The roster has these. A change that has taken the place of one of them meanwhile stays queued."""
        for change in changes:
            stream_id = change.stream.stream_id
            if self._queue.get(stream_id) is change:
                del self._queue[stream_id]
            if not change.opened:
                self._sent.discard(stream_id)

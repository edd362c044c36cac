"""Limits of a ModelService for its peers, and the meter of what they do."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class TransferLimits:
    """What a ModelService spends on its peers. Numbers of transfers are for each direction.

    Attributes:
        max_bytes: size of the largest model that is taken.
        max_transfers: how many transfers run at once; more wait.
        max_slow_transfers: how many go on beside those because their peers are slow and others wait.
        max_waiting_transfers: how many wait; more are refused.
        min_rate: bytes a second below which a peer is slow.
        idle_timeout: seconds after which a peer that neither sends nor takes a byte is cut off.
        store_timeout: seconds that a transfer waits for a store that is away.
    """

    max_bytes: int = 2 << 30
    max_transfers: int = 16
    max_slow_transfers: int = 16
    max_waiting_transfers: int = 2048
    min_rate: int = 256 << 10
    idle_timeout: float = 60.0
    store_timeout: float = 30.0


def _uncounted(_bytes: int) -> None:
    pass


def _unseen(_way: str, _event: str) -> None:
    pass


@dataclass(frozen=True)
class TransferMeter:
    """Is told of bytes of models as they come in from clients and go out to them, and of each of
    `lanes.EVENTS`, with the way, "in" or "out".
    """

    received: Callable[[int], None] = _uncounted
    sent: Callable[[int], None] = _uncounted
    happened: Callable[[str, str], None] = _unseen

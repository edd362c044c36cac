"""The rate of a peer, from what it moved and how long it was waited for."""

import pytest

from fedcombiner.modelstorage.pace import Pace

LEAST = 100.0
SPAN = 30.0


def pace(bytes_per_second: float, seconds: int) -> Pace:
    made = Pace(LEAST, SPAN)
    for _ in range(seconds):
        made.moved(int(bytes_per_second), 1.0)
    return made


@pytest.mark.parametrize("seconds", [1, 10, 100])
def test_a_steady_peer_has_its_rate_however_long_it_is_there(seconds: int) -> None:
    assert pace(50, seconds).rate() == pytest.approx(50, rel=0.05)
    assert pace(50, seconds).is_slow()
    assert not pace(110, seconds).is_slow()


def test_nobody_is_slow_before_it_was_waited_for() -> None:
    assert not Pace(LEAST, SPAN).is_slow()
    assert Pace(LEAST, SPAN).is_slow(0.1)


def test_what_a_fast_peer_has_moved_is_soon_forgotten() -> None:
    fast = pace(1e9, 1000)
    assert not fast.is_slow(5)
    assert fast.is_slow(10)


def test_a_slow_peer_that_becomes_fast_is_slow_no_more() -> None:
    peer = pace(1, 1000)
    for _ in range(10):
        peer.moved(1000, 1.0)
    assert not peer.is_slow()

"""Leases and outages, watched with a hand-driven clock."""

from __future__ import annotations

from dataclasses import dataclass, replace

from combiner.domain.leases import LeaseWatch, OutageGuard
from hypothesis import given, settings
from hypothesis import strategies as st


@dataclass(frozen=True)
class View:
    work: str = "job:1"
    owner: str = "replica-a"
    token: int = 1
    beat: int = 1


def looks(watch: LeaseWatch, view: View, *, start: float, seconds: float, every: float = 2.0) -> list[View]:
    """Look at an unchanged lease for a time; returns what the last look found."""
    found: list[View] = []
    steps = round(seconds / every)
    for i in range(steps + 1):
        found = watch.observe(start + i * every, [view], healthy=True)
    return found


def test_a_lease_that_does_not_change_for_a_window_has_lapsed():
    watch = LeaseWatch(6.0)
    assert looks(watch, View(), start=100.0, seconds=4.0) == []
    assert watch.observe(106.0, [View()], healthy=True) == [View()]
    assert watch.observe(108.0, [View()], healthy=True) == [View()]


def test_a_renewed_lease_never_lapses():
    watch = LeaseWatch(6.0)
    for i in range(20):
        assert watch.observe(2.0 * i, [View(beat=i)], healthy=True) == []


def test_a_new_owner_or_token_starts_a_new_window():
    watch = LeaseWatch(6.0)
    looks(watch, View(), start=0.0, seconds=4.0)
    assert watch.observe(6.0, [View(token=2, owner="replica-b")], healthy=True) == []
    assert looks(watch, View(token=2, owner="replica-b"), start=8.0, seconds=4.0) == [
        View(token=2, owner="replica-b")
    ]


def test_a_lease_that_was_given_back_is_free_at_once():
    assert LeaseWatch(6.0).observe(0.0, [View(owner=""), View("job:2")], healthy=True) == [View(owner="")]


def test_a_slow_look_starts_all_windows_anew():
    watch = LeaseWatch(6.0)
    looks(watch, View(), start=0.0, seconds=4.0)
    assert watch.observe(6.0, [View()], healthy=False) == []
    assert looks(watch, View(), start=8.0, seconds=4.0) == []
    assert watch.observe(14.0, [View()], healthy=True) == [View()]


def test_a_failed_look_starts_all_windows_anew():
    watch = LeaseWatch(6.0)
    looks(watch, View(), start=0.0, seconds=4.0)
    watch.observe(5.0, [], healthy=False)
    assert looks(watch, View(), start=6.0, seconds=4.0) == []
    assert watch.observe(12.0, [View()], healthy=True) == [View()]


def test_an_observer_that_slept_does_not_blame_the_others():
    watch = LeaseWatch(6.0)
    looks(watch, View(), start=0.0, seconds=4.0)
    assert watch.observe(60.0, [View()], healthy=True) == []
    assert looks(watch, View(), start=62.0, seconds=4.0) == [View()]


def test_a_lease_that_vanished_and_came_back_starts_anew():
    watch = LeaseWatch(6.0)
    looks(watch, View(), start=0.0, seconds=4.0)
    watch.observe(5.0, [], healthy=True)
    assert looks(watch, View(), start=6.0, seconds=4.0) == []


def test_only_the_dead_owner_is_found():
    watch = LeaseWatch(6.0)
    found: list[View] = []
    for i in range(4):
        found = watch.observe(2.0 * i, [View("job:1"), View("job:2", "replica-b", beat=i)], healthy=True)
    assert found == [View("job:1")]


def test_the_next_look_is_due_when_the_first_lease_may_lapse():
    watch = LeaseWatch(6.0)
    assert watch.pause(0.0, 0.75) == 0.75
    silent, lively = View("job:1"), View("job:2", "replica-b")
    watch.observe(0.0, [silent, lively], healthy=True)
    for i in range(1, 3):
        watch.observe(2.5 * i, [silent, replace(lively, beat=2 + i)], healthy=True)
    assert watch.pause(5.0, 0.75) == 0.75
    assert watch.pause(5.5, 0.75) == 0.5
    assert watch.pause(5.5, -0.1) == -0.1
    assert watch.observe(6.0, [silent, replace(lively, beat=9)], healthy=True) == [silent]


def test_a_lease_that_has_lapsed_and_stays_hurries_nobody():
    watch = LeaseWatch(6.0)
    assert looks(watch, View(), start=0.0, seconds=8.0) == [View()]
    assert watch.pause(8.0, 0.75) == 0.75


def test_clients_are_trusted_to_be_gone_only_a_whole_window_after_an_outage():
    guard = OutageGuard(10.0)
    assert not guard.settled
    for i in range(6):
        guard.observe(2.0 * i, True)
        assert guard.settled == (i == 5)
    guard.observe(12.0, False)
    assert not guard.settled
    for i in range(6):
        guard.observe(14.0 + 2.0 * i, True)
        assert guard.settled == (i == 5)


def test_a_gap_between_looks_is_an_outage():
    guard = OutageGuard(10.0)
    for i in range(6):
        guard.observe(2.0 * i, True)
    assert not guard.observe(30.0, True)
    assert not guard.settled


@given(
    st.lists(
        st.tuples(
            st.floats(0.1, 8.0),  # time since the last look
            st.booleans() | st.just(True),  # a healthy look
            st.booleans() | st.just(False),  # the owner has renewed
        ),
        max_size=40,
    )
)
@settings(max_examples=80, deadline=None)
def test_no_lease_lapses_without_a_whole_window_of_healthy_looks(history: list[tuple[float, bool, bool]]):
    watch, view = LeaseWatch(6.0), View()
    now, unchanged_since = 0.0, None
    for gap, healthy, renewed in history:
        now += gap
        if renewed:
            view = replace(view, beat=view.beat + 1)
        if not healthy:
            unchanged_since = None
        elif unchanged_since is None or renewed or gap > 4.0:
            unchanged_since = now
        lapsed = watch.observe(now, [view], healthy=healthy)
        assert lapsed == ([view] if unchanged_since is not None and now - unchanged_since >= 6.0 else [])

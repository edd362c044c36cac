"""Hypothesis drives a round through random histories, next to a journal that records what Redis would."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace

from combiner.domain.config import RoundConfig
from combiner.domain.round import Close, RoundPolicy, Succeeded, Wait, Why
from combiner.domain.types import ClientRecord, ClientState, Job, Kind, State
from hypothesis import given, settings
from hypothesis import strategies as st

S = ClientState
DEADLINE_MS = 100_000
# What the journal allows: the state before each step, and after it.
STEPS: Mapping[str, tuple[tuple[ClientState, ...], ClientState]] = {
    "received": ((S.ASKED, S.FAILED), S.RECEIVED),
    "accepted": ((S.RECEIVED,), S.ACCEPTED),
    "rejected": ((S.ASKED, S.RECEIVED), S.REJECTED),
    "failed": ((S.ASKED,), S.FAILED),
}
Move = tuple[str, str, int]
# The words of a move; `answered` is received and accepted.
WORDS = [*STEPS, "answered", "answered", "answered", "away", "back", "lost", "resume"]


@st.composite
def rounds(draw: st.DrawFn) -> tuple[int, RoundConfig]:
    """A number of asked clients, mostly enough of them, and a config."""
    asked = draw(st.sampled_from([0, 1, 2, 3, 4, 4, 4]))
    required = draw(st.integers(1, max(asked, 1)) | st.integers(1, 5))
    return asked, RoundConfig(
        task=Kind.TRAINING,
        model_id="m",
        round_id="1",
        clients_required=required,
        clients_requested=draw(st.integers(required, 5)),
        buffer_size=draw(st.sampled_from([-1, -1, -1, 1, 3, 9])),
        grace=draw(st.sampled_from([None, None, 0.0, 3.0, 30.0])),
        client_grace=draw(st.sampled_from([0.0, 2.0, 10.0])),
    )


moves = st.tuples(
    st.sampled_from(WORDS),
    st.integers(0, 4).map("c{}".format),  # the last one is never asked
    st.sampled_from([0, 0, 0, 100, 2_000, 4_000, 30_000]),  # how much later, in ms
)


class History:
    """A policy that lives through it all, beside its journal."""

    def __init__(self, asked: int, config: RoundConfig) -> None:
        self.config = config
        self.now_ms = 1_000
        names = [f"c{i}" for i in range(asked)]
        self.job = Job(
            job_id="j",
            session_id="",
            kind=Kind.TRAINING,
            state=State.RUNNING,
            reason="",
            round_id="1",
            model_id="",
            parent_model_id="m",
            config={},
            phase="collecting",
            version=1,
            created_ms=0,
            deadline_ms=DEADLINE_MS,
            clients={name: ClientRecord(name, S.ASKED, f"t-{name}", at_ms=self.now_ms) for name in names},
        )
        self.policy = RoundPolicy(names, config, DEADLINE_MS / 1000)

    @property
    def now(self) -> float:
        return self.now_ms / 1000

    def move(self, what: str, client: str, later_ms: int) -> None:
        self.now_ms += later_ms
        if what in STEPS:
            self._step(what, client)
        elif what == "answered":
            self._step("received", client)
            self._step("accepted", client)
        elif what == "resume":
            self.policy = self.resumed()
        elif what == "away":
            self.policy.away(client, self.now - 1.0)
        elif what == "back":
            self.policy.back(client)
        else:
            for lost in self.policy.lost(self.now):
                assert self.job.clients[lost].state is S.ASKED
                self._step("failed", lost)

    def _step(self, what: str, client: str) -> None:
        """What the journal allows is recorded and told; what is out of date may be told, too."""
        before, after = STEPS[what]
        record = self.job.clients.get(client)
        if record is not None and record.state in before and not self._too_late(what):
            changed = replace(record, state=after, at_ms=self.now_ms)
            self.job = replace(self.job, clients={**self.job.clients, client: changed})
        elif not self._out_of_date(what, record):
            return
        if what == "accepted":
            self.policy.accepted(client, self.now)
        else:
            getattr(self.policy, what)(client)

    def _too_late(self, what: str) -> bool:
        return self.job.closed and what in ("received", "failed")

    def _out_of_date(self, what: str, record: ClientRecord | None) -> bool:
        """A step of a client that nobody asked, or one that the client's present state came after."""
        return record is None or (what != "accepted" and record.state in (S.RECEIVED, S.ACCEPTED, S.REJECTED))

    def close_if_told(self) -> Close | Wait:
        decision = self.policy.decide(self.now)
        if isinstance(decision, Close) and not self.job.closed:
            self.job = replace(self.job, closed=True, closed_why=str(decision.why))
        return decision

    def resumed(self) -> RoundPolicy:
        return RoundPolicy.resume(self.job, self.config, self.now)

    def count(self, *states: ClientState) -> int:
        return len(self.job.of_state(*states))

    def holds(self, why: Why) -> bool:
        """Whether this reason to close is true of the journal."""
        accepted, open_ = self.count(S.ACCEPTED), self.count(S.ASKED, S.RECEIVED)
        required = self.config.clients_required
        if why is Why.GOAL:
            wanted = self.config.buffer_size
            if wanted < 0:
                wanted = min(self.config.clients_requested, len(self.job.clients))
            return accepted >= wanted and accepted >= required
        if why is Why.GRACE:
            times = sorted(record.at_ms for record in self.job.of_state(S.ACCEPTED))
            return (
                self.config.grace is not None
                and accepted >= required
                and self.now_ms >= times[required - 1] + self.config.grace * 1000
            )
        return {
            Why.ANSWERED: open_ == 0,
            Why.HOPELESS: accepted + open_ < required,
            Why.DEADLINE: self.now_ms >= DEADLINE_MS,
        }[why]


@given(rounds(), st.lists(moves, min_size=10, max_size=30), st.lists(moves, max_size=5))
@settings(max_examples=120, deadline=None)
def test_any_history(setup: tuple[int, RoundConfig], history: list[Move], after: list[Move]):
    """It closes once, as soon as there is a reason; a policy resumed from the journal agrees all along."""
    h = History(*setup)
    closed: Close | None = None
    for move in [*history, ("back", "c0", DEADLINE_MS), *after]:
        h.move(*move)
        decision = h.close_if_told()
        if isinstance(decision, Wait):
            assert closed is None
            assert not any(h.holds(why) for why in Why)
            assert decision.until is not None
            assert decision.until <= DEADLINE_MS / 1000
        elif closed is None:
            closed = decision
            assert h.holds(closed.why)
        else:
            assert decision == closed
        check_resumed(h)
    assert closed is not None
    assert isinstance(h.policy.verdict(), Succeeded) == (h.count(S.ACCEPTED) >= h.config.clients_required)


def check_resumed(h: History) -> None:
    """Absences are told again by the roster; all the rest must be in the journal."""
    resumed = h.resumed()
    assert {name: h.policy.state(name) for name in h.job.clients} == {
        name: record.state for name, record in h.job.clients.items()
    }
    assert [resumed.state(name) for name in h.job.clients] == [h.policy.state(name) for name in h.job.clients]
    for at in (h.now, h.now + 3, DEADLINE_MS / 1000):
        lived, read = deepcopy(h.policy, {id(h.config): h.config}), h.resumed()
        if isinstance(lived.decide(at), Close):
            assert lived.decide(at) == read.decide(at)
            assert lived.verdict() == read.verdict()
        else:
            assert isinstance(read.decide(at), Wait)


@given(rounds(), st.permutations(range(6)))
@settings(max_examples=100, deadline=None)
def test_the_order_of_answers_makes_no_difference(setup: tuple[int, RoundConfig], order: list[int]):
    asked, config = setup

    def run(names: list[str]) -> Close | Wait:
        policy = RoundPolicy(names, config, 100.0)
        for name in names:
            policy.received(name)
        for name in names:
            policy.accepted(name, 1.0)
        return policy.decide(1.0)

    assert run([f"c{i}" for i in range(asked)]) == run([f"c{i}" for i in order if i < asked])

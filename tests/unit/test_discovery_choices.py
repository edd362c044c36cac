"""Which combiner a client gets, and which helper: by hand-driven clocks, without a network."""

from __future__ import annotations

import pytest
from discovery_mock import helpers as helpers_module
from discovery_mock.helpers import Generation, HelperChoice, Helpers
from discovery_mock.registry import ARRIVES_S, Combiner, CombinerRegistry

from tests.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> CombinerRegistry:
    return CombinerRegistry(90.0, clock)


def combiner(name: str, active: int = 0, most: int | None = None) -> Combiner:
    return Combiner(name, f"host-{name}", 12080, None, False, active, most)


def chosen(registry: CombinerRegistry, client: str, preferred: str | None = None) -> str | None:
    found = registry.choose(client, preferred)
    return found.name if found else None


def test_the_least_loaded_is_chosen_as_a_number(registry: CombinerRegistry) -> None:
    for name, active in (("a", 10), ("b", 9), ("c", 100)):
        registry.announce(combiner(name, active))
    assert [chosen(registry, str(i)) for i in range(4)] == ["b", "a", "b", "a"]


def test_a_client_that_asks_again_is_counted_once_and_stays(registry: CombinerRegistry) -> None:
    for name in ("a", "b"):
        registry.announce(combiner(name))
    assert [chosen(registry, "c1") for _ in range(5)] == ["a"] * 5
    assert (registry.load("a"), registry.load("b")) == (1, 0)
    assert chosen(registry, "c1", "b") == "b"
    assert (registry.load("a"), registry.load("b")) == (0, 1)


def test_many_at_once_are_spread_evenly(registry: CombinerRegistry) -> None:
    for name, active in (("a", 30), ("b", 0), ("c", 10)):
        registry.announce(combiner(name, active))
    for i in range(80):
        registry.choose(f"c{i}")
    assert [registry.load(name) for name in ("a", "b", "c")] == [40, 40, 40]


def test_those_who_arrived_are_counted_by_the_combiner(registry: CombinerRegistry, clock: Clock) -> None:
    registry.announce(combiner("a"))
    registry.choose("early")
    clock.now = ARRIVES_S
    registry.choose("late")
    registry.announce(combiner("a", 1))
    assert registry.load("a") == 2, "the early one is in its number, the late one not yet"


def test_a_full_one_is_left_out_whoever_prefers_it(registry: CombinerRegistry) -> None:
    registry.announce(combiner("small", 1, 2))
    registry.announce(combiner("large", 5, 100))
    assert chosen(registry, "c1") == "small"
    assert chosen(registry, "c1") == "small", "who has the last place keeps it"
    assert chosen(registry, "c2") == "large", "small may be full by now"
    registry.announce(combiner("small", 2, 2))
    assert chosen(registry, "c2", "small") is None
    assert chosen(registry, "c2") == "large"
    assert chosen(registry, "c3", "unknown") is None


def test_the_silent_are_forgotten(registry: CombinerRegistry, clock: Clock) -> None:
    registry.announce(combiner("a"))
    clock.now = 90.0
    assert registry.find("a")
    clock.now = 90.1
    assert registry.find("a") is None
    assert registry.live() == []
    assert chosen(registry, "c1") is None
    assert registry.announce(combiner("a")), "it is new again"


def test_made_up_names_use_up_no_room(registry: CombinerRegistry) -> None:
    registry.announce(combiner("a", 3, 10_000))
    for i in range(20_000):
        registry.choose(f"made-up{i}", sender="198.51.100.1")
    assert chosen(registry, "honest") == "a"


def test_of_the_expected_the_oldest_of_the_busiest_sender_are_forgotten(
    registry: CombinerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("discovery_mock.registry.MAX_EXPECTED", 3)
    registry.announce(combiner("a"))
    registry.announce(combiner("b", 5))
    registry.choose("honest", sender="192.0.2.1")
    for i in range(10):
        registry.choose(f"c{i}", "a", sender="198.51.100.1")
    assert registry.load("a") == 3
    assert chosen(registry, "honest", "b") == "b"
    assert registry.load("a") == 2, "the honest one was still among them"


class Witness:
    def __init__(self) -> None:
        self.answer = False
        self.asked: list[float] = []

    async def heard_lately(self, combiner: Combiner, client: str, seconds: float) -> bool:
        self.asked.append(seconds)
        return self.answer


HELPERS = Helpers("kerashelper", "numpyhelper", {"special": "androidhelper"})


@pytest.mark.parametrize(
    ("generation", "helper"),
    [
        (Generation.OLD, "kerashelper"),
        (Generation.UNSURE, "kerashelper"),
        (Generation.NEW, "numpyhelper"),
    ],
)
async def test_the_default_of_each_generation(generation: Generation, helper: str) -> None:
    choice = HelperChoice(HELPERS, Witness())
    assert await choice.choose("c1", generation, combiner("a")) == helper
    assert await choice.choose("special", generation, combiner("a")) == "androidhelper"


async def test_what_a_client_cannot_import_is_learned(clock: Clock) -> None:
    witness = Witness()
    choice = HelperChoice(HELPERS, witness, clock=clock)
    told = []
    # It comes, comes again at once, then after its stream of a day, then is downgraded and comes twice.
    for heard, passed in ((False, 0.0), (False, 5.0), (True, 86_400.0), (True, 60.0), (False, 5.0)):
        witness.answer, clock.now = heard, clock.now + passed
        told.append(await choice.choose("c1", Generation.UNSURE, combiner("a")))
    assert told == ["kerashelper", "numpyhelper", "numpyhelper", "numpyhelper", "kerashelper"]
    assert witness.asked == [5.0, 86_400.0, 60.0, 5.0], "since it was told the last time"


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sender makes the choice forget only what it asked itself."""
    monkeypatch.setattr(helpers_module, "MAX_REMEMBERED", 3)
    choice = HelperChoice(HELPERS, Witness())
    await choice.choose("honest", Generation.UNSURE, combiner("x"), "192.0.2.1")
    for name in ("a", "b", "c"):
        await choice.choose(name, Generation.UNSURE, combiner("x"), "198.51.100.1")
    again = {
        name: await choice.choose(name, Generation.UNSURE, combiner("x"), sender)
        for name, sender in (("honest", "192.0.2.1"), ("c", "198.51.100.1"), ("a", "198.51.100.1"))
    }
    assert again == {"honest": "numpyhelper", "c": "numpyhelper", "a": "kerashelper"}

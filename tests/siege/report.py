"""The result of a siege: whether it is good, and as docs/siege.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.siege.attacks import ATTACKS, Attack
from tests.siege.honest import MEMBER
from tests.siege.limits import CPU
from tests.siege.limits import MEMORY as LIMITED_MEMORY
from tests.siege.siege import ATTACKER_CORES, RATE, STRANGER, Line
from tests.siege.stack import MEMORY as MEMORY_LIMIT
from tests.siege.stack import REDIS_MAXMEMORY

SLOWER: Final = 2.0  # a round, at most, while it is attacked
GROWN: Final = 1.1  # what is held after a second siege, at most
# Less than this is noise: a connection that is being opened, an update that is being folded.
NOISE: Final = {"memory": 1 << 20, "scratch": 1 << 20, "open": 8}

INTRODUCTION: Final = """\
# The siege

Written by `make siege`. Ten honest clients and one more took part in rounds on the whole stack as real
processes: HAProxy, two combiners, a modelstore, Valkey with maxmemory {redis}, tokens on. Each combiner and
the modelstore had {memory} of memory, by {by_memory}. Meanwhile two attackers by turns did all that the table
lists, {seconds:.0f} s each, at up to {rate:.0f} MB/s, held to {cores:g} of a core by {by_cpu}: a *stranger*
without a token, and the *member*, whose token is bound to the eleventh client; *through* the gateway, and
*past* it, at the services' own ports. While `large_answers` ran, Redis was stopped for 3 s.
"""


ATTACKS_HEAD: Final = """\
## Attacks

In a cell: which way, how much was sent, how many rounds ended meanwhile, and their median.

"""
WHO: Final = (STRANGER, MEMBER)


@dataclass
class Result:
    """Attributes:
    seconds: of each turn.
    undisturbed: median seconds of a round without an attack.
    lines, medians, held: of each siege.
    """

    seconds: float
    undisturbed: float = 0.0
    lines: list[list[Line]] = field(default_factory=list)
    medians: list[float | None] = field(default_factory=list)
    held: list[Mapping[str, int]] = field(default_factory=list)
    broken: Sequence[str] = ()
    how: Mapping[str, str] = field(default_factory=dict)

    def troubles(self, *, measured: bool) -> list[str]:
        """The failures; figures count only if the siege was `measured`."""
        found = list(self.broken)
        found += ["no round ended in a siege" for median in self.medians if median is None]
        if not measured:
            return found
        for median in self.medians:
            if median is not None and median > SLOWER * self.undisturbed:
                found.append(f"a round took {median:.2f} s, undisturbed {self.undisturbed:.2f} s")
        return found + [f"{name}: {before:,} -> {after:,}" for name, before, after in self.grown()]

    def grown(self) -> Iterator[tuple[str, int, int]]:
        first, last = self.held[0], self.held[-1]
        for name, before in first.items():
            allowed = max(before * GROWN, before + NOISE[name.partition(" ")[0]])
            if last[name] > allowed:
                yield name, before, last[name]


def page(result: Result) -> str:
    parts = [
        INTRODUCTION.format(
            redis=f"{REDIS_MAXMEMORY >> 20} MiB",
            memory=f"{MEMORY_LIMIT >> 20} MiB",
            by_memory=result.how.get(LIMITED_MEMORY, "nothing"),
            by_cpu=result.how.get(CPU, "nothing"),
            seconds=result.seconds,
            rate=RATE / 1e6,
            cores=ATTACKER_CORES,
        ),
        _rounds(result),
        _attacks(result),
        _held(result),
    ]
    return "\n".join(parts)


def _rounds(result: Result) -> str:
    rows = [f"| undisturbed | {result.undisturbed:.2f} |  |"]
    for number, median in enumerate(result.medians, 1):
        lines = result.lines[number - 1]
        shown = "none" if median is None else f"{median:.2f}"
        rows.append(f"| siege {number} | {shown} | {sum(line.rounds for line in lines)} |")
    head = "## Rounds\n\n| | median seconds of a round | rounds that ended |\n|---|---|---|\n"
    broken = "".join(f"- {what}\n" for what in result.broken) or "No round failed, and no process died.\n"
    return f"{head}{chr(10).join(rows)}\n\n{broken}"


def _attacks(result: Result) -> str:
    columns = [f"{who}, siege {number}" for number in range(1, len(result.lines) + 1) for who in WHO]
    head = f"{ATTACKS_HEAD}| attack | {' | '.join(columns)} |\n{'|---' * (len(columns) + 1)}|\n"
    rows = []
    for name, attack in ATTACKS.items():
        cells = [
            "; ".join(_cell(line) for line in lines if (line.turn.attack, line.turn.who) == (name, who))
            for lines in result.lines
            for who in WHO
        ]
        rows.append(f"| `{name}`: {_what(attack)} | {' | '.join(cells)} |\n")
    return head + "".join(rows)


def _what(attack: Attack) -> str:
    """The first letter of its docstring is that of a sentence."""
    text = " ".join((attack.__doc__ or "").split()).rstrip(".")
    return text[:1].lower() + text[1:]


def _cell(line: Line) -> str:
    way = "past" if line.turn.past else "through"
    ended = f"{line.rounds} rounds, {line.median:.2f} s" if line.median is not None else "no round"
    return f"{way}, {line.sent / 1e6:.0f} MB: {ended}"


def _held(result: Result) -> str:
    numbers = range(1, len(result.held) + 1)
    head = "## What the processes hold afterwards\n\n| | " + " | ".join(f"after siege {n}" for n in numbers)
    rule = "|---|" + "---|" * len(result.held)
    rows = [
        f"| {name} | " + " | ".join(f"{held[name]:,}" for held in result.held) + " |"
        for name in (result.held[0] if result.held else {})
    ]
    return f"{head} |\n{rule}\n" + "\n".join(rows) + "\n"

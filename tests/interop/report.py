"""What was found, as docs/interop.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import distributions
from typing import Any, Final

from tests.interop.environments import environment
from tests.interop.eras import ERAS, Era
from tests.interop.failures import CRASH
from tests.interop.killed import KILLED, LONG_S, Killed
from tests.interop.waiting import MOST_A_SECOND, OUTAGE_S, Waiting

INTRODUCTION: Final = """\
# FEDn's own clients on this stack

Written by `make interop`. Clients of FEDn from PyPI, unmodified, told by `client.yaml` and the
environment only, ran with the whole stack as real processes: two combiners and a modelstore behind
HAProxy, Redis with its append-only file, a discovery. They fetched one compute package and trained with
it. Whatever is in the tables was checked, and the page is written only if all of it held.

## Together, and each alone

All were in one session, and each alone in one: assigned, package fetched, trained, its update accepted,
the aggregate equal to the weighted mean of the updates (each client's own place in it shows its share),
the new model validated, and the metrics of each kept with the job.
"""
WHEN_KILLED: Final = f"""
## One combiner is killed

The streams of all clients were at one of the two combiners. What was killed with SIGKILL: the combiner
with the streams; in SendModelUpdate the other one, which had the calls (Redis was not answering, so all
were in it). Clients trained for {LONG_S:g} s more after the kill. Every session SUCCEEDED with every
client in the aggregate exactly once; **no client had to be started again**.

"Goes on": its training counted, and it was not disturbed. "Asked again": it was given the same task again
when its stream was back, and trained twice; one of the two counted. The seconds are until its stream was
at the other replica.
"""
WHEN_FAILED: Final = """
## A training that comes to nothing

All clients failed in the same round, and one of ours did not: the round ended with its update, long
before the deadline of 140 s, and named each client with this reason. "Ends" means that the client's
process ended, which is how FEDn's second generation takes it.
"""
WHEN_WAITING: Final = f"""
## The stack is not ready, or goes away

The discovery was up before everything else. None of the clients ended, and all joined when the stack was
ready. The numbers are requests a second, in the five seconds that had most of them; no more than
{MOST_A_SECOND:g} are allowed. Under "no combiner behind the gateway" clients were connected, and both
combiners were killed for {OUTAGE_S:g} s: all calls of a client, heartbeats too.
"""


def markdown(found: Mapping[str, Any]) -> str:
    """Of what was found; parts that were not run are left out."""
    parts = [INTRODUCTION]
    if "alone" in found:
        parts.append(_table(["FEDn", "grpcio", "started by", "alone"], lambda era: _run(era, found["alone"])))
    if "together" in found:
        parts.append(f"\nThe session of all six took {found['together']:.1f} s.\n")
    if "killed" in found:
        parts += [WHEN_KILLED, _killed(found["killed"])]
    if "failures" in found:
        parts += [WHEN_FAILED, _failed(found["failures"])]
    if "waiting" in found:
        parts += [
            WHEN_WAITING,
            _waited([found["waiting"], *([found["outage"]] if "outage" in found else [])]),
        ]
    return "".join(parts)


def _table(heads: Sequence[str], row: Callable[[Era], Sequence[str]]) -> str:
    return "\n" + "".join(_lines([heads, ["---"] * len(heads), *(row(era) for era in ERAS)]))


def _lines(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in rows:
        yield f"| {' | '.join(row)} |\n"


def _run(era: Era, alone: Mapping[str, float]) -> list[str]:
    packages = distributions(path=[str(next(environment(era).glob("lib/python*/site-packages")))])
    grpcio = next(one.version for one in packages if one.metadata["Name"] == "grpcio")
    return [era.title, grpcio, f"`fedn {' '.join(era.command)}`", f"{alone[era.name]:.1f} s"]


def _killed(found: Mapping[str, Killed]) -> str:
    return _table(["FEDn", *found], lambda era: [era.title, *(_went(one, era) for one in found.values())])


def _went(one: Killed, era: Era) -> str:
    trainings = one.trainings[era.name]
    word = "goes on" if trainings == 1 else f"asked again ({trainings} trainings)"
    return f"{word}; {one.back[era.name]:.0f} s" if one.victim == KILLED else word


def _failed(found: Mapping[str, Any]) -> str:
    heads = {"empty": "0 bytes uploaded", "fails": "training exits with 1", CRASH: "client killed"}

    def cell(mode: str, era: Era) -> str:
        one = found[mode]
        ends = "; ends" if era.name in one.ended and mode != CRASH else ""
        return f"`{one.reasons[era.name]}`{ends}"

    ends = [f"{found[mode].seconds:.0f} s" for mode in heads]
    table = _table(["FEDn", *heads.values()], lambda era: [era.title, *(cell(mode, era) for mode in heads)])
    return table + "".join(_lines([["round ended after", *ends]]))


def _waited(found: Sequence[Waiting]) -> str:
    heads = ["FEDn"]
    for one in found:
        heads += [*one.rates, "joined after"]

    def row(era: Era) -> list[str]:
        cells = [era.title]
        for one in found:
            cells += [f"{rates[era.name]:.1f}" for rates in one.rates.values()]
            cells.append(f"{one.joined[era.name]:.0f} s")
        return cells

    return _table(heads, row)

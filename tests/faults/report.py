"""What a run of the matrix came to: on the terminal, and as docs/faults.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from tests.faults.cases import SELF, Programs, describe
from tests.faults.conductor import Point
from tests.faults.faults import How
from tests.faults.notes import Line
from tests.faults.trial import Count

SHORT: Final = {
    How.KILL: "kill",
    How.STOP: "stop",
    How.CUT: "cut",
    How.DRAIN: "SIGTERM",
    How.UPGRADE: "upgrade",
    How.FAILOVER: "failover",
}
INTRODUCTION: Final = """\
# What was pulled out, and what came of it

Written by `make faults`. One session of one training round and one validation with eight clients, all
of them required, ran through the whole stack as real processes: {stack}.
At the named step the process that had come there stopped, before the step was made or when it was made
and the process did not know it yet; then this happened to it, or to the back end that the step needs, or
to the gateway:

- **kill**: SIGKILL, and started again after 0.5 s
- **stop**: SIGSTOP for 15 s
- **cut**: all its connections broken, and refused for 9 s: longer than a lease lives
- **SIGTERM**: drained; ended with 0 within 10 s, and started again
- **upgrade**: the same, but started again as a version whose layout of the state is newer; then the other
  combiner must leave with 1, leave again when it is started once more, and is upgraded, too
- **failover**: Redis has a replica, and the combiners wait for it (`REDIS_WAIT=1`). From the step on the
  replica hears nothing; the primary goes on alone for 0.5 s, is killed, and the replica is promoted as it is

Each cell is the time in seconds from the fault to the end of the session, and it stands there only if
all of this was true: the session and both jobs SUCCEEDED with no round tried twice; all eight updates
accepted, none rejected, failed or unrecorded; what a client had been told to be received was in the
journal at the moment of the fault; the aggregate has the bytes of the undisturbed run, and its one-hot
part shows each client exactly once; one model was registered; no task, running job or lease was left
in Redis, and every process was back. Updates, lost and doubled are counted from the one-hot parts of all
aggregates, those of the undisturbed sessions among them. A time of 0.0: the session ended at once, the fault
came after all that it needed. The machine may have had more to do than this.
"""


def numbers(lines: Sequence[Line]) -> str:
    count = sum((line.count for line in lines), Count())
    faults = sum(len(line.case) for line in lines)
    failed = sum(line.outcome is None for line in lines)
    return f"{faults} faults in {count}; {failed} of {len(lines)} cases failed"


def takeovers(lines: Sequence[Line]) -> Iterator[str]:
    """How long the job had no owner, by what had happened to it: of one fault, and of the first of two."""
    for number, which in ((1, ""), (2, ", the first of two")):
        for how in How:
            seconds = sorted(
                line.outcome.takeover
                for line in lines
                if line.outcome and line.outcome.takeover is not None
                if len(line.case) == number and line.case[0].how is how
            )
            if seconds:
                middle, most = seconds[len(seconds) // 2], seconds[-1]
                times = f"{len(seconds)} times" if len(seconds) > 1 else "once"
                yield f"{SHORT[how]}{which}: {times}, median {middle:.2f} s, at most {most:.2f} s"


def errors(lines: Sequence[Line]) -> str:
    calls = sum(line.outcome.errors for line in lines if line.outcome)
    return f"SendModelUpdate calls that a client saw fail: {calls}"


def markdown(lines: Sequence[Line], programs: Programs) -> str:
    single = [line for line in lines if len(line.case) == 1]
    parts = [
        INTRODUCTION.format(stack=_stack(programs)),
        f"**{numbers(lines)}.** {errors(lines)}.\n",
        "Another replica owned the job after:\n",
        *(f"- {text}" for text in takeovers(lines)),
        "\n## One fault\n",
        *_table(single),
        "\n## Two faults in a row\n",
        "| first | second | s |\n|---|---|---|",
        *(f"| {line.case[0]} | {line.case[1]} | {_cell(line)} |" for line in lines if len(line.case) == 2),
    ]
    return "\n".join(parts) + "\n"


def _stack(programs: Programs) -> str:
    gateway = "HAProxy, two combiners, a modelstore" if "gateway" in programs else "two combiners, no gateway"
    store = "MinIO" if "store" in programs else "a directory as object store"
    return f"{gateway}, a Valkey with `appendfsync always`, and {store}"


def _table(lines: Sequence[Line]) -> Iterator[str]:
    columns = sorted({_column(line) for line in lines}, key=_order)
    yield "| step | " + " | ".join(columns) + " |"
    yield "|---|" + "---|" * len(columns)
    points: dict[Point, dict[str, str]] = {}
    for line in lines:
        points.setdefault(line.case[0].point, {})[_column(line)] = _cell(line)
    for point, cells in points.items():
        yield f"| {point} | " + " | ".join(cells.get(column, "") for column in columns) + " |"


def _cell(line: Line) -> str:
    return f"{line.outcome.seconds:.1f}" if line.outcome else "**failed**"


def _column(line: Line) -> str:
    fault = line.case[0]
    who = "it" if fault.victim == SELF else fault.victim
    return f"{SHORT[fault.how]} {who}"


def _order(column: str) -> tuple[int, str]:
    return ["it", "redis", "store", "gateway"].index(column.split()[-1]), column


def told(line: Line) -> str:
    """One line for the terminal."""
    if line.outcome is None:
        return f"FAILED  {describe(line.case)}\n        {line.error}"
    taken = f", taken over after {line.outcome.takeover:.2f} s" if line.outcome.takeover is not None else ""
    return f"ok {line.outcome.seconds:5.1f} s  {describe(line.case)}{taken}"

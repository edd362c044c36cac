"""`combiner events`: what happens in the stack, in one line each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import aclosing
from datetime import datetime
from typing import Annotated, Final

import typer

from fedcombiner.cli import rows
from fedcombiner.cli.output import WATCH_PATIENCE_S, call, options, print_json
from fedcombiner.cli.remote import remote
from fedcombiner.client.operator import OperatorClient
from fedcombiner.servicekit.errors import printable
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2, events_pb2

_NAMES_SHOWN: Final = 5
_TEXT_CHARS: Final = 500


@remote
def events(
    context: typer.Context,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what happens from now on.")
    ] = False,
    last: Annotated[int, typer.Option(min=0, max=1000, help="Begin with the last N.")] = 20,
    session: Annotated[str, typer.Option(help="Only of this session and its jobs.")] = "",
    job: Annotated[str, typer.Option(help="Only of this job.")] = "",
    client: Annotated[str, typer.Option(help="Only of this client, and everything that it says.")] = "",
    messages: Annotated[
        bool, typer.Option("--messages", help="Everything that clients say, not only warnings.")
    ] = False,
) -> None:
    """What happened lately: jobs, sessions, updates, clients that come and go, and their warnings.

    Examples:
      combiner events --follow
      combiner events --client alice --last 100
      combiner events --follow --json | jq 'select(.what == "rejected")'
    """
    show: Callable[[events_pb2.Event], None] = _print_row if options(context).as_json else _print_line

    async def read(operator: OperatorClient) -> None:
        if not follow:
            for event in await operator.recent_events(
                last, session_id=session, job_id=job, client=client, messages=messages
            ):
                show(event)
            return
        following = operator.watch_events(
            last, session_id=session, job_id=job, client=client, messages=messages
        )
        async with aclosing(following) as news:
            async for event in news:
                show(event)

    call(context, read, patience=WATCH_PATIENCE_S if follow else 0.0)


def _print_row(event: events_pb2.Event) -> None:
    print_json(rows.event(event))


def _print_line(event: events_pb2.Event) -> None:
    at = datetime.fromtimestamp(event.at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    sys.stdout.write(f"{at}  {sentence(event)}\n")
    sys.stdout.flush()


def sentence(event: events_pb2.Event) -> str:
    """One line for people; what clients chose to say cannot break it."""
    tell = _SENTENCES.get(event.what)
    text = tell(event) if tell else " ".join(filter(None, (event.what, event.job_id, event.reason)))
    return printable(text, _TEXT_CHARS)


def _who(event: events_pb2.Event) -> str:
    names = list(event.clients[:_NAMES_SHOWN])
    more = len(event.clients) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _job(event: events_pb2.Event) -> str:
    kind = combiner_pb2.Kind.Name(event.kind).lower() if event.kind else "job"
    return f"{kind} of round {event.round_id}" if event.round_id else f"{kind} {event.job_id[:8]}"


def _why(event: events_pb2.Event) -> str:
    return f": {event.reason}" if event.reason else ""


def _progress(event: events_pb2.Event) -> str:
    return f"({event.accepted + event.rejected + event.failed} of {event.asked} settled)"


def _session(event: events_pb2.Event) -> str:
    state = combiner_pb2.State.Name(event.state) if event.state else "changed"
    job = f", job {event.job_id}" if event.job_id and event.state == combiner_pb2.RUNNING else ""
    return f"session {event.session_id}: {state}{job}{_why(event)}"


def _end(event: events_pb2.Event) -> str:
    return f"{_job(event)} {combiner_pb2.State.Name(event.state)}{_why(event)}"


_SENTENCES: Final[Mapping[str, Callable[[events_pb2.Event], str]]] = {
    "queued": lambda e: f"{_job(e)} is queued as job {e.job_id}",
    "running": lambda e: f"{_job(e)} begins",
    "waiting": lambda e: f"{_job(e)} waits for more clients",
    "asked": lambda e: f"{_job(e)}: {e.asked} clients are asked",
    "received": lambda e: f"{_job(e)}: {_who(e)} has answered",
    "accepted": lambda e: f"{_job(e)}: {_who(e)} is accepted {_progress(e)}",
    "rejected": lambda e: f"{_job(e)}: {_who(e)} is rejected{_why(e)} {_progress(e)}",
    "failed": lambda e: f"{_job(e)}: {_who(e)} has failed{_why(e)} {_progress(e)}",
    "listed": lambda e: f"{_job(e)}: an answer of {_who(e)} does not count{_why(e)}",
    "unrecorded": lambda e: f"{_job(e)}: an answer of {_who(e)} came too late for the journal",
    "closed": lambda e: f"{_job(e)} is closed{_why(e)}; {e.accepted} accepted",
    "committed": lambda e: (
        f"{_job(e)} {combiner_pb2.State.Name(e.state)}: {e.accepted} updates are the new model"
    ),
    "ended": _end,
    "cancelled": _end,
    "session": _session,
    "released": lambda e: "work was given back by a replica that stops",
    "joined": lambda e: f"client {_who(e)} is here",
    "left": lambda e: f"client {_who(e)} is gone",
    "status": lambda e: f"client {_who(e)} says {e.reason}: {e.text}",
    "settings": lambda e: "settings were changed",
    "resync": lambda e: "some events before this one are no longer known",
}

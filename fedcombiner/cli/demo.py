"""`combiner demo`: real data, ten clients, ten rounds; on a stack of its own, or on a running one."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fedcombiner.cli.resources import bars, show_progress
from fedcombiner.client.arrays import read_arrays
from fedcombiner.client.operator import OperatorClient
from fedcombiner.client.trust import Trust
from fedcombiner.demo import clients, digits
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb

PATIENCE_S = 60.0
JOIN_S = 60.0
CHART_ROWS = 8


class DemoFailed(Exception):
    """The session did not succeed; says why."""


async def run(
    server: str | None,
    trust: Trust | None,
    *,
    token: str = "",
    rounds: int,
    count: int,
    seed: int,
    out: Path,
    console: Console,
    own_clients: bool = True,
) -> float:
    """Train, and return the accuracy of the model in `out` on held-out data. Raises DemoFailed.

    Where the running `server` asks for tokens, `token` is an operator's: it is for the clients, too. Without
    `own_clients` those of the same names that run elsewhere are waited for.
    """
    async with (
        _stack(server) as address,
        _clients(clients.Order.of(address, count, seed, trust, token)) if own_clients else nullcontext(),
        OperatorClient(address, trust=trust, token=token, patience=PATIENCE_S) as operator,
    ):
        await operator.wait_for_clients([clients.name(i) for i in range(count)], timeout=JOIN_S)
        console.print(f"{count} clients have joined {address}; {rounds} rounds of training begin")
        seed_model = await operator.put_model(digits.seed_model(seed), name="demo seed")
        session = await operator.start_session(
            {"rounds": rounds, "clients_required": count, "clients_requested": count},
            model_id=seed_model.model_id,
        )
        ended = await _watch(operator, session.session_id, console)
        if ended.state != pb.SUCCEEDED:
            raise DemoFailed(f"session {ended.session_id} {pb.State.Name(ended.state)}: {ended.reason}")
        out.parent.mkdir(parents=True, exist_ok=True)
        await operator.get_model(ended.model_id, out)
    _show(ended, console)
    _, held_out = digits.load(seed)
    return digits.evaluate(read_arrays(out), held_out)["accuracy"]


@asynccontextmanager
async def _stack(server: str | None) -> AsyncIterator[str]:
    """The address of a stack: the running one that was named, or one made for now on free ports."""
    if server:
        yield server
        return
    from fedcombiner.servicekit import logs
    from fedcombiner.servicekit.lifecycle import Stopped
    from fedcombiner.standalone.app import Standalone, StandaloneSettings

    # The stack's own log would tear the picture apart; what fails it still says.
    logs.configure("console", "error", "demo")
    with tempfile.TemporaryDirectory(prefix="federated-combiner-", ignore_cleanup_errors=True) as data:
        settings = StandaloneSettings(data_dir=Path(data), port=0, discovery_port=0, metrics_port=0)
        try:
            async with Standalone(settings) as stack:
                yield stack.address
        except Stopped as error:
            raise DemoFailed(f"the stack stopped: {error}") from None


@asynccontextmanager
async def _clients(order: clients.Order) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fedcombiner.demo.clients"),
        stdin=asyncio.subprocess.PIPE,
        # One thread for each client's arithmetic: ten of them share this machine's cores already.
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,
    )
    assert process.stdin is not None
    try:
        process.stdin.write(order.line())
        yield
    finally:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 5)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _watch(operator: OperatorClient, session_id: str, console: Console) -> pb.Session:
    session = pb.Session()
    with bars(console.is_terminal, console) as progress:
        bar, done = progress.add_task("round 1", total=None), 0
        async for event in operator.watch_session(session_id):
            if event.HasField("job"):
                show_progress(progress, bar, event.job)
                continue
            session = event.session
            finished = [result for result in session.results if result.metrics]
            for result in finished[done:]:
                done += 1
                _say(result, session.rounds, console)
            if session.rounds_done < session.rounds:
                progress.update(bar, description=f"round {session.rounds_done + 1}", completed=0)
    return session


def _say(result: pb.RoundResult, rounds: int, console: Console) -> None:
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in sorted(result.metrics.items()))
    console.print(f"round {result.round_id:>2}/{rounds}  {result.accepted} updates  {metrics}")


def _show(session: pb.Session, console: Console) -> None:
    table = Table("round", "updates", "loss", "accuracy", "seconds", box=None, header_style="bold")
    validated = [result for result in session.results if "accuracy" in result.metrics]
    for result in validated:
        metrics = result.metrics
        seconds = f"{result.ended_at - result.started_at:.2f}"
        row = (
            result.round_id,
            str(result.accepted),
            f"{metrics['loss']:.4f}",
            f"{metrics['accuracy']:.4f}",
            seconds,
        )
        table.add_row(*row)
    console.print(table)
    for line in chart([result.metrics["accuracy"] for result in validated]):
        console.print(line, markup=False, highlight=False)


def chart(values: list[float]) -> list[str]:
    """Columns for values from 0 to 1, on an axis that begins a little below the least of them."""
    if not values:
        return []
    low = max(0.0, min(values) - 0.05)
    heights = [round((value - low) / (1 - low) * CHART_ROWS) if low < 1 else CHART_ROWS for value in values]
    lines = [
        f"{low + (1 - low) * row / CHART_ROWS:5.2f} | "
        + "  ".join("██" if height >= row else "  " for height in heights)
        for row in range(CHART_ROWS, 0, -1)
    ]
    numbers = "  ".join(f"{number:2d}" for number in range(1, len(values) + 1))
    return [*lines, f"      +-{'-' * len(numbers)}", f"round   {numbers}"]

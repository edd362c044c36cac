"""`combiner session export`: metrics by round and client, and help in what cannot be exported."""

from __future__ import annotations

import csv
import io

from fedcombiner.client.made_up import MadeUp, one_hot
from fedcombiner.client.messages import Task
from fedcombiner.client.simulate import SimulatedFleet
from fedcombiner.wire.eras import TRAINING
from tests.rpc import cli_kit
from tests.rpc.combiner_kit import WIDTH, Replica, put_seed


async def a_session(combiner: Replica) -> None:
    """Session `s`: round 1 fails once, then it and round 2 are validated by two clients."""
    seed = await put_seed(combiner)

    def fails(index: int, task: Task) -> bool:
        return (task.kind, task.config["round_id"], task.config["attempt"]) == (TRAINING, "1", "1")

    def make(index: int) -> MadeUp:
        return MadeUp(index, one_hot(WIDTH), fails=fails)

    async with SimulatedFleet(2, combiner.address, workload=make, heartbeat_interval=0.3):
        config = {"rounds": 2, "clients_required": 2}
        await combiner.operator.start_session(config, model_id=seed, session_id="s")
        await combiner.operator.wait_session("s")


async def test_metrics_are_exported_by_round_and_client(combiner: Replica) -> None:
    await a_session(combiner)
    rows = await cli_kit.rows(combiner, "session", "export", "s")
    clients = sorted({row["client"] for row in rows if row["client"]})
    assert len(clients) == 2
    assert [(row["round_id"], row["state"], row["client"]) for row in rows] == [
        ("1", "FAILED", None),
        *(("1", "SUCCEEDED", client) for client in (None, *clients)),
        *(("2", "SUCCEEDED", client) for client in (None, *clients)),
    ]
    assert [row["metrics"] for row in rows] == [{}, *[{"loss": 1.0, "accuracy": 0.5}] * 6]
    result = await cli_kit.run(combiner, "session", "export", "s", "--csv")
    table = list(csv.DictReader(io.StringIO(result.stdout)))
    assert len(table) == 1 + 6 * 2
    assert table[0] | {"started_at": "", "ended_at": ""} == {
        "session_id": "s", "round_id": "1", "state": "FAILED", "model_id": "", "accepted": "0",
        "started_at": "", "ended_at": "", "client": "", "metric": "", "value": "",
    }  # fmt: skip
    of_client = [row for row in table if row["client"] == clients[1] and row["round_id"] == "2"]
    assert [(row["metric"], float(row["value"])) for row in of_client] == [("accuracy", 0.5), ("loss", 1.0)]


async def test_the_means_outlive_the_models(combiner: Replica) -> None:
    await a_session(combiner)
    await combiner.operator.prune_models(1, dry_run=False)
    rows = await cli_kit.rows(combiner, "session", "export", "s")
    assert [(row["round_id"], bool(row["client"]), bool(row["metrics"])) for row in rows] == [
        ("1", False, False),
        ("1", False, True),
        ("2", False, True),
        ("2", True, True),
        ("2", True, True),
    ]


async def test_what_cannot_be_exported_is_said_with_what_to_do(combiner: Replica) -> None:
    unknown = await cli_kit.run(combiner, "session", "export", "nothing")
    assert unknown.exit_code == 2
    assert "combiner session list" in unknown.stderr
    both = await cli_kit.run(combiner, "session", "export", "s", "--csv", "--json")
    assert both.exit_code == 2
    assert "--csv and --json" in both.stderr

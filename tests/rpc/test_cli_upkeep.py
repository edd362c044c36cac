"""`combiner status`, `gc` and `model prune` against a real server."""

from __future__ import annotations

import pytest

from tests.rpc import cli_kit
from tests.rpc.combiner_kit import Replica, put_seed
from tests.rpc.upkeep_kit import objects, put_made_model, put_object


async def test_the_status_in_words_and_as_json(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    result = await cli_kit.run(combiner, "status")
    assert result.exit_code == 0
    lines = {line.split("  ")[0]: line for line in result.stdout.splitlines()}
    assert lines["redis"].split() == ["redis", "up"]
    assert seed in lines["newest model"]
    assert "0 active" in lines["clients"]
    [row] = await cli_kit.rows(combiner, "status")
    assert row["backends"] == {"redis": {"up": True, "error": None}, "store": {"up": True, "error": None}}
    assert (row["clients"], row["sessions"], row["queued_jobs"]) == (0, [], 0)
    assert row["newest_model"]["model_id"] == seed
    assert row["server"] == combiner.address


async def test_garbage_is_shown_and_removed_when_it_is_confirmed(combiner: Replica) -> None:
    await put_object(combiner, "models", "orphan", days_old=2)
    dry = await cli_kit.run(combiner, "gc", "--dry-run")
    assert "orphan" in dry.stdout
    refused = await cli_kit.run(combiner, "gc", typed="n\n")
    assert refused.exit_code == 1
    assert "nothing was done" in refused.stderr
    assert await objects(combiner, "models") == {"orphan"}
    done = await cli_kit.run(combiner, "gc", typed="y\n")
    assert done.stdout.splitlines()[-1].startswith("removed 1 model (")
    assert await objects(combiner, "models") == set()
    nothing = await cli_kit.run(combiner, "gc")
    assert (nothing.exit_code, nothing.stdout) == (0, "There is nothing to remove.\n")
    assert (await cli_kit.run(combiner, "gc", "--yes")).stdout == "removed nothing\n"


async def test_a_question_that_nobody_can_answer_removes_nothing(combiner: Replica) -> None:
    await put_object(combiner, "models", "orphan", days_old=2)
    result = await cli_kit.run(combiner, "gc", typed="")
    assert result.exit_code != 0
    assert await objects(combiner, "models") == {"orphan"}


async def test_models_are_pruned_without_a_question_when_told_so(combiner: Replica) -> None:
    for number, loss in enumerate((0.3, 0.1, 0.2)):
        await put_made_model(combiner, f"m{number}", loss=loss)
    words = ("model", "prune", "--keep", "1", "--keep-best", "loss", "--lowest-is-best")
    shown = await cli_kit.rows(combiner, *words, "--dry-run")
    assert [(row["id"], row["session_id"], row["removed"]) for row in shown] == [("m0", "s1", False)]
    gone = await cli_kit.rows(combiner, *words, "--yes")
    assert [(row["id"], row["removed"]) for row in gone] == [("m0", True)]
    assert await objects(combiner, "models") == {"m1", "m2"}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--keep", "0"], "--keep"),
        ([], "--keep"),
        (["--keep", "1", "--keep-best", "acuracy"], "accuracy"),
        (["--keep", "1", "--session", "nothing"], "nothing"),
    ],
)
async def test_what_cannot_be_pruned_is_refused(combiner: Replica, words: list[str], complaint: str) -> None:
    await put_made_model(combiner, "m0", accuracy=0.5)
    result = await cli_kit.run(combiner, "model", "prune", *words)
    assert result.exit_code == 2
    assert complaint in result.stderr

"""The command without a server: usage errors, exit codes, and how records look."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fedcombiner.cli import demo
from fedcombiner.cli.main import app
from fedcombiner.cli.output import JOB_FAILED, UNREACHABLE, USAGE
from fedcombiner.client.operator import OperatorClient
from fedcombiner.servicekit.errors import (
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ServiceError,
    Unimplemented,
)
from fedcombiner.version import __version__
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb

JOB = pb.Job(
    job_id="j1",
    kind=pb.TRAINING,
    state=pb.SUCCEEDED,
    round_id="1",
    model_id="m2",
    parent_model_id="m1",
    asked=["a", "b", "c"],
    accepted=["a"],
    rejected=[pb.Outcome(client="b", reason="shape", detail="w is (3,), not (2,)")],
    failed=[pb.Outcome(client="c", reason="client_lost")],
    unrecorded=["d"],
    started_at=1.5,
)


@pytest.fixture
def command() -> Callable[..., Result]:
    runner = CliRunner()
    return lambda *words: runner.invoke(app, words, env={"COMBINER_SERVER": None})


@pytest.fixture
def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["job", "show"], "job_id"),
        (["model", "put", "/nowhere/model.npz"], "does not exist"),
        (["session", "start", "--rounds", "0"], "rounds"),
        (["session", "start", "--set", "rounds"], "KEY=VALUE"),
        (["session", "dance"], "dance"),
        (["status", "--server"], "--server"),
        (["serve", "--port", "65536"], "port"),
        (["serve", "--log-level", "loud"], "loud"),
    ],
)
def test_usage_errors_exit_with_2_and_name_what_is_wrong(
    command: Callable[..., Result], words: list[str], complaint: str
) -> None:
    result = command(*words)
    assert result.exit_code == USAGE
    assert complaint in result.stderr
    assert result.stdout == ""


def test_serve_says_what_is_wrong_with_the_settings_of_its_store() -> None:
    result = CliRunner().invoke(app, ["serve"], env={"STORE": "minio", "MINIO_URL": "minio:9000"})
    assert result.exit_code == USAGE
    assert "MINIO_URL='minio:9000'" in result.stderr


def test_the_version(command: Callable[..., Result]) -> None:
    result = command("--version")
    assert (result.exit_code, result.stdout) == (0, f"combiner {__version__}\n")


@pytest.mark.parametrize(
    "words",
    [
        ["--server", "{}", "status"],
        ["job", "list", "--server", "{}", "--json"],
        ["model", "put", __file__, "--server", "{}"],
    ],
)
def test_a_server_that_is_not_there_exits_with_3_and_says_what_to_do(
    command: Callable[..., Result], words: list[str], free_address: str
) -> None:
    result = command(*(word.format(free_address) for word in words))
    assert result.exit_code == UNREACHABLE
    assert free_address in result.stderr
    assert "combiner serve" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_server_may_come_from_the_environment(free_address: str) -> None:
    result = CliRunner().invoke(app, ["status"], env={"COMBINER_SERVER": free_address})
    assert free_address in result.stderr


@pytest.mark.parametrize(
    ("error", "code", "hint"),
    [
        (NotFound("job_id: there is no job 'x'"), USAGE, "combiner job list"),
        (InvalidArgument("rounds", "x", "1 or more"), USAGE, ""),
        (PermissionDenied("no"), USAGE, "COMBINER_TOKEN"),
        (Unimplemented("no"), USAGE, "same version"),
        (ResourceExhausted("job"), JOB_FAILED, "combiner status"),
        (ServiceError("internal error"), JOB_FAILED, "combiner status"),
        (FileNotFoundError(2, "No such file or directory", "/no/where"), USAGE, ""),
    ],
)
def test_what_the_server_refuses_is_one_sentence_and_what_to_do_next(
    monkeypatch: pytest.MonkeyPatch, command: Callable[..., Result], error: Exception, code: int, hint: str
) -> None:
    async def refuse(self: OperatorClient, job_id: str) -> pb.Job:
        raise error

    monkeypatch.setattr(OperatorClient, "get_job", refuse)
    result = command("job", "show", "x")
    assert result.exit_code == code
    assert result.stderr.startswith("combiner: ")
    assert result.stderr.count("\n") == 1 + bool(hint)
    assert hint in result.stderr


@pytest.mark.parametrize("words", [["--json", "job", "show", "j1"], ["job", "show", "j1", "--json"]])
def test_a_job_as_json_has_exactly_the_promised_fields(
    monkeypatch: pytest.MonkeyPatch, command: Callable[..., Result], words: list[str]
) -> None:
    async def get(self: OperatorClient, job_id: str) -> pb.Job:
        return JOB

    monkeypatch.setattr(OperatorClient, "get_job", get)
    result = command(*words)
    assert result.exit_code == 0
    [line] = result.stdout.splitlines()
    assert json.loads(line) == {
        "job_id": "j1",
        "session_id": None,
        "kind": "training",
        "state": "SUCCEEDED",
        "reason": None,
        "round_id": "1",
        "model_id": "m2",
        "parent_model_id": "m1",
        "asked": ["a", "b", "c"],
        "accepted": ["a"],
        "rejected": [{"client": "b", "reason": "shape"}],
        "failed": [{"client": "c", "reason": "client_lost"}],
        "unrecorded": ["d"],
        "started_at": "1970-01-01T00:00:01.500+00:00",
        "ended_at": None,
        "format": None,
        "left_out": [],
    }


def test_people_are_also_told_why_an_update_was_rejected(
    monkeypatch: pytest.MonkeyPatch, command: Callable[..., Result]
) -> None:
    async def get(self: OperatorClient, job_id: str) -> pb.Job:
        return JOB

    monkeypatch.setattr(OperatorClient, "get_job", get)
    assert "w is (3,), not (2,)" in command("job", "show", "j1").stdout


def test_a_list_in_a_pipe_is_plain_and_one_record_a_line(
    monkeypatch: pytest.MonkeyPatch, command: Callable[..., Result]
) -> None:
    long = "x" * 100

    async def models(self: OperatorClient, *, session_id: str, limit: int) -> list[pb.Model]:
        return [pb.Model(model_id=f"{long}{i}", metrics={"[bold]loss": 0.123456}) for i in range(2)]

    monkeypatch.setattr(OperatorClient, "list_models", models)
    lines = command("model", "list").stdout.splitlines()
    assert len(lines) == 3
    assert lines[1].startswith(f"{long}0")
    assert "[bold]loss 0.1235" in lines[2]
    assert "\x1b" not in "".join(lines)
    as_json = command("model", "list", "--json").stdout.splitlines()
    assert [json.loads(line)["model_id"] for line in as_json] == [f"{long}0", f"{long}1"]


def test_an_empty_list_says_what_to_do_and_is_nothing_as_json(
    monkeypatch: pytest.MonkeyPatch, command: Callable[..., Result]
) -> None:
    async def models(self: OperatorClient, *, session_id: str, limit: int) -> list[pb.Model]:
        return []

    monkeypatch.setattr(OperatorClient, "list_models", models)
    assert "combiner model put" in command("model", "list").stdout
    assert command("--json", "model", "list").stdout == ""


@pytest.mark.parametrize(("state", "code"), [(pb.SUCCEEDED, 0), (pb.FAILED, 1), (pb.CANCELLED, 1)])
def test_watching_ends_with_the_fate_of_the_job(
    monkeypatch: pytest.MonkeyPatch, command: Callable[..., Result], state: pb.State.ValueType, code: int
) -> None:
    async def watch(self: OperatorClient, job_id: str) -> Any:
        yield pb.JobEvent(job_id="j1", what="asked", asked=3)
        yield pb.JobEvent(
            job_id="j1", what="snapshot", job=pb.Job(job_id="j1", state=state, kind=pb.TRAINING)
        )

    monkeypatch.setattr(OperatorClient, "watch_job", watch)
    result = command("job", "watch", "j1", "--json")
    assert result.exit_code == code
    assert json.loads(result.stdout)["state"] == pb.State.Name(state)


def test_the_demo_is_not_sent_to_a_server_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    async def run(server: str | None, trust: object, **others: object) -> float:
        asked.append(server)
        assert trust is None
        assert others["token"] == ("" if server is None else "fct_x")
        return 0.95

    monkeypatch.setattr(demo, "run", run)
    environment = {"COMBINER_SERVER": "a:1", "COMBINER_TOKEN": "fct_x"}
    for words in (["demo"], ["--server", "b:2", "demo"], ["demo", "--server", "c:3"]):
        result = CliRunner().invoke(app, words, env=environment)
        assert result.exit_code == 0
        assert result.stdout.splitlines()[-1] == "final accuracy 0.950"
    assert asked == [None, "b:2", "c:3"]

"""`combiner token` and COMBINER_TOKEN against a combiner that asks for tokens."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import combiner.app
import pytest
import structlog
from combiner.settings import CombinerSettings
from typer.testing import CliRunner, Result

from fedcombiner.access.secret import PREFIX
from fedcombiner.cli.main import app
from fedcombiner.client.link import Link, token_metadata
from fedcombiner.wire.pb import fedn_pb2
from tests.contract.state_kit import Server
from tests.rpc.access_kit import DEADLINE, LOCAL, OPERATOR, running, scratch


class Command:
    """`combiner --server ADDRESS WORDS` with a token in its environment."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.token = OPERATOR

    async def run(self, *words: str) -> Result:
        environment = {"COMBINER_TOKEN": self.token}
        call = asyncio.to_thread(CliRunner().invoke, app, ["--server", self.address, *words], env=environment)
        result = await asyncio.wait_for(call, DEADLINE)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    async def rows(self, *words: str) -> list[dict[str, Any]]:
        result = await self.run("--json", *words)
        assert result.exit_code == 0, result.stderr
        return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedcombiner.access.known.LOOK_AGAIN_S", 0.05)


@pytest.fixture(autouse=True)
def logs_of_the_server_elsewhere() -> Iterator[None]:
    """The runner takes the whole process's stdout for the command's."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))
    yield
    structlog.reset_defaults()


@pytest.fixture
def settings(redis_server: Server, tmp_path: Path) -> CombinerSettings:
    return CombinerSettings(
        **LOCAL,
        **scratch(tmp_path),
        redis_url=f"{redis_server.url}?db=3",
        operator_token=OPERATOR,
        require_client_tokens=True,
    )


@pytest.fixture
async def command(settings: CombinerSettings) -> AsyncIterator[Command]:
    async with running(combiner.app.serve, settings) as (port, _):
        yield Command(f"127.0.0.1:{port}")


async def beat(command: Command, token: str, name: str) -> fedn_pb2.Response:
    async with Link(command.address, metadata=token_metadata(token)) as link:
        heartbeat = fedn_pb2.Heartbeat(sender=fedn_pb2.Client(name=name))
        return await link.connector.SendHeartbeat(heartbeat, timeout=DEADLINE)


async def test_a_token_is_made_used_listed_and_revoked(command: Command) -> None:
    words = ("--role", "client", "--name", "of Alice", "--client", "alice", "--expires", "30d")
    made = await command.run("token", "create", *words)
    assert made.exit_code == 0, made.stderr
    token = made.stdout.strip()
    assert token.startswith(PREFIX)
    assert "role client expires 20" in made.stderr
    assert (await beat(command, token, "alice")).response == "Heartbeat received"
    [row] = [row for row in await command.rows("token", "list") if row["name"] == "of Alice"]
    assert (row["role"], row["clients"], row["state"]) == ("client", ["alice"], "good")
    assert token not in json.dumps(row)
    [revoked] = await command.rows("token", "revoke", row["token_id"])
    assert revoked["state"] == "revoked"
    with pytest.raises(Exception, match="Token revoked"):
        await beat(command, token, "alice")


async def test_a_new_operator_needs_the_first_token_no_more(command: Command) -> None:
    [row] = await command.rows("token", "create", "--role", "operator")
    assert set(row) == {
        *("token_id", "role", "name", "clients", "state", "created_at", "expires_at", "revoked_at", "token")
    }
    assert row["expires_at"] is None
    command.token = row["token"]
    assert (await command.run("job", "list")).exit_code == 0
    assert (await command.run("token", "list")).exit_code == 0


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", "a token is needed"),
        ("fct_wrong", "the token is not known"),
        ("no token", "authorization: must be"),
    ],
)
async def test_without_a_good_token_it_says_what_is_missing(
    command: Command, token: str, message: str
) -> None:
    command.token = token
    for words in (("job", "list"), ("token", "list"), ("status",), ("events",)):
        result = await command.run(*words)
        assert result.exit_code == 2
        assert message in result.stderr
        assert not token or token not in result.stderr


async def test_a_role_that_may_not_is_told_who_may(command: Command) -> None:
    [row] = await command.rows("token", "create", "--role", "controller")
    command.token = row["token"]
    assert (await command.run("job", "list")).exit_code == 0
    result = await command.run("token", "create", "--role", "operator")
    assert result.exit_code == 2
    assert "a token of role controller may not do this; allowed: operator" in result.stderr


@pytest.mark.parametrize("expires", ["", "soon", "30", "-1d", "1.5h", "²d", "999999w"])
async def test_a_time_that_is_none(command: Command, expires: str) -> None:
    result = await command.run("token", "create", "--role", "client", "--expires", expires)
    assert result.exit_code == 2
    assert "30d, or never" in result.stderr


async def test_where_tokens_are_not_asked_for_none_is_made(settings: CombinerSettings) -> None:
    opened = settings.model_copy(update={"operator_token": type(settings.operator_token)("")})
    opened = opened.model_copy(update={"require_client_tokens": None})
    async with running(combiner.app.serve, opened) as (port, _):
        command = Command(f"127.0.0.1:{port}")
        for words in (("create", "--role", "operator"), ("list",), ("revoke", "x")):
            result = await command.run("token", *words)
            assert result.exit_code == 2
            assert "tokens are not asked for here; start the server with OPERATOR_TOKEN_FILE" in result.stderr
        assert (await command.run("job", "list")).exit_code == 0


def test_a_token_for_the_settings_needs_no_server() -> None:
    first, second = (CliRunner().invoke(app, ["token", "generate"]).stdout for _ in range(2))
    assert first.startswith(PREFIX)
    assert first != second

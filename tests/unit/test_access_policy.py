"""When tokens are asked for, and when a server does not start at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from combiner.settings import CombinerSettings
from pydantic import SecretStr

from fedcombiner.access.policy import AccessSettings, decide
from fedcombiner.access.roles import Role
from fedcombiner.access.secret import digest
from fedcombiner.servicekit.errors import StartupError
from fedcombiner.servicekit.settings import InvalidSettings

TOKEN = "fct_0123456789abcdefghij"
LOCAL = {"HOST": "127.0.0.1", "METRICS_HOST": "localhost"}
PUBLIC = {"HOST": "0.0.0.0", "METRICS_HOST": "127.0.0.1"}


def settings(**values: object) -> AccessSettings:
    return AccessSettings(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_on_this_machine_everything_is_open(host: str) -> None:
    policy = decide(settings(), {"HOST": host})
    assert not policy.enforced
    assert not policy.client_tokens


@pytest.mark.parametrize("setting", ["HOST", "METRICS_HOST"])
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "combiner.example.org"])
def test_any_other_address_needs_a_token_and_says_how(setting: str, host: str) -> None:
    with pytest.raises(StartupError, match=f"^{setting}={host}: .*OPERATOR_TOKEN_FILE.*INSECURE=true"):
        decide(settings(), {**LOCAL, setting: host})


def test_or_the_word_that_everybody_may_come_in() -> None:
    assert not decide(settings(insecure=True), PUBLIC).enforced


@pytest.mark.parametrize("listening", [LOCAL, PUBLIC])
def test_a_token_switches_enforcement_on_at_any_address(listening: dict[str, str]) -> None:
    policy = decide(settings(operator_token=TOKEN), listening)
    assert policy.enforced
    assert [(key, record.role) for key, record in policy.fixed.items()] == [(digest(TOKEN), Role.OPERATOR)]


@pytest.mark.parametrize(
    ("wanted", "tls", "needed"),
    [(None, True, True), (None, False, False), (True, False, True), (False, True, False)],
)
def test_clients_need_tokens_by_default_over_tls_only(wanted: bool | None, tls: bool, needed: bool) -> None:
    files = {"tls_cert_file": Path("c"), "tls_key_file": Path("k")} if tls else {}
    given = settings(operator_token=TOKEN, require_client_tokens=wanted, **files)
    policy = decide(given, PUBLIC)
    assert policy.client_tokens is needed


def test_tls_with_a_certificate_from_the_discovery_is_tls() -> None:
    given = CombinerSettings(
        operator_token=SecretStr(TOKEN), tls_from_discovery=True, discovery_url="https://discovery"
    )
    assert decide(given, PUBLIC).client_tokens


def test_the_token_may_be_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\nanything\n")
    assert digest(TOKEN) in decide(settings(operator_token_file=path), PUBLIC).fixed


@pytest.mark.parametrize(
    "content", [b"", b"short\n", b"\xff" * 30, b"with a space in between it\n", b"x" * 501]
)
def test_a_file_without_a_usable_token_is_named_and_not_quoted(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(StartupError, match=f"OPERATOR_TOKEN_FILE={path}: ") as caught:
        decide(settings(operator_token_file=path), LOCAL)
    assert "with a space" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"OPERATOR_TOKEN_FILE=.*cannot be read"):
        decide(settings(operator_token_file=tmp_path / "none"), LOCAL)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"operator_token": TOKEN, "operator_token_file": Path("x")},
            "OPERATOR_TOKEN and OPERATOR_TOKEN_FILE",
        ),
        ({"operator_token": TOKEN, "insecure": True}, "INSECURE=true contradicts"),
        ({"operator_token": "guessable"}, "OPERATOR_TOKEN: has 9 characters"),
        ({"require_client_tokens": True}, "REQUIRE_CLIENT_TOKENS=true needs an operator's token"),
    ],
)
def test_settings_that_contradict_each_other(values: dict[str, object], message: str) -> None:
    with pytest.raises(StartupError, match=message):
        decide(settings(**values), LOCAL)


def test_a_setting_that_is_no_switch_is_named_and_a_token_is_never_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REQUIRE_CLIENT_TOKENS", "perhaps")
    monkeypatch.setenv("OPERATOR_TOKEN", TOKEN)
    with pytest.raises(InvalidSettings, match=r"REQUIRE_CLIENT_TOKENS='perhaps'.*true or false") as caught:
        AccessSettings.load()
    assert TOKEN not in str(caught.value)


def test_a_token_of_the_process_itself_counts_only_where_tokens_do() -> None:
    enforced = decide(settings(operator_token=TOKEN), PUBLIC).also("own", Role.COMBINER, "me")
    assert enforced.fixed[digest("own")].role is Role.COMBINER
    assert not decide(settings(), LOCAL).also("own", Role.COMBINER, "me").fixed

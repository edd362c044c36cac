import pytest
from pydantic import Field, SecretStr, ValidationError

from fedcombiner.servicekit.settings import InvalidSettings, ServiceSettings, load_or_exit


class WithStore(ServiceSettings):
    port: int = Field(12081, description="TCP port")
    redis_url: str = Field("redis://localhost", pattern="^redis://", description="redis://HOST:PORT/DB")
    token: SecretStr = Field(SecretStr(""), max_length=3, description="at most 3 characters")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOST", "PORT", "METRICS_PORT", "LOG_LEVEL", "LOG_FORMAT", "DRAIN_SECONDS"):
        monkeypatch.delenv(name, raising=False)


def test_the_defaults_run() -> None:
    settings = ServiceSettings.load()
    assert (settings.port, settings.metrics_port, settings.log_format) == (12080, 9464, "json")


def test_variables_have_the_names_of_the_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METRICS_PORT", "1234")
    monkeypatch.setenv("LOG_FORMAT", "console")
    settings = WithStore.load(metrics_host="127.0.0.1")
    assert (settings.metrics_port, settings.log_format, settings.port) == (1234, "console", 12081)
    assert settings.metrics_host == "127.0.0.1"


def test_overrides_beat_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1")
    assert ServiceSettings.load(port=2).port == 2


def test_an_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "")
    assert ServiceSettings.load().port == 12080


def test_only_load_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1")
    assert ServiceSettings().port == 12080


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        (
            "PORT",
            "99999",
            "PORT='99999': should be less than or equal to 65535; allowed: TCP port, 0 to",
        ),
        ("LOG_FORMAT", "xml", "LOG_FORMAT='xml': should be 'json' or 'console'; allowed: json or console"),
        ("DRAIN_SECONDS", "nan", "DRAIN_SECONDS='nan': should be a finite number; allowed: seconds that"),
        ("REDIS_URL", "http://me:pw@h/0", "REDIS_URL='http://***@h/0': "),
        ("TOKEN", "hunter2", "TOKEN='***': "),
    ],
)
def test_a_bad_value_is_one_line_and_exit_code_2(
    name: str,
    value: str,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(name, value)
    kind = WithStore if name in ("REDIS_URL", "TOKEN") else ServiceSettings
    with pytest.raises(SystemExit) as exit_:
        load_or_exit(kind)
    assert exit_.value.code == 2
    err = capsys.readouterr().err
    assert line in err
    assert err.count("\n") == 1
    assert "hunter2" not in err


def test_every_bad_setting_has_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "x")
    monkeypatch.setenv("LOG_LEVEL", "loud")
    with pytest.raises(InvalidSettings) as error:
        ServiceSettings.load()
    assert [line.partition("=")[0] for line in str(error.value).splitlines()] == ["PORT", "LOG_LEVEL"]


def test_settings_cannot_be_changed_or_misspelt() -> None:
    with pytest.raises(ValidationError):
        ServiceSettings().port = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        ServiceSettings(prot=1)  # type: ignore[call-arg]

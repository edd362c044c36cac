"""`combiner certs`: what it makes, what it refuses, and what it says about files."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fedcombiner.cli.main import app
from fedcombiner.cli.output import USAGE
from fedcombiner.client.trust import Trust
from fedcombiner.servicekit.tls import IdentityInFiles
from tests.tls_kit import Certificates

FILES = {"ca.crt", "ca.key", "tls.crt", "tls.key"}
Command = Callable[..., Result]


@pytest.fixture
def command() -> Command:
    runner = CliRunner()
    return lambda *words: runner.invoke(app, [str(word) for word in words])


def rows(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_init_makes_what_servers_and_clients_need(command: Command, tmp_path: Path) -> None:
    directory = tmp_path / "a" / "certs"
    made = rows(
        command("--json", "certs", "init", directory, "--host", "fl.example.org", "--host", "10.0.0.5")
    )
    assert {path.name for path in directory.iterdir()} == FILES
    modes = {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}
    assert (modes["ca.key"], modes["tls.key"]) == (0o600, 0o600)
    assert [Path(row["file"]).name for row in made] == ["ca.crt", "tls.crt"]
    assert [row["authority"] for row in made] == [True, False]
    assert [row["key_fits"] for row in made] == [True, True]
    assert made[1]["names"] == ["fl.example.org", "localhost", "10.0.0.5", "127.0.0.1", "::1"]
    assert (made[0]["days_left"], made[1]["days_left"]) == (3650, 397)
    IdentityInFiles(directory / "tls.crt", directory / "tls.key")
    Trust.in_file(directory / "ca.crt")


def test_for_people_it_says_what_to_do_next(command: Command, tmp_path: Path) -> None:
    said = command("certs", "init", tmp_path)
    assert said.exit_code == 0
    assert f"combiner serve --tls-cert {tmp_path}/tls.crt --tls-key {tmp_path}/tls.key" in said.stdout
    assert f"combiner --ca {tmp_path}/ca.crt status" in said.stdout


@pytest.mark.parametrize("name", sorted(FILES))
def test_nothing_is_overwritten_and_nothing_is_left_half_made(
    command: Command, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(b"mine")
    said = command("certs", "init", tmp_path)
    assert said.exit_code == USAGE
    assert f"{tmp_path / name} is there already" in said.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"mine"


def test_a_host_that_is_none_is_named_before_anything_is_made(command: Command, tmp_path: Path) -> None:
    said = command("certs", "init", tmp_path / "certs", "--host", "fl.example.org:12080")
    assert said.exit_code == USAGE
    assert "host: 'fl.example.org:12080' is not valid; allowed: a DNS name" in said.stderr
    assert not (tmp_path / "certs").exists()


def test_a_renewed_certificate_is_by_the_same_authority_for_the_same_names(
    command: Command, tmp_path: Path
) -> None:
    made = rows(command("--json", "certs", "init", tmp_path, "--host", "fl.example.org", "--days", "1"))
    identity = IdentityInFiles(tmp_path / "tls.crt", tmp_path / "tls.key")
    renewed = rows(command("--json", "certs", "renew", tmp_path))
    assert renewed[0] == made[0]
    assert set(renewed[1]["names"]) == set(made[1]["names"])
    assert (made[1]["days_left"], renewed[1]["days_left"]) == (1, 397)
    assert identity.pair().certificate == (tmp_path / "tls.crt").read_bytes()
    moved = rows(command("--json", "certs", "renew", tmp_path, "--host", "new.example.org"))
    assert moved[1]["names"] == ["new.example.org", "localhost", "127.0.0.1", "::1"]
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_a_server_outlives_its_authority_never(command: Command, tmp_path: Path) -> None:
    made = rows(command("--json", "certs", "init", tmp_path, "--days", "100", "--ca-days", "10"))
    assert [row["days_left"] for row in made] == [10, 10]


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda path: (path / "ca.key").unlink(), "ca.key: No such file or directory"),
        (lambda path: (path / "tls.crt").unlink(), "tls.crt: No such file or directory"),
        (lambda path: (path / "ca.crt").write_bytes(b"?"), "ca.crt: holds no certificate in PEM format"),
        (lambda path: (path / "tls.crt").write_bytes(b"?"), "tls.crt: holds no certificate in PEM format"),
        (lambda path: (path / "ca.key").write_bytes((path / "tls.key").read_bytes()), "does not fit"),
    ],
)
def test_what_cannot_be_renewed_stays(
    command: Command, tmp_path: Path, spoil: Callable[[Path], object], complaint: str
) -> None:
    rows(command("--json", "certs", "init", tmp_path))
    key = (tmp_path / "tls.key").read_bytes()
    spoil(tmp_path)
    said = command("certs", "renew", tmp_path)
    assert said.exit_code == USAGE
    assert complaint in said.stderr
    assert "Traceback" not in said.output
    assert (tmp_path / "tls.key").read_bytes() == key


def test_show_looks_at_files_and_directories(
    command: Command, certificates: Certificates, tmp_path: Path
) -> None:
    chain = tmp_path / "chain.pem"
    chain.write_bytes(certificates.expired.certificate.read_bytes() + certificates.ca_pem)
    (tmp_path / "chain.key").write_bytes(certificates.good.key.read_bytes())
    (tmp_path / "other.pem").write_bytes(certificates.good.key.read_bytes())
    shown = rows(command("--json", "certs", "show", tmp_path))
    assert [(row["authority"], row["key_fits"]) for row in shown] == [(False, False), (True, None)]
    assert shown[0]["days_left"] == pytest.approx(-30, abs=0.1)
    assert rows(command("--json", "certs", "show", chain)) == shown
    der = ssl.PEM_cert_to_DER_cert(certificates.ca_pem.decode())
    (tmp_path / "binary.crt").write_bytes(der)
    for path in (tmp_path / "binary.crt", tmp_path / "other.pem"):
        said = command("certs", "show", path)
        assert (said.exit_code, said.stderr) == (
            USAGE,
            f"combiner: {path}: holds no certificate in PEM format\n",
        )


def test_an_empty_directory_has_nothing_to_show(command: Command, tmp_path: Path) -> None:
    said = command("certs", "show", tmp_path)
    assert (said.exit_code, "holds no certificate" in said.stderr) == (USAGE, True)

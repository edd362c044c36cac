"""Whom the client library and the command believe, against real servers with real certificates."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from modelstore.settings import ModelstoreSettings
from typer.testing import CliRunner, Result

from fedcombiner.cli.main import app
from fedcombiner.cli.output import UNREACHABLE, USAGE
from fedcombiner.client import FederatedClient, OperatorClient, Trust
from fedcombiner.client.errors import ServerUnreachable, TlsFailed
from fedcombiner.client.join import join
from fedcombiner.client.made_up import MadeUp, one_hot
from fedcombiner.client.simulate import SimulatedFleet
from fedcombiner.client.trust import NO_TLS, ONLY_TLS, tls_trouble
from fedcombiner.servicekit.backoff import Backoff
from fedcombiner.servicekit.tls import IdentityInFiles
from fedcombiner.standalone.app import Standalone, StandaloneSettings
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.tls_kit import Certificates, PairFiles, grpc_server, https_server

REFUSALS = {
    "expired": "the server's certificate is refused: certificate has expired",
    "wrong_name": "the server's certificate is refused: IP address mismatch, certificate is not valid for"
    " '127.0.0.1'",
    "unknown": "the server's certificate is refused: no authority that this client trusts has signed it",
}


async def command(*words: str, **environment: str | None) -> Result:
    """The command in a thread, as the server is in this loop."""
    environment = {"COMBINER_SERVER": None, "COMBINER_CA": None, "COMBINER_TLS": None, **environment}
    return await asyncio.to_thread(CliRunner().invoke, app, words, env=environment)


def standalone_settings(data: Path, files: PairFiles) -> StandaloneSettings:
    models = ModelstoreSettings(data=data / "models", scratch=data / "scratch", **files.settings)
    return StandaloneSettings(data_dir=data, port=0, discovery_port=0, metrics_port=0, modelstore=models)


async def test_a_whole_stack_over_tls(certificates: Certificates, tmp_path: Path) -> None:
    """A round, clients by address and by https discovery, the command; then a renewal that nobody notices."""
    trust = Trust.in_file(certificates.ca)
    files = PairFiles(tmp_path / "tls.crt", tmp_path / "tls.key")
    files.write(certificates.good)
    async with (
        Standalone(standalone_settings(tmp_path / "data", files)) as stack,
        OperatorClient(stack.address, trust=trust, patience=10) as operator,
        SimulatedFleet(2, stack.address, trust=trust, workload=lambda i: MadeUp(i, one_hot(3))) as fleet,
    ):
        await fleet.wait_connected(20)
        assert stack.discovery_url.startswith("https://")
        assignment = await join(stack.discovery_url, "third", trust=trust, give_up_after=20)
        assert (assignment.address, assignment.trust) == (stack.address, trust)
        model = await operator.put_model({"w": np.zeros(3, np.float32)})
        session = await operator.start_session({"rounds": 1, "clients_required": 2}, model_id=model.model_id)
        assert (await operator.wait_session(session.session_id)).state == pb.SUCCEEDED

        on = ("--server", stack.address, "--json")
        listed = await command("session", "list", *on, "--ca", str(certificates.ca))
        assert (listed.exit_code, listed.stderr) == (0, "")
        assert session.session_id in listed.stdout
        by_environment = await command("status", *on, COMBINER_CA=str(certificates.ca))
        assert by_environment.exit_code == 0

        files.write(certificates.expired)
        assert len(await operator.list_clients()) == 2
        late = await command("status", *on, "--ca", str(certificates.ca))
        assert (late.exit_code, REFUSALS["expired"] in late.stderr) == (UNREACHABLE, True)


@pytest.mark.parametrize("kind", REFUSALS)
async def test_a_bad_certificate_is_refused_and_named(certificates: Certificates, kind: str) -> None:
    trust = Trust.in_file(certificates.ca)
    async with grpc_server(getattr(certificates, kind)) as address:
        assert await tls_trouble(address, trust) == REFUSALS[kind]
        # Patience is for servers that come back; this one is there.
        async with OperatorClient(address, trust=trust, patience=600) as operator:
            for ask in (operator.report, operator.list_models, lambda: operator.put_model(b"model")):
                with pytest.raises(TlsFailed) as caught:
                    await ask()
                assert caught.value.trouble == REFUSALS[kind]
            with pytest.raises(TlsFailed):
                await operator.wait_job("j1")
        said = await command("status", "--server", address, "--ca", str(certificates.ca))
    assert said.exit_code == UNREACHABLE
    assert said.stderr.startswith(f"combiner: {address}: {REFUSALS[kind]}\n  ")
    assert "Traceback" not in said.output


async def test_the_public_authorities_do_not_vouch_for_a_private_one(certificates: Certificates) -> None:
    async with grpc_server(certificates.good) as address:
        assert await tls_trouble(address, Trust()) == REFUSALS["unknown"]
        for words in (["--tls", "status", "--server", address], ["status", "--tls", "--server", address]):
            said = await command(*words)
            assert (said.exit_code, REFUSALS["unknown"] in said.stderr) == (UNREACHABLE, True)


async def test_plaintext_at_a_tls_port(certificates: Certificates) -> None:
    async with grpc_server(certificates.good) as address:
        assert await tls_trouble(address, None) == ONLY_TLS
        said = await command("status", "--server", address)
    assert (said.exit_code, said.stderr.splitlines()) == (
        UNREACHABLE,
        [
            f"combiner: {address}: {ONLY_TLS}",
            "  --ca FILE or COMBINER_CA names the certificate of its authority; --tls is for public ones",
        ],
    )


async def test_tls_at_a_plaintext_port(certificates: Certificates) -> None:
    async with grpc_server(None) as address:
        assert await tls_trouble(address, Trust()) == NO_TLS
        assert await tls_trouble(address, None) == ""
        said = await command("status", "--server", address, COMBINER_CA=str(certificates.ca))
    assert said.exit_code == UNREACHABLE
    assert f"{address}: {NO_TLS}\n  leave out --ca and --tls" in said.stderr


async def test_a_server_that_is_not_there_is_no_matter_of_tls(certificates: Certificates) -> None:
    async with grpc_server(None) as address:
        pass
    for trust in (None, Trust(), Trust(certificates.ca_pem)):
        assert await tls_trouble(address, trust) == ""
    assert await tls_trouble("nonsense", Trust()) == ""


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.write_bytes(b"\x00\xff"), "there is no certificate in PEM format"),
        (lambda path: path.write_bytes(b""), "there is no certificate in PEM format"),
    ],
)
async def test_an_authority_file_that_is_none(
    tmp_path: Path, make: Callable[[Path], object], complaint: str
) -> None:
    path = tmp_path / "ca"
    make(path)
    for words in (["status", "--ca", str(path)], ["--ca", str(path), "status"]):
        said = await command(*words)
        assert said.exit_code == USAGE
        assert complaint in " ".join(said.stderr.replace("│", "").split())
    made = await command("certs", "init", str(tmp_path / "made"), COMBINER_CA=str(path))
    assert made.exit_code == 0


@pytest.mark.parametrize(("kind", "trouble"), [*REFUSALS.items(), ("good", ONLY_TLS), (None, NO_TLS)])
async def test_a_client_says_once_why_it_gets_nowhere(
    certificates: Certificates, kind: str | None, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    trust = None if kind == "good" else Trust(certificates.ca_pem)
    async with grpc_server(getattr(certificates, kind) if kind else None) as address:
        client = FederatedClient(
            "alice",
            validate=lambda model, config: {},
            address=address,
            trust=trust,
            heartbeat_interval=0.02,
            give_up_after=0.2,
        )
        with caplog.at_level(logging.WARNING), pytest.raises(ServerUnreachable) as caught:
            await client.run()
    assert trouble in caught.value.message
    warnings = [
        record.getMessage() for record in caplog.records if record.name.startswith("fedcombiner.client")
    ]
    assert warnings == [f"alice: {address}: {trouble}"]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("expired", "certificate has expired"),
        ("wrong_name", "IP address mismatch"),
        ("unknown", "unable to get local issuer"),
    ],
)
async def test_a_discovery_with_a_bad_certificate_is_not_asked(
    certificates: Certificates, kind: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    files: PairFiles = getattr(certificates, kind)
    async with https_server(IdentityInFiles(files.certificate, files.key)) as port:
        with pytest.raises(ServerUnreachable, match=reason):
            await join(
                f"https://127.0.0.1:{port}",
                "alice",
                trust=Trust(certificates.ca_pem),
                give_up_after=0.05,
                backoff=Backoff(0.01, 0.02),
            )
    assert any(
        reason in record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
    )

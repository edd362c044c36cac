"""Certificate and key in the answer to an announcement: over https, to a combiner's token, and else never."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from combiner.announce import Announcer
from combiner.announced_tls import announced_identity
from combiner.app import serve as serve_combiner
from combiner.settings import CombinerSettings
from discovery_mock.app import DiscoveryApp
from discovery_mock.settings import DiscoverySettings

from fedcombiner.access.policy import Policy
from fedcombiner.access.record import TokenRecord
from fedcombiner.access.roles import Role
from fedcombiner.access.secret import digest
from fedcombiner.access.setup import AccessControl
from fedcombiner.client import OperatorClient
from fedcombiner.client.trust import Trust
from fedcombiner.modelstorage.disk import DiskStore
from fedcombiner.servicekit.backoff import Backoff
from fedcombiner.servicekit.errors import StartupError
from fedcombiner.servicekit.health import Health
from fedcombiner.servicekit.http import HttpServer
from fedcombiner.servicekit.metrics import Metrics
from fedcombiner.servicekit.settings import InvalidSettings
from fedcombiner.servicekit.tls import IdentityInFiles
from tests.contract.state_kit import Server
from tests.rpc.access_kit import LOCAL, running
from tests.rpc.discovery_kit import ANNOUNCE, CLIENT
from tests.tls_kit import Certificates, PairFiles

TOKENS = {digest(f"fct_{role}"): TokenRecord(id=role, role=role, created=time.time()) for role in Role}
BOUND = TokenRecord(id="bound", role=Role.CLIENT, clients=("client1",))


@pytest.fixture
def pair(certificates: Certificates, tmp_path: Path) -> PairFiles:
    """Of the combiner; it may be renewed."""
    files = PairFiles(tmp_path / "combiner.pem", tmp_path / "combiner-key.pem")
    files.write(certificates.good)
    return files


@asynccontextmanager
async def discovering(
    tmp_path: Path,
    certificates: Certificates,
    pair: PairFiles | None,
    *,
    https: bool = True,
    enforced: bool = True,
) -> AsyncIterator[str]:
    """The URL of a discovery that asks for tokens."""
    metrics = Metrics()
    policy = Policy(enforced=enforced, client_tokens=enforced, fixed={**TOKENS, digest("fct_bound"): BOUND})
    store = DiskStore(tmp_path / "store")
    files = {"combiner_cert_file": pair.certificate, "combiner_key_file": pair.key} if pair else {}
    settings = DiscoverySettings(scratch=tmp_path / "scratch", package="local", **files)
    access = AccessControl(policy, metrics, Health(metrics), _NoTokens())
    identity = IdentityInFiles(certificates.good.certificate, certificates.good.key) if https else None
    app = DiscoveryApp(settings, metrics, store, access)
    server = HttpServer(app.app, "127.0.0.1", 0, identity=identity)
    await store.start()
    await app.start()
    await server.start()
    try:
        yield f"{'https' if https else 'http'}://127.0.0.1:{server.port}"
    finally:
        await server.stop()
        await app.stop()
        await store.close()


class _NoTokens:
    """A reader of tokens that finds none beside those of the policy."""

    async def load(self, known: str = "") -> None:
        return None

    async def aclose(self) -> None: ...


def announcer(url: str, certificates: Certificates, token: str, **changes: object) -> Announcer:
    trust = ssl.create_default_context(cafile=certificates.ca)
    options = {"secure": True, "trust": trust, "retries": Backoff(0.001, 0.005), **changes}
    return Announcer(url, "combiner", "localhost:12080", token=token, **options)  # type: ignore[arg-type]


async def told(url: str, certificates: Certificates, token: str, **changes: object) -> object:
    """Certificate and key in the answer to an announcement, which says of itself that it came over https."""
    body = {**ANNOUNCE, "secure_grpc": True, **changes}
    headers = {"Authorization": f"Bearer {token}", "X-Forwarded-Proto": "https"}
    verify = ssl.create_default_context(cafile=certificates.ca)
    async with httpx.AsyncClient(verify=verify, trust_env=False) as http:
        answer = await http.post(f"{url}/add_combiner", json=body, headers=headers)
    return answer.json()["certificate"], answer.json()["key"]


async def test_a_combiner_gets_its_pair(tmp_path: Path, certificates: Certificates, pair: PairFiles) -> None:
    async with discovering(tmp_path, certificates, pair) as url:
        ours = announcer(url, certificates, "fct_combiner")
        identity = await announced_identity(ours)
        assert identity.pair() == pair.pair()
        renewed = certificates.issue("renewed-by-discovery")
        pair.write(renewed)
        await ours.announce()
        assert identity.pair() == renewed.pair()
        pair.key.write_text("spoilt")
        await ours.announce()
        assert identity.pair() == renewed.pair(), "the old one stays"


async def test_nobody_else_does(tmp_path: Path, certificates: Certificates, pair: PairFiles) -> None:
    nothing = (None, None)
    async with discovering(tmp_path, certificates, pair) as url:
        assert await told(url, certificates, "fct_operator") == nothing
        assert await told(url, certificates, "fct_combiner", secure_grpc=False) == nothing
    async with discovering(tmp_path, certificates, pair, https=False) as url:
        assert await told(url, certificates, "fct_combiner") == nothing
    async with discovering(tmp_path, certificates, pair, enforced=False) as url:
        assert await told(url, certificates, "fct_combiner") == nothing
    async with discovering(tmp_path, certificates, None) as url:
        assert await told(url, certificates, "fct_combiner") == nothing


async def test_a_combiner_that_gets_none_does_not_start(
    tmp_path: Path, certificates: Certificates, pair: PairFiles
) -> None:
    async with discovering(tmp_path, certificates, None) as url:
        with pytest.raises(StartupError, match="TLS_FROM_DISCOVERY=true: the answer has no certificate"):
            await announced_identity(announcer(url, certificates, "fct_combiner"))
    async with discovering(tmp_path, certificates, pair, https=False) as url:
        with pytest.raises(StartupError, match="did not come over https"):
            await announced_identity(announcer(url, certificates, "fct_combiner"))
    async with discovering(tmp_path, certificates, pair) as url:
        with pytest.raises(StartupError, match="the discovery refused this combiner: the token is not known"):
            await announced_identity(announcer(url, certificates, "fct_wrong"))


async def test_it_serves_tls_with_it(
    tmp_path: Path, certificates: Certificates, pair: PairFiles, redis_server: Server
) -> None:
    async with discovering(tmp_path, certificates, pair) as url:
        settings = CombinerSettings(
            **LOCAL,
            redis_url=f"{redis_server.url}?db=5",
            data=tmp_path / "models",
            scratch=tmp_path / "combiner-scratch",
            advertise="localhost:12080",
            discovery_url=url,
            discovery_ca_file=certificates.ca,
            discovery_token="fct_combiner",
            tls_from_discovery=True,
        )
        async with running(serve_combiner, settings) as (port, _):
            trust = Trust(certificates.ca_pem)
            async with OperatorClient(f"localhost:{port}", trust=trust) as operator, asyncio.timeout(20):
                assert await operator.list_clients() == []


async def test_a_token_of_one_client_is_for_that_one(tmp_path: Path, certificates: Certificates) -> None:
    verify = ssl.create_default_context(cafile=certificates.ca)
    async with discovering(tmp_path, certificates, None) as url, httpx.AsyncClient(verify=verify) as http:
        for name, status in (("client1", 203), ("client2", 403)):
            answer = await http.post(
                f"{url}/add_client",
                json={**CLIENT, "client_id": name},
                headers={"Authorization": "Token fct_bound"},
            )
            assert answer.status_code == status


def test_settings_of_a_discovery_that_cannot_be(tmp_path: Path, certificates: Certificates) -> None:
    with pytest.raises(InvalidSettings, match="COMBINER_CERT_FILE and COMBINER_KEY_FILE are needed together"):
        DiscoverySettings.load(combiner_cert_file=certificates.good.certificate)

    def refusal(**files: Path) -> str:
        settings = DiscoverySettings(scratch=tmp_path, **files)
        with pytest.raises(StartupError) as caught:
            DiscoveryApp(settings, Metrics(), DiskStore(tmp_path))
        return str(caught.value)

    good, other = certificates.good, certificates.expired
    fits_not = refusal(combiner_cert_file=good.certificate, combiner_key_file=other.key)
    assert fits_not == f"COMBINER_KEY_FILE={other.key}: the private key does not fit the certificate"
    missing = tmp_path / "none.pem"
    assert "cannot be read" in refusal(combiner_cert_file=missing, combiner_key_file=missing)
    assert refusal(combiner_ca_file=good.key).startswith(
        f"COMBINER_CA_FILE={good.key}: there is no certificate"
    )

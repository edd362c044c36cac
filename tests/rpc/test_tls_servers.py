"""TLS of real servers, gRPC and HTTP: whom clients that verify take, and renewal without a restart."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest

from fedcombiner.servicekit.tls import IdentityInFiles, pinned_context, trust_context
from tests.tls_kit import Certificates, PairFiles, grpc_server, https_server

DEADLINE = 10.0
HEALTH = "/grpc.health.v1.Health/Check"
REFUSED = {
    "expired": "certificate has expired",
    "wrong_name": "(?i)hostname|address mismatch",
    "unknown": "unable to get local issuer certificate",
}


async def check(address: str, ca: bytes | None) -> bytes:
    """Ask for the health over a connection of its own: TLS if a CA is given."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channel = (
        grpc.aio.insecure_channel(address, options=options)
        if ca is None
        else grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(ca), options=options)
    )
    async with channel:
        call: Any = channel.unary_unary(HEALTH)
        answer: bytes = await call(b"", timeout=DEADLINE)
        return answer


async def get(url: str, trust: ssl.SSLContext) -> str:
    async with httpx.AsyncClient(verify=trust, trust_env=False, timeout=DEADLINE) as http:
        return (await http.get(url)).text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_grpc_over_tls(certificates: Certificates, host: str) -> None:
    async with grpc_server(certificates.good) as address:
        assert await check(address.replace("127.0.0.1", host), certificates.ca_pem)


async def test_fedn_clients_that_believe_the_certificate_they_are_shown(certificates: Certificates) -> None:
    """`secure: true`: the server's own certificate, fetched beforehand, is the only root."""
    async with grpc_server(certificates.good) as address:
        shown = await asyncio.to_thread(ssl.get_server_certificate, ("localhost", int(address.split(":")[1])))
        assert await check(address.replace("127.0.0.1", "localhost"), shown.encode())


@pytest.mark.parametrize("kind", REFUSED)
async def test_grpc_clients_refuse_a_bad_certificate(certificates: Certificates, kind: str) -> None:
    async with grpc_server(getattr(certificates, kind)) as address:
        with pytest.raises(grpc.aio.AioRpcError, match=REFUSED[kind]) as caught:
            await check(address, certificates.ca_pem)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        if kind == "unknown":
            assert await check(address, certificates.other_ca.read_bytes())


async def test_plaintext_and_tls_do_not_meet(certificates: Certificates) -> None:
    async with grpc_server(certificates.good) as tls, grpc_server(None) as plaintext:
        for address, ca in ((tls, None), (plaintext, certificates.ca_pem)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await check(address, ca)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert await check(tls, certificates.ca_pem)
        assert await check(plaintext, None)


async def test_a_renewed_certificate_is_shown_to_the_next_grpc_client(
    certificates: Certificates, tmp_path: Path
) -> None:
    files = PairFiles(tmp_path / "tls.crt", tmp_path / "tls.key")
    files.write(certificates.expired)
    async with grpc_server(files) as address:
        with pytest.raises(grpc.aio.AioRpcError, match="expired"):
            await check(address, certificates.ca_pem)
        files.write(certificates.good)
        assert await check(address, certificates.ca_pem)
        files.certificate.write_bytes(b"half a cert")
        assert await check(address, certificates.ca_pem)
        files.write(certificates.wrong_name)
        with pytest.raises(grpc.aio.AioRpcError, match="Hostname"):
            await check(address, certificates.ca_pem)


async def test_https(certificates: Certificates) -> None:
    trust = trust_context(certificates.ca, "CA")
    async with https_server(IdentityInFiles(certificates.good.certificate, certificates.good.key)) as port:
        assert await get(f"https://127.0.0.1:{port}", trust) == "hello"
        assert await get(f"https://localhost:{port}", trust) == "hello"
        with pytest.raises(httpx.TransportError):
            await get(f"http://127.0.0.1:{port}", trust)
        with pytest.raises(httpx.ConnectError, match="unable to get local issuer"):
            await get(f"https://127.0.0.1:{port}", trust_context(certificates.other_ca, "CA"))


@pytest.mark.parametrize("kind", REFUSED)
async def test_https_clients_refuse_a_bad_certificate(certificates: Certificates, kind: str) -> None:
    files: PairFiles = getattr(certificates, kind)
    async with https_server(IdentityInFiles(files.certificate, files.key)) as port:
        with pytest.raises(httpx.ConnectError, match=REFUSED[kind]):
            await get(f"https://127.0.0.1:{port}", trust_context(certificates.ca, "CA"))


async def test_a_renewed_certificate_is_shown_to_the_next_https_client(
    certificates: Certificates, tmp_path: Path
) -> None:
    files = PairFiles(tmp_path / "tls.crt", tmp_path / "tls.key")
    files.write(certificates.expired)
    identity = IdentityInFiles(files.certificate, files.key)
    trust = trust_context(certificates.ca, "CA")
    async with https_server(identity) as port:
        with pytest.raises(httpx.ConnectError, match="expired"):
            await get(f"https://127.0.0.1:{port}", trust)
        files.write(certificates.good)
        assert await get(f"https://127.0.0.1:{port}", trust) == "hello"
        files.certificate.write_bytes(b"half a cert")
        assert await get(f"https://127.0.0.1:{port}", trust) == "hello"


async def test_a_pinned_server_may_have_any_name_but_no_other_certificate(
    certificates: Certificates, tmp_path: Path
) -> None:
    files = PairFiles(tmp_path / "tls.crt", tmp_path / "tls.key")
    files.write(certificates.wrong_name)
    identity = IdentityInFiles(files.certificate, files.key)
    pinned = pinned_context(identity)
    async with https_server(identity) as port:
        assert await get(f"https://127.0.0.1:{port}", pinned) == "hello"
        files.write(certificates.issue("elsewhere", hosts=["other.example.org"]))
        assert await get(f"https://127.0.0.1:{port}", pinned) == "hello"
    async with https_server(IdentityInFiles(certificates.good.certificate, certificates.good.key)) as port:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await get(f"https://127.0.0.1:{port}", pinned)

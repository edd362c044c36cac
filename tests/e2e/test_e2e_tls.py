"""The stack behind TLS at the gateway, as deploy/compose.tls.yml has it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedcombiner.certs.directory import create, renew
from fedcombiner.client import OperatorClient, Trust
from fedcombiner.client.errors import TlsFailed
from fedcombiner.client.trust import ONLY_TLS
from fedcombiner.servicekit.errors import Unauthenticated
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.e2e.fleets import DEADLINE_S, ended, fleet, seed, start
from tests.e2e.stacks import Compose

pytestmark = [pytest.mark.needs("services"), pytest.mark.timeout(300)]

DAYS = timedelta(days=30)


def for_the_gateway(certs: Path, pem: Path) -> None:
    pem.write_bytes((certs / "tls.crt").read_bytes() + (certs / "tls.key").read_bytes())
    pem.chmod(0o644)  # the gateway is another user


@pytest.fixture
async def behind_tls(containers: Compose, tmp_path: Path) -> AsyncIterator[tuple[Compose, Path, Path]]:
    """The stack, the directory of the authority, and the gateway's file."""
    certs, shown = tmp_path / "certs", tmp_path / "shown"
    create(certs, [], now=datetime.now(UTC), lifetime=DAYS, authority_lifetime=DAYS)
    shown.mkdir(mode=0o755)
    for_the_gateway(certs, shown / "gateway.pem")
    async with containers.with_overlay("compose.tls.yml", CERTIFICATES=str(shown)):
        yield containers, certs, shown / "gateway.pem"


async def test_clients_need_tls_and_a_token_and_a_renewed_certificate_is_shown_after_a_reload(
    behind_tls: tuple[Compose, Path, Path],
) -> None:
    stack, certs, pem = behind_tls
    trust = Trust.in_file(certs / "ca.crt")
    async with OperatorClient(stack.address, trust=trust, token=stack.token, patience=60) as operator:
        client = await operator.create_token("client")
        async with fleet(stack, 2, trust=trust, token=client.secret) as clients:
            await clients.wait_connected(60)
            done = await ended(operator, await start(operator, await seed(operator, 2), 2, rounds=2))
            assert done.state == pb.SUCCEEDED, done.reason
        with pytest.raises(Unauthenticated):
            async with fleet(stack, 1, trust=trust) as nobody:
                await nobody.wait_connected(60)
        async with OperatorClient(stack.address, token=stack.token) as plain:
            with pytest.raises(TlsFailed, match=ONLY_TLS):
                await plain.list_models()
        before = await shown_at(stack.address)
        renew(certs, [], now=datetime.now(UTC), lifetime=DAYS)
        for_the_gateway(certs, pem)
        await stack.do("kill", "-s", "USR2", "gateway")
        async with asyncio.timeout(DEADLINE_S):
            while await shown_at(stack.address) == before:
                await asyncio.sleep(0.1)  # a reload tells nobody when it is done
        await operator.list_models()


async def shown_at(address: str) -> str:
    host, _, port = address.rpartition(":")
    return await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)))

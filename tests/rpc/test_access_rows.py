"""Every method and route of the real servers has a row in the table, and every row is served."""

from __future__ import annotations

from pathlib import Path

import combiner.app
import discovery_mock.app
import modelstore.app
import pytest
from combiner.settings import CombinerSettings
from discovery_mock.settings import DiscoverySettings
from modelstore.settings import ModelstoreSettings

from fedcombiner.access.table import ENDPOINTS, RPCS
from fedcombiner.standalone.app import Standalone, StandaloneSettings
from tests.contract.state_kit import Server
from tests.rpc.access_kit import LOCAL, OPERATOR, Registered, running, scratch


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Registered:
    found = Registered()
    found.patch(monkeypatch)
    return found


async def test_standalone_serves_what_is_in_the_table(
    registered: Registered, redis_server: Server, tmp_path: Path
) -> None:
    ports = {"port": 0, "discovery_port": 0, "metrics_port": 0}
    settings = StandaloneSettings(data_dir=tmp_path, redis_url=f"{redis_server.url}?db=1", **ports)
    async with Standalone(settings):
        pass
    assert registered.methods == set(RPCS)
    assert registered.routes == {row for rows in ENDPOINTS.values() for row in rows}


async def test_the_services_serve_what_is_in_the_table(
    registered: Registered, redis_server: Server, tmp_path: Path
) -> None:
    common = {**LOCAL, "redis_url": f"{redis_server.url}?db=1", "operator_token": OPERATOR}
    async with (
        running(modelstore.app.serve, ModelstoreSettings(**common, **scratch(tmp_path))),
        running(discovery_mock.app.serve, DiscoverySettings(**common, **scratch(tmp_path))),
        running(combiner.app.serve, CombinerSettings(**common, **scratch(tmp_path))),
    ):
        pass
    assert registered.methods == set(RPCS)
    assert registered.routes == {row for rows in ENDPOINTS.values() for row in rows}

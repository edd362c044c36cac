"""Whether a client has reached its combiner: asked of a real one."""

from __future__ import annotations

import pytest
from discovery_mock.registry import Combiner
from discovery_mock.witness import AskingWitness

from fedcombiner.client.trust import Trust
from fedcombiner.standalone.witness import RosterWitness
from tests.rpc.combiner_kit import Replica, eventually
from tests.tls_kit import Certificates


def at(address: str, *, secure: bool = False) -> Combiner:
    host, _, port = address.partition(":")
    return Combiner("combiner", host, int(port), None, secure)


@pytest.mark.parametrize("kind", ["asking", "in the process"])
async def test_it_knows_who_came(combiner: Replica, kind: str) -> None:
    witness = AskingWitness("", Trust()) if kind == "asking" else RosterWitness(combiner.app.shared.roster)
    here = at(combiner.address)
    assert not await witness.heard_lately(here, "c1", 3600.0)
    await combiner.client("c1").beat()
    await eventually(lambda: witness.heard_lately(here, "c1", 3600.0), "news of c1")
    assert not await witness.heard_lately(here, "c2", 3600.0)
    assert not await witness.heard_lately(here, "c1", 0.0), "not since then"


async def test_only_the_named_clients_are_listed(combiner: Replica) -> None:
    for name in ("c1", "c2", "c3"):
        await combiner.client(name).beat()

    async def found() -> bool:
        there = await combiner.operator.find_clients(["c3", "nobody", "c1"])
        return sorted(client.client for client in there) == ["c1", "c3"]

    await eventually(found, "the two that are known")


async def test_a_combiner_that_cannot_be_asked_knows_nobody(
    combiner: Replica, certificates: Certificates
) -> None:
    witness = AskingWitness("", Trust(certificates.ca_pem))
    assert not await witness.heard_lately(at("127.0.0.1:1"), "c1", 3600.0)
    assert not await witness.heard_lately(at(combiner.address, secure=True), "c1", 3600.0)

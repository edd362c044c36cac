"""A state that the release before wrote goes on under this tree, from the middle of a round."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from fedcombiner.client.operator import OperatorClient
from fedcombiner.client.transfer import download_bytes
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.faults.stack import Stack
from tests.faults.trial import left_in
from tests.upgrade import scene
from tests.upgrade.make_state import ARRIVES_LAST, FAILS, SENDS_NONSENSE
from tests.upgrade.old_state import unpack

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

STATES: Final = sorted((Path(__file__).parent / "fixtures").glob("state-*.tar.xz"))
ALL: Final = frozenset(map(scene.name_of, range(scene.CLIENTS)))


def _shares(clients: list[int]) -> list[float]:
    total = sum(map(scene.examples_of, clients))
    return [
        float(np.float32(scene.examples_of(index) / total)) if index in clients else 0.0
        for index in range(scene.CLIENTS)
    ]


async def _shares_in(operator: OperatorClient, model_id: str) -> list[float]:
    with np.load(io.BytesIO(await download_bytes(operator.link, model_id))) as arrays:
        return [float(share) for share in arrays["who"]]


@pytest.mark.parametrize("archive", STATES, ids=lambda path: path.name.partition(".")[0])
async def test_a_session_in_mid_round_goes_on_and_what_ended_is_shown_as_before(archive: Path) -> None:
    stack = Stack(scene.SETTINGS, minio=False)
    about = unpack(archive, stack.directory)
    async with stack, OperatorClient(stack.gateway, token=scene.OPERATOR_TOKEN, patience=60) as operator:
        before = about["shown"]
        now = await scene.shown(operator)
        for kind, records in before.items():
            assert now[kind].keys() >= records.keys(), kind
            for key, record in records.items():
                assert _covers(now[kind][key], record), f"{kind}: {key} was {record}, is {now[kind][key]}"
        async with scene.fleet(stack.gateway, about["client_token"]):
            session = await operator.wait_session(scene.IN_MID_ROUND)
            queued = await operator.wait_session(scene.QUEUED)
        for ended, rounds in ((session, 2), (queued, 1)):
            assert (ended.state, ended.failed_rounds, ended.rounds_done) == (pb.SUCCEEDED, 0, rounds), ended
        await _check_rounds(operator, session)
        async with stack.state as state:
            assert not await left_in(state)


async def _check_rounds(operator: OperatorClient, session: pb.Session) -> None:
    """The first round has what the old release and this one accepted, each once; the second has everybody."""
    first, second = [await operator.get_job(result.job_id) for result in session.results]
    accepted = [index for index in range(scene.CLIENTS) if scene.name_of(index) in first.accepted]
    # One had received an update that it did not judge any more. The client that failed may be asked again,
    # because the release before it went away while the round was open.
    assert ARRIVES_LAST in accepted
    assert set(accepted) | {FAILS} == set(range(scene.CLIENTS)) - {SENDS_NONSENSE}, first
    assert len(first.accepted) + len(first.failed) + len(first.rejected) == scene.CLIENTS, first
    assert [outcome.client for outcome in first.rejected] == [scene.name_of(SENDS_NONSENSE)]
    assert not first.unrecorded
    assert await _shares_in(operator, first.model_id) == _shares(accepted)
    assert set(second.accepted) == ALL, second
    assert await _shares_in(operator, second.model_id) == _shares(list(range(scene.CLIENTS)))


def _covers(now: object, before: object) -> bool:
    """Whether all that was shown is; a newer release may show more. Times are read back from doubles."""
    if isinstance(before, dict):
        return isinstance(now, dict) and all(_covers(now.get(key), value) for key, value in before.items())
    if isinstance(before, list):
        return isinstance(now, list) and len(now) == len(before) and all(map(_covers, now, before))
    if isinstance(before, float):
        return isinstance(now, float) and abs(now - before) < 0.002
    return now == before

"""Rounds without end on a Redis with little memory.

REDIS_FILL=full: with 64 MB, and 1,250 rounds of 1,000 clients.
"""

from __future__ import annotations

import os

import pytest
from combiner.adapters.state import RedisState
from combiner.domain.retention import REFUSE_AT
from combiner.domain.types import Session, State

from benchmarks.redis_memory import MIB, Filling
from tests.contract.state_kit import a_model, new_job, running_server

FULL = os.environ.get("REDIS_FILL") == "full"
MAXMEMORY, ROUNDS, CLIENTS = (64 * MIB, 1250, 1000) if FULL else (6 * MIB, 40, 300)
RECORD_BYTES = 350  # what one takes at least


@pytest.mark.timeout(3600 if FULL else 300)
async def test_redis_never_fills() -> None:
    with running_server("--appendonly", "no", "--maxmemory", str(MAXMEMORY)) as server:
        state = RedisState(server.url)
        filling = Filling(state, CLIENTS)
        try:
            await filling.begin()
            for _ in range(ROUNDS):
                await filling.round()
            # All that is there has come and gone before: it would go on for ever.
            assert filling.records * RECORD_BYTES > MAXMEMORY * 0.8
            assert filling.highest < REFUSE_AT
            await state.jobs.submit(new_job("j1"))
            await state.sessions.start(Session("s1", State.QUEUED, "", "seed", "seed", {"rounds": "3"}))
            await state.models.register(a_model("m1"))
        finally:
            await state.aclose()

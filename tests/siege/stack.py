"""The stack of the fault tests, with tokens, with little memory, and without wires: all traffic is real."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tests.faults.processes import Program
from tests.faults.stack import COMBINERS, Stack, haproxy_binary
from tests.siege.limits import Limits
from tests.siege.target import Target

OPERATOR_TOKEN: Final = "operator-of-the-siege"
SETTINGS: Final = {"OPERATOR_TOKEN": OPERATOR_TOKEN, "REQUIRE_CLIENT_TOKENS": "true"}
SERVICES: Final = (*COMBINERS, "modelstore-1")
MEMORY: Final = 512 << 20
# So little that retention is at work when the first siege ends: else what rounds leave would grow on.
REDIS_MAXMEMORY: Final = 16 << 20


class SiegeStack(Stack):
    """As `Stack`; each service may use `MEMORY` bytes, and Redis `REDIS_MAXMEMORY`.

    `limits` outlives the stack.
    """

    prefix = "fc-siege-"

    def __init__(self, limits: Limits) -> None:
        super().__init__(SETTINGS)
        self._limits = limits
        self._past: dict[str, tuple[str, str]] = {}  # name -> gRPC, HTTP

    def target(self, past: str | None, *, token: str, name: str, model_id: str) -> Target:
        """The addresses for an attacker: the gateway, or this combiner and the modelstore `past` it."""
        if past is None:
            return Target(self.gateway, self.gateway, self.gateway, token, name, model_id)
        (combiner, http), (modelstore, _) = self._past[past], self._past["modelstore-1"]
        return Target(combiner, modelstore, http, token, name, model_id)

    async def _start(self) -> None:
        if haproxy_binary() is None:
            raise AssertionError("there is no HAProxy: apt-get install haproxy")
        await super()._start()

    async def _wire(self, target: str, *ends: str) -> str:
        return target

    def _redis_options(self) -> Mapping[str, str]:
        return {**super()._redis_options(), "maxmemory": str(REDIS_MAXMEMORY)}

    async def _environment(self, name: str, role: str, port: str, health: str) -> Mapping[str, str]:
        self._past[name] = port, health
        return await super()._environment(name, role, port, health)

    def _add(self, program: Program) -> None:
        if program.name in SERVICES:
            program.on_start = lambda pid: self._limits.limit_memory(pid, MEMORY)
        super()._add(program)

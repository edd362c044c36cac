"""combiner.v1.Tokens: who may call what, for operators."""

from __future__ import annotations

from collections.abc import AsyncIterator

import structlog

from combiner.servicers.common import Context
from fedcombiner.access.keeper import TokenKeeper
from fedcombiner.access.record import TokenRecord
from fedcombiner.servicekit.errors import FailedPrecondition
from fedcombiner.wire.pb.combiner.v1 import tokens_pb2 as pb

log = structlog.get_logger()


class TokensServicer:
    """`enforced`: whether tokens are asked for.

    Where everybody may call everything nobody may make one: it would still be good when the server asks for
    tokens some day.
    """

    def __init__(self, keeper: TokenKeeper, *, enforced: bool) -> None:
        self._keeper = keeper
        self._enforced = enforced

    async def Create(self, request: pb.CreateTokenRequest, context: Context) -> pb.CreatedToken:
        self._check()
        secret, record = await self._keeper.create(
            request.role, name=request.name, clients=request.clients, lifetime=request.lifetime_seconds
        )
        log.info("token made", token_id=record.id, role=record.role, name=record.name)
        return pb.CreatedToken(token=self._message(record), secret=secret)

    async def List(self, request: pb.ListTokensRequest, context: Context) -> AsyncIterator[pb.Token]:
        self._check()
        for record in await self._keeper.list():
            yield self._message(record)

    async def Revoke(self, request: pb.RevokeTokenRequest, context: Context) -> pb.Token:
        self._check()
        record = await self._keeper.revoke(request.token_id)
        log.info("token revoked", token_id=record.id, role=record.role, name=record.name)
        return self._message(record)

    def _check(self) -> None:
        if not self._enforced:
            raise FailedPrecondition(
                "tokens are not asked for here; start the server with OPERATOR_TOKEN_FILE to have them"
                " (`combiner token generate` prints a token for it)"
            )

    def _message(self, record: TokenRecord) -> pb.Token:
        return pb.Token(
            token_id=record.id,
            role=record.role,
            name=record.name,
            clients=record.clients,
            created_at=record.created,
            expires_at=record.expires or 0.0,
            revoked_at=record.revoked or 0.0,
            state=self._keeper.state(record),
        )

"""Tokens, as an operator makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedcombiner.client.calls import TIMEOUT, Calls
from fedcombiner.wire.pb.combiner.v1 import tokens_pb2 as pb
from fedcombiner.wire.pb.combiner.v1 import tokens_pb2_grpc

if TYPE_CHECKING:
    from fedcombiner.wire.pb.combiner.v1.tokens_pb2_grpc import TokensAsyncStub


class TokensCalls(Calls):
    async def create_token(
        self, role: str, *, name: str = "", clients: Sequence[str] = (), lifetime: int = 0
    ) -> pb.CreatedToken:
        """A new token, good for `lifetime` seconds (0: for ever); of a client, for these names only.

        Not repeated when there is no answer: a token that nobody knows may have been made all the same.
        """
        request = pb.CreateTokenRequest(role=role, name=name, clients=clients, lifetime_seconds=lifetime)
        stub: TokensAsyncStub = tokens_pb2_grpc.TokensStub(self.link)
        return await self._reach(lambda: stub.Create(request, timeout=TIMEOUT))

    async def list_tokens(self) -> list[pb.Token]:
        """What is known of all tokens, oldest first, also of those that are not good any more."""
        stub: TokensAsyncStub = tokens_pb2_grpc.TokensStub(self.link)
        return await self._list(lambda: stub.List(pb.ListTokensRequest()))

    async def revoke_token(self, token_id: str) -> pb.Token:
        """Refuse a token from now on; one that is revoked already stays as it is."""
        request = pb.RevokeTokenRequest(token_id=token_id)
        stub: TokensAsyncStub = tokens_pb2_grpc.TokensStub(self.link)
        return await self._call(lambda: stub.Revoke(request, timeout=TIMEOUT))

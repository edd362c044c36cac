"""The gate in front of every rpc.

What FEDn's clients call is refused with UNAVAILABLE, whatever the reason: it is the only status that none of
their generations dies of. The second generation (0.17 to 0.33) ends at any other one, and the first sends its
next call at once, so a stream of tasks is held for some seconds before it is refused. The reason is in the
message, and in a trailer by which our own client library tells what is meant, and stops.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import structlog

from fedcombiner.access.gate import Gate, Pass
from fedcombiner.access.roles import Role
from fedcombiner.access.secret import header
from fedcombiner.access.table import RPCS, Access
from fedcombiner.servicekit.caller import bound_token
from fedcombiner.servicekit.errors import (
    MEANT_TRAILER,
    PermissionDenied,
    ServiceError,
    Unauthenticated,
    Unavailable,
)
from fedcombiner.servicekit.incoming import check_request
from fedcombiner.servicekit.waitingroom import WaitingRoom
from fedcombiner.servicekit.wrapping import (
    Context,
    Handler,
    WrappingInterceptor,
    behaviour_of,
    with_behaviour,
    write_responses,
)
from fedcombiner.wire.eras import REFUSAL_HOLD_S, STREAM_TASKS, identity

log = structlog.get_logger(__name__)

_NOBODY: Final = Access(frozenset())


class AccessInterceptor(WrappingInterceptor):
    """Asks the gate before each call of a method that is not for everybody; others are left as they are."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate
        self._waiting_room = WaitingRoom()

    def wrap(self, method: str, handler: Handler) -> Handler:
        access = RPCS.get(method, _NOBODY)
        if self._gate.is_open(access):
            return handler
        if access is _NOBODY:
            log.error("no row in the table of access: refused to everybody", method=method)
        # Their clients open them again at once, over and over; nothing else is called like that.
        room = self._waiting_room if method.rpartition("/")[2] in STREAM_TASKS else None
        guarded = _Guarded(access, behaviour_of(method, handler), self._gate, room)
        return with_behaviour(
            handler, guarded.answer_stream if handler.response_streaming else guarded.answer
        )


class _Guarded:
    """One method behind the gate."""

    def __init__(self, access: Access, behaviour: Any, gate: Gate, waiting_room: WaitingRoom | None) -> None:
        self._access = access
        self._behaviour = behaviour
        self._gate = gate
        self._waiting_room = waiting_room
        self._for_clients = Role.CLIENT in access.roles

    async def answer(self, requests: object, context: Context) -> Any:
        try:
            await self._admit(context)
        except ServiceError as error:
            raise await self._refusal(error, context) from None
        return await self._behaviour(requests, context)

    async def answer_stream(self, requests: object, context: Context) -> None:
        try:
            admitted = await self._admit(context)
        except ServiceError as error:
            raise await self._refusal(error, context) from None
        try:
            async with self._gate.watched(admitted):
                await write_responses(self._behaviour, requests, context)
        except Unauthenticated as error:
            raise self._meant(error, context) from None

    async def _admit(self, context: Context) -> Pass:
        """Before the request is read: a caller that may not call costs no more than its headers."""
        metadata = context.invocation_metadata() or ()
        authorization = header([str(value) for key, value in metadata if key == "authorization"])
        admitted = await self._gate.admit(self._access, authorization)
        bound_token.set(admitted.key if admitted.is_bound else "")
        if self._for_clients and admitted.is_bound:
            check_request(partial(self._check_sender, admitted, context))
        return admitted

    async def _check_sender(self, admitted: Pass, context: Context, request: Any) -> None:
        # Raw messages, and streams of them, name nobody: an Upload has no sender in any FEDn client.
        sender = getattr(request, "sender", None)
        if sender is None:
            return
        try:
            admitted.check_client(identity(sender))
        except PermissionDenied as error:
            self._gate.count(error)
            raise await self._refusal(error, context) from None

    async def _refusal(self, error: ServiceError, context: Context) -> ServiceError:
        if self._waiting_room is not None:
            await self._waiting_room.hold(REFUSAL_HOLD_S)
        return self._meant(error, context)

    def _meant(self, error: ServiceError, context: Context) -> ServiceError:
        if not self._for_clients:
            return error
        context.set_trailing_metadata(((MEANT_TRAILER, error.code.name),))
        return Unavailable(f"{error.code.name}: {error.message}")

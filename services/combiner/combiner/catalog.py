"""Models by name: what is registered, and how an upload becomes one."""

from __future__ import annotations

import structlog

from combiner.domain.types import Model
from combiner.ports import Conflict, Models
from combiner.rounds.capacity import Capacity
from combiner.specs import Specs
from fedcombiner.modelstorage.formats import FormatError
from fedcombiner.modelstorage.store import (
    STORE_AWAY,
    ModelStore,
    ObjectDamaged,
    ObjectInfo,
    ObjectKey,
    ObjectNotFound,
    parse_id,
)
from fedcombiner.servicekit.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound
from fedcombiner.wire.eras import BLOB_SUFFIX

log = structlog.get_logger()

FOUND = "found in the store; where it comes from was lost with Redis"


class Catalog:
    """`max_bytes`: of the arrays of a model, in memory. An archive of a thousandth of that can hold them."""

    def __init__(
        self, models: Models, store: ModelStore, specs: Specs, max_bytes: int, capacity: Capacity
    ) -> None:
        self._models = models
        self._store = store
        self._specs = specs
        self._max_bytes = max_bytes
        self._capacity = capacity

    async def check_room(self, model_id: str) -> None:
        """See that a round on a model fits into the memory and scratch of a combiner.

        Raises FailedPrecondition naming what it takes and what there is. What cannot be looked at now is left
        to the owner of the round.
        """
        try:
            info = await self._store.head(ObjectKey("models", model_id))
            spec = await self._specs.of(info) if info else None
        except (*STORE_AWAY, ObjectDamaged, ObjectNotFound, FormatError):
            return
        if spec and (lack := self._capacity.lacks_memory(spec) or self._capacity.lacks_scratch(spec)):
            raise FailedPrecondition(f"model_id: {model_id}: {lack}")

    async def adopt(self, model_id: str, *, field: str = "model_id", name: str = "") -> Model:
        """The model of that id; a completed upload of that id becomes a model first, copied out of the
        uploads.

        Raises:
            NotFound: there is neither.
            Aborted: a model of that id is being removed.
            InvalidArgument: it is no id, or the upload is no model that could be averaged.
        """
        parse_id(model_id, field)
        if model_id.endswith(BLOB_SUFFIX):
            raise InvalidArgument(
                field,
                model_id,
                f"an id that does not end in {BLOB_SUFFIX}: those are made for Android clients",
            )
        known = await self._models.get(model_id)
        if known is not None:
            return known
        target, upload = ObjectKey("models", model_id), ObjectKey("uploads", model_id)
        info = await self._store.head(target)
        if info is None:
            uploaded = await self._store.head(upload)
            if uploaded is None:
                raise NotFound(f"{field}: there is no model and no completed upload named {model_id}")
            await self._check(uploaded, field)
            info = await self._store.copy(upload, target)
        try:
            model = await self._models.register(
                Model(model_id=model_id, size=info.size, sha256=info.sha256, name=name)
            )
        except Conflict as error:
            raise Aborted(f"{field}: {error}; choose another id, or try again in an hour") from error
        log.info("model registered", model_id=model_id, size=info.size)
        return model

    async def recover(self) -> int:
        """Register the models of the store that a Redis which lost its memory does not know. Returns how many
        objects there are; 0 if nothing was lost.

        An aggregate that was never committed is among them: nobody can tell it from a model any more.
        """
        if await self._models.is_complete():
            return 0
        models = [info async for info in self._store.list("models") if not info.key.id.endswith(BLOB_SUFFIX)]
        objects = sorted(models, key=lambda info: info.modified)
        await self._models.found([_found(info) for info in objects])
        await self._models.mark_complete()
        return len(objects)

    async def _check(self, upload: ObjectInfo, field: str) -> None:
        key = upload.key
        try:
            spec = await self._specs.of(upload)
        except FormatError as error:
            raise InvalidArgument(
                field, key.id, f"an npz archive of numeric arrays ({error.detail})"
            ) from error
        if spec.nbytes > self._max_bytes:
            shown = f"{key.id} with arrays of {spec.nbytes} bytes"
            raise InvalidArgument(field, shown, f"at most {self._max_bytes} bytes (MAX_MODEL_BYTES)")


def _found(info: ObjectInfo) -> Model:
    return Model(
        model_id=info.key.id,
        size=info.size,
        sha256=info.sha256,
        created_ms=round(info.modified.timestamp() * 1000),
        name=FOUND,
    )

"""Removing models that are not to be kept.

The record goes first, in the step that sees that no job and no session relies on the model; then the object.
A crash between the two leaves an object that no record names, which `garbage` finds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import Final

from combiner.domain.retention import Keep
from combiner.domain.types import Model
from combiner.ports import Shared
from combiner.upkeep.removal import Kind, Removal
from fedcombiner.modelstorage.store import ModelStore, ObjectKey, is_id
from fedcombiner.wire.eras import BLOB_SUFFIX

_ALL: Final = 1_000_000
_AT_ONCE: Final = 20


class Pruning:
    def __init__(self, shared: Shared, store: ModelStore) -> None:
        self._shared = shared
        self._store = store

    async def surplus(self, keep: Keep, session_id: str = "") -> list[Model]:
        """What `keep` does not keep of all sessions or of one, without the models in use; oldest first.

        Raises UnknownMetric.
        """
        models = [model async for model in self._shared.models.list(session_id=session_id, limit=_ALL)]
        used = await self._shared.models.in_use()
        return [model for model in keep.surplus(models) if model.model_id not in used]

    async def prune(
        self, keep: Keep, *, session_id: str = "", only: Collection[str] = (), dry_run: bool
    ) -> AsyncIterator[Removal]:
        """Remove the surplus (of it, `only` these if any are named), telling each; with `dry_run` only tell.

        Raises UnknownMetric; StateUnavailable, or what `ModelStore` raises: what was told by then is done.
        """
        surplus = [m for m in await self.surplus(keep, session_id) if not only or m.model_id in only]
        for start in range(0, len(surplus), _AT_ONCE):
            some = {model.model_id: model for model in surplus[start : start + _AT_ONCE]}
            for model_id in some if dry_run else await self._shared.models.forget(list(some)):
                if not dry_run:
                    await self._store.delete(ObjectKey("models", model_id))
                    if is_id(blob := model_id + BLOB_SUFFIX):
                        await self._store.delete(ObjectKey("models", blob))
                yield _removal(some[model_id])


def _removal(model: Model) -> Removal:
    round_id = f" of round {model.round_id}" if model.round_id else ""
    return Removal(Kind.MODEL, model.model_id, f"not kept{round_id}", model.size, model.session_id)

"""Models for clients that know no archive: written beside the model when such a client is asked.

House-keeping keeps a blob while its model is in use (the newest one, or that of a job or session which has
not ended), however often a client is asked; else it removes it like every object that no record names.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from combiner.domain.types import LeftOut, Outcome
from combiner.ports import Roster
from combiner.rounds.takingpart import Capabilities, Work
from combiner.rounds.waiting import steady
from combiner.rounds.workshop import RoundFailed, Workshop, patient
from fedcombiner.modelstorage.formats import FormatError
from fedcombiner.modelstorage.formats.blob import blob_of
from fedcombiner.modelstorage.store import ModelStore, ObjectDamaged, ObjectKey

log = structlog.get_logger()


class Blobs:
    def __init__(
        self, store: ModelStore, workshop: Workshop, roster: Roster, capabilities: Capabilities
    ) -> None:
        self._store = store
        self._workshop = workshop
        self._roster = roster
        self._capabilities = capabilities

    async def provide(self, chosen: Sequence[str], work: Work) -> tuple[Sequence[str], Sequence[Outcome]]:
        """See to it that each of the chosen clients can fetch the model. Returns who can, and who cannot.

        Raises:
            RoundFailed: the store was away for too long, or the model is damaged.
        """
        presences = await steady(lambda: self._roster.presence(chosen))
        ids = {p.client: self._capabilities.model_id(p.era, work.model_id) for p in presences}
        of_blobs = sorted({model_id for model_id in ids.values() if model_id != work.model_id})
        try:
            for blob_id in of_blobs:
                await self._write(ObjectKey("models", work.model_id), ObjectKey("models", blob_id), work)
        except FormatError as error:
            log.warning("no blob can be made of the model", model_id=work.model_id, reason=str(error))
            detail = f"no blob can be made of the model: {error.detail}"
            others = [Outcome(c, LeftOut.FORMAT, detail) for c in chosen if ids[c] in of_blobs]
            return [client for client in chosen if ids[client] not in of_blobs], others
        return chosen, ()

    async def _write(self, source: ObjectKey, target: ObjectKey, work: Work) -> None:
        if work.spec is None or await patient(lambda: self._store.head(target)) is not None:
            return
        size = work.spec.elements * 4

        async def write() -> None:
            async with (
                self._store.local_file(source) as path,
                self._store.writer(target, max_bytes=size) as writer,
            ):
                parts = blob_of(path, self._workshop.scratch)
                while (part := await self._workshop.run(lambda: next(parts, None))) is not None:
                    await writer.write(part)
                await writer.commit()

        try:
            await patient(write)
        except ObjectDamaged as error:
            raise RoundFailed(f"model_id: {error.message}") from error
        log.info("blob written", model_id=source.id, size=size)

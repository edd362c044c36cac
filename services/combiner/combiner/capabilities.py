"""What clients of each generation can do, for the rounds: `rounds.takingpart.Capabilities`."""

from __future__ import annotations

from combiner.domain.types import Kind, LeftOut
from combiner.rounds.takingpart import Work
from fedcombiner.modelstorage.formats.spec import quoted
from fedcombiner.modelstorage.store import is_id
from fedcombiner.wire import eras
from fedcombiner.wire.eras import ERAS, Era

TYPE_OF_KIND = {
    Kind.TRAINING: eras.TRAINING,
    Kind.VALIDATION: eras.VALIDATION,
    Kind.INFERENCE: eras.PREDICTION,
}


class EraCapabilities:
    def restricts(self, work: Work) -> bool:
        return any(_obstacle(era, work) for era in ERAS.values())

    def obstacle(self, era: str, work: Work) -> tuple[str, str] | None:
        """None for a client whose generation is not known."""
        return _obstacle(ERAS[era], work) if era in ERAS else None

    def model_id(self, era: str, model_id: str) -> str:
        return ERAS[era].model_id(model_id) if era in ERAS else model_id


def _obstacle(era: Era, work: Work) -> tuple[str, str] | None:
    if TYPE_OF_KIND[work.kind] not in era.tasks:
        return LeftOut.TASK, f"clients of generation {era.name} know no {work.kind} tasks"
    if not era.blobs or work.spec is None:
        return None
    if not work.spec.fits_a_blob:
        whole = next(tensor for tensor in work.spec.tensors if tensor.dtype.kind != "f")
        detail = f"a blob of float32 cannot hold the array {quoted([whole.name])} of {whole.dtype}"
        return LeftOut.FORMAT, detail
    if not is_id(era.model_id(work.model_id)):
        return LeftOut.FORMAT, "the model's id is too long to name its blob"
    return None

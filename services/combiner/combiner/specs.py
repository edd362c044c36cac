"""What models consist of: their arrays' names, shapes and types."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final

from fedcombiner.modelstorage.formats import ModelSpec
from fedcombiner.modelstorage.formats.npz import read_spec
from fedcombiner.modelstorage.store import ModelStore, ObjectInfo

_MOST_TENSORS: Final = 100_000  # some 50 MB


class Specs:
    """Reads the headers of a model once: on an object store its whole file has to be fetched for them.

    What is known is found by the sha256 of the bytes, so an id that was used again misleads nobody.
    """

    def __init__(self, store: ModelStore, most_tensors: int = _MOST_TENSORS) -> None:
        self._store = store
        self._left = most_tensors
        self._known: OrderedDict[str, ModelSpec] = OrderedDict()

    async def of(self, info: ObjectInfo) -> ModelSpec:
        """Raises FormatError: that object is no model; and what `ModelStore.local_file` raises."""
        spec = self._known.get(info.sha256)
        if spec is None:
            async with self._store.local_file(info.key) as path:
                spec = await asyncio.to_thread(read_spec, path)
        self.know(info, spec)
        return spec

    def know(self, info: ObjectInfo, spec: ModelSpec) -> None:
        """The longest unused ones make room."""
        if info.sha256 not in self._known:
            self._known[info.sha256] = spec
            self._left -= len(spec.tensors)
        self._known.move_to_end(info.sha256)
        while self._left < 0 and len(self._known) > 1:
            self._left += len(self._known.popitem(last=False)[1].tensors)

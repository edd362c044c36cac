"""The registry of models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from combiner.adapters import codec
from combiner.adapters.connection import Connection
from combiner.domain.types import Model

_PAGE = 50


class RedisModels:
    """`ports.Models`."""

    def __init__(self, connection: Connection) -> None:
        self._run = connection.run
        self._command = connection.command
        self._complete = connection.key("models:complete")

    async def register(self, model: Model) -> Model:
        registered = codec.model(await self._run("model_register", model=codec.model_entry(model)))
        assert registered is not None
        return registered

    async def get(self, model_id: str) -> Model | None:
        return codec.model((await self._run("model_get", ids=[model_id]))[0])

    async def found(self, models: Sequence[Model]) -> None:
        for start in range(0, len(models), _PAGE):
            entries = [codec.model_entry(model) for model in models[start : start + _PAGE]]
            await self._run("models_found", models=entries)

    async def is_complete(self) -> bool:
        return bool(await self._command("EXISTS", self._complete))

    async def mark_complete(self) -> None:
        await self._run("models_complete")

    async def newest(self) -> Model | None:
        dump = await self._run("model_newest")
        return codec.model(dump) if dump else None

    async def list(self, *, session_id: str = "", limit: int = 1000) -> AsyncIterator[Model]:
        """The newest `limit` models, oldest first."""
        index = f"session-models:{session_id}" if session_id else "all:model"
        ids = (await self._run("ids", index=index, limit=limit))[::-1]
        for start in range(0, len(ids), _PAGE):
            for dump in await self._run("model_get", ids=ids[start : start + _PAGE]):
                model = codec.model(dump)
                if model is not None:
                    yield model

    async def in_use(self) -> set[str]:
        return set(await self._run("models_in_use"))

    async def forget(self, ids: Sequence[str]) -> Sequence[str]:
        return await self._of("models_forget", ids)

    async def unregistered(self, ids: Sequence[str]) -> Sequence[str]:
        return await self._of("models_unregistered", ids)

    async def condemn(self, ids: Sequence[str]) -> Sequence[str]:
        return await self._of("models_condemn", ids)

    async def _of(self, script: str, ids: Sequence[str]) -> Sequence[str]:
        some: Sequence[str] = await self._run(script, ids=[*ids])
        return some

"""Which of the active clients can take part in a job: not every generation can do every task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from combiner.domain.types import Kind, Outcome
from combiner.ports import Roster
from fedcombiner.modelstorage.formats import ModelSpec


@dataclass(frozen=True, slots=True)
class Work:
    """What is asked for. `spec` is that of the model; None where clients only look at it."""

    kind: Kind
    model_id: str
    spec: ModelSpec | None = None

    @property
    def format(self) -> str:
        if self.spec is None:
            return ""
        return "npz list" if self.spec.is_list else "npz dict"


class Capabilities(Protocol):
    """What clients of each generation can do."""

    def restricts(self, work: Work) -> bool:
        """Whether any generation cannot do it."""

    def obstacle(self, era: str, work: Work) -> tuple[str, str] | None:
        """Why clients of this generation cannot: a word of `LeftOut`, and a text for a person."""

    def model_id(self, era: str, model_id: str) -> str:
        """The id under which clients of this generation fetch a model; another one is of its blob."""


async def split(
    active: Sequence[str], work: Work, capabilities: Capabilities, roster: Roster
) -> tuple[Sequence[str], Sequence[Outcome]]:
    """Those who can take part, and the others with the reason."""
    if not capabilities.restricts(work):
        return active, ()
    able, left_out = [], []
    for presence in await roster.presence(active):
        obstacle = capabilities.obstacle(presence.era, work)
        if obstacle is None:
            able.append(presence.client)
        else:
            left_out.append(Outcome(presence.client, *obstacle))
    return able, left_out

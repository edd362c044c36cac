"""Something that was removed, or would be."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    MODEL = "model"
    UPLOAD = "upload"
    LEFTOVER = "leftover"
    JOB = "job"
    SESSION = "session"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class Removal:
    kind: Kind
    id: str
    why: str
    size: int = 0  # bytes in the object store
    session_id: str = ""  # of a model

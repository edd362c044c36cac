"""How a test tells the clients' trainings what to do, and hears what they do: files in one directory."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path


class Mode(StrEnum):
    """What a training comes to."""

    GOOD = "good"
    EMPTY = "empty"  # it leaves a file of no bytes
    FAILS = "fails"  # it exits with 1


class Control:
    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory

    def hold(self) -> None:
        """Trainings that begin now go on when they are told to."""
        (self.directory / "hold").touch()

    def release(self) -> None:
        (self.directory / "hold").unlink(missing_ok=True)

    def set_mode(self, name: str, mode: Mode) -> None:
        (self.directory / f"{name}.mode").write_text(mode)

    def forget(self) -> None:
        """All modes, and what was said."""
        for file in self.directory.iterdir():
            file.unlink()

    def said(self, name: str, word: str) -> int:
        """How often this client has said `training` (it begins) or `trained` (the update is there)."""
        file = self.directory / f"{name}.said"
        return file.read_text().split().count(word) if file.exists() else 0

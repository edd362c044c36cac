"""The FEDn clients from PyPI that are run here, unmodified: how each is started, and what it is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

REQUIREMENTS: Final = Path(__file__).parent / "requirements"


@dataclass(frozen=True)
class Era:
    """A release, and which of its clients: FEDn has two generations, and 0.20 has both.

    Attributes:
        command: after `fedn`; the options that name the settings file are added to it.
    """

    version: str
    generation: int
    command: tuple[str, ...]

    @property
    def client_name(self) -> str:
        """First-generation clients refuse dots."""
        return f"fedn-{self.version.replace('.', '-')}-v{self.generation}"

    @property
    def name(self) -> str:
        """What the stack knows it by: its `client_id`, which came with 0.11, and is not its name here."""
        return self.client_name if self.version == "0.9.6" else f"id-{self.client_name}"

    @property
    def title(self) -> str:
        both = f", {('first', 'second')[self.generation - 1]} generation" if self.version == "0.20.0" else ""
        return f"{self.version}{both}"

    @property
    def requirements(self) -> Path:
        return REQUIREMENTS / f"fedn-{self.version}.txt"

    @property
    def index(self) -> int:
        return ERAS.index(self)

    @property
    def num_examples(self) -> int:
        return 10 * self.index + 3


ERAS: Final = (
    Era("0.9.6", 1, ("run", "client")),
    Era("0.11.0", 1, ("client", "start")),
    Era("0.20.0", 1, ("client", "start-v1")),
    Era("0.20.0", 2, ("client", "start")),
    Era("0.25.0", 2, ("client", "start")),
    Era("0.33.0", 2, ("client", "start")),
)
FIRST: Final = tuple(era.name for era in ERAS if era.generation == 1)
VERSIONS: Final = tuple(dict.fromkeys(era.version for era in ERAS))
BY_NAME: Final = {era.name: era for era in ERAS}
NAMES: Final = tuple(BY_NAME)

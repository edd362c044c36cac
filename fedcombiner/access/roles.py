"""What a token lets its bearer be."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """The values are what is stored, and what people type."""

    CLIENT = "client"
    COMBINER = "combiner"
    CONTROLLER = "controller"
    OPERATOR = "operator"


MEANING = {
    Role.CLIENT: "takes part in the federation: streams, answers, models, its compute package",
    Role.COMBINER: "announces itself to the discovery",
    Role.CONTROLLER: "drives training: jobs, sessions, models, packages",
    Role.OPERATOR: "may call everything",
}
"""What a role is for, for a person."""

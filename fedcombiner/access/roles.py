"""What a token lets its bearer be."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """The values are what is stored, and what people type."""

    CLIENT = "client"
    COMBINER = "combiner"
    CONTROLLER = "controller"
    OPERATOR = "operator"

"""Reading typed values out of the text parameters of a request."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

MAX_PARAMS_CHARS = 64 * 1024
MAX_COUNT = 1_000_000
MAX_SECONDS = 30 * 24 * 3600.0

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# Stricter than int() and float(), which also take 1_000, other scripts' digits, and inf.
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})([eE][+-]?[0-9]{1,3})?")
_SHOWN_CHARS = 100


def is_id(text: str) -> bool:
    """The rule for ids of models, updates, jobs and tasks: safe as a file name and as a key."""
    return _ID.fullmatch(text) is not None


def is_label(text: str) -> bool:
    """A name that is only shown and compared. Printable text has no line breaks and no lone surrogates."""
    return 0 < len(text) <= 128 and text.isprintable()


class ConfigError(ValueError):
    """`key` has a `value` that cannot run (None: it is missing); `allowed` says in words what can."""

    def __init__(self, key: str, value: str | None, allowed: str) -> None:
        self.key = key
        self.value = value
        self.allowed = allowed
        problem = "is missing" if value is None else f"cannot be {_shown(value)}"
        super().__init__(f"{_shown(key, quote='')} {problem}; allowed: {allowed}")


def _shown(text: str, quote: str = "'") -> str:
    cut = text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"
    return quote + "".join(char if char.isprintable() else repr(char)[1:-1] for char in cut) + quote


class Params:
    """A view of text parameters. Every reader raises ConfigError for a value that does not fit."""

    def __init__(self, given: Mapping[str, str]) -> None:
        size = sum(len(key) + len(value) for key, value in given.items())
        if size > MAX_PARAMS_CHARS:
            raise ConfigError("config", f"{size} characters", f"at most {MAX_PARAMS_CHARS} characters in all")
        for key, value in given.items():
            if not is_label(key):
                raise ConfigError("config", key, "keys of 1 to 128 printable characters")
            if not _encodable(value):
                raise ConfigError(key, value, "text that UTF-8 can express")
        self._given = given

    def get(self, key: str) -> str | None:
        """The value, or None if it is not there, empty, or says None."""
        value = self._given.get(key, "").strip()
        return None if value.lower() in ("", "none", "null") else value

    def text(self, key: str, rule: Callable[[str], bool], allowed: str, default: str | None = None) -> str:
        """Without a default the key is required."""
        if self.get(key) is None:
            return _required(key, default, allowed)
        value = self._given[key]
        if not rule(value):
            raise ConfigError(key, value, allowed)
        return value

    def choice(
        self, key: str, among: Sequence[str], default: str | None = None, shown: Sequence[str] = ()
    ) -> str:
        allowed = ", ".join(shown or among)
        value = self.get(key)
        if value is None:
            return _required(key, default, allowed)
        if value.lower() not in among:
            raise ConfigError(key, value, allowed)
        return value.lower()

    def boolean(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if value.lower() not in ("true", "false"):
            raise ConfigError(key, value, "True, False")
        return value.lower() == "true"

    def integer(
        self, key: str, default: int, *, at_least: int, at_most: int = MAX_COUNT, allowed: str = ""
    ) -> int:
        value = self.get(key)
        if value is None:
            return default
        if not _INTEGER.fullmatch(value) or not at_least <= int(value) <= at_most:
            raise ConfigError(key, value, allowed or f"a whole number from {at_least} to {at_most}")
        return int(value)

    def optional_integer(self, key: str) -> int | None:
        if self.get(key) is None:
            return None
        return self.integer(key, 0, at_least=-(2**63), at_most=2**63 - 1, allowed="a whole number of 64 bits")

    def number(
        self, key: str, default: float, *, at_least: float, at_most: float, allowed: str = ""
    ) -> float:
        value = self.get(key)
        if value is None:
            return default
        number = float(value) if _NUMBER.fullmatch(value) else math.nan
        if not at_least <= number <= at_most:
            raise ConfigError(key, value, allowed or f"a number from {at_least:g} to {at_most:g}")
        return number

    def seconds(
        self, key: str, default: float, *, more_than: float | None = None, at_most: float = MAX_SECONDS
    ) -> float:
        start = "0 to" if more_than is None else f"more than {more_than:g}, at most"
        allowed = f"seconds, {start} {at_most:g}"
        value = self.number(key, default, at_least=0.0, at_most=at_most, allowed=allowed)
        if more_than is not None and value <= more_than:
            raise ConfigError(key, self.get(key), allowed)
        return value


def _required(key: str, default: str | None, allowed: str) -> str:
    if default is None:
        raise ConfigError(key, None, allowed)
    return default


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

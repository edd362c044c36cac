"""A backup of the shared state: lines of JSON between a header and an end that proves it whole.

    {"format": "federated-combiner-backup", "version": 2, "schema": 1, "created_at": …, "software": …}
    {"kind": "settings" | "newest" | "session" | "job" | "model", …}      any number, in this order
    {"kind": "results" | "answers", "id": …, "at": …, …}      parts of the session or job before them
    {"kind": "end", "lines": …, "sha256": …, "missing_models": […]}

What a record holds is the business of the `schema`, the layout of the state that it was read from. The sha256
is of everything before the last line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from fedcombiner.servicekit.errors import shown

FORMAT: Final = "federated-combiner-backup"
VERSION: Final = 2
READABLE: Final = (1, VERSION)  # 1 had no parts: a job's answers were in its record
END: Final = "end"
PARTS: Final = ("results", "answers")
KINDS: Final = ("settings", "newest", "session", "job", "model", *PARTS)
MAX_LINE_BYTES: Final = 256 << 20  # a job of a hundred thousand clients is some 20 MiB

Record = Mapping[str, Any]


class NotABackup(ValueError):
    """The bytes are no backup, not a whole one, or one that only another version can read."""


@dataclass(frozen=True, slots=True)
class Header:
    schema: int
    created_at: str  # ISO 8601, UTC
    software: str  # the version that made it
    version: int = VERSION
    format: str = FORMAT

    def encode(self) -> bytes:
        return _line(asdict(self))

    @classmethod
    def decode(cls, line: bytes) -> Header:
        """Raises NotABackup."""
        fields = decode(line, 1)
        if fields.get("format") != FORMAT:
            raise NotABackup("its first line is not that of a backup of a combiner")
        if fields.get("version") not in READABLE:
            version, software = shown(fields.get("version")), shown(fields.get("software"))
            raise NotABackup(f"its format has version {version}, not {VERSION}: restore it with {software}")
        try:
            return cls(
                int(fields["schema"]),
                str(fields["created_at"]),
                str(fields["software"]),
                int(fields["version"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise NotABackup("its header is damaged") from error


@dataclass(frozen=True, slots=True)
class End:
    lines: int  # records
    missing_models: tuple[str, ...]  # that were in no object store when the backup was made


class Writer:
    """The lines of one backup, in their order."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._lines = 0

    def header(self, header: Header) -> bytes:
        line = header.encode()
        self._hash.update(line)
        return line

    def record(self, record: Record) -> bytes:
        line = _line(record)
        self._hash.update(line)
        self._lines += 1
        return line

    def end(self, missing_models: list[str]) -> bytes:
        digest = self._hash.hexdigest()
        return _line({"kind": END, "lines": self._lines, "sha256": digest, "missing_models": missing_models})


class Checker:
    """Takes the lines of a backup, one by one, and knows in the end whether it is whole."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._lines = 0
        self._header: Header | None = None
        self._end: End | None = None

    def take(self, line: bytes) -> Record | None:
        """The record of a line; None of the first and the last one. Raises NotABackup."""
        if self._end is not None:
            raise NotABackup("something follows its last line")
        if self._header is None:
            self._header = Header.decode(line)
            self._hash.update(line)
            return None
        record = decode(line, self._lines + 2)
        if record.get("kind") == END:
            self._end = self._proven(record)
            return None
        if record.get("kind") not in KINDS:
            raise NotABackup(f"line {self._lines + 2} is of an unknown kind, {shown(record.get('kind'))}")
        self._hash.update(line)
        self._lines += 1
        return record

    @property
    def header(self) -> Header:
        if self._header is None:
            raise NotABackup("it is empty")
        return self._header

    @property
    def end(self) -> End:
        """Raises NotABackup: there is none yet, or never was."""
        if self._end is None:
            raise NotABackup("it is empty" if self._header is None else "it is cut off: its end is missing")
        return self._end

    def _proven(self, record: Record) -> End:
        if (record.get("lines"), record.get("sha256")) != (self._lines, self._hash.hexdigest()):
            raise NotABackup("it is damaged: its lines do not have the checksum that its end names")
        return End(self._lines, tuple(map(str, record.get("missing_models") or ())))


class Lines:
    """Takes bytes as they come, and gives whole lines. Holds one line that is not whole yet."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are whole by now, each with its end. Raises NotABackup: a line is too long."""
        self._rest += data
        whole, newline, rest = self._rest.rpartition(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise NotABackup(f"a line has more than {MAX_LINE_BYTES} bytes")
        self._rest = rest
        return [bytes(line + newline) for line in whole.split(b"\n")] if newline else []

    def close(self) -> None:
        """Raises NotABackup: the last line is not whole."""
        if self._rest:
            raise NotABackup("it is cut off in the middle of a line")


def decode(line: bytes, number: int) -> Record:
    """The JSON object of a line. Raises NotABackup."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise NotABackup(f"line {number} is not JSON") from error
    if not isinstance(record, dict):
        raise NotABackup(f"line {number} is not a JSON object")
    return record


def _line(fields: Record) -> bytes:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"

"""A state that an older release wrote, packed into one file: Redis's append-only file and the models."""

from __future__ import annotations

import json
import os
import re
import tarfile
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

META: Final = "meta.json"  # of an object in the store
PARTS: Final = ("redis", "models")
ABOUT: Final = "about.json"
# Milliseconds, and the whole seconds of a time with a fraction.
_TIMES: Final = re.compile(rb"(?<![\w.])1(\d{12}(?!\w)|\d{9}(?=\.\d))")
_NEAR_S: Final = 60 * 24 * 3_600


def pack(directory: Path, archive: Path, about: dict[str, Any]) -> None:
    """Write `redis/` and `models/` of `directory`, and `about`, which has `at_ms`, the time of Redis."""
    (directory / ABOUT).write_text(json.dumps(about, indent=1, sort_keys=True), "utf-8")
    with tarfile.open(archive, "w:xz") as tar:
        for name in (ABOUT, *PARTS):
            tar.add(directory / name, arcname=name, filter=_anonymous)


def unpack(archive: Path, directory: Path) -> dict[str, Any]:
    """Bring the state back as if the release before had ended just now. Returns `about`.

    All times in it move by the whole seconds since: leases, deadlines and retention then are what they were.
    They have as many digits as before, so the append-only file stays whole.
    """
    with tarfile.open(archive) as tar:
        tar.extractall(directory, filter="data")
    about: dict[str, Any] = json.loads((directory / ABOUT).read_text("utf-8"))
    at = about["at_ms"] // 1000
    moved = int(time.time()) - at - 1

    def move(found: re.Match[bytes]) -> bytes:
        unit = 1000 if len(found[0]) == 13 else 1
        old = int(found[0])
        return str(old + moved * unit).encode() if abs(old // unit - at) < _NEAR_S else found[0]

    for path in (directory / "redis").rglob("*.aof"):
        path.write_bytes(_TIMES.sub(move, path.read_bytes()))
    for path in (directory / "models").rglob(META):
        record = json.loads(path.read_bytes())
        modified = datetime.fromisoformat(record["modified"]) + timedelta(seconds=moved)
        path.write_text(json.dumps(record | {"modified": modified.isoformat()}), "utf-8")
    for path in (directory / name for name in PARTS):
        for entry in (path, *path.rglob("*")):
            os.utime(entry)
    return {**about, "shown": _later(about["shown"], moved)}


def _later(shown: Any, seconds: int) -> Any:
    """The view of an operator, with all its times moved."""
    if isinstance(shown, list):
        return [_later(item, seconds) for item in shown]
    if not isinstance(shown, dict):
        return shown
    return {
        key: round(value + seconds, 3) if key.endswith("_at") else _later(value, seconds)
        for key, value in shown.items()
    }


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
